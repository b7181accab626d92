"""A checkpoint folder made of a GGUF file computes what the checkpoint did that the file was made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from fmopt.core.errors import CheckpointError
from fmopt.models.gguf.checkpoint_folder import read_network, write_checkpoint
from fmopt.models.gguf.header import read_header
from fmopt.models.gguf.layout import dimensions_of
from tests.conftest import TinyCheckpoint
from tests.gguf_files import changed, gguf_of

pytest.importorskip("gguf", reason="the package gguf (extra `gguf`) is not installed")
IDS = torch.tensor([[0, 5, 17, 200, 3, 42]])


def logits(folder: Path) -> np.ndarray:
    net = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        return net(IDS).logits.numpy()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_same_logits_and_settings(tiny_checkpoint: TinyCheckpoint, tmp_path, family, capfd):
    source = tiny_checkpoint(family, "text-generation")
    capfd.readouterr()
    write_checkpoint(gguf_of(source, tmp_path / "gguf"), tmp_path / "out")
    assert capfd.readouterr().err == ""  # no bars of other libraries
    assert np.abs(logits(tmp_path / "out") - logits(source)).max() < 1e-5
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", source))
    assert "quantization_config" not in ours
    for name in (
        "rope_parameters",
        "rms_norm_eps",
        "tie_word_embeddings",
        "vocab_size",
        "eos_token_id",
        "bos_token_id",
    ):
        assert ours[name] == theirs[name]
    window = 8 if family == "mistral" else 64  # of a sliding window what it can be relied on for
    assert ours["max_position_embeddings"] == window
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == theirs["eos_token_id"]


@pytest.mark.parametrize(("precision", "kind"), [("int8", "Q8_0"), ("int4", "Q4_0")])
def test_quantized_weights_are_what_they_stand_for(tiny_checkpoint: TinyCheckpoint, tmp_path, precision, kind):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    source = tiny_checkpoint("qwen2", "text-generation")  # whose rows are in the same order
    header = read_header(gguf_of(source, tmp_path, precision))
    read = read_network(header, dimensions_of(header)).state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    weight = transformers.AutoModelForCausalLM.from_pretrained(source).state_dict()[name].numpy()
    expected = dequantize(quantize(weight, GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
    assert np.array_equal(read[name].numpy(), expected)
    assert not np.array_equal(expected, weight)


def test_nothing_beside_a_file_is_read(tiny_checkpoint: TinyCheckpoint, tmp_path, monkeypatch):
    file = gguf_of(tiny_checkpoint("llama", "text-generation"), tmp_path / "gguf")
    for name in ("adapter_config.json", "config.json", "generation_config.json", "tokenizer_config.json"):
        (file.parent / name).write_text("{ no JSON")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / file.name).write_bytes(b"GGUF, but not this one")
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_checkpoint(file, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.context_length", 0),
        ("llama.rope.freq_base", float("nan")),
        ("llama.rope.freq_base", -1.0),
        ("llama.attention.layer_norm_rms_epsilon", float("inf")),
    ],
)
def test_settings_that_make_no_sense(tiny_checkpoint: TinyCheckpoint, tmp_path, key, value):
    file = gguf_of(tiny_checkpoint("llama", "text-generation"), tmp_path / "gguf")
    with pytest.raises(CheckpointError, match=rf"its {key} is .*; it is above 0"):
        write_checkpoint(changed(file, tmp_path / "changed.gguf", key, value), tmp_path / "out")
