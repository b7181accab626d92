"""ONNX Runtime's static tool: Q/DQ on the inputs of products only."""

from __future__ import annotations

import pytest

from fmopt.core.errors import ConfigError, PassError
from fmopt.passes.quantize_static_ort import PASS, QuantizeStaticOrt, Stream
from tests.passes.conftest import items, target
from tests.passes.running import cosine, kinds, run


def test_only_inputs_of_products_are_quantized(graph, make_context, tmp_path):
    made = PASS().apply(graph, make_context("avx2"), tmp_path / "out")
    assert kinds(made.path)["QuantizeLinear"] == 4  # one per product; outputs, biases, Gelu and LayerNorm stay float
    assert kinds(made.path)["DequantizeLinear"] == 8  # and one for each weight
    assert min(cosine(run(made.path, item), run(graph.path, item)) for item in items(8, seed=5)) > 0.99
    assert made.history == ("quantize_static_ort(16 items)",)


def test_same_graph_same_bytes(graph, make_context, tmp_path):
    made = [PASS().apply(graph, make_context("avx2"), tmp_path / name).path.read_bytes() for name in ("a", "b")]
    assert made[0] == made[1]


def test_items_are_read_one_at_a_time_and_no_more_than_asked(graph, make_context, tmp_path):
    made = QuantizeStaticOrt(items=3).apply(graph, make_context("avx2", count=50), tmp_path / "out")
    assert made.history == ("quantize_static_ort(3 items)",)
    stream = Stream(iter(items(2)), ("input_ids",))
    assert set(stream.get_next()) == {"input_ids"}
    assert stream.seen == 1


def test_nothing_to_calibrate_on(graph, make_context, tmp_path):
    with pytest.raises(PassError, match="no calibration items; give data with a calibration split"):
        PASS().apply(graph, make_context("avx2", count=0), tmp_path / "out")


def test_refusals(metadata):
    assert PASS().refusal(metadata, target()) is None
    assert PASS().refusal(metadata, target(precisions=("fp32",))) == "test-cpu does not compute in int8"
    with pytest.raises(ConfigError, match="items is 0"):
        QuantizeStaticOrt(items=0)
