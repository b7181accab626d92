"""What an ONNX file says of itself, read without opening it in a runtime: ports, operators, precision, weights.

Nothing of it is believed that could do harm: its weights lie in plain files beside it, its operators are those of ONNX and of
ONNX Runtime, and it has no loop, whose turns nothing bounds.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError, reading
from fmopt.edge.errors import EdgeError, shorten
from fmopt.edge.files import external_files, open_inside, printable
from fmopt.models.received import require_plain

DOMAINS = ("", "ai.onnx", "com.microsoft")
LOOPS = ("Loop", "Scan")
QDQ = ("QuantizeLinear", "DequantizeLinear")
INTEGER = (
    "MatMulInteger", "DynamicQuantizeLinear", "QLinearMatMul", "QGemm", "QAttention", "ConvInteger", "QLinearConv",
    "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QEmbedLayerNormalization", "MatMulNBits", "GatherBlockQuantized",
)  # fmt: skip
HALF = {10: "fp16", 16: "bf16"}  # element types of ONNX
LARGEST_BYTES = 2 << 30  # of a protobuf message
MOST_AXES, MOST_IN_BYTE = 16, 8  # of a tensor; numbers in a byte


@dataclass(frozen=True)
class Port:
    """An input or output: its element type as numpy names it ("int64"), and its axes, a name or None where a length varies."""

    kind: str
    axes: tuple[int | str | None, ...] | None  # None: the file does not say


@dataclass(frozen=True)
class GraphSummary:
    """What an ONNX file says of itself."""

    path: Path
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    operators: Mapping[str, int]  # type -> how many nodes
    opset: int
    producer: str
    shapes: Mapping[str, tuple[int, ...]]  # of its weights and constants
    parameters: int  # elements of weights; of whole numbers those that are quantized ones
    weight_bytes: int
    precision: str  # the narrowest that it computes in
    table: tuple[int, int] | None  # rows and width of the table that its token ids are looked up in
    files: tuple[Path, ...]  # itself, and those that its weights lie in

    @property
    def quantization(self) -> str:
        """How it is quantized, in words; empty where it is not."""
        if any(self.operators.get(name) for name in INTEGER):
            return "operators on integers"
        return "Q/DQ pairs" if any(self.operators.get(name) for name in QDQ) else ""


def read_summary(path: Path, home: Path) -> GraphSummary:
    """The summary of an ONNX file that lies in the folder `home` or below; CheckpointError for what is none, was cut off, names
    files outside its folder, or holds operators that nothing here runs."""
    import onnx

    require_plain(path, home)
    with reading(path, CheckpointError, "get the file again"):
        if not (size := path.stat().st_size) or size >= LARGEST_BYTES:
            raise CheckpointError(
                f"{path} has {size:,} bytes, and an ONNX graph some, and less than 2 GB; get the file again"
            )
        files = (path, *_weight_files(path))
        found = _summary(onnx.load(str(path), load_external_data=False), path, files)
        ports = (*found.inputs.values(), *found.outputs.values())
        axes = [axis for port in ports for axis in port.axes or ()]
        if any(
            isinstance(one, bytes) for one in (*found.operators, *found.inputs, *found.outputs, *found.shapes, *axes)
        ):
            raise CheckpointError(f"{path} holds a name that is not UTF-8; get the file again")
        return found


def _summary(model: Any, path: Path, files: tuple[Path, ...]) -> GraphSummary:
    """The summary of a graph that was read; what protobuf gives for a name that is no text is left as it is."""
    if not model.graph.node or not model.graph.output:
        raise CheckpointError(f"{path} holds no graph (no node, or no output); get the file again")
    operators = _checked_operators(model, path)
    weight_bytes = sum(file.stat().st_size for file in files)
    tensors = {tensor.name: tensor for tensor in _tensors(model.graph)}
    for tensor in tensors.values():
        _require_possible(tensor, path, weight_bytes)
    given = [value for value in model.graph.input if value.name not in tensors]
    return GraphSummary(
        path=path,
        inputs={value.name: _port(value) for value in given},
        outputs={value.name: _port(value) for value in model.graph.output},
        operators=operators,
        opset=max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0),
        producer=printable(" ".join(filter(None, (model.producer_name, model.producer_version)))) or "not stated",
        shapes={name: tuple(tensor.dims) for name, tensor in tensors.items()},
        parameters=sum(math.prod(tensor.dims) for tensor in tensors.values() if tensor.data_type not in (6, 7, 9)),
        weight_bytes=weight_bytes,
        precision=_precision(operators, tensors.values()),
        table=_table(model.graph, tensors, [value.name for value in given]),
        files=files,
    )


def _require_possible(tensor: Any, path: Path, weight_bytes: int) -> None:
    """CheckpointError for a tensor of more numbers than the files can hold, or of a shape that there is not."""
    dims = tensor.dims
    if len(dims) > MOST_AXES or any(size < 0 for size in dims) or math.prod(dims) > weight_bytes * MOST_IN_BYTE:
        raise CheckpointError(
            f"{path} says that {shorten(printable(tensor.name))} has the shape {shorten(str(list(dims[:MOST_AXES])))}, which its "
            f"{weight_bytes:,} bytes do not hold; get the file again"
        )


def _weight_files(path: Path) -> list[Path]:
    """The files that a graph says its weights lie in, each a plain one in its folder."""
    names: set[str] = set()
    wrong = ""
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        try:
            names = external_files(view)
        except ValueError as error:
            wrong = str(error)  # not raised here: the error holds parts of what is to be closed
    if wrong:
        raise CheckpointError(f"{path} is no ONNX graph, or was cut off ({wrong}); get the file again")
    for name in sorted(names):
        try:
            open_inside(path.parent, name).close()
        except EdgeError as error:
            raise CheckpointError(f"{path} says that weights lie elsewhere: {error}; get all of its files") from error
    return [path.parent / name for name in sorted(names)]


def _nodes(graph: Any) -> Iterator[Any]:
    """Every node, those of the bodies of others too."""
    todo = [graph]
    while todo:
        for node in todo.pop().node:
            yield node
            for attribute in node.attribute:
                todo += [body for body in (attribute.g, *attribute.graphs) if body.node]


def _checked_operators(model: Any, path: Path) -> Counter[str]:
    """Types of its nodes with their numbers; CheckpointError for one of another domain, and for a loop."""
    own = {(function.domain, function.name) for function in model.functions}
    count: Counter[str] = Counter()
    for graph in (model.graph, *model.functions):
        for node in _nodes(graph):
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
                raise CheckpointError(
                    f"{path} has the custom operator {shorten(printable(node.op_type))} of the domain "
                    f"{shorten(printable(node.domain))}, which needs a library of its own; fmopt loads none: export the model "
                    "with operators of ONNX"
                )
            if node.op_type in LOOPS and node.domain in DOMAINS:
                raise CheckpointError(
                    f"{path} has a {node.op_type}, whose number of turns nothing here bounds; encoders of texts have none: "
                    "export the model again by tracing it"
                )
            count[node.op_type] += 1
    return count


def _tensors(graph: Any) -> Iterator[Any]:
    """Initializers and the values of Constant nodes, each named as what is read."""
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.t.dims:
                    tensor = type(attribute.t)()
                    tensor.name, tensor.data_type = node.output[0], attribute.t.data_type
                    tensor.dims.extend(attribute.t.dims)
                    yield tensor


def _port(value: Any) -> Port:
    import onnx

    tensor = value.type.tensor_type
    try:
        kind = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except Exception:  # a sequence, a map, a type that is unknown
        kind = "no tensor"
    if not tensor.HasField("shape"):
        return Port(kind, None)
    axes = (axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None for axis in tensor.shape.dim)
    return Port(kind, tuple(axes))


def _precision(operators: Mapping[str, int], tensors: Any) -> str:
    if any(operators.get(name) for name in ("MatMulNBits", "GatherBlockQuantized")):
        return "int4"
    if any(operators.get(name) for name in (*QDQ, *INTEGER)):
        return "int8"
    taken: Counter[int] = Counter()
    for tensor in tensors:
        taken[tensor.data_type] += math.prod(tensor.dims)
    most = max((kind for kind in taken if kind in (1, *HALF)), key=lambda kind: taken[kind], default=1)
    return HALF.get(most, "fp32")


def _table(graph: Any, tensors: Mapping[str, Any], inputs: list[str]) -> tuple[int, int] | None:
    """Rows and width of the table that an input is looked up in: the largest, for token types and positions are looked up too."""
    straight = set(inputs)
    for node in graph.node:  # whole numbers on their way to the lookup
        if node.op_type in ("Cast", "Identity", "Reshape", "Flatten") and node.input and node.input[0] in straight:
            straight.update(node.output)
    alike = ("DequantizeLinear", "Identity", "Cast")
    same = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type in alike and node.input and node.output
    }
    found = []
    for node in graph.node:
        if node.op_type == "Gather" and len(node.input) > 1 and node.input[1] in straight:
            name = node.input[0]
            for _ in range(8):
                if name in tensors or name not in same:
                    break
                name = same[name]
            if name in tensors and len(tensors[name].dims) == 2:
                found.append((int(tensors[name].dims[0]), int(tensors[name].dims[1])))
    return max(found, default=None)
