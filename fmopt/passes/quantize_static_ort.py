"""INT8 by ONNX Runtime's own static tool: Q/DQ around every MatMul with constant weights, min-max calibrated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata, Graph, Inputs
from fmopt.core.target import Target
from fmopt.exporters.onnx_graph import EXTERNAL_FROM_BYTES, quiet_quantizer, read_onnx, weight_bytes, write_onnx
from fmopt.passes.base import Context


@dataclass(frozen=True)
class QuantizeStaticOrt:
    """Only MatMul and Gemm are quantized, and only their inputs: a Q/DQ pair on every output costs more than it saves.

    With the tool's defaults (every operator, outputs too) MiniLM runs slower than fp32.
    """

    items: int = 128  # calibration items; min-max ranges hardly move after that

    stage: ClassVar[Literal["graph"]] = "graph"
    bytes_left: ClassVar[tuple[float, float]] = (1.0, 0.25)
    format: ClassVar[Literal["onnx"]] = "onnx"
    rounds_products: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.items < 1:
            raise ConfigError(f"quantize_static_ort.items is {self.items}; it takes at least one")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """A target without INT8."""
        return None if "int8" in target.precisions else f"{target.name} does not compute in int8"

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the Q/DQ graph into `out`. PassError when there is nothing to calibrate on."""
        stream = Stream(islice(ctx.calibration(), self.items), graph.inputs)
        if stream.empty:
            raise PassError("quantize_static_ort has no calibration items; give data with a calibration split")
        model = read_onnx(graph.path)
        path = out / graph.path.name
        out.mkdir(parents=True, exist_ok=True)
        with quiet_quantizer():
            quantize_static(
                model,
                str(path),
                stream,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                reduce_range=not ctx.target.int8_dot,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                use_external_data_format=weight_bytes(model) > EXTERNAL_FROM_BYTES,
                extra_options={
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                    "QuantizeBias": False,  # a bias in fp32 is fused into the dequantization for free
                },
            )
        write_onnx(read_onnx(path), path)
        return replace(graph, path=path, history=(*graph.history, f"quantize_static_ort({stream.seen} items)"))


class Stream(CalibrationDataReader):
    """A stream of items as the tool reads them: one at a time, so that memory does not grow with their number.

    Its min-max calibrator keeps two scalars per tensor and item, far below any cap.
    """

    def __init__(self, items: Iterator[Inputs], names: tuple[str, ...]) -> None:
        self.items = items
        self.names = names
        self.seen = 0
        self.upcoming = next(items, None)

    @property
    def empty(self) -> bool:
        """True when no item is left."""
        return self.upcoming is None

    def get_next(self) -> dict[str, Any] | None:
        """The next item's inputs; None at the end."""
        item = self.upcoming
        if item is None:
            return None
        self.upcoming = next(self.items, None)
        self.seen += 1
        return {name: item[name] for name in self.names}


PASS = QuantizeStaticOrt
