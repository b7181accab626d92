"""Weights in 8 or 4 bits, a scale for every block of a column: what decoding one token at a time wants, for it reads every
weight once and computes next to nothing."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
from onnx import helper

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata, Graph
from fmopt.core.target import Target
from fmopt.exporters.onnx_graph import (
    add_opset,
    array_of,
    constant,
    constant_products,
    drop_dead,
    quiet_quantizer,
    read_bare,
    replace_nodes,
    take_weights_in,
    weights,
    write_onnx,
)
from fmopt.passes.base import Context
from fmopt.passes.quantization.blockwise import rounded

BITS, BLOCKS, METHODS = (4, 8), (16, 32, 64, 128, 256), ("rtn", "mse", "hqq")
INT8_PRODUCTS = (
    4  # `accuracy_level` of MatMulNBits: activations become int8 block by block, and products are of integers
)


@dataclass(frozen=True)
class QuantizeWeights:
    """Products with constant weights become ONNX Runtime's MatMulNBits, the output projection (head) among them.

    `block` is how many weights of a column share a scale. `method` "rtn" rounds to the nearest; "mse" does too, by the scale
    that moves a block's weights least (block_rounding.py), which costs nothing later; "hqq" chooses zero points
    that lose less (half-quadratic quantization, Badri and Shaji, 2023; 4 bits), but are no whole numbers, and ONNX Runtime
    has no fast kernel for them on a CPU. `keep` names parts of layers' names that
    stay as they are. `symmetric` has no zero points: smaller, and faster. What another pass has rounded (autoround, gptq)
    keeps its integers.
    """

    bits: int = 4
    block: int = 32
    method: Literal["rtn", "mse", "hqq"] = "rtn"
    symmetric: bool = True
    head: bool = True
    keep: tuple[str, ...] = ()

    stage: ClassVar[Literal["graph"]] = "graph"
    bytes_left: ClassVar[tuple[float, float]] = (1.0, 0.16)
    format: ClassVar[Literal["onnx"]] = "onnx"

    def __post_init__(self) -> None:
        for name, known in (("bits", BITS), ("block", BLOCKS), ("method", METHODS)):
            if getattr(self, name) not in known:
                given = ", ".join(map(str, known))
                raise ConfigError(f"quantize_weights.{name} is {getattr(self, name)!r}; it is one of {given}")
        if self.method == "mse" and not self.symmetric:
            raise ConfigError("quantize_weights.method 'mse' has no zero points; leave symmetric = true")
        if self.method == "hqq" and self.bits != 4:
            raise ConfigError(
                "quantize_weights.method 'hqq' is for 4 bits; with 8 rounding to the nearest loses nothing"
            )

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """A target that has no ONNX Runtime, whose operator this is."""
        return None if "onnxruntime" in target.runtimes else f"{target.name} has no onnxruntime, whose operator this is"

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write the graph into `out`. PassError when it has no product with constant weights."""
        folder, model = graph.path.parent, read_bare(graph.path)
        swapped: dict[str, onnx.TensorProto] = {}  # a copy that is only made when its turn comes → what it is a copy of

        def later(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
            swapped[name] = tensor
            return onnx.TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims[::-1])

        constant_products(model, later)
        known, kept = weights(model), self._kept(model)
        readers = Counter(name for node in model.graph.node for name in node.input)
        done: list[onnx.NodeProto] = []
        count = _compute_in_integers(model)
        for node in model.graph.node:
            weight = known.get(node.input[1]) if node.op_type == "MatMul" else None
            if weight is None or len(weight.dims) != 2 or node.name in kept:
                done.append(node)
                continue
            values = array_of(swapped[weight.name], folder).T if weight.name in swapped else array_of(weight, folder)
            made, tensors = self._narrow(node, np.ascontiguousarray(values))
            done += made
            model.graph.initializer.extend(tensors)
            if readers[weight.name] == 1:  # it is not needed any more
                weight.CopyFrom(onnx.TensorProto(name=weight.name))
            count += 1
        if not count:
            raise PassError(f"quantize_weights found no MatMul with constant weights in {graph.path.name}")
        replace_nodes(model.graph, done)
        drop_dead(model)
        for tensor in model.graph.initializer:
            if tensor.name in swapped:
                tensor.CopyFrom(constant(tensor.name, array_of(swapped[tensor.name], folder).T))
        take_weights_in(model, folder)
        add_opset(model, "com.microsoft", 1)
        path = write_onnx(model, out / graph.path.name)
        return replace(graph, path=path, history=(*graph.history, f"quantize_weights({self.bits} bit, {self.block})"))

    def _narrow(self, node: onnx.NodeProto, values: np.ndarray) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """What stands for one product, and its weights: quantized alone, so that no two are in memory in full."""
        if self.method == "hqq":
            return self._half_quadratic(node, values)
        if self.method == "mse":
            arrays = dict(zip((f"Q{self.bits}", "scales"), rounded(values, self.bits, self.block), strict=True))
        else:
            tool = _tool()
            config = tool.DefaultWeightOnlyQuantConfig(
                block_size=self.block, is_symmetric=self.symmetric, bits=self.bits
            )
            rows = tool.DefaultWeightOnlyQuantizer(config).qbits_block_quant(values)
            arrays = dict(zip((f"Q{self.bits}", "scales", "zero_points"), rows, strict=True))
            if self.symmetric:
                del arrays["zero_points"]
        tensors = [constant(f"{node.input[1]}_{kind}", array) for kind, array in arrays.items()]
        inputs = [node.input[0], *(tensor.name for tensor in tensors)]
        made = helper.make_node(
            "MatMulNBits", inputs, list(node.output), f"{node.name}_Q{self.bits}", domain="com.microsoft",
            K=values.shape[0], N=values.shape[1], bits=self.bits, block_size=self.block, accuracy_level=INT8_PRODUCTS,
        )  # fmt: skip
        return [made], tensors

    def _half_quadratic(
        self, node: onnx.NodeProto, values: np.ndarray
    ) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """As `_narrow`, by ONNX Runtime's own tool, on a graph of this product alone."""
        tool = _tool()
        config = tool.HQQWeightOnlyQuantConfig(block_size=self.block, bits=self.bits, op_types_to_quantize=("MatMul",))
        alone = helper.make_graph([node], "one", [], [], [constant(node.input[1], values)])
        with quiet_quantizer(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
            quantizer = tool.MatMulNBitsQuantizer(helper.make_model(alone), algo_config=config)
            quantizer.process()
        made = quantizer.model.model.graph
        for one in made.node:
            given = [attribute for attribute in one.attribute if attribute.name != "accuracy_level"]
            del one.attribute[:]
            one.attribute.extend([*given, helper.make_attribute("accuracy_level", INT8_PRODUCTS)])
        return list(made.node), [tensor for tensor in made.initializer if tensor.name != node.input[1]]

    def _kept(self, model: onnx.ModelProto) -> list[str]:
        """Names of products that stay as they are."""
        logits = model.graph.output[0].name
        return [
            node.name for node in model.graph.node
            if node.op_type == "MatMul"
            and (any(part in node.name for part in self.keep) or (not self.head and logits in node.output))
        ]  # fmt: skip


def _compute_in_integers(model: onnx.ModelProto) -> int:
    """Products that another pass rounded get this one's kernels, in place; how many there are."""
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    for node in products:
        kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("accuracy_level", INT8_PRODUCTS)])
    return len(products)


def _tool() -> Any:
    """ONNX Runtime's module that rounds weights. To import it sets up the log of the whole process, on the terminal; undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    from onnxruntime.quantization import matmul_nbits_quantizer

    root.handlers[:] = handlers
    root.setLevel(level)
    return matmul_nbits_quantizer


PASS = QuantizeWeights
