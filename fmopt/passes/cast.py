"""Halve a graph on disk: large float weights are stored in fp16 and cast back to fp32 where they are used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fmopt.errors import PassError
from fmopt.model import CheckpointFacts, Graph
from fmopt.onnx_graph import constant, read_onnx, replace_nodes, write_onnx
from fmopt.passes.base import Context
from fmopt.target import Target

FP16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Cast:
    """Weights in fp16 for size; the arithmetic stays fp32, for runtimes fold the casts when they load the graph."""

    min_elements: int = 1024  # biases and scales are not worth a cast

    stage: ClassVar[Literal["graph"]] = "graph"
    format: ClassVar[Literal["onnx"]] = "onnx"

    def refusal(self, facts: CheckpointFacts, target: Target) -> str | None:
        """Never: any runtime of ONNX knows Cast."""
        return None

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the graph with fp16 weights into `out`. PassError when no weight is large enough or fits fp16."""
        model = read_onnx(graph.path)
        count = weights_to_fp16(model, self.min_elements)
        if not count:
            raise PassError(f"cast found no fp32 weight of {self.min_elements} elements or more in {graph.path.name}")
        path = write_onnx(model, out / graph.path.name)
        return replace(graph, path=path, history=(*graph.history, f"cast({count} weights to fp16)"))


def weights_to_fp16(model: onnx.ModelProto, min_elements: int) -> int:
    """Store large fp32 initializers as fp16 followed by a Cast, in place; how many. Values beyond fp16 stay fp32."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims, dtype=np.int64) < min_elements:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > FP16_MAX:
            continue
        name = tensor.name
        tensor.CopyFrom(constant(f"{name}.fp16", values.astype(np.float16)))
        casts.append(helper.make_node("Cast", [tensor.name], [name], f"{name}/Cast", to=TensorProto.FLOAT))
    replace_nodes(model.graph, [*casts, *model.graph.node])
    return len(casts)


PASS = Cast
