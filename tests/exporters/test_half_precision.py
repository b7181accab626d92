"""What is written in half computes what it should, and what must not be stays fp32 with its reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fmopt.core.errors import ConfigError, PassError
from fmopt.exporters import to_onnx
from fmopt.exporters.half_emulation import emulated, has_half
from fmopt.exporters.half_precision import KIND, kept_of, magnitudes, to_half
from fmopt.exporters.onnx_graph import element_types
from fmopt.exporters.tensorrt_check import check
from fmopt.passes.cast import Cast
from fmopt.passes.quantize_fp8 import QuantizeFp8, quantize_products
from fmopt.passes.quantize_static import QuantizeStatic
from tests.conftest import TinyCheckpoint
from tests.exporters.test_tensorrt_check import graph_of
from tests.passes.conftest import build_graph, items
from tests.passes.running import cosine
from tests.torch_models import context_of, items_of, model_of, outputs_of, padded

GPU = {"kind": "gpu", "arch": "sm_90", "precisions": ("fp32", "fp16", "bf16", "fp8", "int8")}


def run(model: onnx.ModelProto, inputs: Any) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    return session.run(None, {name: value for name, value in inputs.items() if name in known})[0]


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_half_keeps_the_outputs_and_the_types_at_the_ends(half):
    plain, model, data = build_graph(), build_graph(), items(8)
    kept = to_half(model, half, magnitudes(model, data))
    onnx.checker.check_model(model, full_check=True)
    types = element_types(model)
    assert types["last_hidden_state"] == TensorProto.FLOAT
    assert types["layer.0.up/MatMul"] == types["layer.1/Gelu"] == KIND[half]
    assert set(kept) == {"layer.0.norm/LayerNormalization", "layer.1.norm/LayerNormalization"}
    assert all("sums many terms" in reason for reason in kept.values())
    assert kept_of(model) == kept
    gap = np.abs(run(emulated(model), data[0]) - run(plain, data[0])).max()
    assert 1e-5 < gap < (5e-3 if half == "fp16" else 5e-2)
    # a cast only where a value crosses: into and out of two norms, and the table is stored in half
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == 3
    assert check(model).findings == ()


def test_emulation_rounds_after_every_operator():
    nodes = [helper.make_node("Mul", ["x", "big"], ["m"], "m"), helper.make_node("Mul", ["m", "small"], ["y"], "y")]
    tensors = {"big": np.float32(1 + 2**-8), "small": np.float32(1 + 2**-8)}
    model = graph_of(nodes, tensors, {"y": TensorProto.FLOAT})
    to_half(model, "bf16", {"x": 1.0})
    one = np.ones((1, 1), np.float32)
    assert has_half(model)
    # 1 + 2⁻⁸ lies between two bf16 values and goes to the even one, 1, at every step; fp32 would say 1.0078
    assert run(emulated(model), {"x": one}).item() == 1.0


def test_a_residual_sum_that_overflows_stays(tmp_path: Path):
    model = build_graph()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "layer.0.down.bias")
    values = numpy_helper.to_array(bias).copy()
    values[3] = 4e4  # fp16 still holds it, but not with anything to spare
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    kept = to_half(model, "fp16", magnitudes(model, items(8)))
    assert "calibration items reach 4e+04, and fp16 ends at 6.55e+04" in kept["layer.0/Add"]
    assert "layer.1/Add" not in kept
    wide = build_graph()
    wide.graph.initializer[[t.name for t in wide.graph.initializer].index("layer.0.down.bias")].CopyFrom(
        numpy_helper.from_array(values, bias.name)
    )
    assert "layer.0/Add" not in to_half(wide, "bf16", magnitudes(wide, items(8)))


def test_a_mask_constant_stays_although_no_item_is_padded(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint("bert"))
    graph = to_onnx.export_onnx(model, padded(model, 2), tmp_path)
    made = onnx.load(graph.path)
    kept = to_half(made, "fp16", magnitudes(made, items_of(model)))
    assert "a constant reaches 3.4e+38" in kept["Where"]
    assert "reach 3.4e+38" in kept["encoder.layer.0.attention.self/Add"]
    batch = padded(model)
    mask = batch["attention_mask"].astype(bool)
    got, wanted = run(emulated(made), batch), outputs_of(model, batch)
    assert np.abs(got - wanted)[mask].max() < 1e-2
    assert check(made).findings == ()


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert"])
def test_int8_for_tensorrt_is_symmetric_and_equals_torch(family: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint(family))
    context = context_of(model, **GPU)
    model = QuantizeStatic().apply(model, context)
    graph = to_onnx.export_onnx(model, padded(model, 2), tmp_path / "int8")
    half = Cast(to="fp16").apply(graph, context, tmp_path / "half")
    assert half.history[-1].startswith("cast(fp16, ")
    made = onnx.load(half.path)
    # DeBERTa clips relative positions, which are INT64: by the matrix TensorRT does not.
    assert {fault.operator for fault in check(made).faults} == ({"Clip"} if family == "deberta-v2" else set())
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    zeros = {node.input[2] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    assert {stored[name].data_type for name in zeros} == {TensorProto.INT8}
    assert not any(numpy_helper.to_array(stored[name]).any() for name in zeros)
    batch = padded(model)
    mask = batch["attention_mask"].astype(bool)
    assert cosine(run(emulated(made), batch)[mask], outputs_of(model, batch)[mask]) > 0.995
    products = [found for found in check(made).findings if found.operator == "MatMul"]
    # DeBERTa's relative positions are products of constants too; in BERT only attention's own products are float
    assert not [found for found in products if "only one operand" in found.text]


def test_fp8_products_are_close_and_rounded_to_its_grid(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model = model_of(tiny_checkpoint("bert", "text-classification"))
    context = context_of(model, **GPU)
    graph = to_onnx.export_onnx(model, padded(model, 2), tmp_path / "fp32")
    eight = QuantizeFp8().apply(graph, context, tmp_path / "fp8")
    assert eight.history == ("quantize_fp8(12 products)",)
    half = onnx.load(Cast(to="fp16").apply(eight, context, tmp_path / "half").path)
    kinds = Counter(node.op_type for node in half.graph.node)
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (8, 8 + 12)  # query, key and value share one pair
    assert check(half).faults == ()
    heads = [node for node in half.graph.node if node.name.startswith("classifier/")]
    assert heads
    assert not any(name.endswith(".dq") for node in heads for name in node.input)
    batch = padded(model)
    gap = np.abs(run(emulated(half), batch) - outputs_of(model, batch)).max()
    assert 0 < gap < 0.02
    weight = next(tensor for tensor in half.graph.initializer if tensor.name.endswith("query/MatMul.1.fp8"))
    assert weight.data_type == TensorProto.FLOAT8E4M3FN
    assert float(np.abs(numpy_helper.to_array(weight).astype(np.float32)).max()) == 448.0


def test_refusals_and_wrong_options(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    from tests.torch_models import target

    model = model_of(tiny_checkpoint("bert"))
    turing = target(kind="gpu", arch="sm_75", precisions=("fp32", "fp16", "int8"))
    assert Cast(to="bf16").refusal(model.metadata, turing) == "target test does not compute in bf16"
    assert Cast(to="fp16").refusal(model.metadata, turing) is None
    assert QuantizeFp8().refusal(model.metadata, turing) == "test (sm_75) does not compute in fp8"
    with pytest.raises(ConfigError, match=r"cast\.to is 'int4'"):
        Cast(to="int4")  # type: ignore[arg-type]
    old = build_graph()
    old.opset_import[0].version = 17
    with pytest.raises(PassError, match="needs ONNX opset 19, this graph has 17"):
        quantize_products(old, {})
    integers = graph_of(
        [helper.make_node("Neg", ["x"], ["y"], "n")],
        {},
        {"y": TensorProto.INT64},
        inputs={"x": TensorProto.INT64},
    )
    with pytest.raises(PassError, match="no operator of this graph can be computed in fp16"):
        to_half(integers, "fp16", {})
