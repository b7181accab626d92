"""NNCF's weight compression of graphs that generate: narrow weights, near answers, every method, refusals."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import Artifact, Graph
from fmopt.exporters.openvino_graph import read_ir
from fmopt.exporters.to_onnx import convert_openvino
from fmopt.passes.compress_weights import CompressWeights
from fmopt.runtimes.openvino import RUNTIME
from tests.passes.conftest import target
from tests.torch_models import items_of, padded


@pytest.fixture(scope="module")
def ir(tiny_decoder: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Graph]:
    model, graph = tiny_decoder("llama")
    return model, convert_openvino(graph, tmp_path_factory.mktemp("decoder-ir"))


def narrow(graph: Graph) -> Counter[str]:
    """Constants of 8 and 4 bits by their type; those of 4 are what blocks share a scale of."""
    kinds = (
        op.get_output_element_type(0).get_type_name() for op in read_ir(graph.path).get_ops() if op.get_output_size()
    )
    return Counter(kind for kind in kinds if kind in ("i8", "u8", "i4", "u4"))


def logits(graph: Graph, inputs: Any) -> np.ndarray:
    runner = RUNTIME.open(Artifact("openvino", graph.path, {"precision": "f32"}), 1)
    return np.asarray(runner.run(inputs)["logits"][inputs["attention_mask"].astype(bool)])


@pytest.mark.parametrize(
    ("options", "kinds", "cosine"),
    [({"bits": 8}, {"i8"}, 0.995), ({"bits": 4, "block": 32}, {"i4", "u8"}, 0.85),
     ({"bits": 4, "block": 32, "head": True}, {"i4"}, 0.8), ({"bits": 4, "block": 128}, {"i4", "u8"}, 0.85),
     ({"bits": 4, "block": 32, "method": "awq"}, {"i4", "u8"}, 0.85),
     ({"bits": 4, "block": 32, "method": "scale"}, {"i4", "u8"}, 0.85),
     ({"bits": 4, "block": 32, "method": "gptq"}, {"i4", "u8"}, 0.85)],
)  # fmt: skip
def test_weights_are_narrow_and_the_answer_stays(
    ir: tuple[Any, Graph], make_context: Any, tmp_path: Path, options: dict[str, Any], kinds: set[str], cosine: float
) -> None:
    model, graph = ir
    context = replace(make_context("avx2"), calibration=lambda: iter(items_of(model)[:8]))
    made = CompressWeights(**options).apply(graph, context, tmp_path)
    assert set(narrow(made)) == kinds
    inputs = padded(model)
    ours, whole = logits(made, inputs).ravel(), logits(graph, inputs).ravel()
    got = float(ours @ whole / np.linalg.norm(ours) / np.linalg.norm(whole))
    assert cosine < got < 1 - 1e-9
    if options.get("method"):
        plain = CompressWeights(bits=4, block=32).apply(graph, context, tmp_path / "rtn")
        assert np.abs(logits(plain, inputs).ravel() - ours).max() > 1e-2
    assert made.history[-1].startswith(f"compress_weights({options['bits']} bits")


def test_what_cannot_be_done(ir: tuple[Any, Graph], make_context: Any, tmp_path: Path) -> None:
    for options, said in (
        ({"bits": 3}, "it is one of 4, 8"), ({"block": 48}, "32, 64, 128"), ({"method": "hqq"}, "rtn, awq, scale, gptq"),
        ({"method": "awq"}, "is for 4 bits"), ({"items": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            CompressWeights(**options)
    with pytest.raises(PassError, match="no calibration items"):
        CompressWeights(bits=4, block=32, method="awq").apply(ir[1], make_context("avx2", count=0), tmp_path)
    metadata = ir[0].metadata
    assert CompressWeights().refusal(metadata, target("avx2")) is None
    without = target("avx2").model_copy(update={"runtimes": ("onnxruntime",)})
    assert "has no openvino" in str(CompressWeights().refusal(metadata, without))
