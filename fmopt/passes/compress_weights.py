"""Weights of an OpenVINO graph in 8 or 4 bits by NNCF, for networks that make one token at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import nncf
import numpy as np
import openvino
from openvino import opset13 as ops

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata, Graph
from fmopt.core.target import Target
from fmopt.edge.runners import with_empty_cache
from fmopt.exporters.openvino_graph import quiet_nncf, read_ir, save_ir
from fmopt.models.networks import RECURRENT
from fmopt.passes.base import Context

METHODS = ("rtn", "awq", "scale", "gptq")
BLOCKS = (32, 64, 128)


@dataclass(frozen=True)
class CompressWeights:
    """NNCF's compress_weights. With 8 bits every weight has a scale per row; with 4, blocks of `block` weights of a row share
    one, smaller ones where a row is no multiple of that, and the embedding and the head keep 8 bits unless `head`.

    `method` for 4 bits: "rtn" rounds to the nearest; "awq" first moves what activations make large into the layer before
    (Lin et al., 2023); "scale" chooses scales by the outputs on calibration items; "gptq" makes up for every rounding in
    the weights that follow (Frantar et al., 2022). All but the first look at `items` calibration items.
    """

    bits: int = 8
    block: int = 128
    method: Literal["rtn", "awq", "scale", "gptq"] = "rtn"
    head: bool = False
    items: int = 64

    stage: ClassVar[Literal["graph"]] = "graph"
    bytes_left: ClassVar[tuple[float, float]] = (0.25, 0.27)
    format: ClassVar[Literal["openvino"]] = "openvino"
    only_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, known in (("bits", (4, 8)), ("block", BLOCKS), ("method", METHODS)):
            if getattr(self, name) not in known:
                given = ", ".join(map(str, known))
                raise ConfigError(f"compress_weights.{name} is {getattr(self, name)!r}; it is one of {given}")
        if self.bits == 8 and self.method != "rtn":
            raise ConfigError(
                f"compress_weights.method {self.method!r} is for 4 bits; with 8 rounding to the nearest loses nothing"
            )
        if self.items < 1:
            raise ConfigError(f"compress_weights.items is {self.items}; it is at least 1")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """A target that has no OpenVINO, whose constants these are, or layers that NNCF leaves as they are."""
        if metadata.model_type in RECURRENT:
            return f"NNCF narrows no layer of {metadata.model_type}; quantize_dynamic on ONNX Runtime does"
        return None if "openvino" in target.runtimes else f"{target.name} has no openvino, whose constants these are"

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the graph into `out`. PassError when there is nothing to look at, or NNCF finds nothing to compress."""
        model = read_ir(graph.path)
        options: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_SYM}
        if self.bits == 4:
            smaller = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
            options = {
                "mode": nncf.CompressWeightsMode.INT4_SYM, "ratio": 1.0, "group_size": self.block, "all_layers": self.head,
                "advanced_parameters": smaller,
                "awq": self.method == "awq", "scale_estimation": self.method == "scale", "gptq": self.method == "gptq",
            }  # fmt: skip
        if self.method == "gptq":
            _turn_weights(model)
        if self.method != "rtn":
            options["dataset"] = nncf.Dataset(self._items(model, ctx))
        with quiet_nncf():
            made = nncf.compress_weights(model, **options)
        if not any(_narrow(op) for op in made.get_ops()):
            raise PassError(f"compress_weights found no weights to narrow in {graph.path.name}")
        path = save_ir(made, out / "model.xml")
        of = f", blocks of {self.block}, {self.method}" if self.bits == 4 else ""
        return replace(
            graph, format="openvino", path=path, history=(*graph.history, f"compress_weights({self.bits} bits{of})")
        )

    def _items(self, model: openvino.Model, ctx: Context) -> list[dict[str, np.ndarray]]:
        """Calibration items, their cache empty."""
        ports = {port.any_name: port.partial_shape for port in model.inputs}
        found = []
        for item in islice(ctx.calibration(), self.items):
            lacking = {
                name: [axis.get_length() if axis.is_static else None for axis in shape]
                for name, shape in ports.items() if name not in item
            }  # fmt: skip
            whole = with_empty_cache(lacking, item)
            found.append({name: np.asarray(whole[name]) for name in ports})
        if not found:
            raise PassError(
                f"compress_weights by {self.method} has no calibration items; give data with a split for it"
            )
        return found


def _turn_weights(model: openvino.Model) -> None:
    """Weights [in, out] as [out, in], in place: the only way round that NNCF's GPTQ knows."""
    for product in [op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"]:
        weight = product.input_value(1).get_node()
        if weight.get_type_name() != "Constant" or product.get_attributes()["transpose_b"]:
            continue
        turned = ops.constant(np.ascontiguousarray(weight.get_data().T))
        turned.set_friendly_name(weight.get_friendly_name())
        product.input(1).replace_source_output(turned.output(0))
        attributes = product.get_attributes()
        product.set_attribute("transpose_b", not attributes["transpose_b"])
    model.validate_nodes_and_infer_types()


def _narrow(op: openvino.Node) -> bool:
    return op.get_type_name() == "Constant" and op.get_output_element_type(0).get_type_name() in (
        "i8",
        "u8",
        "i4",
        "u4",
    )


PASS = CompressWeights
