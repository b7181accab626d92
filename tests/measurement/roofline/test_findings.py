"""Planted reasons for a variant to be slow are found, said in one line, with their share and a remedy."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from fmopt.core.results import Finding, OpTime
from fmopt.measurement.roofline.findings import group_of, why_not_faster
from tests.passes.conftest import target

VNNI = target("avx2", "avx512_vnni")
NO_FILE = Path("none.onnx")


def op(kind: str, ms: float, precision: str = "fp32", name: str = "") -> OpTime:
    return OpTime(name=name or kind, kind=kind, ms=ms, precision=precision)


GOOD = [op("DynamicQuantizeMatMul", 1.0, "int8") for _ in range(9)] + [
    op("Softmax", 0.5),
    op("LayerNormalization", 0.4),
]


def find(profile: list[OpTime], part: str, reference: list[OpTime] = GOOD, **metadata: object) -> Finding:
    asked = {"graph_path": NO_FILE, "target": VNNI, "threads": 1, **metadata}
    found = why_not_faster(profile, reference, **asked)
    assert all("\n" not in finding.text and finding.remedy for finding in found)
    return next(finding for finding in found if part in finding.text)


def texts(profile: list[OpTime], **metadata: object) -> list[str]:
    asked = {"graph_path": NO_FILE, "target": VNNI, "threads": 1, **metadata}
    return [finding.text for finding in why_not_faster(profile, GOOD, **asked)]


def test_nothing_to_say():
    assert texts([]) == []
    assert texts(GOOD) == []


def test_q_dq_on_every_operator(tmp_path):
    nodes = [helper.make_node("QuantizeLinear", [f"t{i}", "s"], [f"q{i}"]) for i in range(7)]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("q0", TensorProto.UINT8, [1])])
    path = tmp_path / "qdq.onnx"
    onnx.save(helper.make_model(graph), str(path))
    profile = [
        *GOOD,
        *[op("QuantizeLinear", 0.5, "int8") for _ in range(20)],
        *[op("DequantizeLinear", 0.5) for _ in range(20)],
    ]
    found = find(profile, "going to 8 bits and back", graph_path=path)
    assert found.share == pytest.approx(20 / 29.9)
    assert found.text == "going to 8 bits and back takes 67% of the time (20 quantizelinear, 20 dequantizelinear of 7 " \
                         "Q/DQ pairs in the graph are not fused)"  # fmt: skip
    assert texts(profile)[0].startswith("quantization and casts take 20.0 ms")


def test_dynamic_quantization_of_tiny_shapes():
    profile = (
        [op("DynamicQuantizeMatMul", 0.02, "int8")] * 4
        + [op("DynamicQuantizeLinear", 0.01, "int8")] * 4
        + [op("Add", 0.02)] * 4
    )
    found = find(profile, "tokens enter each matrix product", shape=(1, 8))
    assert found.text == "only 8 tokens enter each matrix product; 60% of the time is spent around the products"
    assert found.share == pytest.approx(0.6)
    assert not any("tokens enter" in text for text in texts(profile, shape=(8, 128)))


def test_operators_too_short_for_their_dispatch():
    found = find([op("Add", 0.004)] * 50 + [op("MatMul", 0.2)], "shorter than 10 µs")
    assert found.share == pytest.approx(0.5)


def test_threads_oversubscribed():
    first = why_not_faster(GOOD, GOOD, graph_path=NO_FILE, target=VNNI, threads=4)[0]
    assert first.text == "4 threads share 2 free cores and wait for one another"
    assert first.remedy == "use --threads 2"
    assert "2 threads share 1 free core and" in texts(GOOD, threads=2, free_cores=1)[0]
    assert texts(GOOD, threads=2) == []


def test_islands_of_float_between_int8_products():
    profile = [op("MatMulIntegerToFloat", 5, "int8"), op("SkipLayerNormalization", 2), op("Gelu", 2), op("Softmax", 1)]
    found = find(profile, "between the products stay in float")
    assert found.text == "operations between the products stay in float, 50% of the time " \
                         "(normalization 20%, activations 20%, softmax 10%)"  # fmt: skip


def test_products_left_in_float():
    found = find([op("MatMulIntegerToFloat", 5, "int8"), op("MatMul", 4), op("FusedMatMul", 1)], "are left in float")
    assert found.text == "2 matrix products are left in float, 50% of the time"


def test_a_float_graph_says_that_nothing_is_int8():
    profile = [op("MatMul", 9), op("Add", 1)]
    assert find(profile, "nothing computes in 8 bits").share == pytest.approx(0.9)
    assert not any("stay in float" in text for text in texts(profile))


def test_the_group_that_lost_most_comes_first():
    first = texts([op("FullyConnected/brgemm_avx2", 19), op("Softmax/jit_avx2", 0.5)])[0]
    assert first == "matrix products take 19.0 ms in fp32 by brgemm_avx2, in the fastest variant 9.0 ms in int8"


@pytest.mark.parametrize(("metadata", "wanted"), [
    ({}, "VNNI or AMX"), ({"arch": "aarch64"}, "dotprod or i8mm"),
])  # fmt: skip
def test_missing_instructions(metadata, wanted):
    assert find(GOOD, f"no 8-bit dot product ({wanted})", target=target("avx2", **metadata)).share == pytest.approx(
        9 / 9.9
    )
    assert not any("dot product" in text for text in texts(GOOD))


def test_emulated_bf16():
    assert find([op("MatMul", 3, "bf16")], "does not compute in bf16; it is emulated").remedy.startswith(
        "precision f32 in the recipe"
    )


def test_fallback_kernels():
    profile = [op("FullyConnected/jit_gemm", 9, "int8"), op("Gather/ref_any", 0.5), op("Softmax/jit_avx2", 0.5)]
    found = find(profile, "run fallback kernels")
    assert found.text == "2 operators run fallback kernels, 95% of the time (mostly FullyConnected/jit_gemm)"


def test_lookups_dominate():
    assert find([op("Gather", 6), op("MatMul", 4)], "looking up embeddings takes 60%").share == pytest.approx(0.6)


@pytest.mark.parametrize(("kind", "group"), [
    ("DynamicQuantizeMatMul", "matrix products"), ("DynamicQuantizeLinear", "quantization and casts"),
    ("QLinearAdd", "additions and products"), ("addmm", "matrix products"), ("mm", "matrix products"),
    ("_to_copy", "quantization and casts"), ("native_layer_norm", "normalization"), ("MVN/jit_avx2", "normalization"),
    ("scaled_dot_product_attention", "attention"), ("FullyConnectedQuantizedLegacy/jit_gemm", "matrix products"),
    ("BiasGelu", "activations"), ("Shape", "other"),
])  # fmt: skip
def test_groups(kind, group):
    assert group_of(kind) == group
