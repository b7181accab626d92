"""Floats in half the bytes: as storage (weights in fp16, cast back where they are used) or as arithmetic (fp16, bf16).

Storage is for runtimes that choose their own precision and only gains size; arithmetic is for those that compute in the
types that they read, as TensorRT does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata, Graph
from fmopt.core.target import Target
from fmopt.exporters.half_precision import magnitudes, to_half
from fmopt.exporters.onnx_graph import constant, read_onnx, replace_nodes, write_onnx
from fmopt.passes.base import Context

FP16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Cast:
    """`to`: "fp16-weights" for size alone, the arithmetic stays fp32, for runtimes fold the casts when they load the graph;
    "fp16" or "bf16" for arithmetic too, except where it would cost accuracy (see half_precision.py).
    """

    to: Literal["fp16-weights", "fp16", "bf16"] = "fp16-weights"
    min_elements: int = 1024  # of a weight that is stored in fp16: biases and scales are not worth a cast
    items: int = 32  # calibration items that show which values leave the range

    stage: ClassVar[Literal["graph"]] = "graph"
    bytes_left: ClassVar[tuple[float, float]] = (0.5, 0.5)
    format: ClassVar[Literal["onnx"]] = "onnx"

    def __post_init__(self) -> None:
        if self.to not in ("fp16-weights", "fp16", "bf16"):
            raise ConfigError(f"cast.to is {self.to!r}; it is 'fp16-weights', 'fp16' or 'bf16'")

    @property
    def computes_in(self) -> str | None:
        """The precision of float products after it; None: as before."""
        return None if self.to == "fp16-weights" else self.to

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Arithmetic that the target does not have; any runtime of ONNX knows Cast itself."""
        if self.to == "fp16-weights" or self.to in target.precisions:
            return None
        return f"target {target.name} does not compute in {self.to}"

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the graph into `out`. PassError when nothing in it could be cast, or there is nothing to calibrate on."""
        model = read_onnx(graph.path)
        if self.to != "fp16-weights":
            return self.arithmetic(graph, model, ctx, out)
        count = weights_to_fp16(model, self.min_elements)
        if not count:
            raise PassError(f"cast found no fp32 weight of {self.min_elements} elements or more in {graph.path.name}")
        path = write_onnx(model, out / graph.path.name)
        return replace(graph, path=path, history=(*graph.history, f"cast({count} weights to fp16)"))

    def arithmetic(self, graph: Graph, model: onnx.ModelProto, ctx: Context, out: Path) -> Graph:
        """Half precision wherever nothing speaks against it; the reasons of what stays are in the graph's metadata."""
        items = list(islice(ctx.calibration(), self.items))
        if not items:
            raise PassError("cast has no calibration items to see which values leave the range; give data with some")
        ctx.progress(f"looking at {len(items)} items for values that {self.to} cannot hold")
        kept = to_half(model, self.to, magnitudes(model, items))  # type: ignore[arg-type]
        path = write_onnx(model, out / graph.path.name)
        given = f"cast({self.to}, {len(kept)} of {len(model.graph.node)} nodes stay fp32)"
        return replace(graph, path=path, history=(*graph.history, given))


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
