"""Dynamic INT8: what is quantized, how well, and which weights a device gets."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import Graph
from fmopt.passes.quantize_dynamic import PASS, QuantizeDynamic
from tests.passes.conftest import items, target
from tests.passes.running import cosine, kinds, run


def test_products_become_int8_and_the_answer_stays(graph, make_context, tmp_path):
    made = PASS().apply(graph, make_context("avx2"), tmp_path / "out")
    assert kinds(made.path)["MatMulInteger"] == 4
    assert kinds(made.path)["MatMul"] == 0
    worst = min(cosine(run(made.path, item), run(graph.path, item)) for item in items(8, seed=5))
    assert worst > 0.99
    assert made.path.stat().st_size < 0.7 * graph.path.stat().st_size
    assert made.history == ("quantize_dynamic(int8-7bit)",)


@pytest.mark.parametrize(("isa", "largest"), [(("avx2",), 64), (("avx2", "avx512_vnni"), 127)])
def test_weights_keep_to_7_bits_only_where_8_saturate(graph, make_context, tmp_path, isa, largest):
    made = PASS().apply(graph, make_context(*isa), tmp_path / "out")
    tensors = onnx.load(str(made.path)).graph.initializer
    int8 = [numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2]
    assert len(int8) == 4
    assert max(int(np.abs(values.astype(int)).max()) for values in int8) == pytest.approx(largest, abs=1)


def test_unsigned_weights(graph, make_context, tmp_path):
    made = QuantizeDynamic(weights="uint8").apply(graph, make_context("avx2"), tmp_path / "out")
    types = {t.data_type for t in onnx.load(str(made.path)).graph.initializer if len(t.dims) == 2}
    assert types == {onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT}  # the table stays float
    assert min(cosine(run(made.path, item), run(graph.path, item)) for item in items(4)) > 0.99


def test_same_graph_same_bytes(graph, make_context, tmp_path):
    made = [PASS().apply(graph, make_context("avx2"), tmp_path / name).path.read_bytes() for name in ("a", "b")]
    assert made[0] == made[1]


def test_the_source_stays_as_it_is(graph, make_context, tmp_path):
    before = graph.path.read_bytes()
    PASS().apply(graph, make_context("avx2"), tmp_path / "out")
    assert graph.path.read_bytes() == before


def test_a_graph_without_products_is_an_error(graph, make_context, tmp_path):
    model = onnx.load(str(graph.path))
    del model.graph.node[1:]
    model.graph.node[0].output[0] = "last_hidden_state"
    path = tmp_path / "lookup.onnx"
    onnx.save(model, str(path))
    with pytest.raises(PassError, match=r"no MatMul with constant weights in lookup\.onnx"):
        PASS().apply(Graph("onnx", path, ("input_ids",), ("last_hidden_state",)), make_context("avx2"), tmp_path / "o")


def test_refusals(metadata):
    assert PASS().refusal(metadata, target("avx2")) is None
    assert PASS().refusal(metadata, target(precisions=("fp32",))) == "test-cpu does not compute in int8"
    with pytest.raises(ConfigError, match="'int4'; it is one of auto"):
        QuantizeDynamic(weights="int4")
