"""Networks that begin with random weights: made from an entry, the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmopt.core import plugins
from fmopt.core.errors import CheckpointError, ConfigError
from fmopt.core.model import file_digest
from fmopt.data.datasets import training_texts
from fmopt.models import checkpoint, initialization
from fmopt.models.source import resolve
from fmopt.workflow import finetune
from tests.conftest import SENTENCES

TEXTS = [f"{one} and then {other}" for one in SENTENCES for other in SENTENCES]
ENTRY: dict[str, Any] = {
    "source": "config",
    "task": "text-generation",
    "config": {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 64},
    "tokenizer": {"kind": "byte-bpe", "size": 340},
}


def test_the_same_entry_texts_and_seed_give_the_same_files(tmp_path: Path) -> None:
    folders = [initialization.write_untrained(ENTRY, TEXTS, tmp_path / name, "tiny", seed=1) for name in ("a", "b")]
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        assert file_digest(folders[0] / name) == file_digest(folders[1] / name)
    other = initialization.write_untrained(ENTRY, TEXTS, tmp_path / "a", "tiny", seed=2)
    assert file_digest(other / "model.safetensors") != file_digest(folders[0] / "model.safetensors")
    metadata = checkpoint.inspect(resolve(str(other)))
    assert metadata.task == "text-generation"
    assert metadata.pipeline["max_length"] == 64
    assert metadata.pipeline["eos_token_id"] == [0]
    assert metadata.config["vocab_size"] == 340


def test_an_entry_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not know model_type 'gpt3'"):
        initialization.write_untrained({**ENTRY, "config": {"model_type": "gpt3"}}, TEXTS, tmp_path, "tiny")
    with pytest.raises(
        ConfigError, match="a tokenizer of kind 'words' cannot be trained; there are byte-bpe, byte-bpe-answers"
    ):
        initialization.write_untrained({**ENTRY, "tokenizer": {"kind": "words"}}, TEXTS, tmp_path, "tiny")
    with pytest.raises(CheckpointError, match="a vocabulary of bytes alone"):
        initialization.write_untrained(ENTRY, ["a b"], tmp_path, "tiny")
    assert not list(tmp_path.glob("untrained/*/tiny"))  # nothing half made is left


def test_finetune_trains_an_entry_with_its_own_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, data = tmp_path / "models", tmp_path / "data"
    models.mkdir()
    data.mkdir()
    (models / "tiny-lm.toml").write_text(
        'source = "config"\ntask = "text-generation"\n[config]\nmodel_type = "gpt2"\nn_layer = 1\nn_head = 2\n'
        'n_embd = 32\nn_positions = 256\n[tokenizer]\nkind = "byte-bpe"\nsize = 340\n'
        "[finetune]\nepochs = 4\nbatch_size = 4\nlearning_rate = 5e-3\n"
    )
    for split in ("train", "validation", "test"):
        (data / f"{split}.txt").write_text("\n\n".join(TEXTS[:100] if split == "train" else TEXTS[40:60]))
    monkeypatch.setattr(plugins, "data_folder", lambda name: tmp_path / name)
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "cache"))
    record = finetune.finetune("tiny-lm", data, tmp_path / "out")
    assert record["settings"]["epochs"] == 4
    assert record["settings"]["batch_size"] == 4
    values = [epoch["value"] for epoch in record["epochs"]]
    assert values[-1] < 0.8 * values[0]  # perplexity falls
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    texts = training_texts(str(data), plugins.find("tasks", "text-generation"))
    assert " ".join(texts).count("whale") == " ".join(TEXTS[:100]).count("whale")
