"""Write fp16 or bf16 into an ONNX graph: what may be computed in half is, what may not stays fp32, each with its reason.

A strongly typed runtime (TensorRT) computes in the types that it reads, so precision is decided here. What stays is
decided by operator (sums of many terms need more than 11 bits) and by calibration items (what they show to leave the
range of the type). Casts stand only where a value crosses from one to the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fmopt.core.errors import PassError
from fmopt.exporters.onnx_graph import captured, constant, drop_dead, element_types, replace_nodes, weights

Half = Literal["fp16", "bf16"]
Inputs = Mapping[str, np.ndarray]
KIND = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
TYPE_NAME = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
LARGEST = {"fp16": float(np.finfo(np.float16).max), "bf16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)}
HEADROOM = 0.5  # of the range: other items than those of the calibration reach further
SCALE_ERROR = 1 / 512  # of a quantization scale: half a step of the 8 bits that it is for
KEPT_KEY = "fmopt.kept"  # metadata of the graph: JSON of node name -> why it stays fp32

# Move values and make none.
MOVES = frozenset(
    {
        "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max", "Min", "Pad", "Relu", "Reshape",
        "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
SUMS = "sums many terms, which need more digits than a half has"
KEPT_KINDS = {
    "LayerNormalization": SUMS, "RMSNormalization": SUMS, "GroupNormalization": SUMS, "InstanceNormalization": SUMS,
    "BatchNormalization": SUMS, "LpNormalization": SUMS, "Softmax": SUMS, "LogSoftmax": SUMS, "CumSum": SUMS,
    "Pow": "squares leave the range first", "Exp": "grows out of the range", "Log": "needs the digits near 1",
    "Reciprocal": "grows out of the range near 0", "Range": "positions need whole numbers",
}  # fmt: skip


@dataclass
class _Work:
    """A graph being rewritten."""

    model: onnx.ModelProto
    half: Half
    floats: set[str]  # values that are fp32 before anything is done
    kept: dict[int, str]  # index of a node -> why it stays
    stored: Mapping[str, onnx.TensorProto]
    is_half: set[str] = field(default_factory=set)  # values that are half now
    made: set[str] = field(default_factory=set)  # values and initializers that were added
    nodes: list[onnx.NodeProto] = field(default_factory=list)


def to_half(model: onnx.ModelProto, half: Half, reach: Mapping[str, float]) -> dict[str, str]:
    """Rewrite `model` in place; returns why each fp32 node that stays does, by name. Inputs and outputs keep their types.

    `reach`: value name → largest magnitude on calibration items (see `magnitudes`), infinite when it was no number.
    PassError when nothing could be made half.
    """
    floats = {name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT}
    stored, opset = weights(model), opset_of(model)
    reach = _with_constants(model, stored, floats, reach)
    kept_at = {
        index: reason
        for index, node in enumerate(model.graph.node)
        if (reason := reason_to_keep(node, half, opset, floats, reach, stored)) is not None
    }
    work = _Work(model, half, floats, kept_at, stored)
    for index, node in enumerate(list(model.graph.node)):
        _rewrite(work, index, node)
    if not work.is_half:
        raise PassError(f"cast: no operator of this graph can be computed in {half}")
    for output in model.graph.output:
        if output.name in work.is_half:
            _restore_output(work, output.name)
    names = {index: node.name or node.output[0] for index, node in enumerate(model.graph.node)}
    kept = {names[index]: reason for index, reason in work.kept.items()}
    replace_nodes(model.graph, work.nodes)
    del model.graph.value_info[:]
    drop_dead(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEPT_KEY, json.dumps(kept, sort_keys=True)
    return kept


def reason_to_keep(
    node: onnx.NodeProto, half: Half, opset: int, floats: set[str], reach: Mapping[str, float],
    stored: Mapping[str, onnx.TensorProto],
) -> str | None:  # fmt: skip
    """Why a node stays fp32; None when it is computed in half, or holds no fp32 value at all."""
    values = [name for name in (*node.input, *node.output) if name in floats]
    if not values:
        return None
    if node.op_type in KEPT_KINDS:
        return KEPT_KINDS[node.op_type]
    if node.op_type.startswith("Reduce") and node.op_type not in ("ReduceMax", "ReduceMin"):
        return SUMS
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        return "has a body of its own"
    if not _allows(node, half, opset, floats):
        return f"{node.op_type} is not defined for {half}"
    for name in values:
        if not reach.get(name, 0.0) <= LARGEST[half] * (1.0 if name in stored else HEADROOM):
            who = "a constant reaches" if name in stored else "calibration items reach"
            return f"{who} {reach[name]:.3g}, and {half} ends at {LARGEST[half]:.3g}"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in stored:
        scale = numpy_helper.to_array(stored[node.input[1]]).astype(np.float32)
        if np.abs(_rounded(scale, half) - scale).max() > SCALE_ERROR * scale.min():
            return f"a scale of {scale.min():.3g} has too few digits in {half}"
    return None


def magnitudes(model: onnx.ModelProto, items: Iterable[Inputs]) -> dict[str, float]:
    """Largest magnitude of every fp32 value of the main graph over `items`; infinite where one is no number."""
    import onnxruntime

    floats = [name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT]
    inside = {name for node in model.graph.node for name in node.output}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    already = {value.name for value in shown.graph.output}
    shown.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in floats if name in inside and name not in already
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Unfused, so that every value asked for exists.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_outputs()]
    known = {value.name for value in session.get_inputs()}
    reach = dict.fromkeys(wanted, 0.0)
    for item in items:
        got = session.run(wanted, {name: array for name, array in item.items() if name in known})
        for name, value in zip(wanted, got, strict=True):
            if value.dtype.kind == "f" and value.size:
                peak = float(np.abs(value).max())
                reach[name] = max(reach[name], peak if np.isfinite(peak) else float("inf"))
    return reach


def kept_of(model: onnx.ModelProto) -> dict[str, str]:
    """What `to_half` wrote into a graph: node → why it stays fp32; empty for a graph that it did not make."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEPT_KEY), "{}")
    return dict(json.loads(text))


def _with_constants(
    model: onnx.ModelProto, stored: Mapping[str, onnx.TensorProto], floats: set[str], reach: Mapping[str, float]
) -> dict[str, float]:
    """`reach` with constants, and with what may select one: no calibration item is padded, yet its mask can say -3.4e38."""
    known = {**reach, **{name: _largest(tensor) for name, tensor in stored.items() if name in floats}}
    for node in model.graph.node:
        if node.op_type in MOVES:
            largest = max((known.get(name, 0.0) for name in node.input if name in floats), default=0.0)
            known |= {name: max(known.get(name, 0.0), largest) for name in node.output if name in floats}
    return known


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a graph uses."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _allows(node: onnx.NodeProto, half: Half, opset: int, floats: set[str]) -> bool:
    """Whether the operator is defined for the half type wherever this node has fp32, all of them alike."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return False
    allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
    fed = any(name in floats for name in node.input)
    if not fed and node.op_type != "Cast":
        return False  # it makes its own type: ConstantOfShape, EyeLike, random numbers
    for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for place, name in enumerate(names):
            kind = formal[min(place, len(formal) - 1)].type_str
            if name in floats and TYPE_NAME[half] not in allowed.get(kind, (kind,)):
                return False
    return True


def _rewrite(work: _Work, index: int, node: onnx.NodeProto) -> None:
    """Append a node with its fp32 values in the type that was decided, and the casts before it."""
    if index in work.kept or not any(name in work.floats for name in (*node.input, *node.output)):
        _use(work, node, half=False)
    else:
        _use(work, node, half=True)
        if node.op_type == "Cast" and node.output[0] in work.floats:
            next(attribute for attribute in node.attribute if attribute.name == "to").i = KIND[work.half]
        work.is_half |= {name for name in node.output if name in work.floats}
    inner = captured(node) & work.is_half
    if inner:
        raise PassError(f"cast: the body of {node.name} reads {sorted(inner)[0]}, which would be {work.half}")
    work.nodes.append(node)


def _use(work: _Work, node: onnx.NodeProto, *, half: bool) -> None:
    """Make a node read its fp32 values as half, or as fp32."""
    for place, name in enumerate(node.input):
        if name not in work.floats:
            continue
        if name in work.stored:
            if half:
                node.input[place] = _half_weight(work, name, work.stored[name])
        elif half != (name in work.is_half):
            node.input[place] = _cast(work, name, half=half)


def _half_weight(work: _Work, name: str, tensor: onnx.TensorProto) -> str:
    new = f"{name}.{work.half}"
    if new not in work.made:
        work.made.add(new)
        values = numpy_helper.to_array(tensor)
        work.model.graph.initializer.append(constant(new, values.astype(NUMPY[work.half])))
    return new


def _cast(work: _Work, name: str, *, half: bool) -> str:
    kind = work.half if half else "fp32"
    new = f"{name}.{kind}"
    if new not in work.made:
        work.made.add(new)
        to = KIND[work.half] if half else TensorProto.FLOAT
        work.nodes.append(helper.make_node("Cast", [name], [new], f"{name}/Cast.{kind}", to=to))
    return new


def _restore_output(work: _Work, name: str) -> None:
    """The graph's output is fp32 again, under its own name."""
    inner = f"{name}.{work.half}"
    for node in work.nodes:
        for place, value in enumerate(node.input):
            if value == name:
                node.input[place] = inner
        for place, value in enumerate(node.output):
            if value == name:
                node.output[place] = inner
    work.nodes.append(helper.make_node("Cast", [inner], [name], f"{name}/Cast", to=TensorProto.FLOAT))


def _largest(tensor: onnx.TensorProto) -> float:
    values = numpy_helper.to_array(tensor)
    return float(np.abs(values).max(initial=0.0))


def _rounded(values: np.ndarray, half: Half) -> np.ndarray:
    return np.asarray(values.astype(NUMPY[half]).astype(np.float32))
