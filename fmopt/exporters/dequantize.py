"""Q/DQ pairs folded away: quantized weights as the fp32 numbers that they stand for, activations no longer rounded.

A weight is known to half a step of what it was; nothing brings the rest back. What an activation is rounded to is arithmetic of
the graph, and goes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fmopt.exporters.onnx_graph import constant, drop_dead, producers, replace_nodes, weights

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def fold_pairs(model: onnx.ModelProto) -> int:
    """Fold every DequantizeLinear of `model`, in place; how many. Weights become fp32, the pairs around activations go.

    One that dequantizes the rows that a lookup gives (Gather of an int8 table) is moved before the lookup.
    """
    known, makers = weights(model), producers(model.graph)
    renamed: dict[str, str] = {}
    folded: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in model.graph.node:
        if node.op_type != DEQUANTIZE:
            nodes.append(node)
            continue
        value = _weight(node, known)
        source = makers.get(node.input[0])
        if value is not None:
            name = f"{node.input[0]}.fp32"
            while name in folded or name in known:
                name += "_"
            folded[name] = constant(name, value)
            renamed[node.output[0]] = name
        elif source is not None and source.op_type == QUANTIZE:
            renamed[node.output[0]] = source.input[0]
        elif (
            source is not None and source.op_type == "Gather" and (table := _looked_up(source, node, known)) is not None
        ):
            name = f"{source.input[0]}.fp32"
            folded.setdefault(name, constant(name, table))
            nodes.append(helper.make_node("Gather", [name, source.input[1]], [node.output[0]], node.name, axis=0))
        else:
            nodes.append(node)
            continue
        count += 1
    outputs = {output.name for output in model.graph.output}
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = _last(name, renamed)
    nodes += [
        helper.make_node("Identity", [_last(name, renamed)], [name], f"{name}/Identity")
        for name in outputs & set(renamed)
    ]
    model.graph.initializer.extend(folded.values())
    replace_nodes(model.graph, nodes)
    drop_dead(model)
    return count


def _last(name: str, renamed: dict[str, str]) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def _weight(node: onnx.NodeProto, known: dict[str, onnx.TensorProto]) -> np.ndarray | None:
    """What a DequantizeLinear of constants gives, float32; None for one of anything else."""
    if not all(name in known for name in node.input if name):
        return None
    array, scale, zero = _parts(node, known)
    return _dequantized(array, scale, zero, _attribute(node, "axis", 1), _attribute(node, "block_size", 0))


def _looked_up(gather: onnx.NodeProto, node: onnx.NodeProto, known: dict[str, onnx.TensorProto]) -> np.ndarray | None:
    """The whole table in float32 of a lookup whose rows are dequantized by one scale; None for other lookups."""
    if (
        gather.input[0] not in known
        or _attribute(gather, "axis", 0) != 0
        or not all(n in known for n in node.input[1:] if n)
    ):
        return None
    array = numpy_helper.to_array(known[gather.input[0]])
    _, scale, zero = _parts(node, {**known, node.input[0]: known[gather.input[0]]})
    return _dequantized(array, scale, zero, 0, 0) if scale.size == 1 else None


def _parts(node: onnx.NodeProto, known: dict[str, onnx.TensorProto]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    array, scale = (numpy_helper.to_array(known[name]) for name in node.input[:2])
    given = len(node.input) > 2 and node.input[2]
    zero = numpy_helper.to_array(known[node.input[2]]) if given else np.zeros_like(scale, dtype=np.int32)
    return array, scale, zero


def _dequantized(array: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int, block: int) -> np.ndarray:
    """(array - zero) · scale, float32, as ONNX defines it: per tensor, per slice of an axis, or per block of it."""
    values = array.astype(np.int32)
    if (scale.ndim == 1 and scale.size > 1) or (scale.ndim == 1 and array.ndim > 1 and array.shape[axis] == 1):
        shape = [1] * array.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    elif block:
        scale, zero = (np.repeat(one, block, axis=axis)[tuple(map(slice, array.shape))] for one in (scale, zero))
    return np.asarray((values - zero.astype(np.int32)).astype(np.float32) * scale.astype(np.float32), dtype=np.float32)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> Any:
    return next((one.i for one in node.attribute if one.name == name), default)
