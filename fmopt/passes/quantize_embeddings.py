"""Embedding tables in INT8 with a scale per row: a quarter of their size, next to no accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fmopt.core.errors import PassError
from fmopt.core.model import CheckpointMetadata, Graph
from fmopt.core.target import Target
from fmopt.exporters.onnx_graph import constant, consumers, drop_dead, read_onnx, replace_nodes, weights, write_onnx
from fmopt.passes.base import Context


@dataclass(frozen=True)
class QuantizeEmbeddings:
    """Rows of large embedding tables become int8 with one fp32 scale each; the rows looked up are scaled back.

    Only the rows of the tokens at hand are converted, so it costs a few microseconds. A table that is read by anything
    but Gather (tied to an output projection) is left alone.
    """

    min_rows: int = 1024  # the tables worth it: words, not positions or segments

    stage: ClassVar[Literal["graph"]] = "graph"
    bytes_left: ClassVar[tuple[float, float]] = (0.25, 1.0)
    format: ClassVar[Literal["onnx"]] = "onnx"

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """A model that looks nothing up; any runtime of ONNX knows Gather, Cast and Mul."""
        looked_up = (
            metadata.modality in ("text", "item") or "decoder_start_token_ids" in metadata.pipeline
        )  # words, those of answers too
        return None if looked_up else f"{metadata.modality}s are not looked up in a table"

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the graph into `out`. PassError when there is no such table."""
        model = read_onnx(graph.path)
        tables = quantize_tables(model, self.min_rows)
        if not tables:
            raise PassError(f"quantize_embeddings found no fp32 embedding table of {self.min_rows} rows or more")
        path = write_onnx(model, out / graph.path.name)
        return replace(graph, path=path, history=(*graph.history, f"quantize_embeddings({', '.join(tables)})"))


def quantize_tables(model: onnx.ModelProto, min_rows: int) -> list[str]:
    """Quantize the tables of `model` in place; their names."""
    readers = consumers(model.graph)
    done = []
    for table in list(weights(model).values()):
        lookups = [node for node in readers.get(table.name, []) if _looks_up(node, table.name)]
        if table.data_type != TensorProto.FLOAT or len(table.dims) != 2 or table.dims[0] < min_rows:
            continue
        if not lookups or len(lookups) != len(readers[table.name]):
            continue
        values, scales = rows_to_int8(numpy_helper.to_array(table))
        int8, scale = constant(f"{table.name}.int8", values), constant(f"{table.name}.scale", scales)
        model.graph.initializer.extend([int8, scale])
        _replace_lookups(model.graph, {id(node) for node in lookups}, int8.name, scale.name)
        done.append(table.name)
    drop_dead(model)
    return done


def rows_to_int8(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 (rows, width) and fp32 scales (rows, 1); symmetric, scale · int8 is within half a step of the row."""
    scales = np.abs(table).max(axis=1, keepdims=True).astype(np.float32) / np.float32(127)
    scales[scales == 0] = 1.0
    return np.clip(np.rint(table / scales), -127, 127).astype(np.int8), scales


def _looks_up(node: onnx.NodeProto, table: str) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and axis == 0 and node.input[0] == table


def _replace_lookups(graph: onnx.GraphProto, lookups: set[int], int8: str, scale: str) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if id(node) not in lookups:
            nodes.append(node)
            continue
        out, rows = node.output[0], node.input[1]
        nodes += [
            helper.make_node("Gather", [int8, rows], [f"{out}.int8"], f"{node.name}_quant"),
            helper.make_node("Gather", [scale, rows], [f"{out}.scale"], f"{node.name}_scale"),
            helper.make_node("Cast", [f"{out}.int8"], [f"{out}.float"], f"{node.name}_cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out], f"{node.name}_dequantize"),
        ]
    replace_nodes(graph, nodes)


PASS = QuantizeEmbeddings
