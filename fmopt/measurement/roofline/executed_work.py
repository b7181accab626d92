"""Operations and bytes of each operator that a runtime really executed, from the shapes that it tells after a run.

A multiply-add counts as two operations, any other result as one; every operand is read once and every result written
once, at the width that the runtime keeps it in. What a cache saves is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from fmopt.measurement.roofline.model import INTEGER, PRODUCTS

WIDTHS = {"float": 4, "double": 8, "float16": 2, "bfloat16": 2, "bool": 1, "int8": 1, "uint8": 1, "int16": 2,
          "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8}  # fmt: skip
VIEWS = ("Shape", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Size", "ShapeOf")  # move nothing
# Read of a table only what they return; OpenVINO's names beside ONNX's.
PARTS = ("Gather", "GatherElements", "GatherND", "Slice", "StridedSlice", "EmbedLayerNormalization")
PAIRS = ("ScaledDotProductAttention",)  # of products, of queries with keys and of what comes out with values
FUSED_PRODUCTS = ("FusedGemm", "TransposeMatMul", "GemmFloat8")

Shape = tuple[int, ...]


def onnxruntime_work(event: Mapping[str, Any]) -> tuple[float, float]:
    """Operations and bytes of a node, from the arguments of its event in ONNX Runtime's profile."""
    kind = event["op_name"]
    reads, writes = _typed(event.get("input_type_shape", ())), _typed(event.get("output_type_shape", ()))
    if kind in VIEWS or not writes:
        return 0.0, 0.0
    if kind in PARTS:
        return 0.0, 2.0 * _bytes(writes)
    moved = _bytes(reads) + _bytes(writes)
    results = float(sum(prod(shape) for _, shape in writes))
    if kind in ("Attention", "QAttention"):
        return _attention(reads, writes[0][1]), moved
    if kind == "MultiHeadAttention":
        return 4.0 * prod(reads[0][1]) * reads[1][1][1], moved
    if kind not in (*PRODUCTS, *FUSED_PRODUCTS):
        return results, moved
    depth, columns = reads[0][1][-1], writes[0][1][-1]
    if sum(len(shape) > 1 for _, shape in reads) < 2:  # the right side was laid out anew at load and is not reported
        moved += depth * columns * (0.5 if kind == "MatMulNBits" else 1 if kind in INTEGER else WIDTHS[reads[0][0]])
    return 2.0 * prod(writes[0][1]) * depth, moved


def openvino_work(executed: Any, source: Any) -> dict[str, tuple[float, float]]:
    """Operations and bytes by node name of `executed`, a compiled model's runtime model after a run.

    `source` is the model it was compiled from, reshaped to the inputs of that run: what was fused into one node is
    counted by the products of it there.
    """
    parts = {
        op.get_friendly_name(): op
        for op in source.get_ordered_ops()
        if op.get_type_name() in (*PAIRS, "MatMul", "Softmax")
    }
    found = {}
    for op in executed.get_ordered_ops():
        metadata = op.get_rt_info()
        kind = metadata["layerType"].astype(str)
        if kind in ("Const", "Input", "Output") or op.get_output_size() == 0:
            continue
        names = metadata["originalLayersNames"].astype(str).split(",")
        found[op.get_friendly_name()] = _executed(op, kind, [parts[name] for name in names if name in parts])
    return found


def _executed(op: Any, kind: str, parts: Sequence[Any]) -> tuple[float, float]:
    """Of a node that was fused from `parts`, the products and softmaxes of the source."""
    shapes = [value.get_partial_shape() for value in (*op.inputs(), *op.outputs())]
    if kind in VIEWS or any(shape.is_dynamic for shape in shapes):
        return 0.0, 0.0
    written = sum(_port_bytes(port) for port in op.outputs())
    if kind in PARTS:
        return 0.0, 2.0 * written
    moved = sum(_port_bytes(port) for port in op.inputs()) + written
    results = float(sum(prod(port.get_shape()) for port in op.outputs()))
    if kind in ("FullyConnected", "MatMul"):
        return 2.0 * results * op.input(0).get_shape()[-1], moved
    products = [
        2.0 * prod(part.get_output_shape(0)) * _depth(part) for part in parts if part.get_type_name() == "MatMul"
    ]
    products += [
        4.0 * prod(part.get_input_shape(0)) * part.get_input_shape(1)[-2]
        for part in parts
        if part.get_type_name() in PAIRS
    ]
    if len(products) == 1 and len(parts) == 2:
        products *= 2  # attention's first product loses its name in fusing; it is as large as the one after the softmax
    return sum(products) or results, moved


def _depth(product: Any) -> int:
    """How many products are summed into one number of a MatMul's result."""
    return int(product.get_input_shape(0)[-2 if product.get_attributes()["transpose_a"] else -1])


def _attention(reads: Sequence[tuple[str, Shape]], result: Shape) -> float:
    """The three projections (weights [hidden, 3 hidden]) and the two products of attention, for [batch, tokens, hidden]."""
    batch, tokens, hidden = reads[0][1]
    return 2.0 * batch * tokens * hidden * 3 * result[-1] + 4.0 * batch * tokens * tokens * result[-1]


def _typed(shapes: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, Shape]]:
    return [(kind, tuple(shape)) for each in shapes for kind, shape in each.items()]


def _bytes(values: Sequence[tuple[str, Shape]]) -> float:
    return float(sum(prod(shape) * WIDTHS.get(kind, 4) for kind, shape in values))


def _port_bytes(port: Any) -> float:
    return float(prod(port.get_shape()) * port.get_element_type().bitwidth / 8)
