"""What an ONNX file is, for people: also of one that lacks something, or that fmopt does not optimize, which it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.core.model import CheckpointMetadata, ModelSource
from fmopt.models.graphs.facts import GraphFacts, read_facts
from fmopt.models.graphs.layouts import home_of
from fmopt.models.graphs.metadata import inspect_graph
from fmopt.models.graphs.ports import shown_ports


@dataclass(frozen=True)
class Description:
    """A graph's facts, with what is known of its task and pipeline, or why nothing is."""

    facts: GraphFacts
    metadata: CheckpointMetadata | None
    lacks: str  # why `fmopt optimize` would not take it as it is; empty where it would

    def data(self) -> dict[str, Any]:
        """As JSON-able data."""
        facts = self.facts
        ports = {
            side: {name: {"type": port.kind, "axes": port.axes} for name, port in given.items()}
            for side, given in (("inputs", facts.inputs), ("outputs", facts.outputs))
        }
        return {
            "file": str(facts.path), "producer": facts.producer, "opset": facts.opset, "precision": facts.precision,
            "quantization": facts.quantization, "parameters": facts.parameters, "weight_bytes": facts.weight_bytes,
            "operators": dict(sorted(facts.operators.items())), **ports, "lacks": self.lacks,
        }  # fmt: skip

    def rows(self) -> dict[str, str]:
        """As a table has it."""
        facts = self.facts
        most = sorted(facts.operators.items(), key=lambda one: -one[1])
        how = f", by {facts.quantization}" if facts.quantization else ""
        return {
            "graph": f"ONNX, opset {facts.opset}, by {facts.producer}",
            "precision": f"{facts.precision}{how}",
            "parameters": f"{facts.parameters:,}",
            "weights": f"{facts.weight_bytes / 1e6:,.1f} MB",
            "inputs": shown_ports(facts.inputs),
            "outputs": shown_ports(facts.outputs),
            "operators": ", ".join(f"{count} {name}" for name, count in most[:6]),
            **({"lacks": self.lacks} if self.lacks else {}),
        }


def describe(source: ModelSource, task: str | None = None) -> Description:
    """What the graph of `source` is. CheckpointError for a file that is no ONNX graph, or could do harm."""
    assert source.graph is not None
    facts = read_facts(source.graph, home_of(source.graph))
    try:
        return Description(facts, inspect_graph(source, task), "")
    except CheckpointError as error:
        return Description(facts, None, str(error))
