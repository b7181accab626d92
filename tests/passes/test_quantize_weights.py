"""Weights in 4 and 8 bits: how far the graph moves, what is left in float, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fmopt.core.errors import ConfigError
from fmopt.edge.runners import open_runner
from fmopt.exporters.onnx_graph import constant_products, read_onnx
from fmopt.passes.quantization.blockwise import rounded
from fmopt.passes.quantize_embeddings import QuantizeEmbeddings
from fmopt.passes.quantize_weights import QuantizeWeights
from tests.torch_models import context_of, padded


@pytest.fixture(scope="module")
def gpt2(tiny_decoder: Any) -> Any:
    return tiny_decoder("gpt2")


def logits(path: Path, inputs: Any) -> np.ndarray:
    return np.asarray(open_runner("onnxruntime", path, {}, 1).run(inputs)["logits"])


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.vdot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


def test_products_with_constant_weights_compute_the_same_written_plainly(gpt2: Any, tmp_path: Path) -> None:
    model, graph = gpt2
    plain = read_onnx(graph.path)
    constant_products(plain)
    assert {"Gemm"} & {node.op_type for node in read_onnx(graph.path).graph.node}
    assert "Gemm" not in {node.op_type for node in plain.graph.node}
    onnx.save(plain, tmp_path / "plain.onnx")
    inputs = padded(model)
    assert np.abs(logits(tmp_path / "plain.onnx", inputs) - logits(graph.path, inputs)).max() < 1e-4


@pytest.mark.parametrize(("step", "least"), [
    (QuantizeWeights(bits=8, block=32), 0.999), (QuantizeWeights(bits=4, block=32), 0.95),
    (QuantizeWeights(bits=4, block=32, method="mse"), 0.95), (QuantizeWeights(bits=4, block=16, method="hqq"), 0.95),
])  # fmt: skip
def test_every_layer_and_the_head_are_narrow_and_the_output_stays_near(
    gpt2: Any, tmp_path: Path, step: QuantizeWeights, least: float
) -> None:
    model, graph = gpt2
    made = step.apply(graph, context_of(model), tmp_path)
    nodes = [node for node in read_onnx(made.path).graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 2 * 4 + 1  # four products in each layer, and the head
    assert all(any(one.name == "bits" and one.i == step.bits for one in node.attribute) for node in nodes)
    inputs = padded(model)
    mask = np.asarray(inputs["attention_mask"], dtype=bool)
    assert cosine(logits(made.path, inputs)[mask], logits(graph.path, inputs)[mask]) > least
    assert made.path.stat().st_size < graph.path.stat().st_size


def test_the_scale_that_moves_weights_least_is_found_and_stored_as_the_operator_reads_it() -> None:
    weights = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)  # no whole number of blocks
    packed, scales = rounded(weights, 4, 32)
    numbers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(6, 2, 32).astype(np.float32) - 8
    back = (numbers * scales[:, :, None]).reshape(6, 64)[:, :50].T
    assert np.abs(back - weights).max() < np.abs(scales).max()
    plain = np.abs(weights).max(axis=0) / 8
    nearest = np.clip(np.rint(weights / plain), -8, 7) * plain
    assert np.square(back - weights).sum() < np.square(nearest - weights).sum()


def test_the_table_that_the_head_shared_can_be_narrow_then_too(gpt2: Any, tmp_path: Path) -> None:
    model, graph = gpt2
    context = context_of(model)
    narrow = QuantizeWeights(bits=8, block=32).apply(graph, context, tmp_path / "weights")
    both = QuantizeEmbeddings(min_rows=100).apply(narrow, context, tmp_path / "both")
    inputs = padded(model)
    assert cosine(logits(both.path, inputs), logits(graph.path, inputs)) > 0.999


def test_head_and_named_layers_can_stay_as_they_are(gpt2: Any, tmp_path: Path) -> None:
    model, graph = gpt2
    made = QuantizeWeights(head=False, keep=("h.0.",)).apply(graph, context_of(model), tmp_path)
    assert sum(node.op_type == "MatMulNBits" for node in read_onnx(made.path).graph.node) == 4


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"quantize_weights\.bits is 3; it is one of 4, 8"):
        QuantizeWeights(bits=3)
    with pytest.raises(ConfigError, match=r"quantize_weights\.block is 33; it is one of 16, 32"):
        QuantizeWeights(block=33)
    with pytest.raises(ConfigError, match="method 'hqq' is for 4 bits"):
        QuantizeWeights(bits=8, method="hqq")


def test_the_tool_that_rounds_sets_up_no_log_of_the_process() -> None:
    code = (
        "import logging; from fmopt.passes.quantize_weights import _tool; assert _tool().MatMulNBitsQuantizer; "
        "logging.getLogger('another').info('heard'); print(logging.getLogger().handlers)"
    )
    reported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (reported.stdout.strip(), "heard" in reported.stderr) == ("[]", False)
