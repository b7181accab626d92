"""The prediction, on graphs whose operations and bytes are known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fmopt.core.errors import ConfigError
from fmopt.core.target import Target, read_target
from fmopt.measurement.roofline.model import COMPUTE_EFFICIENCY, MEMORY_EFFICIENCY, graph_work, predict_ms

DEVICE = Target(
    name="d", title="d", kind="cpu", arch="x86_64", cores=4, memory_gb=8, bandwidth_gbs=10, gops_scope="core",
    gops={"fp32": 50, "int8": 200}, precisions=("fp32", "int8"), runtimes=("onnxruntime",),
)  # fmt: skip


def save(folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], width: int) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "tokens", width])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def linear(folder: Path) -> Path:
    """A table of 1000 × 64, then a product with 64 × 256 and a ReLU."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Relu", ["y"], ["out"]),
    ]
    weights = {"table": np.zeros((1000, 64), np.float32), "w": np.zeros((64, 256), np.float32)}
    return save(folder, nodes, weights, 256)


def test_operations_and_bytes_are_those_counted_by_hand(tmp_path: Path) -> None:
    gather, product, relu = graph_work(linear(tmp_path), batch=2, length=10)
    assert (gather.operations, gather.bytes) == (0, 2 * 4 * 2 * 10 * 64)  # only the rows taken, not the table
    assert product.operations == 2 * (2 * 10) * 64 * 256
    assert product.bytes == 4 * (2 * 10 * 64 + 64 * 256 + 2 * 10 * 256)
    assert (relu.operations, relu.bytes) == (2 * 10 * 256, 2 * 4 * 2 * 10 * 256)


def test_the_time_is_the_slower_of_arithmetic_and_memory(tmp_path: Path) -> None:
    work = list(graph_work(linear(tmp_path), batch=64, length=128))
    memory = 10e9 * MEMORY_EFFICIENCY
    for threads, arithmetic in ((1, 50e9), (4, 200e9), (99, 200e9)):
        by_hand = sum(max(w.operations / (arithmetic * COMPUTE_EFFICIENCY), w.bytes / memory) for w in work)
        got = predict_ms(linear(tmp_path), DEVICE, 64, 128, "fp32", threads=threads)
        assert got == pytest.approx(1e3 * by_hand)
    assert predict_ms(linear(tmp_path), DEVICE, 64, 128, "fp32") == got


def test_integer_products_run_at_the_integer_ceiling(tmp_path: Path) -> None:
    """Q/DQ around a product, its weight turned on the way as exporters leave it."""
    scale, zero = np.float32(0.1), np.uint8(128)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "s"], ["wd"]),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["xd", "wt"], ["out"]),
    ]
    weights = {"table": np.zeros((100, 512), np.float32), "wq": np.zeros((2048, 512), np.int8),
               "s": np.asarray(scale), "z": np.asarray(zero)}  # fmt: skip
    path = save(tmp_path, nodes, weights, 2048)
    work = {node.kind: node for node in graph_work(path, 1, 128)}
    assert work["MatMul"].integer
    assert work["MatMul"].operations == 2 * 128 * 512 * 2048
    # the weight counts as the bytes that are stored, and turning it is done once, at load
    assert work["MatMul"].bytes == 4 * 128 * 512 + 2048 * 512 + 4 * 128 * 2048
    assert work["Transpose"].bytes == 0


def test_dynamic_int8_is_predicted_from_its_integer_products(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "s", "z"]),
        helper.make_node("MatMulInteger", ["xq", "w", "z"], ["yi"]),
        helper.make_node("Cast", ["yi"], ["out"], to=TensorProto.FLOAT),
    ]
    weights = {"table": np.zeros((100, 512), np.float32), "w": np.zeros((512, 2048), np.int8)}
    path = save(tmp_path, nodes, weights, 2048)
    product = next(node for node in graph_work(path, 1, 128) if node.kind == "MatMulInteger")
    assert product.integer
    assert product.operations == 2 * 128 * 512 * 2048


def test_unknown_ceilings_or_shapes_give_no_number(tmp_path: Path) -> None:
    assert predict_ms(linear(tmp_path), read_target("browser"), 1, 128, "fp32") is None
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Attention", ["x", "w"], ["a"], domain="com.microsoft"),
        helper.make_node("MatMul", ["a", "w"], ["out"]),
    ]
    weights = {"table": np.zeros((100, 64), np.float32), "w": np.zeros((64, 64), np.float32)}
    assert predict_ms(save(tmp_path, nodes, weights, 64), DEVICE, 1, 128, "fp32") is None


def test_without_a_known_bandwidth_arithmetic_alone_counts(tmp_path: Path) -> None:
    phone = read_target("android-arm64")
    assert phone.bandwidth_gbs is None
    got = predict_ms(linear(tmp_path), phone, 1, 128, "fp32", threads=1)
    operations = sum(node.operations for node in graph_work(linear(tmp_path), 1, 128))
    assert got == pytest.approx(1e3 * operations / (phone.gops["fp32"] * 1e9 * COMPUTE_EFFICIENCY))


def test_an_unknown_precision_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision 'fp12' is unknown; there are: fp32"):
        predict_ms(linear(tmp_path), DEVICE, 1, 128, "fp12")


def test_a_convolution_sums_over_its_window(tmp_path: Path) -> None:
    """8 × 8 patches of 3 channels become 16 features, as a vision transformer begins; then one by groups."""
    weights = {"w": np.zeros((16, 3, 8, 8), np.float32), "own": np.zeros((16, 1, 3, 3), np.float32)}
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["x"], strides=[8, 8]),
        helper.make_node("Conv", ["x", "own"], ["out"], group=16, pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 16, 4, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "conv.onnx"
    )
    patches, local = graph_work(tmp_path / "conv.onnx", batch=2, length=1)
    assert patches.operations == 2 * (2 * 16 * 4 * 4) * (3 * 8 * 8)
    assert local.operations == 2 * (2 * 16 * 4 * 4) * 9


def test_a_graph_that_shape_inference_does_not_know_leaves_no_copy_behind(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    weight = numpy_helper.from_array(np.ones((1024, 16), np.float32), "weight")
    nodes = [
        helper.make_node("Strange", ["x"], ["y"], domain="nobody.knows"),
        helper.make_node("MatMul", ["y", "weight"], ["z"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", 1024])
    made = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "one", [given], [made], [weight]),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("nobody.knows", 1)],
    )
    onnx.save(model, "model.onnx")
    list(graph_work(tmp_path / "model.onnx", 1, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
