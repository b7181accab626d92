"""A prediction, not a measurement, of an ONNX graph's latency on a device that is not here.

The roofline model (Williams, Waterman and Patterson, CACM 2009): a node takes as long as the slower of its arithmetic
at the device's ceiling and of its bytes at the memory's. A ceiling is never reached, so it counts with a stated
efficiency; the rest of what a runtime does (scheduling, small shapes, cache misses) is not modelled. Good for "about
how fast", and for the order of sizes; a ranking of variants that are close is for the device itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto, shape_inference
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from fmopt.core.errors import ConfigError
from fmopt.core.target import Precision, Target
from fmopt.edge.runners import CACHE_PREFIX

# Share of a ceiling that good kernels reach on Transformer shapes; between 0.5 and 0.8 in published GEMM studies.
COMPUTE_EFFICIENCY = 0.6
MEMORY_EFFICIENCY = 0.7
PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "MatMulNBits", "FusedMatMul", "DynamicQuantizeMatMul",
            "MatMulIntegerToFloat", "QGemm")  # fmt: skip
CONVOLUTIONS = ("Conv", "FusedConv", "ConvInteger", "QLinearConv")
INTEGER = (
    "ConvInteger",
    "QLinearConv",
    "MatMulInteger",
    "QLinearMatMul",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QGemm",
)
# Moves no bytes, or is folded into its neighbour by every runtime here.
FREE = ("Constant", "Shape", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "DequantizeLinear")
# Operators of ONNX Runtime's own that inference does not know and whose output is shaped like their first input.
KEEP_SHAPE = ("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "SkipLayerNormalization", "SimplifiedLayerNormalization")
LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")
BITS: dict[Precision, int] = {"fp32": 32, "tf32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Work:
    """What one node does: operations (a multiply-add is two), bytes read and written, and whether it is integer.

    `operations` is NaN for a product whose shapes could not be inferred.
    """

    kind: str
    operations: float
    bytes: float
    integer: bool


@dataclass(frozen=True)
class Tensor:
    """Shape and bytes of a value of the graph; `from_weights` when it does not depend on the input."""

    shape: tuple[int, ...]
    bytes: float
    from_weights: bool = False


def predict_ms(
    graph_path: Path, target: Target, batch: int, length: int | None, precision: str, *, threads: int | None = None
) -> float | None:
    """Milliseconds that the graph would take on `target` at `batch` × `length` tokens.

    `precision` is what float products run in ("fp32", "fp16", …); integer products of the graph run in int8. Where
    ceilings are per core, `threads` cores work (all of them by default). Label it a prediction wherever it is shown.
    None when the device's ceilings are not known, or the shapes of a product cannot be inferred. ConfigError for an
    unknown precision.
    """
    if precision not in BITS:
        raise ConfigError(f"precision {precision!r} is unknown; there are: {', '.join(BITS)}")
    work = list(graph_work(graph_path, batch, length or 128, activation_bits=max(16, BITS[precision])))
    seconds = [node_seconds(node, target, precision, threads) for node in work]
    known = [each for each in seconds if each is not None]
    return None if len(known) < len(seconds) else 1e3 * math.fsum(known)


def node_seconds(node: Work, target: Target, precision: Precision, threads: int | None = None) -> float | None:
    """The slower of arithmetic and memory; None when the device's ceiling or the node's shapes are unknown.

    A precision without a ceiling of its own falls back to fp32's: that is what runtimes compute in then.
    """
    own: Precision = "int8" if node.integer else ("fp32" if precision in ("int8", "int4") else precision)
    ceiling = target.gops.get(own, target.gops.get("fp32"))
    if ceiling is None or math.isnan(node.operations):
        return None
    if target.gops_scope == "core":
        ceiling *= min(threads or target.cores, target.cores)
    arithmetic = node.operations / (ceiling * 1e9 * COMPUTE_EFFICIENCY)
    if target.bandwidth_gbs is None:
        return arithmetic if node.operations else 0.0
    return max(arithmetic, node.bytes / (target.bandwidth_gbs * 1e9 * MEMORY_EFFICIENCY))


def graph_work(graph_path: Path, batch: int, length: int, *, activation_bits: int = 32) -> Iterator[Work]:
    """The work of every node at `batch` × `length` tokens, by ONNX shape inference with the free dimensions bound.

    Activations stay in cache in part; all of
    them are counted as memory traffic, which errs on the slow side.
    """
    model = onnx.load(graph_path, load_external_data=False)
    bind_dimensions(model, batch, length)
    graph = _with_shapes(model)
    tensors = {t.name: Tensor(tuple(t.dims), math.prod(t.dims) * _element_bits(t.data_type) / 8, True)
               for t in graph.initializer}  # fmt: skip
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in kind.shape.dim)
        if value.name not in tensors and kind.HasField("shape") and all(dim.dim_value for dim in kind.shape.dim):
            bits = activation_bits if kind.elem_type == onnx.TensorProto.FLOAT else _element_bits(kind.elem_type)
            tensors[value.name] = Tensor(shape, math.prod(shape) * bits / 8)
    integers: set[str] = set()  # values that a Q/DQ pair encloses: their products run in int8
    for node in graph.node:
        if node.op_type == "DequantizeLinear" or (node.op_type in LAYOUT and node.input[0] in integers):
            integers.update(node.output)
        _trace(node, tensors)
        if node.op_type not in FREE:
            yield _work(node, tensors, integers)


def _with_shapes(model: onnx.ModelProto) -> onnx.GraphProto:
    """ONNX Runtime's symbolic inference follows token counts through Slice and Range, and knows its own operators; what
    it does not take goes to ONNX's own."""
    # Step by step: its `infer_shapes` leaves a copy of a graph that it does not know in the folder where the user happens to be.
    symbolic = SymbolicShapeInference(int_max=2**31 - 1, auto_merge=True, guess_output_rank=False, verbose=0)
    known = False
    try:
        symbolic._preprocess(model)
        while symbolic.run_:
            known = symbolic._infer_impl()
        symbolic._update_output_from_vi()
    except Exception:  # it raises bare Exception and AssertionError for what it does not know
        known = False
    if known:
        return symbolic.out_mp_.graph
    return shape_inference.infer_shapes(model, strict_mode=False, data_prop=True).graph


def bind_dimensions(model: onnx.ModelProto, batch: int, length: int) -> None:
    """Give every free dimension of the inputs its size: the first is the batch, the others are tokens.

    A graph with a cache is bound to one step of decoding: a token after `length` - 1.
    """
    decodes = any(value.name.startswith(CACHE_PREFIX) for value in model.graph.input)
    names = {"batch": batch, "tokens": 1, "past": length - 1, "total": length} if decodes else {}
    for value in model.graph.input:
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_value:
                size = names.setdefault(dim.dim_param or f"{value.name}:{place}", batch if place == 0 else length)
                dim.dim_value = size
    for value in (*model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.dim_value and dim.dim_param in names:
                dim.dim_value = names[dim.dim_param]
            elif not dim.dim_value:
                dim.ClearField("dim_param")  # an expression such as 2*tokens: inference finds it again


def _trace(node: NodeProto, tensors: dict[str, Tensor]) -> None:
    """Fill in what shape inference does not know: constants, and the outputs of runtimes' own operators.

    What is made of weights alone is laid out once, at load: it keeps the bytes that it is stored in.
    """
    sources = [tensors[name] for name in node.input if name in tensors]
    if not sources or not node.input or node.input[0] not in tensors:
        return
    weights = len(sources) == sum(map(bool, node.input)) and all(source.from_weights for source in sources)
    first = tensors[node.input[0]]
    for name in node.output:
        if weights:
            shape = tensors[name].shape if name in tensors else first.shape
            tensors[name] = Tensor(shape, first.bytes, True)
        elif name not in tensors and node.op_type in KEEP_SHAPE:
            tensors[name] = first
        elif name not in tensors and node.op_type in PRODUCTS and _columns(node, tensors):
            shape = (*first.shape[:-1], _columns(node, tensors))
            tensors[name] = Tensor(shape, first.bytes / max(1, first.shape[-1]) * shape[-1])


def _columns(node: NodeProto, tensors: Mapping[str, Tensor]) -> int:
    """Columns of a product's right-hand side; 0 when they are not known."""
    if node.op_type == "MatMulNBits":
        return _attribute(node, "N")
    right = tensors.get(node.input[1])
    return right.shape[-1] if right and right.shape else 0


def _work(node: NodeProto, tensors: Mapping[str, Tensor], integers: set[str]) -> Work:
    reads = [tensors[name] for name in node.input if name in tensors]
    writes = [tensors[name] for name in node.output if name in tensors]
    if writes and all(value.from_weights for value in writes):
        return Work(node.op_type, 0, 0, False)
    written = sum(value.bytes for value in writes)
    size = math.prod(writes[0].shape) if writes else 0
    moved = sum(value.bytes for value in reads) + written
    if node.op_type in (*PRODUCTS, *CONVOLUTIONS):
        integer = node.op_type in INTEGER or set(node.input[:2]) <= integers
        known = bool(writes) and node.input[0] in tensors
        operations = 2.0 * size * _depth(node, tensors) if known else math.nan
        return Work(node.op_type, operations, moved, integer)
    if node.op_type in ("Gather", "GatherElements"):
        # reads only the rows it takes, in the form that they are stored in
        return Work(node.op_type, 0, 2 * written, False)
    return Work(node.op_type, float(size), moved, False)


def _depth(node: NodeProto, tensors: Mapping[str, Tensor]) -> int:
    """How many products are summed into one number of the result."""
    if node.op_type == "MatMulNBits":
        return _attribute(node, "K")
    if node.op_type in CONVOLUTIONS:  # weights [out, in of a group, height, width]
        return math.prod(tensors[node.input[3 if node.op_type == "QLinearConv" else 1]].shape[1:])
    left = tensors[node.input[0]]
    return left.shape[-2 if _attribute(node, "transA") else -1]


def _attribute(node: NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _element_bits(kind: int) -> int:
    name = onnx.TensorProto.DataType.Name(kind)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    return 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
