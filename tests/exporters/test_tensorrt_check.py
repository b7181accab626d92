"""What TensorRT would not take is found, node by node, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fmopt.cli.app import main
from fmopt.core.errors import ConfigError
from fmopt.exporters.tensorrt_check import check, check_file, support
from tests.passes.conftest import build_graph

NEWER = {"BitCast", "CausalConvWithState", "CumProd", "LinearAttention", "SwiGLU", "Swish"}  # than the matrix


def graph_of(
    nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], outputs: dict[str, int], *, opset: int = 21,
    inputs: dict[str, int] | None = None, rank: int = 2,
) -> onnx.ModelProto:  # fmt: skip
    """A model of `nodes` whose inputs and outputs have `rank` free dimensions."""
    sizes = [f"d{place}" for place in range(rank)]
    graph = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info(name, kind, sizes) for name, kind in (inputs or {"x": TensorProto.FLOAT}).items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def product(**changes: Any) -> onnx.ModelProto:
    """x → Q/DQ → × DQ(int8 weight [4, 3], a scale for each of 3 columns); `changes` replace tensors, or "axis"."""
    axis = changes.pop("axis", 1)
    tensors = {
        "s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 3), np.int8), "ws": np.full(3, 0.1, np.float32),
        "wz": np.zeros(3, np.int8), **changes,
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], "weight", axis=axis),
        helper.make_node("MatMul", ["d", "dw"], ["y"], "product"),
    ]
    return graph_of(nodes, tensors, {"y": TensorProto.FLOAT})


def reported(model: onnx.ModelProto, level: str = "fault") -> list[tuple[str, str]]:
    return [(found.node, found.text) for found in check(model).findings if found.level == level]


def test_the_matrix_has_a_row_for_every_operator_of_its_time():
    known = support()
    defined = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert defined - set(known.operators) - known.unsupported <= NEWER
    assert not set(known.operators) & known.unsupported
    assert set(known.restrictions) <= set(known.operators)


def test_plain_and_rightly_quantized_graphs_pass():
    assert check(build_graph()).findings == ()
    assert check(product()).findings == ()


def test_unknown_operators_are_named_by_their_nodes():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "round"),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["y"], "integers"),
    ]
    model = graph_of(nodes, {"w": np.ones((4, 3), np.int8)}, {"y": TensorProto.INT32})
    assert [node for node, _ in reported(model)] == ["round", "integers"]
    fused = graph_of(
        [helper.make_node("SkipLayerNormalization", ["x"], ["y"], "skip", domain="com.microsoft")],
        {},
        {"y": TensorProto.FLOAT},
    )
    assert reported(fused) == [("skip", "an operator of com.microsoft, which only a plugin of that name could run")]


def test_types_are_those_of_the_data_and_not_of_indices():
    table = {"w": np.ones((4, 3), np.float32), "w8": np.ones((4, 3), np.int8)}
    rows = {"ids": TensorProto.INT64}
    good = graph_of(
        [helper.make_node("Gather", ["w", "ids"], ["y"], "rows")], table, {"y": TensorProto.FLOAT}, inputs=rows
    )
    assert reported(good) == []
    bad = graph_of(
        [helper.make_node("Gather", ["w8", "ids"], ["y"], "rows")], table, {"y": TensorProto.INT8}, inputs=rows
    )
    assert reported(bad) == [("rows", "w8 is INT8; it takes BF16, BOOL, FP16, FP32, INT32, INT64")]
    wide = graph_of(
        [helper.make_node("Sqrt", ["x"], ["y"], "root")],
        {},
        {"y": TensorProto.DOUBLE},
        inputs={"x": TensorProto.DOUBLE},
    )
    assert reported(wide, "note") == [("root", "DOUBLE is cast down to FP32")]


def test_opsets_are_those_of_the_version():
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    newest = graph_of(nodes, {}, {"y": TensorProto.FLOAT}, opset=25)
    assert check(newest, tensorrt=11).faults == ()
    assert "opset 25; TensorRT 10 takes 9 to 24" in check(newest, tensorrt=10).faults[0].text
    assert "opset 8" in reported(graph_of(nodes, {}, {"y": TensorProto.FLOAT}, opset=8))[0][1]
    with pytest.raises(ConfigError, match="TensorRT 9 is not known; there are: 10, 11"):
        check(newest, tensorrt=9)


def test_restrictions_of_single_operators():
    top = helper.make_node("TopK", ["x", "k"], ["y", "i"], "top", sorted=0)
    assert ("top", "sorted is 0; it takes 1") in reported(
        graph_of([top], {"k": np.array([2])}, {"y": TensorProto.FLOAT, "i": TensorProto.INT64})
    )
    inputs = {"x": TensorProto.FLOAT, "axes": TensorProto.INT64}
    computed = helper.make_node("ReduceMean", ["x", "axes"], ["y"], "mean")
    assert reported(graph_of([computed], {}, {"y": TensorProto.FLOAT}, inputs=inputs)) == [
        ("mean", "input 1 (axes) must be known when the engine is built")
    ]
    stored = helper.make_node("ReduceMean", ["x", "axes"], ["y"], "mean")
    assert reported(graph_of([stored], {"axes": np.array([1])}, {"y": TensorProto.FLOAT})) == []
    norm = helper.make_node("LayerNormalization", ["x", "g"], ["y", "mean"], "norm")
    both = {"y": TensorProto.FLOAT, "mean": TensorProto.FLOAT}
    assert reported(graph_of([norm], {"g": np.ones(4, np.float32)}, both)) == [
        ("norm", "only its first output may be read, not mean")
    ]
    pooled = helper.make_node("AveragePool", ["x"], ["y"], "pool", kernel_shape=[2])
    assert reported(graph_of([pooled], {}, {"y": TensorProto.FLOAT}, rank=3)) == [
        ("pool", "x has 3 dimensions; it takes 4 or 5")
    ]


def test_nodes_in_branches_are_seen():
    body = helper.make_graph(
        [helper.make_node("Unique", ["x"], ["u"], "inner")], "body", [],
        [helper.make_tensor_value_info("u", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["v"], "same")], "other", [],
        [helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
    )  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], "branch", then_branch=body, else_branch=other)
    inputs = {"x": TensorProto.FLOAT, "c": TensorProto.BOOL}
    assert [name for name, _ in reported(graph_of([node], {}, {"y": TensorProto.FLOAT}, inputs=inputs))] == ["inner"]


@pytest.mark.parametrize(
    ("changes", "node", "text"),
    [
        ({"z": np.int8(3)}, "quantize", "its zero point is not zero"),
        ({"z": np.uint8(0)}, "quantize", "quantized values are UINT8"),
        ({"s": np.float32(0)}, "quantize", "a scale is not a positive number"),
        ({"s": np.full(4, 0.1, np.float32), "z": np.zeros(4, np.int8)}, "quantize", "an activation has 4 scales"),
        (
            {"ws": np.full(4, 0.1, np.float32), "wz": np.zeros(4, np.int8), "axis": 0},
            "weight",
            "its scales lie along axis 0; MatMul takes one for each output channel, axis 1",
        ),
    ],
)
def test_quantization_that_is_not_symmetric_or_not_per_channel_is_a_fault(changes, node, text):
    found = reported(product(**changes))
    assert any(at == node and text in said for at, said in found), found


def test_quantization_that_blocks_fusion_is_slow_and_no_fault():
    model = product()
    model.graph.node[3].input[1] = "plain"
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.float32), "plain"))
    assert reported(model) == []
    assert reported(model, "slow") == [
        ("product", "only one operand is quantized, so that it runs in floating point; plain is not")
    ]
    residual = product()
    residual.graph.node[3].output[0] = "p"
    residual.graph.node.append(helper.make_node("Add", ["p", "d"], ["y"], "residual"))
    assert [node for node, _ in reported(residual, "slow")] == ["residual"]


def test_computed_scales_and_readers_between_a_pair_are_faults():
    model = product()
    del model.graph.initializer[0]  # s
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["x"], ["s"], "range", keepdims=0))
    assert ("quantize", "its scale is computed; it must be an initializer") in reported(model)
    between = product()
    between.graph.node.insert(1, helper.make_node("Transpose", ["q"], ["t"], "turn", perm=[1, 0]))
    between.graph.node[2].input[0] = "t"
    assert any(node == "quantize" and "turn reads the quantized values" in text for node, text in reported(between))


def test_fp8_needs_its_opset():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], "dequantize"),
    ]
    model = graph_of(nodes, {"s": np.float32(0.1)}, {"y": TensorProto.FLOAT}, opset=19)
    model.graph.initializer.append(helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0]))
    assert reported(model) == []
    model.opset_import[0].version = 18
    assert {text for _, text in reported(model)} >= {"FP8 needs opset 19 or higher, this is 18"}


def test_the_command_names_nodes_and_exits_1(tmp_path: Path, capsys):
    path = tmp_path / "model.onnx"
    onnx.save(product(), path)
    assert main(["check-tensorrt", str(tmp_path)]) == 0
    assert "0 faults" in capsys.readouterr().out
    onnx.save(product(z=np.int8(3)), path)
    assert main(["check-tensorrt", str(path)]) == 1
    said = capsys.readouterr().out
    flat = " ".join(said.split())
    assert "fault: QuantizeLinear: its zero point is not zero: TensorRT quantizes symmetrically: quantize" in flat
    assert "2 faults" in said
    assert main(["check-tensorrt", str(path), "--json", "--tensorrt", "10"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["tensorrt"], answer["matrix"]) == (10, "TensorRT 10.15")
    assert {found["node"] for found in answer["findings"]} == {"quantize", "dequantize"}


def test_what_is_no_graph_is_one_line(tmp_path: Path, capsys):
    other = tmp_path / "model.onnx"
    other.write_text("not a graph")
    assert main(["check-tensorrt", str(other)]) == 2
    assert main(["check-tensorrt", str(tmp_path / "missing.onnx")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "is not an ONNX graph" in said[0]
    assert "there is no file" in said[1]
    with pytest.raises(ConfigError):
        check_file(tmp_path / "missing.onnx")
