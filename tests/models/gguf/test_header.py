"""The header of a GGUF file is read as the package gguf reads it, and nothing that a file says is believed without its bytes."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import pytest

from fmopt.core.errors import CheckpointError
from fmopt.models.gguf.header import read_header
from tests.conftest import TinyCheckpoint
from tests.gguf_files import gguf_of, renamed

pytest.importorskip("gguf", reason="the package gguf (extra `gguf`) is not installed")


@pytest.fixture(scope="module")
def file(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in Q8_0."""
    return gguf_of(tiny_checkpoint("llama", "text-generation"), tmp_path_factory.mktemp("gguf"), "int8")


def test_metadata_and_tensors_are_those_that_gguf_reads(file):
    from gguf import GGUFReader

    header, other = read_header(file), GGUFReader(file)
    own = {key: field.contents() for key, field in other.fields.items() if not key.startswith("GGUF.")}
    assert dict(header.metadata) == own
    assert {name: info.shape for name, info in header.tensors.items()} == {
        one.name: tuple(reversed([int(size) for size in one.shape])) for one in other.tensors
    }
    assert {name: info.end for name, info in header.tensors.items()} == {
        one.name: one.data_offset + one.n_bytes for one in other.tensors
    }


def test_a_cut_file_is_refused_wherever_it_was_cut(file, tmp_path):
    content = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    ends = read_header(file).tensors.values()
    last = max(info.end for info in ends)
    for length in [*range(16, len(content), 997), last - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf \([\d,]+ bytes\) was cut.*get the file again"):
            read_header(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no GGUF file"),
        (b"PK\x03\x04 a zip file", "is no GGUF file: it does not begin with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is of GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is of GGUF version 50331648; versions 2 and 3, little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 2), "more than make sense"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "does not say its general.architecture"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "a text of 4,611,686,018,427,387,904 bytes"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77), "a value of type 77"),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 1 << 50),
            "lists of 1,125,899,906,842,624 values",
        ),
        (
            b"GGUF"
            + struct.pack("<IQQ", 3, 0, 3)
            + b"".join(struct.pack("<Q1sIIQ", 1, key, 9, 0, 1 << 21) + bytes(1 << 21) for key in (b"k", b"l", b"m")),
            "lists of 6,291,456 values, more than make sense",
        ),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 2), "a value of type 9"),
        (b"GGUF" + struct.pack("<IQQQ1s", 3, 0, 1, 1, b"\xff"), "not UTF-8"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_would_lie_beyond_the_file_is_refused(file, tmp_path):
    content = bytearray(file.read_bytes())
    at = content.index(b"blk.1.ffn_up.weight") + len(b"blk.1.ffn_up.weight")
    struct.pack_into("<Q", content, at + 4 + 8, 1 << 40)  # its number of rows
    path = tmp_path / "large.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"says a wrong size: blk\.1\.ffn_up\.weight would end at byte"):
        read_header(path)


def test_tensors_that_share_bytes_are_refused(file, tmp_path):
    """Else a file of some megabytes would be a network of any number of layers."""
    content = bytearray(file.read_bytes())
    at = content.index(b"blk.1.ffn_up.weight") + len(b"blk.1.ffn_up.weight")
    struct.pack_into("<Q", content, at + 4 + 2 * 8 + 4, 0)  # where it lies
    path = tmp_path / "shared.gguf"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"has blk\.1\.ffn_up\.weight where \S+ lies|has \S+ where blk\.1\.ffn_up"
    ):
        read_header(path)


def test_a_name_twice_and_a_wrong_alignment_are_refused(file, tmp_path):
    twice = renamed(file, tmp_path / "twice.gguf", "blk.1.ffn_up.weight", "blk.0.ffn_up.weight")
    with pytest.raises(CheckpointError, match=r"has the tensor blk\.0\.ffn_up\.weight twice"):
        read_header(twice)
    wrong = renamed(file, tmp_path / "wrong.gguf", "general.file_type", "general.alignment")
    with pytest.raises(CheckpointError, match=r"says 7 for general\.alignment; it is a power of two"):
        read_header(wrong)


def test_values_of_another_kind_are_refused_when_they_are_asked_for(file, tmp_path):
    header = read_header(renamed(file, tmp_path / "kind.gguf", "general.name", "general.xxxx"))
    with pytest.raises(CheckpointError, match=r"its general\.xxxx is tiny-llama, where int belongs"):
        header.number("general.xxxx")
    with pytest.raises(CheckpointError, match=r"its tokenizer\.ggml\.tokens is no list of int"):
        header.items("tokenizer.ggml.tokens", int)


def test_changed_bytes_give_a_header_or_one_line(file, tmp_path):
    content, rng = file.read_bytes(), random.Random(0)
    path, said = tmp_path / "fuzzed.gguf", []
    for _ in range(300):
        one = bytearray(content[:20_000])
        for _ in range(rng.choice((1, 2, 8))):
            one[rng.randrange(4, len(one))] = rng.choice((0, 1, 9, 127, 255, rng.randrange(256)))
        path.write_bytes(one + content[20_000:])
        try:
            read_header(path)
        except CheckpointError as error:
            said.append(str(error))
    assert len(said) > 50
    assert all(str(path) in line and "\n" not in line for line in said)


def test_without_the_package_its_extra_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"read by a package that is missing: pip install 'fmopt\[gguf\]'"):
        read_header(file)
