"""A decoder's graph with few, large nodes: for one token, what a node costs is mostly that it is a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from fmopt.core.model import CheckpointMetadata, Graph, continues_texts
from fmopt.core.target import Target
from fmopt.edge.kv_cache import FIRST_LOGITS
from fmopt.exporters.cached_attention import MICROSOFT, Wiring, fuse_attention, in_order
from fmopt.exporters.onnx_graph import constant, drop_dead, read_onnx, replace_nodes, write_onnx
from fmopt.passes.base import Context


@dataclass(frozen=True)
class FuseDecoder:
    """Attention over the cache becomes one operator that appends in place (see cached_attention.py); products of block-wise
    weights that read the same value become one, their biases go into them; RMS norms become one operator; and the head
    computes logits only from where the caller asks on, which for a prompt is its last token.

    After quantize_weights. Every result stays what it was, up to the order of sums.
    """

    stage: ClassVar[Literal["graph"]] = "graph"
    format: ClassVar[Literal["onnx"]] = "onnx"

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """A network without a cache, or a target without ONNX Runtime, whose operators these are."""
        if not continues_texts(metadata.pipeline):
            return f"{metadata.task} keeps no cache"
        return (
            None if "onnxruntime" in target.runtimes else f"{target.name} has no onnxruntime, whose operators these are"
        )

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the graph into `out`. Attention that is not of the plain kind stays as it is, in all layers."""
        model = read_onnx(graph.path)
        layers = fuse_decoder(model, int(ctx.metadata.pipeline["max_length"]))
        path = write_onnx(model, out / graph.path.name)
        return replace(graph, path=path, history=(*graph.history, f"fuse_decoder({layers} layers)"))


def fuse_decoder(model: onnx.ModelProto, positions: int) -> int:
    """All of it, in place; in how many layers attention was fused."""
    layers = fuse_attention(model, positions)
    for step in (fuse_norms, flatten_products, take_biases_in, merge_products, pack_attention, choose_logits):
        step(model)
        replace_nodes(model.graph, in_order(list(model.graph.node)))
        drop_dead(model)
    return layers


def fuse_norms(model: onnx.ModelProto) -> None:
    """`x · 1 / sqrt(mean(x²) + ε) · weight` becomes SimplifiedLayerNormalization (RMSNorm: Zhang and Sennrich, 2019)."""
    wiring = Wiring.of(model)
    for node in model.graph.node:
        if node.op_type != "Mul":
            continue
        scaled = next((one for one in node.input if (wiring.maker(one, "Mul"))), "")
        weight = next((one for one in node.input if one in wiring.known and len(wiring.known[one].dims) == 1), "")
        product = wiring.maker(scaled, "Mul")
        inverse = wiring.maker(product.input[1], "Reciprocal") if product is not None else None
        root = wiring.maker(inverse.input[0], "Sqrt") if inverse is not None else None
        moved = wiring.maker(root.input[0], "Add") if root is not None else None
        mean = wiring.maker(moved.input[0], "ReduceMean") if moved is not None else None
        square = wiring.maker(mean.input[0], "Pow") if mean is not None else None
        if not weight or product is None or moved is None or square is None or square.input[0] != product.input[0]:
            continue
        epsilon = wiring.number(moved.input[1])
        if epsilon is None or wiring.number(square.input[1]) != 2 or len(wiring.readers[scaled]) != 1:
            continue
        made = helper.make_node(
            "SimplifiedLayerNormalization", [product.input[0], weight], list(node.output),
            f"{node.name.rpartition('/')[0]}/SimplifiedLayerNormalization", axis=-1, epsilon=epsilon, stash_type=1,
        )  # fmt: skip
        node.CopyFrom(made)


def flatten_products(model: onnx.ModelProto) -> None:
    """A product between two Reshapes that only fold rows and tokens together and apart again reads what they read, and
    nobody splits the heads that attention gives only to join them again."""
    wiring = Wiring.of(model)
    joined_heads = {node.output[0]: node.input[0] for node in model.graph.node
                    if node.op_type == "Reshape" and wiring.maker(node.input[0], "GroupQueryAttention")}  # fmt: skip
    for node in model.graph.node:
        target = wiring.maker(node.input[1], "Concat") if node.op_type == "Reshape" else None
        if target is not None and len(target.input) == 3 and node.input[0] in joined_heads:
            node.op_type, source = "Identity", joined_heads[node.input[0]]
            del node.input[:], node.attribute[:]
            node.input.append(source)
    for node in _products(model):
        folded = wiring.maker(node.input[0], "Reshape")
        readers = wiring.readers.get(node.output[0], [])
        if folded is None or len(readers) != 1 or readers[0].op_type != "Reshape":
            continue
        before, width = wiring.numbers(folded.input[1]), _integer(node, "K")
        joined = wiring.maker(readers[0].input[1], "Concat")
        after = None if joined is None else [wiring.numbers(part) for part in joined.input]
        if before != [-1, width] or after is None or len(after) != 3 or after[-1] != [_integer(node, "N")]:
            continue
        node.input[0], node.output[0] = joined_heads.get(folded.input[0], folded.input[0]), readers[0].output[0]
        readers[0].output[0] += ".unused"


def take_biases_in(model: onnx.ModelProto) -> None:
    """An addition of a constant row to a product becomes the product's own bias."""
    wiring = Wiring.of(model)
    for node in _products(model):
        readers = wiring.readers.get(node.output[0], [])
        if len(node.input) > 5 or len(readers) != 1 or readers[0].op_type != "Add":
            continue
        bias = next(one for one in readers[0].input if one != node.output[0])
        if bias not in wiring.known or list(wiring.known[bias].dims) != [_integer(node, "N")]:
            continue
        node.input.extend([*[""] * (5 - len(node.input)), bias])
        node.output[0] = readers[0].output[0]
        readers[0].output[0] += ".unused"


def merge_products(model: onnx.ModelProto) -> None:
    """Products of one value with several matrices of the same kind become one with all their columns, and a Split."""
    wiring = Wiring.of(model)
    groups: dict[tuple[object, ...], list[NodeProto]] = {}
    for node in _products(model):
        kind = tuple(_integer(node, name) for name in ("K", "bits", "block_size", "accuracy_level"))
        groups.setdefault((node.input[0], kind, _has(node, 3), _has(node, 5)), []).append(node)
    made: dict[str, list[NodeProto]] = {}  # first result of a node → what stands in its place
    for same in groups.values():
        if len(same) < 2:
            continue
        first, name = same[0], f"{same[0].name}+{len(same) - 1}"
        inputs = [first.input[0]]
        for place in range(1, 6):
            if not _has(first, place):
                inputs.append("")
                continue
            parts = [numpy_helper.to_array(wiring.known[node.input[place]]) for node in same]
            model.graph.initializer.append(constant(f"{name}.{place}", np.concatenate(parts)))
            inputs.append(f"{name}.{place}")
        while not inputs[-1]:
            inputs.pop()
        sizes = [_integer(node, "N") for node in same]
        outputs = [node.output[0] for node in same]
        one = helper.make_node("MatMulNBits", inputs, [f"{name}.all"], name, domain=MICROSOFT)
        one.attribute.extend(attribute for attribute in first.attribute if attribute.name != "N")
        one.attribute.append(helper.make_attribute("N", sum(sizes)))
        model.graph.initializer.append(constant(f"{name}.sizes", np.array(sizes, np.int64)))
        apart = helper.make_node("Split", [f"{name}.all", f"{name}.sizes"], outputs, f"{name}/Split", axis=-1)
        made |= {output: [] for output in outputs} | {outputs[0]: [one, apart]}
    _replace(model, lambda node: made.get(node.output[0], [node]))


def pack_attention(model: onnx.ModelProto) -> None:
    """Attention reads queries, keys and values where the product left them side by side, without the Split."""
    wiring = Wiring.of(model)
    for node in model.graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        apart = wiring.maker(node.input[0], "Split")
        if apart is not None and list(apart.output) == list(node.input[:3]):
            node.input[0], node.input[1], node.input[2] = apart.input[0], "", ""


def choose_logits(model: onnx.ModelProto) -> None:
    """The head reads the hidden states from `first_logits` on: 0, all of them, where nothing is given for it; -1 is the last."""
    head = next((node for node in model.graph.node if "logits" in node.output), None)
    if head is None or head.op_type not in ("MatMulNBits", "MatMul"):
        return
    hidden = head.input[0]
    maker = Wiring.of(model).maker(hidden, "Reshape")  # GPT-2 gives them a shape that they have
    hidden = maker.input[0] if maker is not None else hidden
    names = {"end": np.array([np.iinfo(np.int64).max]), "axis": np.array([1])}
    model.graph.initializer.append(constant(FIRST_LOGITS, np.array([0], np.int64)))
    model.graph.initializer.extend(constant(f"{FIRST_LOGITS}.{name}", value) for name, value in names.items())
    model.graph.input.append(helper.make_tensor_value_info(FIRST_LOGITS, onnx.TensorProto.INT64, [1]))
    inputs = [hidden, FIRST_LOGITS, *(f"{FIRST_LOGITS}.{name}" for name in names)]
    head.input[0] = f"{FIRST_LOGITS}.hidden"
    cut = helper.make_node("Slice", inputs, [head.input[0]], f"{head.name.rpartition('/')[0]}/Slice")
    _replace(model, lambda node: [cut, node] if "logits" in node.output else [node])


def _replace(model: onnx.ModelProto, made: Callable[[NodeProto], list[NodeProto]]) -> None:
    replace_nodes(model.graph, [one for node in list(model.graph.node) for one in made(node)])


def _products(model: onnx.ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == "MatMulNBits"]


def _has(node: NodeProto, place: int) -> bool:
    return len(node.input) > place and bool(node.input[place])


def _integer(node: NodeProto, name: str) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), 0)


PASS = FuseDecoder
