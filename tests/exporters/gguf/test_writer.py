"""A network as a GGUF file: in the precision asked for, read back as the same, and refused where something would be lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fmopt.core.errors import ConfigError, ParityError, PassError
from fmopt.exporters.gguf import readback, writer
from fmopt.models import checkpoint
from fmopt.models.gguf.header import read_header
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from tests.conftest import TinyCheckpoint

pytest.importorskip("gguf", reason="the package gguf (extra `gguf`) is not installed")
TEXTS = ("the cat sat on the mat", "Paris is a large city")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 34 / 32, "int4": 18 / 32}  # of a weight


def opened(folder: Path) -> TorchModel:
    return checkpoint.load(checkpoint.inspect(resolve(str(folder))))


@pytest.mark.parametrize("precision", writer.PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_read_back_as_the_same(tiny_checkpoint: TinyCheckpoint, tmp_path, family, precision):
    model = opened(tiny_checkpoint(family, "text-generation"))
    path = writer.export_gguf(model, tmp_path, precision)
    readback.require_same(path, model, TEXTS, precision)
    from gguf import GGUFReader

    kinds = {
        one.name: (one.tensor_type.name, int(one.n_bytes), int(one.n_elements)) for one in GGUFReader(path).tensors
    }
    kind, size, count = kinds["blk.1.ffn_down.weight"]
    assert kind == writer.PRECISIONS[precision]
    assert size == count * BYTES[precision]
    assert kinds["blk.0.attn_norm.weight"][0] == "F32"
    assert kinds["output.weight"][0] == ("Q8_0" if precision == "int4" else kind)


def test_a_tied_table_is_there_once_and_wide_enough_for_logits(tiny_checkpoint: TinyCheckpoint, tmp_path):
    folder = tmp_path / "tied"
    shutil.copytree(tiny_checkpoint("llama", "text-generation"), folder)
    model = opened(folder)
    model.net.config.tie_word_embeddings = True
    model.net.tie_weights()
    model.net.save_pretrained(folder)
    model = opened(folder)
    path = writer.export_gguf(model, tmp_path, "int4")
    readback.require_same(path, model, TEXTS, "int4")
    header = read_header(path)
    assert "output.weight" not in header.tensors
    assert header.tensors["token_embd.weight"].kind == 8  # Q8_0


def test_rows_that_make_no_blocks_become_halves(tmp_path, tiny_checkpoint: TinyCheckpoint):
    model = narrow(tiny_checkpoint("llama", "text-generation"), tmp_path / "narrow")
    path = writer.export_gguf(model, tmp_path, "int8")
    readback.require_same(path, model, TEXTS, "int8")
    tensors = read_header(path).tensors
    assert (tensors["blk.0.ffn_down.weight"].kind, tensors["blk.0.ffn_up.weight"].kind) == (1, 8)  # F16, Q8_0


def narrow(source: Path, folder: Path) -> TorchModel:
    """The tiny network with a feed-forward of 40, which is no multiple of 32."""
    import transformers

    shutil.copytree(source, folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.intermediate_size = 40
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return opened(folder)


def test_weights_that_are_too_large_for_a_format(tiny_checkpoint: TinyCheckpoint, tmp_path):
    model = opened(tiny_checkpoint("llama", "text-generation"))
    with torch.no_grad():
        model.net.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(
        PassError, match=r"mlp\.up_proj\.weight holds 1e\+06, which F16 cannot hold; use --precision fp32"
    ):
        writer.export_gguf(model, tmp_path, "fp16")
    writer.export_gguf(model, tmp_path, "bf16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "positions are scaled .*'linear'",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, r"the network has model\.layers\.0\.self_attn\.q_proj\.bias"),
    ],
)
def test_what_would_be_lost_is_refused(tiny_checkpoint: TinyCheckpoint, tmp_path, settings, message):
    import transformers

    folder = tmp_path / "changed"
    shutil.copytree(tiny_checkpoint("llama", "text-generation"), folder)
    written = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(written))
    transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder)).save_pretrained(
        folder
    )
    with pytest.raises(ConfigError, match=message):
        writer.export_gguf(opened(folder), tmp_path, "fp32")


def test_layers_of_different_widths_are_refused(tiny_checkpoint: TinyCheckpoint, tmp_path):
    model = opened(tiny_checkpoint("llama", "text-generation"))
    mlp = model.net.model.layers[1].mlp
    for part in (mlp.gate_proj, mlp.up_proj):
        part.weight = torch.nn.Parameter(part.weight[:32])
    with pytest.raises(
        ConfigError, match=r"layers\.1\.mlp\.gate_proj\.weight is \[32, 32\] where a GGUF file has \[64, 32\]"
    ):
        writer.export_gguf(model, tmp_path, "fp32")


def test_other_networks_are_refused(tiny_checkpoint: TinyCheckpoint):
    metadata = checkpoint.inspect(resolve(str(tiny_checkpoint("gpt2", "text-generation"))))
    assert "decoders of the types llama, mistral, qwen2, qwen3, and this is gpt2" in str(writer.refusal(metadata))
    assert writer.refusal(checkpoint.inspect(resolve(str(tiny_checkpoint("qwen3", "text-generation"))))) is None


def test_a_file_that_is_another_network_is_not_handed_over(tiny_checkpoint: TinyCheckpoint, tmp_path):
    model = opened(tiny_checkpoint("llama", "text-generation"))
    path = writer.export_gguf(model, tmp_path, "int8")
    content = bytearray(path.read_bytes())
    end = read_header(path).tensors["blk.0.attn_q.weight"].end
    content[end - 500 : end] = bytes(np.random.default_rng(0).integers(0, 60, 500, dtype=np.uint8))
    path.write_bytes(content)
    with pytest.raises(ParityError, match=r"layers\.0\.self_attn\.q_proj\.weight is read back changed by"):
        readback.require_same(path, model, TEXTS, "int8")


def test_a_file_with_other_settings_is_not_handed_over(tiny_checkpoint: TinyCheckpoint, tmp_path):
    model = opened(tiny_checkpoint("llama", "text-generation"))
    path = writer.export_gguf(model, tmp_path, "fp32")
    model.net.model.rotary_emb.inv_freq *= 0.5
    with pytest.raises(ParityError, match="read back, its logits differ by"):
        readback.require_same(path, model, TEXTS, "fp32")
