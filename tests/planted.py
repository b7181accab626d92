"""Small real graphs, each slow for one planted reason, and one that is clean: ids → table → layers → output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, LAYERS, ROWS = 256, 3, 500


class Builder:
    """Nodes and weights of a graph in the making; every verb returns the name of what it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, name: str, value: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str, *shape: int, dtype: Any = np.float32) -> str:
        values = self.random.standard_normal(shape) / np.sqrt(shape[0])
        return self.constant(name, (values * 100 if dtype == np.int8 else values).astype(dtype))

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def linear(self, x: str, layer: str, columns: int = WIDTH, rows: int = WIDTH) -> str:
        return self.node("MatMul", [x, self.weight(f"{layer}.weight", rows, columns)], f"{layer}/MatMul")

    def dynamic(self, x: str, layer: str, columns: int = WIDTH, rows: int = WIDTH, *, shared: str = "") -> str:
        """A product in 8 bits whose input is quantized as it comes, by `shared` where another product has done so."""
        source = shared or f"{layer}/quantized"
        if not shared:
            outputs = [source, f"{source}.scale", f"{source}.zero"]
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], outputs, f"{layer}/DynamicQuantizeLinear"))
        weight = self.weight(f"{layer}.weight", rows, columns, dtype=np.int8)
        zero = self.constant(f"{layer}.zero", np.int8(0))
        whole = self.node("MatMulInteger", [source, weight, f"{source}.zero", zero], f"{layer}/MatMulInteger")
        numbers = self.node("Cast", [whole], f"{layer}/Cast", to=TensorProto.FLOAT)
        scale = self.node(
            "Mul", [f"{source}.scale", self.constant(f"{layer}.scale", np.float32(0.001))], f"{layer}/Scale"
        )
        return self.node("Mul", [numbers, scale], f"{layer}/Mul")

    def pair(self, x: str) -> str:
        """x through 8 bits and back."""
        if "q.scale" not in {tensor.name for tensor in self.tensors}:
            self.constant("q.scale", np.float32(0.05))
            self.constant("q.zero", np.uint8(128))
        eight = self.node("QuantizeLinear", [x, "q.scale", "q.zero"], f"{x}/q")
        return self.node("DequantizeLinear", [eight, "q.scale", "q.zero"], f"{x}/dq")

    def save(self, folder: Path) -> Path:
        self.nodes[-1].output[0] = "out"
        graph = helper.make_graph(
            self.nodes,
            "planted",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        path = folder / "model.onnx"
        onnx.save(model, path)
        return path


def started(rows: int = ROWS, width: int = WIDTH) -> tuple[Builder, str]:
    made = Builder()
    return made, made.node("Gather", [made.weight("table", rows, width), "input_ids"], "embeddings/Gather")


def clean(folder: Path) -> Path:
    """Wide float products and nothing beside them."""
    made, x = started()
    for number in range(LAYERS):
        x = made.node("Relu", [made.linear(x, f"layer.{number}.up", 4 * WIDTH)], f"layer.{number}/Relu")
        x = made.linear(x, f"layer.{number}.down", rows=4 * WIDTH)
    return made.save(folder)


def clean_int8(folder: Path) -> Path:
    """Wide products in 8 bits; what quantizes their inputs is small beside them."""
    made, x = started()
    for number in range(LAYERS):
        x = made.dynamic(x, f"layer.{number}.up", 8 * WIDTH)
        x = made.dynamic(x, f"layer.{number}.down", rows=8 * WIDTH)
    return made.save(folder)


def pairs_everywhere(folder: Path) -> Path:
    """Q/DQ around every operator, also those that no runtime computes in 8 bits."""
    made, x = started()
    half = made.constant("half", np.float32(0.5))
    x = made.pair(x)
    for number in range(LAYERS):
        eight = made.weight(f"layer.{number}.weight", WIDTH, WIDTH, dtype=np.int8)
        scale = made.constant(f"layer.{number}.scale", np.float32(0.01))
        weight = made.node("DequantizeLinear", [eight, scale], f"layer.{number}/weight")
        x = made.pair(made.node("MatMul", [x, weight], f"layer.{number}/MatMul"))
        for turn in range(8):
            x = made.pair(made.node("Sub", [x, half], f"layer.{number}.{turn}/Sub"))
            x = made.pair(made.node("Abs", [x], f"layer.{number}.{turn}/Abs"))
    return made.save(folder)


def per_token(folder: Path) -> Path:
    """Three small products in 8 bits share an input that is quantized as it comes; meant for one or few tokens."""
    made, x = started(width=64)
    for number in range(LAYERS):
        query = made.dynamic(x, f"layer.{number}.query", 64, 64)
        shared = f"layer.{number}.query/quantized"
        others = [made.dynamic(x, f"layer.{number}.{name}", 64, 64, shared=shared) for name in ("key", "value")]
        x = made.node("Sum", [query, *others], f"layer.{number}/Sum")
    return made.save(folder)


def casts_around_norms(folder: Path) -> Path:
    """Layer norms in fp32 between halves that change places in fp16 (rotary positions), with casts on either side."""
    made, x = started()
    for number in range(LAYERS):
        ones = made.constant(f"layer.{number}.scale", np.ones(WIDTH, np.float32))
        x = made.node("LayerNormalization", [x, ones], f"layer.{number}.norm/LayerNormalization")
        x = made.node("Cast", [x], f"layer.{number}/Cast", to=TensorProto.FLOAT16)
        halves = [f"layer.{number}/left", f"layer.{number}/right"]
        made.nodes.append(helper.make_node("Split", [x], halves, f"layer.{number}/Split", axis=-1, num_outputs=2))
        x = made.node("Concat", halves[::-1], f"layer.{number}/Concat", axis=-1)
        x = made.node("Cast", [x], f"layer.{number}/Cast_1", to=TensorProto.FLOAT)
    return made.save(folder)


def lookups(folder: Path) -> Path:
    """Wide rows of a large table, and next to nothing done with them."""
    made, x = started(rows=8_000, width=1024)
    x = made.node("Gather", [x, made.constant("first", np.asarray(0))], "pooler/Gather", axis=1)
    made.linear(x, "head", 8, 1024)
    return made.save(folder)


def left_in_float(folder: Path) -> Path:
    """Of each layer's two products one computes in 8 bits and the other does not."""
    made, x = started()
    for number in range(LAYERS):
        x = made.dynamic(x, f"layer.{number}.up", 2 * WIDTH)
        x = made.linear(x, f"layer.{number}.down", rows=2 * WIDTH)
    return made.save(folder)


def shared_products(folder: Path) -> Path:
    """Products, each just large enough to be shared among threads."""
    made, x = started()
    for number in range(2 * LAYERS):
        x = made.node("Tanh", [made.linear(x, f"layer.{number}")], f"layer.{number}/Tanh")
    return made.save(folder)
