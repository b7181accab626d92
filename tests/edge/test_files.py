"""What is received is opened one way: plain names, no links, hashes, limits; what a terminal obeys is spelled out."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models

from fmopt.core import escaping
from fmopt.edge import files, tokenizer_file
from fmopt.edge.errors import EdgeError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../x", "/etc/passwd", "a//b", "a/", "./a", "a\\b", "C:a", "a\0b", "a\x1bb", "a\nb", "x" * 256,
     "a/" * 9 + "b", "\u202ea", "*/_ORT_MEM_ADDR_/*", 5, None, ["a"]],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_none(name, tmp_path):
    assert not files.is_plain_name(name)
    with pytest.raises(EdgeError, match="not the name of a file inside"):
        files.open_inside(tmp_path, name)


def test_links_devices_and_folders_are_not_opened(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (inside / "file").write_bytes(b"whole")
    (inside / "link").symlink_to(outside / "secret")
    (inside / "folder").symlink_to(outside)
    (inside / "plain").mkdir()
    os.mkfifo(inside / "fifo")
    assert files.read_inside(inside, "file") == b"whole"
    for name in ("link", "folder/secret", "fifo", "plain", "missing"):
        started = time.monotonic()
        with pytest.raises(EdgeError, match=f"^{name} (is|cannot)"):
            files.open_inside(inside, name)
        assert time.monotonic() - started < 5  # a FIFO without a writer would wait for ever
    with pytest.raises(EdgeError, match="more than 2 bytes"):
        files.read_inside(inside, "file", most=2)


def test_a_listed_file_is_of_its_size_and_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    whole = {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert files.damage_of(tmp_path, "a", whole) is None
    assert "has 3 bytes instead of 4" in str(files.damage_of(tmp_path, "a", {**whole, "bytes": 4}))
    assert "was changed" in str(files.damage_of(tmp_path, "a", {**whole, "sha256": "0" * 64}))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested"),
        (b"[" * 101 + b"]" * 101, "holds list|nested"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a": "\\ud800"}', "damaged"),
        (b"\xff{}", "damaged"),
        (b"[]", "holds list where dict"),
        (b"{", "damaged"),
    ],
)
def test_json_that_is_too_deep_or_means_two_things(written, words):
    with pytest.raises(EdgeError, match=words):
        files.parsed(written, "it")


def test_a_terminal_gets_nothing_it_would_obey():
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e[/b] end\x7f\ud800"
    shown = files.printable(evil)
    assert shown.startswith("\\x1b]0;title\\x07")
    assert all(letter.isprintable() for letter in shown)
    assert json.loads(files.json_line({"a": "\x1b\x9b\u202e"})) == {"a": "\x1b\x9b\u202e"}
    assert files.json_line("\x9b\u202e") == '"\\u009b\\u202e"'


def test_markdown_and_commands_to_copy_hold_no_markup():
    assert "<img" not in escaping.markdown("<img src=x>")
    assert escaping.markdown("![x](a) [y](javascript:z)") == r"!\[x\](a) \[y\](javascript:z)"
    assert "http://" not in escaping.markdown("http://evil.example")
    assert escaping.markdown("tiny-bert") == "tiny-bert"
    block = escaping.fenced("fmopt `` ```\n<img>\r")
    assert block.splitlines() == ["````", "fmopt `` ``` <img>", "````"]
    assert escaping.shell_word("a [MASK] in") == '"a [MASK] in"'
    assert escaping.shell_word("a $(touch x) in") == "'a $(touch x) in'"


def external_graph(path: Path, location: str, inner: bool) -> None:
    tensor = numpy_helper.from_array(__import__("numpy").zeros(4, "float32"), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    constant = helper.make_node("Constant", [], ["y"])
    constant.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
    body = helper.make_graph([constant], "body", [], [out])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    graph = body if not inner else helper.make_graph([branch], "g", [], [out])
    if not inner:
        graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [out], [tensor])
    path.write_bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("inner", [False, True])
def test_the_files_that_a_graph_reads_are_found_wherever_it_names_them(inner, tmp_path):
    external_graph(tmp_path / "g.onnx", "../w.bin", inner)
    assert files.external_files(memoryview((tmp_path / "g.onnx").read_bytes())) == {"../w.bin"}


def test_a_field_that_protobuf_would_read_as_another_is_none(tmp_path):
    """Of a key protobuf takes 32 bits: with one above them, the weights' place would be seen by the runtime alone."""
    external_graph(tmp_path / "g.onnx", "w.bin", inner=False)
    graph = (tmp_path / "g.onnx").read_bytes()
    at = graph.index(b"\x3a")  # the key of field 7, the graph
    assert files.external_files(memoryview(graph)) == {"w.bin"}
    hidden = graph[:at] + bytes([0xBA, 0x80, 0x80, 0x80, 0x10]) + graph[at + 1 :]
    with pytest.raises(ValueError, match="no protobuf message"):
        files.external_files(memoryview(hidden))


def test_a_graph_of_very_many_parts_is_not_read(tmp_path, monkeypatch):
    external_graph(tmp_path / "g.onnx", "w.bin", inner=True)
    monkeypatch.setattr(files, "MOST_FIELDS", 8)
    with pytest.raises(ValueError, match="it has more than 8 nodes, tensors and names"):
        files.external_files(memoryview((tmp_path / "g.onnx").read_bytes()))


def test_what_never_ends_or_ends_the_process_is_one_line():
    python = sys.executable
    assert files.tried_apart([python, "-c", "pass"], 60) is None
    assert "did not come to an end in 1 s" in str(files.tried_apart([python, "-c", "while True: pass"], 1))
    assert "was ended by it" in str(files.tried_apart([python, "-c", "import os; os.abort()"], 60))
    said = files.tried_apart([python, "-c", "raise SystemExit('error: \\x1b[2J wrong')"], 60)
    assert said == "\\x1b[2J wrong"


def test_tokenizers_that_pad_or_replace_without_end_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(path))
    written = json.loads(path.read_text())
    assert tokenizer_file.open_tokenizer(path).encode("a").ids == [0]
    padding = {"strategy": {"Fixed": 10**10}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "a"}  # fmt: skip
    replaced = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    for change in (
        {"padding": padding},
        {"normalizer": {"type": "Sequence", "normalizers": [replaced] * 9}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"model": written["model"] | {"vocab": {"a": 0, "[UNK]": 1 << 31}}},  # all numbers between are walked
    ):
        path.write_text(json.dumps(written | change))
        with pytest.raises(EdgeError, match=r"tokenizer\.json is not a tokenizer this library reads"):
            tokenizer_file.open_tokenizer(path)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="rights of other systems")
def test_a_marker_that_others_could_have_written_does_not_count(tmp_path):
    marker = tmp_path / "tried" / "one"
    files.leave(marker)
    assert files.is_left(marker)
    marker.parent.chmod(0o777)
    assert not files.is_left(marker)
