"""INT8 by ONNX Runtime's dynamic quantization: weights now, activations at run time. Needs no calibration data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from onnxruntime.quantization import QuantType, quantize_dynamic

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata, Graph
from fmopt.core.target import Target
from fmopt.exporters.onnx_graph import (
    EXTERNAL_FROM_BYTES,
    constant_products,
    quiet_quantizer,
    read_onnx,
    weight_bytes,
    write_onnx,
)
from fmopt.passes.base import Context


@dataclass(frozen=True)
class QuantizeDynamic:
    """MatMul, Gemm and LSTM with constant weights compute in INT8; each activation gets its range when it is seen.

    `weights` "auto" takes what is right for the target: int8 in 8 bits where products are summed in 32 bits
    (`target.int8_dot`), else in 7 bits. Without such instructions ONNX Runtime's u8 × s8 kernel adds pairs of products
    in 16 bits, which saturates with full 8-bit weights; "uint8" weights do not saturate but run a slower kernel
    (MiniLM, AVX2, one thread: 1.20× over fp32 against 1.46× for 7 bits, cosine to fp32 0.9947 against 0.9931).
    """

    weights: Literal["auto", "int8", "int8-7bit", "uint8"] = "auto"
    per_channel: bool = True  # one scale per output column; per tensor the cosine falls from 0.99 to 0.86

    stage: ClassVar[Literal["graph"]] = "graph"
    bytes_left: ClassVar[tuple[float, float]] = (1.0, 0.25)
    format: ClassVar[Literal["onnx"]] = "onnx"
    rounds_products: ClassVar[bool] = True
    rounds_head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        known = ("auto", "int8", "int8-7bit", "uint8")
        if self.weights not in known:
            raise ConfigError(f"quantize_dynamic.weights is {self.weights!r}; it is one of {', '.join(known)}")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """A target without INT8."""
        return None if "int8" in target.precisions else f"{target.name} does not compute in int8"

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the quantized graph into `out`."""
        model = read_onnx(graph.path)
        constant_products(model)
        path = out / graph.path.name
        out.mkdir(parents=True, exist_ok=True)
        kind = self.weights_for(ctx.target)
        with quiet_quantizer():
            quantize_dynamic(
                model,
                str(path),
                op_types_to_quantize=["MatMul", "Gemm", "LSTM"],
                per_channel=self.per_channel,
                reduce_range=kind == "int8-7bit",
                weight_type=QuantType.QUInt8 if kind == "uint8" else QuantType.QInt8,
                use_external_data_format=weight_bytes(model) > EXTERNAL_FROM_BYTES,
                extra_options={"MatMulConstBOnly": True, "EnableSubgraph": False},
            )
        made = read_onnx(path)
        if not any(node.op_type in ("MatMulInteger", "DynamicQuantizeLinear") for node in made.graph.node):
            raise PassError(f"quantize_dynamic found no MatMul with constant weights in {graph.path.name}")
        write_onnx(made, path)
        return replace(graph, path=path, history=(*graph.history, f"quantize_dynamic({kind})"))

    def weights_for(self, target: Target) -> str:
        """The weight type on a target, "auto" resolved."""
        if self.weights != "auto":
            return self.weights
        return "int8" if target.int8_dot else "int8-7bit"


PASS = QuantizeDynamic
