"""A tiny encoder-like graph, a target and a context for passes on graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fmopt.core.model import CheckpointMetadata, Graph, Inputs, ModelSource
from fmopt.core.target import Target
from fmopt.passes.base import Context

VOCABULARY, WIDTH, FFN = 64, 32, 64


def build_graph() -> onnx.ModelProto:
    """ids → table → LayerNorm(x + FFN(x)) twice: constant MatMuls, biases, Gelu, residuals; random, seed 0."""
    rng = np.random.default_rng(0)
    tensors, nodes = [], []

    def weight(name: str, *shape: int, scale: float = 0.2) -> str:
        tensors.append(numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def linear(x: str, layer: str, rows: int, columns: int) -> str:
        product = node("MatMul", [x, weight(f"{layer}.weight", rows, columns)], f"{layer}/MatMul")
        return node("Add", [product, weight(f"{layer}.bias", columns)], f"{layer}/Add")

    x = node("Gather", [weight("table", VOCABULARY, WIDTH, scale=1.0), "input_ids"], "embeddings/Gather")
    for layer in ("layer.0", "layer.1"):
        hidden = node("Gelu", [linear(x, f"{layer}.up", WIDTH, FFN)], f"{layer}/Gelu")
        residual = node("Add", [linear(hidden, f"{layer}.down", FFN, WIDTH), x], f"{layer}/Add")
        tensors.append(numpy_helper.from_array(np.ones(WIDTH, np.float32), f"{layer}.scale"))
        x = node("LayerNormalization", [residual, f"{layer}.scale"], f"{layer}.norm/LayerNormalization")
    nodes[-1].output[0] = "last_hidden_state"
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", WIDTH])],
        tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def target(*isa: str, **changes: Any) -> Target:
    """A CPU with the given features."""
    metadata: dict[str, Any] = {
        "name": "test-cpu", "title": "a CPU", "kind": "cpu", "arch": "x86_64", "isa": isa, "cores": 2, "memory_gb": 8,
        "precisions": ("fp32", "int8"), "runtimes": ("torch", "onnxruntime", "openvino"),
    }  # fmt: skip
    return Target(**{**metadata, **changes})


def items(count: int, seed: int = 1) -> list[Inputs]:
    """Encoded items, batch 1, of several lengths."""
    rng = np.random.default_rng(seed)
    return [{"input_ids": rng.integers(0, VOCABULARY, (1, 4 + i % 5))} for i in range(count)]


@pytest.fixture
def metadata(tmp_path: Path) -> CheckpointMetadata:
    return CheckpointMetadata(
        source=ModelSource("tiny", tmp_path, "tiny"), model_type="bert", architecture="BertModel",
        task="sentence-embedding", pipeline={"inputs": ["input_ids"], "outputs": ["last_hidden_state"]},
        hidden_size=WIDTH, layers=2, parameters=10_000, weight_bytes=40_000, digest="0",
    )  # fmt: skip


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    path = tmp_path / "source" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(build_graph().SerializeToString(deterministic=True))
    return Graph("onnx", path, ("input_ids",), ("last_hidden_state",))


@pytest.fixture
def make_context(metadata: CheckpointMetadata):
    """`make_context("avx2", count=16)`: a context for a CPU with these features and so many calibration items."""

    def make(*isa: str, count: int = 16) -> Context:
        def stream() -> Iterator[Inputs]:
            yield from items(count)

        return Context(metadata=metadata, target=target(*isa), calibration=stream)

    return make
