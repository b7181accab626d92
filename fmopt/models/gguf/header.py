"""What a GGUF file says of itself, its metadata and its table of tensors: checked against its length before a library reads it.

The format is that of ggml's docs/gguf.md: magic, version, counts, metadata, tensor table, then tensors at aligned offsets, all
little-endian. Whatever a file says is believed only where the file is long enough to hold it.
"""

from __future__ import annotations

import importlib.util
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.edge.errors import shorten
from fmopt.edge.files import printable

GGUF = ".gguf"  # how its name ends
MAGIC, VERSIONS = b"GGUF", (2, 3)
LFS_POINTER = b"version https://git-lfs"
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # of values
STRING, ARRAY = 8, 9
ALIGNMENT = 32  # where general.alignment says nothing
MOST_KEYS, MOST_TENSORS, MOST_ELEMENTS, MOST_DIMENSIONS = 1 << 12, 1 << 16, 1 << 22, 4  # elements: of all lists
LONGEST_KEY, LONGEST_STRING = 1 << 10, 1 << 20  # bytes


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a GGUF file, before it is read."""

    shape: tuple[int, ...]  # as PyTorch has it: rows first
    kind: int  # GGMLQuantizationType
    end: int  # the first byte of the file after it


@dataclass(frozen=True)
class GgufHeader:
    """A GGUF file's metadata and tensors by their names."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """The name of the network's architecture, as llama.cpp calls it."""
        return str(self.text("general.architecture"))

    def text(self, key: str, default: str | None = None) -> str | None:
        """A text of the metadata; CheckpointError for another kind of value."""
        return self._typed(key, str, default)

    def number(self, key: str, default: int | None = None) -> int | None:
        """A whole number of the metadata, 0 or more; CheckpointError for another kind of value."""
        found: int | None = self._typed(key, int, default)
        if found is not None and found < 0:
            raise CheckpointError(f"{self.path}: its {key} is {found}; it is 0 or more. Get the file again")
        return found

    def items(self, key: str, kind: type) -> list[Any]:
        """A list of the metadata, empty where there is none; CheckpointError for other things than a list of `kind`."""
        found = self._typed(key, list, [])
        if not all(type(one) is kind for one in found):
            raise CheckpointError(f"{self.path}: its {key} is no list of {kind.__name__}; get the file again")
        return list(found)

    def flag(self, key: str, default: bool) -> bool:
        """A yes or no of the metadata; CheckpointError for another kind of value."""
        return bool(self._typed(key, bool, default))

    def _typed(self, key: str, kind: type, default: Any) -> Any:
        found = self.metadata.get(key, default)
        if found is not None and type(found) is not kind:
            raise CheckpointError(
                f"{self.path}: its {key} is {shorten(printable(found))}, where {kind.__name__} belongs; get the file again"
            )
        return found


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file.

    CheckpointError for what is no GGUF file, for one that is cut, and for one whose header says what cannot be: lengths beyond
    the file, a tensor of an unknown kind, a name twice. ConfigError where the package gguf is not installed.
    """
    require_gguf(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        begins = stream.read(len(LFS_POINTER))
        if begins == LFS_POINTER:
            raise CheckpointError(f"{path} is a Git LFS pointer, not the model; run `git lfs pull` in its repository")
        if not begins.startswith(MAGIC):
            raise CheckpointError(f"{path} is no GGUF file: it does not begin with GGUF; get the file again")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(path, content, size).header()


def require_gguf(path: Path) -> None:
    """CheckpointError where the package that GGUF files are read by is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"{path} is a GGUF file, which is read by a package that is missing: pip install 'fmopt[gguf]'"
        )


class _Reader:
    """Reads one header from front to end."""

    def __init__(self, path: Path, content: mmap.mmap, size: int):
        self.path, self.content, self.size = path, content, size
        self.at = len(MAGIC)
        self.elements = 0  # of all lists so far

    def header(self) -> GgufHeader:
        version = self.number("I")
        if version not in VERSIONS:
            raise self.wrong(f"is of GGUF version {version}; versions 2 and 3, little-endian, are read here")
        tensors, keys = self.number("Q"), self.number("Q")
        if keys > MOST_KEYS or tensors > MOST_TENSORS:
            raise self.wrong(f"says that it has {keys:,} keys and {tensors:,} tensors, more than make sense")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.string(LONGEST_KEY)
            if key in metadata:
                raise self.wrong(f"says {shorten(printable(key))} twice")
            metadata[key] = self.value(self.number("I"))
        table = self.table(tensors)
        known = GgufHeader(self.path, metadata, self.placed(table, metadata.get("general.alignment", ALIGNMENT)))
        if not known.text("general.architecture"):
            raise self.wrong("does not say its general.architecture")
        return known

    def table(self, count: int) -> dict[str, tuple[tuple[int, ...], int, int]]:
        """(Shape, kind, offset) of every tensor."""
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name = self.string(LONGEST_KEY)
            dimensions = self.number("I")
            if name in found:
                raise self.wrong(f"has the tensor {shorten(printable(name))} twice")
            if not 1 <= dimensions <= MOST_DIMENSIONS:
                raise self.wrong(f"says that {shorten(printable(name))} has {dimensions} dimensions")
            shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
            found[name] = (shape, self.number("I"), self.number("Q"))
        return found

    def placed(self, table: Mapping[str, tuple[tuple[int, ...], int, int]], alignment: Any) -> dict[str, TensorInfo]:
        """The tensors, all of them inside the file."""
        from gguf.constants import GGML_QUANT_SIZES

        if type(alignment) is not int or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise self.wrong(f"says {shorten(printable(alignment))} for general.alignment; it is a power of two")
        sizes = {int(kind): block for kind, block in GGML_QUANT_SIZES.items()}
        begin = (self.at + alignment - 1) // alignment * alignment
        found: dict[str, TensorInfo] = {}
        before, last = "", 0  # the tensor that lies before, and where it ends
        for name, (shape, kind, offset) in sorted(table.items(), key=lambda one: one[1][2]):
            said = shorten(printable(name))
            if kind not in sizes:
                raise self.wrong(
                    f"holds {said} as ggml type {kind}, which the installed gguf does not know; pip install -U gguf"
                )
            in_block, block_bytes = sizes[kind]
            if min(shape) < 1 or shape[-1] % in_block or offset % alignment:
                raise self.wrong(f"says that {said} has the shape {list(shape)} at byte {offset}, which cannot be")
            end = begin + offset + prod(shape) // in_block * block_bytes
            if end > self.size:
                raise CheckpointError(
                    f"{self.path} ({self.size:,} bytes) was cut, or says a wrong size: {said} would end at byte {end:,}; get the "
                    "file again"
                )
            if begin + offset < last:  # else a small file makes a network of any size
                raise self.wrong(f"has {said} where {shorten(printable(before))} lies")
            before, last = name, end
            found[name] = TensorInfo(shape, kind, end)
        return found

    def value(self, kind: int) -> Any:
        """A value of the metadata."""
        if kind == STRING:
            return self.string(LONGEST_STRING)
        if kind != ARRAY:
            return self.number(self.letter(kind))
        kind, count = self.number("I"), self.number("Q")
        self.elements += count
        if self.elements > MOST_ELEMENTS:
            raise self.wrong(f"holds lists of {self.elements:,} values, more than make sense")
        if kind == STRING:
            return [self.string(LONGEST_STRING) for _ in range(count)]
        return list(self.unpacked(f"<{count}{self.letter(kind)}"))

    def letter(self, kind: int) -> str:
        if kind not in NUMBERS:
            raise self.wrong(f"holds a value of type {kind}, which there is not")
        return NUMBERS[kind]

    def string(self, most: int) -> str:
        length = self.number("Q")
        if length > most:
            raise self.wrong(f"holds a text of {length:,} bytes where at most {most:,} make sense")
        try:
            return self.taken(length).decode()
        except UnicodeDecodeError as error:
            raise self.wrong("holds a text that is not UTF-8") from error

    def number(self, letter: str) -> Any:
        return self.unpacked("<" + letter)[0]

    def unpacked(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.taken(struct.calcsize(layout)))

    def taken(self, count: int) -> bytes:
        if self.at + count > self.size:
            raise CheckpointError(
                f"{self.path} ({self.size:,} bytes) was cut: its header is not whole; get the file again"
            )
        self.at += count
        return self.content[self.at - count : self.at]

    def wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {what}; get the file again")
