"""A GGUF file is a source like a checkpoint's folder: made one once, in the cache, and refused in one line where it cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fmopt.cli.app import main
from fmopt.core.errors import CheckpointError
from fmopt.models import checkpoint
from fmopt.models.source import place_in_cache, resolve
from tests.conftest import TinyCheckpoint
from tests.gguf_files import changed, gguf_of

pytest.importorskip("gguf", reason="the package gguf (extra `gguf`) is not installed")


@pytest.fixture
def file(tiny_checkpoint: TinyCheckpoint, tmp_path, monkeypatch) -> Path:
    """A tiny Llama in Q8_0, and a cache of this test's own."""
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "cache"))
    return gguf_of(tiny_checkpoint("llama", "text-generation"), tmp_path / "files", "int8")


def test_it_is_made_once_for_each_content(file, tmp_path):
    source = resolve(str(file))
    assert source.title == "model"
    assert source.folder.parent == tmp_path / "cache" / "gguf"
    stamp = (source.folder / "model.safetensors").stat().st_mtime_ns
    again = resolve(str(file.rename(file.with_name("other.gguf"))))
    assert again.folder != source.folder  # for its name is its title
    file.write_bytes(again_bytes := file.with_name("other.gguf").read_bytes())
    assert resolve(str(file)).folder == source.folder
    assert (source.folder / "model.safetensors").stat().st_mtime_ns == stamp
    file.write_bytes(again_bytes + b"\0")
    assert resolve(str(file)).folder != source.folder
    metadata = checkpoint.inspect(source)
    assert (metadata.task, metadata.model_type, metadata.layers) == ("text-generation", "llama", 2)


def test_a_name_of_any_length_has_a_place():
    for title in ("L" * 250, "語" * 80):
        place = place_in_cache("gguf", title, "what it is")
        assert title.startswith(place.name.rpartition("-")[0])
        assert len(place.name.encode()) < 160


def test_a_failed_conversion_leaves_nothing(file, tmp_path):
    with pytest.raises(CheckpointError):
        resolve(str(changed(file, tmp_path / "bad.gguf", "llama.context_length", 0)))
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_inspect_takes_it(file, capsys):
    assert main(["inspect", str(file)]) == 0
    assert "LlamaForCausalLM (llama)" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["inspect", "optimize", "export"])
def test_a_bad_file_is_one_line_and_exit_code_2(file, tmp_path, capsys, verb):
    path = tmp_path / "cut.gguf"
    path.write_bytes(file.read_bytes()[:-4000])
    assert main([verb, str(path), *(["-o", str(tmp_path / "out")] if verb != "inspect" else [])]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"fmopt: {path} (")
    assert lines[0].endswith("get the file again")
    assert not (tmp_path / "out").exists()


def test_without_the_package(file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main(["inspect", str(file)]) == 2
    assert "pip install 'fmopt[gguf]'" in capsys.readouterr().err


def test_a_folder_with_one_names_it(file):
    with pytest.raises(CheckpointError, match=rf"has no config\.json, but model\.gguf; name that file itself: {file}"):
        checkpoint.inspect(resolve(str(file.parent)))
