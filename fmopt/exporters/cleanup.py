"""Put an exported ONNX graph in order: only what is asked for, named after torch modules, the same bytes each time."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from fmopt.core.errors import ParityError

# Scales, zero points and smoothing vectors are shared by the projections that read one tensor; weights never are.
SHARED_CONSTANT_ELEMENTS = 1 << 14


def tidy(model: ir.Model, outputs: Sequence[str], axes: Mapping[str, Sequence[str | int]]) -> None:
    """Reduce `model` in place to `outputs`, merge what is computed twice, name everything after its torch module.

    `axes` are those of every input, by name.
    """
    _keep_outputs(model.graph, outputs)
    for step in (
        RemoveUnusedNodesPass(),
        IdentityEliminationPass(),
        DeduplicateInitializersPass(size_limit=SHARED_CONSTANT_ELEMENTS),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
    ):
        step(model)
    _name_axes(model.graph, axes)
    _name_nodes(model.graph)
    _name_constants(model.graph)
    ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "fmopt", ""
    model.graph.name = "fmopt"


def _keep_outputs(graph: ir.Graph, outputs: Sequence[str]) -> None:
    have = {value.name: value for value in graph.outputs}
    missing = [name for name in outputs if name not in have]
    if missing:
        raise ParityError(f"the exported graph has no output {missing[0]!r}; it has {', '.join(map(str, have))}")
    graph.outputs[:] = [have[name] for name in outputs]


def _name_axes(graph: ir.Graph, axes: Mapping[str, Sequence[str | int]]) -> None:
    """Axes of every input are called as `axes` says; shapes inside the graph are left to the runtime."""
    names: dict[str, str | int] = {}
    for value in graph.inputs:
        given = axes[str(value.name)]
        names |= {str(dim): name for dim, name in zip(value.shape or (), given, strict=True)}
        value.shape = ir.Shape(given)
    for value in graph.outputs:
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else names.get(str(dim)) for dim in value.shape])
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None


def _name_nodes(graph: ir.Graph) -> None:
    """`<torch module>/<operator>`, numbered where a module has several; a node's single result has the node's name."""
    seen: Counter[str] = Counter()
    results = [value for node in graph for value in node.outputs if not value.is_graph_output()]
    for index, value in enumerate(results):  # out of the way of the new names
        value.name = f"_{index}"
    for node in graph:
        scope = _scope(node)
        plain = f"{scope}/{node.op_type}" if scope else node.op_type
        node.name = f"{plain}_{seen[plain]}" if seen[plain] else plain
        seen[plain] += 1
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{node.name}:{index}" if index else node.name


def _scope(node: ir.Node) -> str:
    """Dotted name of the innermost torch module, from the metadata of the torch exporter; "" at the top."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]")
    scopes = [name for name in ast.literal_eval(text)[:-1] if not name.startswith("_empty_nn_module_stack")]
    return scopes[-1] if scopes else ""


def _name_constants(graph: ir.Graph) -> None:
    """A constant that is no parameter is named after the first node that reads it; order and names are then fixed."""
    old = list(graph.initializers.values())
    for value in old:
        name = value.name or ""
        users = [use.node for use in value.uses()]
        if "." in name and users:
            continue
        first = min(users, key=lambda node: node.name or "")
        slot = next(use.idx for use in value.uses() if use.node is first)
        value.name = f"{first.name}.{slot}"
    graph.initializers.clear()
    for value in sorted(old, key=lambda value: value.name or ""):
        graph.initializers.add(value)
