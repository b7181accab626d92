"""A received ONNX graph made the one that all passes work on: its ports have fmopt's names, its constants are weights."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import (
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from fmopt.core.errors import CheckpointError, PassError, explained
from fmopt.core.model import CheckpointMetadata, Graph
from fmopt.exporters.dequantize import fold_pairs
from fmopt.exporters.onnx_graph import write_onnx

AXES = ("batch", "tokens")
PASSES = (
    InlinePass(),
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    IdentityEliminationPass(),
    RemoveUnusedNodesPass(),
    RemoveUnusedOpsetsPass(),
)


def import_onnx(metadata: CheckpointMetadata, out: Path) -> Graph:
    """Write the graph that `metadata` came with into the folder `out`, as model.onnx; the same graph gives the same bytes.

    Of one in full precision constants become weights, so that passes see them; with `dequantize` Q/DQ pairs are folded into
    weights in fp32. One that is quantized keeps its nodes: another fusion changes a last bit, that bit a rounding, and a rounding
    whole answers. PassError where there is nothing to fold.
    """
    received = metadata.graph
    assert received is not None
    with explained(f"{received.path} cannot be imported", CheckpointError):
        program = ir.load(received.path)
        _name_ports(program.graph, {own: known for known, own in received.inputs.items()}, dict(received.outputs))
        for step in PASSES if received.is_full_precision else ():
            step(program)
        _name_nodes(program.graph)
        model = ir.to_proto(program)
    history: tuple[str, ...] = ()
    if received.dequantize:
        folded = fold_pairs(model)
        if not folded:
            raise PassError(f"{received.path} has no Q/DQ pair that could be folded")
        history = (f"dequantize({folded} pairs)",)
    path = write_onnx(model, out / "model.onnx")
    return Graph("onnx", path, tuple(received.inputs), tuple(received.outputs), history)


def _name_ports(graph: ir.Graph, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    """Name ports as fmopt does and their axes by what they are; other outputs go."""
    names = {*inputs.values(), *outputs}
    own = {*inputs, *outputs.values()}
    for value in _values(graph):  # out of the way of the new names
        if value.name in names and value.name not in own:
            value.name = f"{value.name}.inner"
    have = {value.name: value for value in graph.outputs}
    kept = [have[name] for name in outputs.values()]
    for value in graph.inputs:
        if value.name in inputs:
            value.name = inputs[str(value.name)]
            value.shape = ir.Shape(AXES)
    graph.inputs[:] = [value for value in graph.inputs if value.name in inputs.values()]
    for value, known in zip(kept, outputs, strict=True):
        value.name = known
        if value.shape is not None:
            varying = 2 if len(value.shape) == 3 or known in ("start_logits", "end_logits") else 1
            value.shape = ir.Shape([*AXES[:varying], *list(value.shape)[varying:]])
    graph.outputs[:] = kept


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]


def _name_nodes(graph: ir.Graph) -> None:
    """A node without a name, or with one that another has, gets one: profiles and quantizers go by names."""
    seen: set[str] = set()
    for number, node in enumerate(graph):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)
