"""The work of an OpenVINO graph, node by node, as `roofline.graph_work` tells it of an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import openvino

from fmopt.edge.runners import CACHE_PREFIX
from fmopt.exporters.openvino_stateful import read_stateless
from fmopt.measurement.roofline.model import Work

VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Convert")  # a quantized value stays one
# Moves no bytes, or is folded into its neighbour at load.
FREE = ("Parameter", "Result", "Constant", "ShapeOf", "Reshape", "Squeeze", "Unsqueeze", "Convert", "FakeQuantize")
PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")


def ir_work(path: Path, batch: int, length: int) -> Iterator[Work]:
    """The work of every node at `batch` × `length`: free dimensions of inputs are bound, the first to the batch.

    A product between values that a FakeQuantize or quantized weights give is integer.
    """
    model = read_stateless(path)
    decodes = any(port.any_name.startswith(CACHE_PREFIX) for port in model.inputs)
    model.reshape({port.any_name: _bound(port, batch, length, decodes) for port in model.inputs})
    from_weights: set[str] = set()
    quantized: set[str] = set()
    for op in model.get_ordered_ops():
        kind, name = op.get_type_name(), op.get_friendly_name()
        sources = [value.get_source_output().get_node().get_friendly_name() for value in op.inputs()]
        if kind == "Constant" or (sources and all(source in from_weights for source in sources)):
            from_weights.add(name)
            continue
        if kind == "FakeQuantize" or (kind in VIEWS and sources[0] in quantized):
            quantized.add(name)
        if kind not in FREE:
            yield _work(op, kind, sources, from_weights, quantized)


def _bound(port: openvino.Output, batch: int, length: int, decodes: bool) -> list[int]:
    """Sizes of an input; a graph with a cache is bound to one step of decoding: a token after `length` - 1."""
    tokens = length
    if decodes and port.any_name != "attention_mask":
        tokens = length - 1 if port.any_name.startswith(CACHE_PREFIX) else 1
    free = [batch if place == 0 else tokens for place in range(len(port.partial_shape))]
    return [dim.get_length() if dim.is_static else size for dim, size in zip(port.partial_shape, free, strict=True)]


def _work(op: openvino.Node, kind: str, sources: list[str], from_weights: set[str], quantized: set[str]) -> Work:
    written = sum(_bytes(port) for port in op.outputs())
    size = float(sum(prod(port.get_shape()) for port in op.outputs()))
    if kind in ("Gather", "StridedSlice", "Slice"):  # reads only what it takes
        return Work(kind, 0, 2 * written, False)
    moved = sum(_bytes(port) for port in op.inputs()) + written
    if kind == "ScaledDotProductAttention":
        return Work("MatMul", 4.0 * prod(op.input(0).get_shape()) * op.input(1).get_shape()[-2], moved, False)
    if kind not in PRODUCTS:
        return Work(kind, size, moved, False)
    integer = sources[0] in quantized and (sources[1] in quantized or sources[1] in from_weights)
    return Work("MatMul" if kind == "MatMul" else "Conv", 2.0 * size * _depth(op, kind), moved, integer)


def _depth(op: openvino.Node, kind: str) -> int:
    """How many products are summed into one number of the result."""
    if kind == "MatMul":
        shape = op.input(0).get_shape()
        return int(shape[-2] if op.get_attributes()["transpose_a"] else shape[-1])
    return int(prod(op.input(1).get_shape()[2 if kind == "GroupConvolution" else 1 :]))


def _bytes(port: openvino.Input | openvino.Output) -> float:
    return port.get_element_type().bitwidth * prod(port.get_shape()) / 8
