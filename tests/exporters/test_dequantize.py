"""Q/DQ pairs folded away: what is left computes what the pairs stood for, by numbers worked out beside it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fmopt.exporters.dequantize import fold_pairs

WEIGHT = np.array([[-128, 3, 7], [127, -1, 0]], dtype=np.int8)  # [in, out]
SCALES = np.array([0.5, 0.25, 2.0], dtype=np.float32)
TABLE = np.array([[0, 255], [128, 130], [7, 9]], dtype=np.uint8)


def graph(nodes, inputs, outputs, constants) -> onnx.ModelProto:
    made = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in constants.items()])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model, feed) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feed)
    return np.asarray(found)


def product() -> onnx.ModelProto:
    """x → Q → DQ → MatMul with a weight by a scale for each column → Q → DQ → y."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "sx", "zx"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "sx", "zx"], ["y"]),
    ]
    constants = {"w": WEIGHT, "sw": SCALES, "zw": np.zeros(3, np.int8), "sx": np.float32(0.5), "zx": np.uint8(128)}
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 2), ("y", 3))]
    return graph(nodes, ports[:1], ports[1:], constants)


def test_weights_become_what_they_stand_for_and_nothing_is_rounded():
    model = product()
    assert fold_pairs(model) == 3
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Identity"]
    x = np.array([[0.3, -1.1], [1.01, 7.77]], dtype=np.float32)  # between steps
    np.testing.assert_allclose(run(model, {"x": x}), x @ (WEIGHT * SCALES), rtol=1e-6)
    assert [tensor.data_type for tensor in model.graph.initializer] == [TensorProto.FLOAT]


def lookup(scale, zero, *, after: bool) -> onnx.ModelProto:
    names = ["Gather", "DequantizeLinear"] if after else ["DequantizeLinear", "Gather"]
    dequantize = helper.make_node(
        "DequantizeLinear", ["rows" if after else "t", "s", "z"], ["y" if after else "td"], axis=0
    )
    gather = helper.make_node("Gather", ["t" if after else "td", "i"], ["rows" if after else "y"])
    nodes = [gather, dequantize] if names[0] == "Gather" else [dequantize, gather]
    ids = helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    return graph(nodes, [ids], [out], {"t": TABLE, "s": scale, "z": zero})


@pytest.mark.parametrize("after", [False, True])
def test_tables_too_also_where_rows_are_dequantized_after_the_lookup(after):
    model = lookup(np.float32(0.1), np.uint8(128), after=after)
    before = run(model, {"i": np.array([2, 0, 1])})
    assert fold_pairs(model) == 1
    assert [node.op_type for node in model.graph.node] == ["Gather"]
    np.testing.assert_array_equal(run(model, {"i": np.array([2, 0, 1])}), before)


def test_rows_with_a_scale_each():
    model = lookup(np.array([0.1, 1.0, 3.0], np.float32), np.array([1, 2, 3], np.uint8), after=False)
    before = run(model, {"i": np.array([2, 0, 1])})
    assert fold_pairs(model) == 1
    np.testing.assert_allclose(run(model, {"i": np.array([2, 0, 1])}), before, rtol=1e-6)


def test_without_pairs_nothing_is_done():
    node = helper.make_node("Relu", ["x"], ["y"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    assert fold_pairs(graph([node], ports[:1], ports[1:], {})) == 0
