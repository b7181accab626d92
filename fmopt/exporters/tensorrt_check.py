"""Would TensorRT take this ONNX graph? Every node against the documented support matrix, every Q/DQ against its rules.

No engine is built: the answer is what the documentation says, node by node. The matrix is data, `tensorrt_support.toml`,
which names its edition. Two levels: a *fault* keeps an engine from being built, *slow* keeps products from being fused
or from running in 8 bits.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

from fmopt.core.errors import ConfigError
from fmopt.core.results import Frozen
from fmopt.exporters.onnx_graph import element_types
from fmopt.exporters.tensorrt_qdq import qdq_findings

SUPPORT = Path(__file__).with_name("tensorrt_support.toml")
# ONNX's names of element types -> the table's
TYPES = {
    "FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "FLOAT8E4M3FN": "FP8", "FLOAT4E2M1": "FP4", "DOUBLE": "DOUBLE",
}  # fmt: skip
# Inputs (or outputs, "out") whose types the table's row speaks of, where it is not the first input and its like.
TYPED = {"Where": (1, 2), "OneHot": (2,), "ConstantOfShape": ("out",), "Constant": ("out",), "Cast": (0, "out")}


class Finding(Frozen):
    """One thing that TensorRT will not take, or not run fast."""

    level: Literal["fault", "slow", "note"]
    node: str  # the node's name, or its outputs when it has none; "" for the graph
    operator: str
    text: str


class Checked(Frozen):
    """What the check found in a graph, faults first."""

    graph: str
    matrix: str  # the edition of the support matrix
    tensorrt: int  # major version that was asked about
    nodes: int
    findings: tuple[Finding, ...] = ()

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What keeps an engine from being built."""
        return tuple(found for found in self.findings if found.level == "fault")


@dataclass(frozen=True)
class Support:
    """The support matrix."""

    edition: str
    opsets: Mapping[int, tuple[int, int]]
    operators: Mapping[str, frozenset[str]]  # operator -> types its data may have
    unsupported: frozenset[str]
    restrictions: Mapping[str, Mapping[str, Any]]
    quantized: Mapping[str, Any]


@cache
def support() -> Support:
    """The shipped matrix."""
    data = tomllib.loads(SUPPORT.read_text(encoding="utf-8"))
    return Support(
        edition=data["matrix"],
        opsets={int(major): (low, high) for major, (low, high) in data["opsets"].items()},
        operators={
            name: frozenset(group["types"]) for group in data["operators"] for name in group["names"].split()
        },
        unsupported=frozenset(data["unsupported"]["names"].split()),
        restrictions=data["restrictions"],
        quantized=data["quantized"],
    )  # fmt: skip


def check_file(path: Path, *, tensorrt: int = 11) -> Checked:
    """`check` on the ONNX file `path`; ConfigError when it is none, or for a TensorRT that the matrix does not know."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; give an ONNX graph, or a bundle that holds model.onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own, of several versions
        raise ConfigError(f"{path} is not an ONNX graph: {str(error).splitlines()[0][:120]}") from error
    if not model.graph.node:
        raise ConfigError(f"{path} is not an ONNX graph: it holds no node")
    return check(model, str(path), tensorrt=tensorrt)


def check(model: onnx.ModelProto, name: str = "", *, tensorrt: int = 11) -> Checked:
    """What TensorRT of major version `tensorrt` would not take of `model`, or not run fast."""
    known = support()
    if tensorrt not in known.opsets:
        raise ConfigError(f"TensorRT {tensorrt} is not known; there are: {', '.join(map(str, known.opsets))}")
    types = {value: table_type(kind) for value, kind in element_types(model).items()}
    found = [*_opset(model, tensorrt), *_inputs(model, types)]
    nodes = list(all_nodes(model.graph))
    constant = constants(model.graph)
    ranks = _ranks(model)
    for node in nodes:
        found += _node(node, types, constant, ranks)
    texts = {
        (level, label(node), node.op_type, text) for level, node, text in qdq_findings(model, types, known.quantized)
    }
    found += [Finding(level=level, node=at, operator=kind, text=text) for level, at, kind, text in sorted(texts)]
    order = ("fault", "slow", "note")
    return Checked(
        graph=name,
        matrix=known.edition,
        tensorrt=tensorrt,
        nodes=len(nodes),
        findings=tuple(sorted(found, key=lambda one: order.index(one.level))),
    )


def table_type(kind: int) -> str:
    """An ONNX element type in the table's words."""
    name = str(TensorProto.DataType.Name(kind))
    return TYPES.get(name, name)


def label(node: onnx.NodeProto) -> str:
    """How a node is called in a message."""
    return node.name or " ".join(filter(None, node.output))


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of the graph and of the bodies of If, Loop and Scan."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from all_nodes(body)


def constants(graph: onnx.GraphProto) -> set[str]:
    """Values that are known when an engine is built: initializers, and what is computed from them alone."""
    found = {tensor.name for tensor in graph.initializer}
    for node in all_nodes(graph):
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                found |= {tensor.name for tensor in body.initializer}
        if all(name in found for name in node.input if name) and not node.op_type.startswith("Random"):
            found |= set(node.output)
    return found


def _opset(model: onnx.ModelProto, tensorrt: int) -> list[Finding]:
    low, high = support().opsets[tensorrt]
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if low <= version <= high:
        return []
    text = f"opset {version}; TensorRT {tensorrt} takes {low} to {high}: convert it with onnx.version_converter"
    return [Finding(level="fault", node="", operator="", text=text)]


def _inputs(model: onnx.ModelProto, types: Mapping[str, str]) -> list[Finding]:
    taken = {"FP32", "FP16", "BF16", "INT32", "INT64", "INT8", "UINT8", "FP8", "BOOL"}
    stored = {tensor.name for tensor in model.graph.initializer}
    strange = [v.name for v in model.graph.input if v.name not in stored and types.get(v.name) not in taken]
    return [
        Finding(level="fault", node=name, operator="input", text=f"an input may not be {types.get(name, 'of no type')}")
        for name in strange
    ]


def _node(
    node: onnx.NodeProto, types: Mapping[str, str], constant: set[str], ranks: Mapping[str, int]
) -> Iterator[Finding]:
    known = support()

    def found(text: str, level: Literal["fault", "slow", "note"] = "fault") -> Finding:
        return Finding(level=level, node=label(node), operator=node.op_type, text=text)

    if node.domain not in ("", "ai.onnx"):
        yield found(f"an operator of {node.domain}, which only a plugin of that name could run")
        return
    if node.op_type not in known.operators:
        why = "is not supported" if node.op_type in known.unsupported else "is not in the matrix"
        yield found(f"{node.op_type} {why} ({known.edition})")
        return
    allowed = known.operators[node.op_type]
    for value in _typed(node):
        if value in types and types[value] not in allowed:
            double = types[value] == "DOUBLE"
            text = (
                "DOUBLE is cast down to FP32" if double else f"{value} is {types[value]}; it takes {_listed(allowed)}"
            )
            yield found(text, "note" if double else "fault")
    rules = known.restrictions.get(node.op_type, {})
    for text in _broken(node, rules, constant, ranks):
        yield found(text)
    if "note" in rules:
        yield found(rules["note"], "note")


def _typed(node: onnx.NodeProto) -> list[str]:
    """Values of a node whose type the table's row is about: its first input, and inputs bound to the same type."""
    if node.op_type in TYPED:
        picked = TYPED[node.op_type]
        return [
            node.output[0] if place == "out" else node.input[int(place)]
            for place in picked
            if place == "out" or int(place) < len(node.input)
        ]
    try:
        formal = onnx.defs.get_schema(node.op_type).inputs
    except onnx.defs.SchemaError:
        return list(node.input[:1])
    if not node.input or not formal:
        return list(node.output[:1])
    kinds = [formal[min(place, len(formal) - 1)].type_str for place in range(len(node.input))]
    return [name for name, kind in zip(node.input, kinds, strict=True) if name and kind == kinds[0]]


def _broken(
    node: onnx.NodeProto, rules: Mapping[str, Any], constant: set[str], ranks: Mapping[str, int]
) -> Iterator[str]:
    """Restrictions that a node does not keep, in words."""
    given = {place: name for place, name in enumerate(node.input) if name}
    for place in rules.get("constant", ()):
        if place in given and given[place] not in constant:
            yield f"input {place} ({given[place]}) must be known when the engine is built"
    for place in rules.get("absent", ()):
        if place in given:
            yield f"input {place} ({given[place]}) is not supported"
    most = rules.get("outputs")
    if most is not None and any(node.output[most:]):
        yield f"only its first {'output' if most == 1 else f'{most} outputs'} may be read, not {node.output[most]}"
    rank = ranks.get(given.get(0, ""))
    if rank is not None and rank not in rules.get("ranks", (rank,)):
        yield f"{given[0]} has {rank} dimensions; it takes {' or '.join(map(str, rules['ranks']))}"
    for name, allowed in rules.get("attributes", {}).items():
        attribute = next((one for one in node.attribute if one.name == name), None)
        value = None if attribute is None else _plain(helper.get_attribute_value(attribute))
        if value is not None and value not in allowed:
            yield f"{name} is {value!r}" + (f"; it takes {_listed(map(str, allowed))}" if allowed else ", unsupported")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Ranks that are written down in the graph."""
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        if value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
