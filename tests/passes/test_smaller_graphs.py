"""cast, quantize_embeddings and simplify: what they change in a graph, and what they must not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fmopt.core.errors import PassError
from fmopt.passes.cast import Cast, weights_to_fp16
from fmopt.passes.quantize_dynamic import QuantizeDynamic
from fmopt.passes.quantize_embeddings import QuantizeEmbeddings, quantize_tables, rows_to_int8
from fmopt.passes.simplify import Simplify, keep_residuals_apart
from tests.passes.conftest import build_graph, items, target
from tests.passes.running import cosine, kinds, run, run_openvino


def test_cast_halves_the_file(graph, make_context, tmp_path):
    made = Cast().apply(graph, make_context(), tmp_path / "out")
    assert made.path.stat().st_size < 0.6 * graph.path.stat().st_size
    item = items(1)[0]
    np.testing.assert_allclose(run(made.path, item), run(graph.path, item), atol=5e-3)
    np.testing.assert_allclose(run_openvino(made.path, item), run(graph.path, item), atol=5e-3)
    assert made.history == ("cast(5 weights to fp16)",)


def test_weights_beyond_fp16_stay_fp32():
    model = build_graph()
    table = model.graph.initializer[0]
    table.CopyFrom(numpy_helper.from_array(np.full((64, 32), 1e6, np.float32), table.name))
    assert weights_to_fp16(model, min_elements=1024) == 4
    assert model.graph.initializer[0].data_type == onnx.TensorProto.FLOAT


def test_cast_says_when_there_is_nothing_to_do(graph, make_context, tmp_path):
    with pytest.raises(PassError, match="no fp32 weight of 1000000 elements or more"):
        Cast(min_elements=1_000_000).apply(graph, make_context(), tmp_path / "out")


def test_rows_are_scaled_one_by_one():
    table = np.array([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0], [100.0, 50.0, -100.0]], np.float32)
    values, scales = rows_to_int8(table)
    assert values.dtype == np.int8
    assert scales.shape == (3, 1)
    assert (np.abs(values * scales - table) <= scales / 2 + 1e-6).all()
    assert (values[1] == 0).all()


def test_embeddings_keep_their_rows_in_either_runtime(graph, make_context, tmp_path):
    made = QuantizeEmbeddings(min_rows=64).apply(graph, make_context(), tmp_path / "out")
    names = {t.name: t.data_type for t in onnx.load(str(made.path)).graph.initializer}
    assert "table" not in names
    assert names["table.int8"] == onnx.TensorProto.INT8
    item = items(1)[0]
    assert cosine(run(made.path, item), run(graph.path, item)) > 0.999
    assert cosine(run_openvino(made.path, item), run(graph.path, item)) > 0.999


def test_embeddings_after_dynamic_int8(graph, make_context, tmp_path):
    ctx = make_context("avx2")
    first = QuantizeDynamic().apply(graph, ctx, tmp_path / "a")
    made = QuantizeEmbeddings(min_rows=64).apply(first, ctx, tmp_path / "b")
    assert made.path.stat().st_size < 0.85 * first.path.stat().st_size
    assert made.history == ("quantize_dynamic(int8-7bit)", "quantize_embeddings(table)")
    assert cosine(run(made.path, items(1)[0]), run(graph.path, items(1)[0])) > 0.99


def test_a_table_that_is_also_a_projection_is_left_alone():
    model = build_graph()
    model.graph.node.append(helper.make_node("Transpose", ["table"], ["tied"], "tied"))
    model.graph.output.append(helper.make_tensor_value_info("tied", onnx.TensorProto.FLOAT, [32, 64]))
    assert quantize_tables(model, min_rows=64) == []
    assert "table" in {tensor.name for tensor in model.graph.initializer}


def test_small_tables_are_left_alone(graph, make_context, tmp_path):
    with pytest.raises(PassError, match="no fp32 embedding table of 1024 rows or more"):
        QuantizeEmbeddings().apply(graph, make_context(), tmp_path / "out")


def test_residuals_are_kept_apart_with_the_same_bits(graph, make_context, tmp_path):
    made = Simplify().apply(graph, make_context(), tmp_path / "out")
    assert kinds(made.path)["Sum"] == 2
    item = items(1)[0]
    np.testing.assert_allclose(run(made.path, item), run(graph.path, item), atol=2e-6)
    assert "SkipLayerNormalization" in optimized(graph.path, tmp_path / "before.onnx")
    assert "SkipLayerNormalization" not in optimized(made.path, tmp_path / "after.onnx")


def test_simplify_twice_is_an_error(graph, make_context, tmp_path):
    model = build_graph()
    assert [keep_residuals_apart(model), keep_residuals_apart(model)] == [2, 0]
    first = Simplify().apply(graph, make_context(), tmp_path / "a")
    with pytest.raises(PassError, match="no Add before a LayerNormalization"):
        Simplify().apply(first, make_context(), tmp_path / "b")


def test_refusals(metadata):
    assert Cast().refusal(metadata, target()) is None
    assert QuantizeEmbeddings().refusal(metadata, target()) is None
    assert Simplify().refusal(metadata, target()) is None
    assert "has no onnxruntime" in Simplify().refusal(metadata, target(runtimes=("openvino",)))


def optimized(path, to) -> set[str]:
    """Kinds of operators after ONNX Runtime's own optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(to)
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return set(kinds(to))
