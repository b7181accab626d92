"""Weights in 8 or 4 bits, a scale for every block of a column: what decoding one token at a time wants, for it reads every
weight once and computes next to nothing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import onnx
from onnx import helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

from fmopt.errors import ConfigError, PassError
from fmopt.model import CheckpointFacts, Graph
from fmopt.onnx_graph import constant_products, drop_dead, quiet_quantizer, read_onnx, write_onnx
from fmopt.passes.base import Context
from fmopt.target import Target

BITS, BLOCKS, METHODS = (4, 8), (16, 32, 64, 128, 256), ("rtn", "hqq")
INT8_PRODUCTS = (
    4  # `accuracy_level` of MatMulNBits: activations become int8 block by block, and products are of integers
)


@dataclass(frozen=True)
class QuantizeWeights:
    """Products with constant weights become ONNX Runtime's MatMulNBits, the output projection (head) among them.

    `block` is how many weights of a column share a scale. `method` "rtn" rounds to the nearest; "hqq" chooses zero points
    that lose less (half-quadratic quantization, Badri and Shaji, 2023; 4 bits), but are no whole numbers, and ONNX Runtime
    has no fast kernel for them on a CPU. `keep` names parts of layers' names that
    stay as they are. `symmetric` has no zero points: smaller, and faster.
    """

    bits: int = 4
    block: int = 32
    method: Literal["rtn", "hqq"] = "rtn"
    symmetric: bool = True
    head: bool = True
    keep: tuple[str, ...] = ()

    stage: ClassVar[Literal["graph"]] = "graph"
    format: ClassVar[Literal["onnx"]] = "onnx"

    def __post_init__(self) -> None:
        for name, known in (("bits", BITS), ("block", BLOCKS), ("method", METHODS)):
            if getattr(self, name) not in known:
                told = ", ".join(map(str, known))
                raise ConfigError(f"quantize_weights.{name} is {getattr(self, name)!r}; it is one of {told}")
        if self.method == "hqq" and self.bits != 4:
            raise ConfigError(
                "quantize_weights.method 'hqq' is for 4 bits; with 8 rounding to the nearest loses nothing"
            )

    def refusal(self, facts: CheckpointFacts, target: Target) -> str | None:
        """A target that has no ONNX Runtime, whose operator this is."""
        return None if "onnxruntime" in target.runtimes else f"{target.name} has no onnxruntime, whose operator this is"

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the graph into `out`. PassError when it has no product with constant weights."""
        model = read_onnx(graph.path)
        constant_products(model)
        with quiet_quantizer(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
            quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=self._kept(model), algo_config=self._method())
            quantizer.process()
        made = quantizer.model.model
        nodes = [node for node in made.graph.node if node.op_type == "MatMulNBits"]
        if not nodes:
            raise PassError(f"quantize_weights found no MatMul with constant weights in {graph.path.name}")
        for node in nodes:
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("accuracy_level", INT8_PRODUCTS)])
        drop_dead(made)
        path = write_onnx(made, out / graph.path.name)
        return replace(graph, path=path, history=(*graph.history, f"quantize_weights({self.bits} bit, {self.block})"))

    def _method(self) -> DefaultWeightOnlyQuantConfig | HQQWeightOnlyQuantConfig:
        if self.method == "hqq":
            return HQQWeightOnlyQuantConfig(block_size=self.block, bits=self.bits, op_types_to_quantize=("MatMul",))
        return DefaultWeightOnlyQuantConfig(
            block_size=self.block, is_symmetric=self.symmetric, bits=self.bits, op_types_to_quantize=("MatMul",)
        )

    def _kept(self, model: onnx.ModelProto) -> list[str]:
        """Names of products that stay as they are."""
        logits = model.graph.output[0].name
        return [
            node.name for node in model.graph.node
            if node.op_type == "MatMul"
            and (any(part in node.name for part in self.keep) or (not self.head and logits in node.output))
        ]  # fmt: skip


PASS = QuantizeWeights
