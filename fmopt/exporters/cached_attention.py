"""Attention over a cache as one operator: what an exported decoder says in some dozen nodes a layer, ONNX Runtime's
GroupQueryAttention does in one, and it can append to a cache where it lies instead of copying it for every token.

The mask stays what it was, as the operator's `attention_bias`, so that padding and sliding windows mean the same. After
this nothing of the graph reads how long the arrays of the cache are, only how long the mask is: a cache may lie in a buffer
that is longer than its tokens, and the present is then written into the same buffer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fmopt.edge.kv_cache import CACHE_PREFIX, PRESENT
from fmopt.edge.runners import APPENDS
from fmopt.exporters.onnx_graph import add_opset, constant, consumers, drop_dead, producers, replace_nodes, weights

MICROSOFT = "com.microsoft"
LENGTHS = "cache/"  # begins the names of what all layers share
ROWS, TOKENS = {"start": 0, "end": 1}, {"start": 2, "end": 3}  # of a Shape of a cache: [rows, heads, tokens, size]
HEADS_FIRST = [0, 2, 1, 3]  # [batch, tokens, heads, size] → [batch, heads, tokens, size] and back


@dataclass(frozen=True)
class Wiring:
    """Who makes and who reads every value, and the constants among them."""

    makers: Mapping[str, NodeProto]
    readers: Mapping[str, list[NodeProto]]
    known: Mapping[str, TensorProto]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Wiring:
        """The wiring of a graph as it is now."""
        return cls(producers(model.graph), consumers(model.graph), weights(model))

    def maker(self, name: str, kind: str) -> NodeProto | None:
        """The node that makes a value, when it is of this kind."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def number(self, name: str) -> float | None:
        """A constant with one element."""
        tensor = self.known.get(name)
        if tensor is None or math.prod(tensor.dims) != 1:
            return None
        return float(numpy_helper.to_array(tensor).reshape(()))

    def numbers(self, name: str) -> list[int] | None:
        """A small constant of whole numbers; None when it is none."""
        tensor = self.known.get(name)
        return None if tensor is None else [int(one) for one in numpy_helper.to_array(tensor).reshape(-1)]


@dataclass(frozen=True)
class Rotation:
    """Queries and keys before they are turned by their positions, and by which cosines and sines."""

    state: str
    cos: str
    sin: str


@dataclass(frozen=True)
class Attention:
    """One layer's attention as it was found."""

    layer: int
    query: str  # [batch, heads, tokens, size]
    key: str  # of the new tokens, [batch, key heads, tokens, size]
    value: str
    bias: str  # what is added to the products, [batch, 1, tokens, total]
    scale: float
    repeats: int  # queries that share a key
    end: NodeProto  # the Transpose to [batch, tokens, heads, size] after it
    turned: tuple[Rotation, Rotation] | None


def fuse_attention(model: onnx.ModelProto, positions: int) -> int:
    """Write every layer's attention over its cache as GroupQueryAttention, in place; how many. 0 changes nothing.

    All layers or none: what is left of the length of a cache would not know a buffer. `positions` is the model's longest text.
    """
    wiring = Wiring.of(model)
    pasts = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
             for value in model.graph.input if value.name.startswith(CACHE_PREFIX)}  # fmt: skip
    layers = sorted(int(name.split(".")[1]) for name in pasts if name.endswith(".key"))
    names = {value.name for value in model.graph.input}
    found = [_attention(wiring, layer) for layer in layers]
    if not layers or "attention_mask" not in names or any(one is None for one in found):
        return 0
    if not all(_only_attended(wiring, name) for name in pasts):
        return 0
    attentions = [one for one in found if one is not None]
    turns = {(one.turned[0].cos, one.turned[0].sin) for one in attentions if one.turned is not None}
    tables = {pair: _tables(model, *pair, positions) for pair in turns} if "position_ids" in names else {}
    nodes = _lengths(model)
    replaced: dict[int, list[NodeProto]] = {}
    order = {pair: number for number, pair in enumerate(sorted(pair for pair in tables if tables[pair] is not None))}
    for pair, number in order.items():
        for kind, table in zip(("cos", "sin"), tables[pair] or (), strict=True):
            model.graph.initializer.append(constant(f"{LENGTHS}{kind}.{number}", table))
    for one in attentions:
        _, heads, _, size = pasts[f"{CACHE_PREFIX}{one.layer}.key"]
        table_of = None if one.turned is None else order.get((one.turned[0].cos, one.turned[0].sin))
        replaced[id(one.end)] = _nodes(model, wiring, one, heads, size, table_of)
    _forget_lengths(model, pasts)
    for node in model.graph.node:
        nodes += replaced.get(id(node), [node])
    replace_nodes(model.graph, in_order([one for one in nodes if not set(one.output) & _presents(attentions, one)]))
    add_opset(model, MICROSOFT, 1)
    drop_dead(model)
    helper.set_model_props(model, {APPENDS: "1"})
    return len(attentions)


def _presents(attentions: list[Attention], node: NodeProto) -> set[str]:
    """Outputs of the Concats that the fused operator now makes."""
    if node.op_type != "Concat":
        return set()
    return {f"{PRESENT}{one.layer}.{kind}" for one in attentions for kind in ("key", "value")}


def _only_attended(wiring: Wiring, kv_cache: str) -> bool:
    """Whether nothing but attention reads a cache and its present; how many rows and tokens it has may be asked."""
    for node in wiring.readers.get(kv_cache, []):
        asked = {one.name: one.i for one in node.attribute}
        if node.op_type != "Concat" and not (node.op_type == "Shape" and asked in (ROWS, TOKENS)):
            return False
    return len(wiring.readers.get(kv_cache.replace(CACHE_PREFIX, PRESENT), [])) == 1


def _attention(wiring: Wiring, layer: int) -> Attention | None:
    """The attention of a layer, None where it is not the plain kind."""
    kv_cache = [f"{CACHE_PREFIX}{layer}.{kind}" for kind in ("key", "value")]
    joined = [wiring.maker(f"{PRESENT}{layer}.{kind}", "Concat") for kind in ("key", "value")]
    for node, name in zip(joined, kv_cache, strict=True):
        if node is None or len(node.input) != 2 or node.input[0] != name:
            return None
    keys, repeats = _product_of(wiring, f"{PRESENT}{layer}.key")
    values, _ = _product_of(wiring, f"{PRESENT}{layer}.value")
    if keys is None or values is None or not repeats:
        return None
    scores = _scores(wiring, keys.output[0])
    if scores is None or scores[2].output[0] != values.input[0]:
        return None
    ends = wiring.readers.get(values.output[0], [])
    if len(ends) != 1 or ends[0].op_type != "Transpose" or _list(ends[0], "perm") != HEADS_FIRST:
        return None
    key, value = (node.input[1] for node in joined if node is not None)
    turned = _rotation(wiring, keys.input[0]), _rotation(wiring, key)
    pair = (turned[0], turned[1]) if turned[0] and turned[1] else None
    if pair is not None and (pair[0].cos, pair[0].sin) != (pair[1].cos, pair[1].sin):
        pair = None
    return Attention(layer, keys.input[0], key, value, scores[1], scores[0], repeats, ends[0], pair)


def _product_of(wiring: Wiring, present: str) -> tuple[NodeProto | None, int]:
    """The MatMul that a cache goes into on the right, and how often its heads are repeated on the way; 0: not known."""
    name, repeats = present, 1
    for _ in range(6):
        readers = wiring.readers.get(name, [])
        step = next(
            (node for node in readers if node.op_type in ("Transpose", "Unsqueeze", "Expand", "Reshape", "MatMul")),
            None,
        )
        if step is None:
            return None, 0
        if step.op_type == "MatMul":
            return (step, repeats) if step.input[1] == name else (None, 0)
        if step.op_type == "Expand":
            repeats = _third(wiring, step.input[1])
        name = step.output[0]
    return None, 0


def _third(wiring: Wiring, shape: str) -> int:
    """The third number of a shape that is put together of constants and of what is not known; 0 when it is not known."""
    whole = wiring.numbers(shape)
    joined = wiring.maker(shape, "Concat")
    parts = (
        [whole] if whole is not None else [wiring.numbers(one) for one in joined.input] if joined is not None else []
    )
    flat = [number for part in parts for number in (part if part is not None else [0])]
    return flat[2] if len(flat) == 5 else 0


def _scores(wiring: Wiring, product: str) -> tuple[float, str, NodeProto] | None:
    """From the product of queries and keys to its Softmax: the factor, what is added, and the Softmax."""
    scale, bias, name = 1.0, "", product
    for _ in range(6):
        readers = wiring.readers.get(name, [])
        if len(readers) != 1:
            return None
        node = readers[0]
        other = next((one for one in node.input if one != name), "")
        if node.op_type == "Softmax":
            return (scale, bias, node) if bias else None
        if node.op_type in ("Mul", "Div") and not bias and wiring.number(other) is not None:
            factor = wiring.number(other) or 0.0
            scale *= factor if node.op_type == "Mul" else 1 / factor
        elif node.op_type == "Add" and not bias:
            bias = other
        else:
            return None
        name = node.output[0]
    return None


def _rotation(wiring: Wiring, name: str) -> Rotation | None:
    """What `x · cos + turned(x) · sin` turns, where the halves of whole heads are swapped (Su et al., 2021)."""
    total = wiring.maker(name, "Add")
    parts = [wiring.maker(one, "Mul") for one in total.input] if total is not None else []
    if len(parts) != 2 or parts[0] is None or parts[1] is None:
        return None
    plain, swapped = parts[0], parts[1]
    joined = wiring.maker(swapped.input[0], "Concat")
    negative = wiring.maker(joined.input[0], "Neg") if joined is not None and len(joined.input) == 2 else None
    second = wiring.maker(negative.input[0], "Slice") if negative is not None else None
    first = wiring.maker(joined.input[1], "Slice") if joined is not None and len(joined.input) == 2 else None
    if first is None or second is None or {first.input[0], second.input[0]} != {plain.input[0]}:
        return None
    starts, ends = (wiring.number(one.input[1]) for one in (first, second)), wiring.number(first.input[2])
    if list(starts) != [0.0, ends]:
        return None
    return Rotation(plain.input[0], plain.input[1], swapped.input[1])


def _tables(model: onnx.ModelProto, cos: str, sin: str, positions: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Cosines and sines float32 [positions, size / 2], as the graph itself computes them; None where they depend on more
    than positions, or differ between the halves of a head."""
    import onnxruntime

    needed = {cos, sin}
    nodes: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
    inputs = [value for value in model.graph.input if value.name in needed]
    if any(value.name.startswith(CACHE_PREFIX) for value in inputs):
        return None
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (cos, sin)]
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    small = helper.make_model(
        helper.make_graph(nodes[::-1], "positions", inputs, outputs, tensors),
        opset_imports=model.opset_import, ir_version=model.ir_version,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
    row = np.arange(positions, dtype=np.int64)[None]
    given = {value.name: row if value.name == "position_ids" else np.ones_like(row) for value in inputs}
    found = []
    for table in session.run([cos, sin], given):
        rows = np.asarray(table, dtype=np.float32).reshape(-1, table.shape[-1])
        half = rows.shape[1] // 2
        if len(rows) != positions or rows.shape[1] % 16 or not np.array_equal(rows[:, :half], rows[:, half:]):
            return None
        found.append(rows[:, :half])
    return found[0], found[1]


def _lengths(model: onnx.ModelProto) -> list[NodeProto]:
    """Nodes that tell how many tokens there are, new and in all, for every row."""
    constants: dict[str, np.ndarray] = {"one": np.array([1], np.int32), "whole": np.array([0, 0, -1], np.int64)}
    model.graph.initializer.extend(constant(LENGTHS + name, value) for name, value in constants.items())

    def node(kind: str, inputs: list[str], out: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, inputs, [LENGTHS + out], LENGTHS + out, **attributes)

    return [
        node("Shape", ["input_ids"], "rows", start=0, end=1),
        node("Shape", ["input_ids"], "new", start=1, end=2),
        node("Shape", ["attention_mask"], "all", start=1, end=2),
        node("Sub", [LENGTHS + "all", LENGTHS + "new"], "before"),
        node("Cast", [LENGTHS + "all"], "all32", to=TensorProto.INT32),
        node("Cast", [LENGTHS + "new"], "new32", to=TensorProto.INT32),
        node("Squeeze", [LENGTHS + "all32"], "total"),
        node("Sub", [LENGTHS + "all32", LENGTHS + "one"], "last"),
        node("Expand", [LENGTHS + "last", LENGTHS + "rows"], "lasts"),
        node("Expand", [LENGTHS + "new32", LENGTHS + "rows"], "news"),
    ]


def _nodes(
    model: onnx.ModelProto, wiring: Wiring, one: Attention, heads: int, size: int, table: int | None
) -> list[NodeProto]:
    """The nodes of a layer that stand where the Transpose at its end stood."""
    scope = one.end.name.rpartition("/")[0]
    name = f"{scope}/GroupQueryAttention"
    query, key = one.query, one.key
    turned: list[str] = ["", "", ""]
    if table is not None and one.turned is not None:
        query, key = one.turned[0].state, one.turned[1].state
        turned = [f"{LENGTHS}cos.{table}", f"{LENGTHS}sin.{table}", "position_ids"]
    nodes: list[NodeProto] = []

    def flat(state: str, kind: str) -> str:
        """[batch, tokens, heads · size] of [batch, heads, tokens, size]."""
        across = wiring.maker(state, "Transpose")
        split = wiring.maker(across.input[0], "Reshape") if across is not None else None
        if across is not None and split is not None and _list(across, "perm") == HEADS_FIRST:
            return split.input[0]
        nodes.append(
            helper.make_node("Transpose", [state], [f"{name}.{kind}.across"], f"{name}_{kind}_across", perm=HEADS_FIRST)
        )
        nodes.append(
            helper.make_node(
                "Reshape", [f"{name}.{kind}.across", LENGTHS + "whole"], [f"{name}.{kind}"], f"{name}_{kind}"
            )
        )
        return f"{name}.{kind}"

    shape = f"{LENGTHS}heads.{heads * one.repeats}.{size}"
    if all(tensor.name != shape for tensor in model.graph.initializer):
        model.graph.initializer.append(constant(shape, np.array([0, 0, heads * one.repeats, size], np.int64)))
    states = [flat(query, "query"), flat(key, "key"), flat(one.value, "value")]
    inputs = [*states, f"{CACHE_PREFIX}{one.layer}.key", f"{CACHE_PREFIX}{one.layer}.value", LENGTHS + "lasts", LENGTHS + "total",
              *turned, one.bias, "", "", "", "", "", LENGTHS + "news"]  # fmt: skip
    outputs = [f"{name}.out", f"{PRESENT}{one.layer}.key", f"{PRESENT}{one.layer}.value"]
    attributes: dict[str, Any] = {"num_heads": heads * one.repeats, "kv_num_heads": heads, "scale": one.scale}
    if table is not None and one.turned is not None:
        attributes["do_rotary"] = 1
    nodes.append(helper.make_node("GroupQueryAttention", inputs, outputs, name, domain=MICROSOFT, **attributes))
    nodes.append(helper.make_node("Reshape", [f"{name}.out", shape], list(one.end.output), f"{name}_heads"))
    return nodes


def _forget_lengths(model: onnx.ModelProto, pasts: Mapping[str, Any]) -> None:
    """The length of a cache comes from the mask, not from an array that may be longer than its tokens."""
    for node in model.graph.node:
        if node.op_type != "Shape" or node.input[0] not in pasts:
            continue
        tokens = {one.name: one.i for one in node.attribute} == TOKENS
        del node.attribute[:]
        node.op_type, node.input[0] = "Identity", LENGTHS + ("before" if tokens else "rows")


def in_order(nodes: list[NodeProto]) -> list[NodeProto]:
    """The nodes so that each comes after what it reads, otherwise as they were."""
    makers = {name: node for node in nodes for name in node.output}
    done: set[int] = set()
    ordered: list[NodeProto] = []
    for node in nodes:
        stack = [node]
        while stack:
            current = stack[-1]
            found = (makers.get(name) for name in current.input)
            waiting = next((maker for maker in found if maker is not None and id(maker) not in done), None)
            if waiting is not None and id(current) not in done:
                stack.append(waiting)
                continue
            stack.pop()
            if id(current) not in done:
                done.add(id(current))
                ordered.append(current)
    return ordered


def _list(node: NodeProto, name: str) -> list[int]:
    return next((list(one.ints) for one in node.attribute if one.name == name), [])
