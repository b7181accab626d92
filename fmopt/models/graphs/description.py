"""What an ONNX file is, for people: also of one that lacks something, or that fmopt does not optimize, which it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.core.model import CheckpointMetadata, ModelSource
from fmopt.models.graphs.layouts import home_of
from fmopt.models.graphs.metadata import inspect_graph
from fmopt.models.graphs.ports import shown_ports
from fmopt.models.graphs.summary import GraphSummary, read_summary


@dataclass(frozen=True)
class Description:
    """A graph's summary, with what is known of its task and pipeline, or why nothing is."""

    summary: GraphSummary
    metadata: CheckpointMetadata | None
    lacks: str  # why `fmopt optimize` would not take it as it is; empty where it would

    def data(self) -> dict[str, Any]:
        """As JSON-able data."""
        summary = self.summary
        ports = {
            side: {name: {"type": port.kind, "axes": port.axes} for name, port in given.items()}
            for side, given in (("inputs", summary.inputs), ("outputs", summary.outputs))
        }
        return {
            "file": str(summary.path), "producer": summary.producer, "opset": summary.opset, "precision": summary.precision,
            "quantization": summary.quantization, "parameters": summary.parameters, "weight_bytes": summary.weight_bytes,
            "operators": dict(sorted(summary.operators.items())), **ports, "lacks": self.lacks,
        }  # fmt: skip

    def rows(self) -> dict[str, str]:
        """As a table has it."""
        summary = self.summary
        most = sorted(summary.operators.items(), key=lambda one: -one[1])
        how = f", by {summary.quantization}" if summary.quantization else ""
        return {
            "graph": f"ONNX, opset {summary.opset}, by {summary.producer}",
            "precision": f"{summary.precision}{how}",
            "parameters": f"{summary.parameters:,}",
            "weights": f"{summary.weight_bytes / 1e6:,.1f} MB",
            "inputs": shown_ports(summary.inputs),
            "outputs": shown_ports(summary.outputs),
            "operators": ", ".join(f"{count} {name}" for name, count in most[:6]),
            **({"lacks": self.lacks} if self.lacks else {}),
        }


def describe(source: ModelSource, task: str | None = None) -> Description:
    """What the graph of `source` is. CheckpointError for a file that is no ONNX graph, or could do harm."""
    assert source.graph is not None
    summary = read_summary(source.graph, home_of(source.graph))
    try:
        return Description(summary, inspect_graph(source, task), "")
    except CheckpointError as error:
        return Description(summary, None, str(error))
