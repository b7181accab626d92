"""Decoders whose weights do not fit in one file: written in shards, exported with weights beside the graph, made narrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from fmopt.edge.generation import GenerationConfig, continuations
from fmopt.edge.runners import open_runner
from fmopt.exporters import onnx_graph, to_onnx
from fmopt.exporters.onnx_graph import read_onnx
from fmopt.passes.fuse_decoder import FuseDecoder
from fmopt.passes.quantize_embeddings import QuantizeEmbeddings
from fmopt.passes.quantize_weights import QuantizeWeights
from tests.conftest import SENTENCES
from tests.models.wrappers.test_decoder import opened
from tests.torch_models import context_of, model_of, padded

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_beside_the_graph_become_the_same_narrow_weights(
    family: str, tiny_decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inside = tiny_decoder(family)
    monkeypatch.setattr(to_onnx, "EXTERNAL_DATA_BYTES", 0)
    beside = to_onnx.export_onnx(model, padded(model), tmp_path / "export")
    assert (tmp_path / "export" / "model.onnx.data").is_file()
    assert any(node.op_type == "Transpose" and node.input[0].endswith(".weight")
               for node in onnx.load(beside.path, load_external_data=False).graph.node)  # fmt: skip
    made = []
    for number, graph in enumerate((inside, beside)):
        for step in (QuantizeWeights(bits=4, block=32), QuantizeEmbeddings(min_rows=100), FuseDecoder()):
            graph = step.apply(graph, context_of(model), tmp_path / f"{number}-{type(step).__name__}")
        made.append(graph)
    kinds = [[node.op_type for node in read_onnx(graph.path).graph.node].count("MatMulNBits") for graph in made]
    assert kinds[0] == kinds[1] == 2 * 4 + 1
    reported = []
    for graph in made:
        one = opened(model, graph)
        prompts = [one.model.preprocessor.ids(text) for text in SENTENCES[:2]]
        reported.append(list(continuations(one.runner, prompts, one.pipeline, GenerationConfig(max_new_tokens=8))))
    assert reported[0] == reported[1]


def test_narrow_weights_that_are_still_large_lie_beside_the_graph(
    tiny_decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graph = tiny_decoder("gpt2")
    monkeypatch.setattr(onnx_graph, "EXTERNAL_FROM_BYTES", 1000)
    narrow = QuantizeWeights(bits=4, block=32).apply(graph, context_of(model), tmp_path / "narrow")
    made = FuseDecoder().apply(narrow, context_of(model), tmp_path / "fused")
    assert (tmp_path / "fused" / "model.onnx.data").is_file()
    assert open_runner("onnxruntime", made.path, {}, 1).appends


def test_random_weights_are_written_in_shards_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import random_decoders

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    monkeypatch.setitem(random_decoders.SHAPES, "llama-1.1b", random_decoders.SHAPES["llama-1.1b"] | small)
    monkeypatch.setattr(random_decoders, "SHARD_BYTES", 20_000)
    folder = random_decoders.write_decoder("llama-1.1b", tmp_path / "one")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    model = model_of(folder)
    assert model.metadata.parameters == sum(parameter.numel() for parameter in model.net.parameters())
    again = random_decoders.write_decoder("llama-1.1b", tmp_path / "two")
    for name in set(index.values()):
        assert (folder / name).read_bytes() == (again / name).read_bytes()
