"""FP8 (E4M3) for GPUs that multiply it: Q/DQ around every product with a constant weight, largest magnitudes as ranges.

A float keeps its relative precision over the whole range, so that one scale for a tensor is enough, of activations and of
weights; no calibrator has to look for outliers (Micikevicius et al. 2022, "FP8 formats for deep learning").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata, Graph
from fmopt.core.target import Target
from fmopt.exporters.half_precision import magnitudes, opset_of
from fmopt.exporters.onnx_graph import constant, drop_dead, layer_of_name, read_onnx, replace_nodes, weights, write_onnx
from fmopt.passes.base import Context

LARGEST = 448.0  # of E4M3 without infinities
OPSET = 19  # the first with float8e4m3fn in QuantizeLinear
NUMBERED = re.compile(r"\.\d+(\.|$)")  # a module within one of the numbered layers: heads decide, and stay in float
ZERO = "fp8.zero"


@dataclass(frozen=True)
class QuantizeFp8:
    """Both operands of the layers' products in FP8; sums, residuals, attention and heads stay as they are."""

    items: int = 128  # calibration items for the ranges of activations

    stage: ClassVar[Literal["graph"]] = "graph"
    bytes_left: ClassVar[tuple[float, float]] = (1.0, 0.25)
    format: ClassVar[Literal["onnx"]] = "onnx"

    def __post_init__(self) -> None:
        if self.items < 1:
            raise ConfigError(f"quantize_fp8.items is {self.items}; it takes at least one")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Only from Ada and Hopper on (sm_89) do tensor cores multiply FP8."""
        return None if "fp8" in target.precisions else f"{target.name} ({target.arch}) does not compute in fp8"

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the Q/DQ graph into `out`. PassError when there is nothing to calibrate on or to quantize."""
        model = read_onnx(graph.path)
        items = list(islice(ctx.calibration(), self.items))
        if not items:
            raise PassError("quantize_fp8 has no calibration items; give data with a calibration split")
        ctx.progress(f"looking for the ranges of activations on {len(items)} items")
        count = quantize_products(model, magnitudes(model, items))
        if not count:
            raise PassError(f"quantize_fp8 found no product of a numbered layer in {graph.path.name}")
        path = write_onnx(model, out / graph.path.name)
        return replace(graph, path=path, history=(*graph.history, f"quantize_fp8({count} products)"))


def quantize_products(model: onnx.ModelProto, reach: dict[str, float]) -> int:
    """Put Q/DQ before both operands of the layers' products, in place; how many. PassError below opset 19."""
    if opset_of(model) < OPSET:
        raise PassError(f"quantize_fp8 needs ONNX opset {OPSET}, this graph has {opset_of(model)}")
    stored = weights(model)
    nodes: list[onnx.NodeProto] = []
    done: dict[str, str] = {}  # a value -> the same, rounded: what several products read is rounded once
    count = 0
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored and NUMBERED.search(layer_of_name(node.name)):
            count += 1
            left, right = node.input
            if left not in done:
                done[left] = _rounded(model, nodes, left, reach.get(left, 0.0))
            if right not in done:
                done[right] = _stored(model, nodes, stored[right])
            node.input[:] = [done[left], done[right]]
        nodes.append(node)
    if count:
        model.graph.initializer.append(helper.make_tensor(ZERO, TensorProto.FLOAT8E4M3FN, [], [0.0]))
    replace_nodes(model.graph, nodes)
    drop_dead(model)
    return count


def _rounded(model: onnx.ModelProto, nodes: list[onnx.NodeProto], name: str, largest: float) -> str:
    """Q/DQ of an activation; the name of what it makes."""
    scale = f"{name}.fp8_scale"
    model.graph.initializer.append(constant(scale, np.array(max(largest, 1e-6) / LARGEST, np.float32)))
    nodes.append(helper.make_node("QuantizeLinear", [name, scale, ZERO], [f"{name}.fp8"], f"{name}/QuantizeLinear"))
    nodes.append(
        helper.make_node("DequantizeLinear", [f"{name}.fp8", scale, ZERO], [f"{name}.dq"], f"{name}/DequantizeLinear")
    )
    return f"{name}.dq"


def _stored(model: onnx.ModelProto, nodes: list[onnx.NodeProto], tensor: onnx.TensorProto) -> str:
    """A weight stored in FP8 and its DequantizeLinear; the name of what it makes."""
    values, name = numpy_helper.to_array(tensor).astype(np.float32), tensor.name
    scale = np.array(max(float(np.abs(values).max(initial=0.0)), 1e-6) / LARGEST, np.float32)
    eight = np.clip(values / scale, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn)
    stored = helper.make_tensor(f"{name}.fp8", TensorProto.FLOAT8E4M3FN, values.shape, eight.tobytes(), raw=True)
    model.graph.initializer.extend([stored, constant(f"{name}.fp8_scale", scale)])
    nodes.append(
        helper.make_node(
            "DequantizeLinear", [stored.name, f"{name}.fp8_scale", ZERO], [f"{name}.dq"], f"{name}/DequantizeLinear"
        )
    )
    return f"{name}.dq"


PASS = QuantizeFp8
