"""A checkpoint's files are one value: each is opened once, whoever asks for what it says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from fmopt.core.errors import CheckpointError
from fmopt.models import checkpoint, received
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.source import resolve
from tests.conftest import TinyCheckpoint


@pytest.mark.parametrize(
    ("family", "task"), [("bert", "sentence-embedding"), ("gpt2", "text-generation"), ("t5", "translation")]
)
def test_a_checkpoint_is_read_once(
    family: str, task: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path))
    folder = tiny_checkpoint(family, task)
    opened: Counter[str] = Counter()
    read = received.read_json

    def counted(path: Path, *rest: object) -> object:
        opened[path.name] += 1
        return read(path, *rest)

    monkeypatch.setattr(received, "read_json", counted)
    checkpoint.inspect(resolve(str(folder)), task)
    assert opened["config.json"] == opened["tokenizer_config.json"] == 1
    assert {name: count for name, count in opened.items() if count > 1} == {}


def test_a_copy_keeps_what_was_read_but_not_the_tokenizer(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps({"of": folder.name}))
    (first / "config.json").write_text(json.dumps({"model_type": "bert"}))
    files = CheckpointFiles.of(first)
    assert files.config == {"model_type": "bert"}
    assert files.read(first / "tokenizer.json") == {"of": "first"}
    copy = files.copied_to(second)  # which has no config.json of its own: it is not opened
    assert copy.config == {"model_type": "bert"}
    assert copy.read(copy.folder / "tokenizer.json") == {"of": "second"}
    assert copy.home == first


def test_a_file_of_another_kind_is_refused_wherever_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('[1, {"path": ""}]')
    (tmp_path / "generation_config.json").write_text("[]")
    files = CheckpointFiles.of(tmp_path)
    assert files.read(tmp_path / "preprocessor_config.json") is None
    with pytest.raises(CheckpointError, match=r"modules\.json is no list of JSON objects"):
        files.read(tmp_path / "modules.json", list)
    with pytest.raises(CheckpointError, match=r"generation_config\.json cannot be read as JSON"):
        files.look_through()
