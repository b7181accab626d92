"""GGUF files for tests: made of tiny checkpoints, and changed by a few bytes."""

from __future__ import annotations

import struct
from pathlib import Path

from fmopt.exporters.gguf.writer import export_gguf
from fmopt.models import checkpoint
from fmopt.models.gguf.header import NUMBERS, STRING
from fmopt.models.source import resolve

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


def gguf_of(folder: Path, out: Path, precision: str = "fp32") -> Path:
    """The GGUF file of a checkpoint folder, in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    return export_gguf(checkpoint.load(checkpoint.inspect(resolve(str(folder)))), out, precision)


def said(key: str) -> bytes:
    """A key of the metadata as it stands in a file."""
    return struct.pack("<Q", len(key)) + key.encode()


def changed(path: Path, out: Path, key: str, value: int | float | str) -> Path:
    """A copy of a GGUF file with another number, or a text of the same length, for `key`."""
    content = bytearray(path.read_bytes())
    at = content.index(said(key)) + len(said(key))
    (kind,) = struct.unpack_from("<I", content, at)
    if kind == STRING:
        written = struct.pack("<Q", len(str(value))) + str(value).encode()
        assert struct.unpack_from("<Q", content, at + 4)[0] == len(str(value))
    else:
        written = struct.pack("<" + NUMBERS[kind], value)
    content[at + 4 : at + 4 + len(written)] = written
    out.write_bytes(content)
    return out


def renamed(path: Path, out: Path, name: str, other: str) -> Path:
    """A copy of a GGUF file with another name, of the same length, of a key or tensor."""
    assert len(name) == len(other)
    content = path.read_bytes()
    assert said(name) in content
    out.write_bytes(content.replace(said(name), said(other), 1))
    return out
