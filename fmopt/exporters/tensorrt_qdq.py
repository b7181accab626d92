"""Rules of Q/DQ in TensorRT: symmetric, known scales, weights per output channel, nothing between a pair, whole products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from fmopt.exporters.onnx_graph import consumers, producers, weights

Level = Literal["fault", "slow"]
Complaint = tuple[Level, onnx.NodeProto, str]
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
PLACES = ("scale", "zero point")


@dataclass(frozen=True)
class _Graph:
    """A graph with what its rules are asked by."""

    model: onnx.ModelProto
    types: Mapping[str, str]
    weights: Mapping[str, onnx.TensorProto]
    makers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]

    def array(self, name: str) -> np.ndarray | None:
        """Values of a constant kept in the graph's own file; None for anything else."""
        tensor = self.weights.get(name)
        return None if tensor is None or tensor.external_data else numpy_helper.to_array(tensor)

    def dequantizer(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that makes a value, seen through a Cast."""
        node = self.makers.get(name)
        while node is not None and node.op_type == "Cast":
            node = self.makers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def of_weight(self, node: onnx.NodeProto) -> bool:
        """Whether a DequantizeLinear makes a weight: stored integers, or a stored float that is quantized."""
        maker = self.makers.get(node.input[0])
        return node.input[0] in self.weights or (maker is not None and maker.input[0] in self.weights)


def qdq_findings(model: onnx.ModelProto, types: Mapping[str, str], rules: Mapping[str, Any]) -> Iterator[Complaint]:
    """(level, node, what is wrong) for every Q/DQ of the main graph; `types` as the support matrix names them."""
    graph = _Graph(model, types, weights(model), producers(model.graph), consumers(model.graph))
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _parameters(node, graph)
            yield from _quantized_type(node, graph, rules, opset)
            yield from _granularity(node, graph)
        if node.op_type == "QuantizeLinear":
            yield from _pair(node, graph)
        if node.op_type == "Add":
            yield from _residual(node, graph)
        if node.op_type in PRODUCTS:
            yield from _product(node, graph)


def _parameters(node: onnx.NodeProto, graph: _Graph) -> Iterator[Complaint]:
    """Scales and zero points are known when the engine is built; scales are positive, zero points are zero."""
    for place, what in zip((1, 2), PLACES, strict=True):
        if place < len(node.input) and node.input[place] and node.input[place] not in graph.weights:
            yield "fault", node, f"its {what} is computed; it must be an initializer"
    scale = graph.array(node.input[1])
    if scale is not None and not (np.isfinite(scale.astype(np.float32)).all() and (scale > 0).all()):
        yield "fault", node, "a scale is not a positive number"
    zero = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is not None and zero.astype(np.float32).any():
        yield "fault", node, "its zero point is not zero: TensorRT quantizes symmetrically"


def _quantized_type(node: onnx.NodeProto, graph: _Graph, rules: Mapping[str, Any], opset: int) -> Iterator[Complaint]:
    quantizes = node.op_type == "QuantizeLinear"
    kind = graph.types.get(node.output[0] if quantizes else node.input[0])
    if kind is None:
        return
    if kind not in rules["types"]:
        yield "fault", node, f"quantized values are {kind}; they may be {', '.join(rules['types'])}"
    elif quantizes and kind not in rules["activations"] and node.input[0] not in graph.weights:
        yield "fault", node, f"activations cannot be {kind}, only weights"
    if kind == "FP8" and opset < rules["fp8_opset"]:
        yield "fault", node, f"FP8 needs opset {rules['fp8_opset']} or higher, this is {opset}"


def _granularity(node: onnx.NodeProto, graph: _Graph) -> Iterator[Complaint]:
    """One scale for an activation; for a weight one, or one for each output channel."""
    scale = graph.array(node.input[1])
    if scale is None or scale.size == 1:
        return
    weight = graph.weights.get(node.input[0])
    if node.op_type == "QuantizeLinear" and weight is None:
        yield "fault", node, f"an activation has {scale.size} scales; it takes one"
    if weight is None or scale.ndim != 1:
        return
    axis = _attribute(node, "axis", 1) % max(len(weight.dims), 1)
    for reader in graph.readers.get(node.output[0], ()):
        wanted = _output_axis(reader, node.output[0], len(weight.dims))
        if wanted is not None and axis != wanted:
            yield (
                "fault",
                node,
                f"its scales lie along axis {axis}; {reader.op_type} takes one for each output channel, axis {wanted}",
            )


def _output_axis(reader: onnx.NodeProto, value: str, rank: int) -> int | None:
    """The axis of a weight that its product's outputs lie along."""
    if reader.op_type == "Conv" and value == reader.input[1]:
        return 0
    if reader.op_type in ("MatMul", "Gemm") and value == reader.input[1]:
        return rank - 2 if _attribute(reader, "transB", 0) else rank - 1
    return None


def _pair(node: onnx.NodeProto, graph: _Graph) -> Iterator[Complaint]:
    """What reads quantized values is a DequantizeLinear."""
    others = [reader for reader in graph.readers.get(node.output[0], ()) if reader.op_type != "DequantizeLinear"]
    for reader in others:
        yield "fault", node, f"{reader.name or reader.op_type} reads the quantized values; only DequantizeLinear may"
    if node.output[0] in {value.name for value in graph.model.graph.output}:
        yield "slow", node, "quantized values leave the graph"


def _residual(node: onnx.NodeProto, graph: _Graph) -> Iterator[Complaint]:
    """A sum of two activations, one of them rounded, is no epilogue of the product that makes the other."""
    made = [graph.dequantizer(name) for name in node.input]
    rounded = [one for one in made if one is not None and not graph.of_weight(one)]
    if rounded and not set(node.input) & set(graph.weights):
        yield "slow", node, "a residual sum reads Q/DQ, so that it is not fused into the product before it"


def _product(node: onnx.NodeProto, graph: _Graph) -> Iterator[Complaint]:
    """Both operands are quantized, or none: a product of one rounded operand runs in floating point."""
    made = [graph.dequantizer(name) for name in node.input[:2]]
    if any(made) and not all(made):
        other = node.input[0] if made[0] is None else node.input[1]
        yield "slow", node, f"only one operand is quantized, so that it runs in floating point; {other} is not"
    kinds = {graph.types.get(one.input[0]) for one in made if one is not None}
    if len(kinds) > 1:
        yield (
            "fault",
            node,
            f"its operands are quantized to {' and '.join(sorted(map(str, kinds)))}; they must be alike",
        )


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
