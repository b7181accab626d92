"""INT8 by NNCF's post-training quantization on an OpenVINO graph."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import nncf
import numpy as np

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata, Graph
from fmopt.core.target import Target
from fmopt.exporters.openvino_graph import quiet_nncf, read_ir, save_ir
from fmopt.passes.base import Context


@dataclass(frozen=True)
class QuantizeNncf:
    """NNCF with its transformer settings: SmoothQuant, bias correction, asymmetric activations in the mixed preset."""

    preset: Literal["mixed", "performance"] = "mixed"
    items: int = 300  # NNCF's own default; statistics are kept per item, so more items cost memory

    stage: ClassVar[Literal["graph"]] = "graph"
    bytes_left: ClassVar[tuple[float, float]] = (0.25, 0.25)
    format: ClassVar[Literal["openvino"]] = "openvino"
    rounds_products: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.preset not in ("mixed", "performance"):
            raise ConfigError(f"quantize_nncf.preset is {self.preset!r}; it is mixed or performance")
        if not 1 <= self.items <= 300:
            raise ConfigError(f"quantize_nncf.items is {self.items}; it is between 1 and 300")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """A target without INT8, or an x86 CPU where OpenVINO's INT8 is slower than fp32 and saturates.

        OpenVINO 2026.4 has INT8 kernels for VNNI and AMX; without them it falls back to one that took 1.3× the time of
        fp32 on MiniLM (AVX2, one thread), and the products of attention, 8 bit on both sides, came out wrong: a cosine
        of 0.40 to fp32, where the same graph computed in float has 0.98.
        """
        if "int8" not in target.precisions:
            return f"{target.name} does not compute in int8"
        if target.arch == "x86_64" and target.kind == "cpu" and not target.int8_dot:
            return f"{target.name} has no VNNI or AMX; without them OpenVINO's INT8 is slower than fp32 and saturates"
        return None

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the quantized IR into `out`. PassError when there is nothing to calibrate on."""
        items = [{name: item[name] for name in graph.inputs} for item in islice(ctx.calibration(), self.items)]
        if not items:
            raise PassError("quantize_nncf has no calibration items; give data with a calibration split")
        random.seed(ctx.seed)
        np.random.seed(ctx.seed)  # NNCF draws from the global generator
        # Without 32-bit dot products the u8 × s8 kernels add pairs in 16 bits: weights keep to 7 bits there.
        overflow = nncf.OverflowFix.DISABLE if ctx.target.int8_dot else nncf.OverflowFix.ENABLE
        with quiet_nncf():
            made = nncf.quantize(
                read_ir(graph.path),
                nncf.Dataset(items),
                preset=nncf.QuantizationPreset(self.preset),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(items),
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
            )
        path = save_ir(made, out / "model.xml")
        step = f"quantize_nncf({self.preset}, {len(items)} items)"
        return replace(graph, format="openvino", path=path, history=(*graph.history, step))


PASS = QuantizeNncf
