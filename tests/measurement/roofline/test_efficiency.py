"""Efficiency curves: what made up samples is found again, a small product is inefficient, and both kinds of graphs have work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from fmopt.core.target import Target
from fmopt.measurement.roofline import efficiency
from fmopt.measurement.roofline.efficiency import Curve, Fitted, Sample, artifact_work, by_curve, fit, predict_ms
from fmopt.measurement.roofline.model import Work

DEVICE = Target(
    name="d", title="d", kind="cpu", arch="x86_64", cores=4, memory_gb=8, bandwidth_gbs=10, gops_scope="core",
    gops={"fp32": 50, "int8": 200}, precisions=("fp32", "int8"), runtimes=("onnxruntime",),
)  # fmt: skip
CURVE = Curve(slope={"fp32": 1.25, "int8": 2.0}, start={"fp32": 2e5, "int8": 8e5}, moved=0.5, node=1e5)


def network(width: int, layers: int, integer: bool) -> list[Work]:
    """Products of 32 tokens with width × width, as a chain, with something that only moves bytes between."""
    one = Work("MatMul", 2.0 * 32 * width * width, 4.0 * (2 * 32 * width + width * width), integer)
    return [one, Work("Gelu", 32.0 * width, 8.0 * 32 * width, False)] * layers


def samples(curve: Curve) -> list[Sample]:
    shapes = [
        (width, layers, integer) for width in (64, 256, 512) for layers in (2, 6, 12) for integer in (False, True)
    ]
    made = [Sample(network(*shape), "onnxruntime", DEVICE, "fp32", 1, 1.0) for shape in shapes]
    return [Sample(one.work, one.runtime, one.target, one.precision, 1, by_curve(curve, one) or 0.0) for one in made]


def test_the_curve_that_made_the_samples_is_found_again() -> None:
    found = fit(samples(CURVE))["onnxruntime"]
    for sample in samples(CURVE):
        assert by_curve(found, sample) == pytest.approx(sample.ms, rel=1e-3)
    assert found.slope["fp32"] == pytest.approx(1.25, rel=0.02)
    assert found.slope["int8"] == pytest.approx(2.0, rel=0.02)


def test_a_noisy_host_still_gives_a_curve_that_predicts() -> None:
    draw = np.random.default_rng(0)
    noisy = [Sample(s.work, s.runtime, s.target, s.precision, 1, s.ms * draw.uniform(0.9, 1.1)) for s in samples(CURVE)]
    found = fit(noisy)["onnxruntime"]
    errors = [abs((by_curve(found, s) or 0.0) / s.ms - 1) for s in samples(CURVE)]
    assert np.median(errors) < 0.05


def test_efficiency_grows_with_the_product_and_ends_below_one_over_its_slope() -> None:
    shares = [CURVE.efficiency("fp32", operations) for operations in (1e4, 1e6, 1e9)]
    assert shares == sorted(shares)
    assert shares[0] < 0.05
    assert shares[-1] == pytest.approx(1 / 1.25, rel=0.01)
    assert CURVE.efficiency("bf16", 1e9) == CURVE.efficiency("fp32", 1e9)  # nothing was measured in it


def test_threads_share_the_arithmetic_and_an_unknown_ceiling_gives_no_number() -> None:
    work = network(512, 2, False)
    one, four = (by_curve(CURVE, Sample(work, "onnxruntime", DEVICE, "fp32", threads, 0.0)) for threads in (1, 4))
    assert one is not None
    assert four is not None
    assert one / 4 < four < one
    blind = DEVICE.model_copy(update={"bandwidth_gbs": None})
    assert by_curve(CURVE, Sample(work, "onnxruntime", blind, "fp32", 1, 0.0)) is None


def test_what_int8_leaves_in_float_is_at_the_float_ceiling() -> None:
    float_work, int8_work = network(256, 2, False), network(256, 2, True)
    full, left, quantized = (
        by_curve(CURVE, Sample(work, "onnxruntime", DEVICE, precision, 1, 0.0))
        for work, precision in ((float_work, "fp32"), (float_work, "int8"), (int8_work, "int8"))
    )
    assert full == left
    assert quantized is not None
    assert full is not None
    assert quantized < full


def test_weights_that_only_pass_by_take_the_memory_s_time() -> None:
    """One token: a product of few operations for the bytes it reads is no faster than the memory."""
    row = Work("MatMul", 2.0 * 4096 * 4096 / 8, 4.0 * 4096 * 4096, False)
    got = by_curve(CURVE.model_copy(update={"slope": {"fp32": 0.5}}), Sample([row], "r", DEVICE, "fp32", 4, 0.0))
    assert got == pytest.approx(1e3 * row.bytes / 10e9)


def write_linear(folder: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["out"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", 64])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "tokens", 256])],
        [numpy_helper.from_array(np.ones((64, 256), np.float32), "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return folder / "model.onnx"


def test_ir_and_onnx_of_one_network_have_the_same_work(tmp_path: Path) -> None:
    path = write_linear(tmp_path)
    openvino.save_model(openvino.convert_model(path), tmp_path / "model.xml", compress_to_fp16=False)
    for file in ("model.onnx", "model.xml"):
        product, relu = artifact_work(tmp_path / file, 2, 10)
        assert product.operations == 2 * (2 * 10) * 64 * 256
        assert product.bytes == 4 * (2 * 10 * 64 + 64 * 256 + 2 * 10 * 256)
        assert (relu.operations, product.integer) == (2 * 10 * 256, False)


def test_quantized_products_of_an_ir_are_integer(tmp_path: Path) -> None:
    ops = openvino.opset13
    x = ops.parameter([-1, -1, 64], np.float32, name="x")
    low, high = np.float32(-1), np.float32(1)
    weights = ops.multiply(ops.convert(ops.constant(np.ones((256, 64), np.int8)), "f32"), np.float32(0.01))
    product = ops.matmul(ops.fake_quantize(x, low, high, low, high, 256), weights, False, True)
    openvino.save_model(openvino.Model([product], [x]), tmp_path / "model.xml")
    (only,) = artifact_work(tmp_path / "model.xml", 1, 8)
    assert only.integer
    assert only.operations == 2 * 8 * 64 * 256


def test_what_comes_with_fmopt_is_what_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_linear(tmp_path)

    def reported(runtime: str, file: Path = path) -> float | None:
        return predict_ms(file, runtime, DEVICE, 1, 128, "fp32", threads=1)

    monkeypatch.setattr(efficiency, "fitted", lambda: None)
    constant = reported("onnxruntime")
    monkeypatch.setattr(efficiency, "fitted", lambda: Fitted(curves={"onnxruntime": CURVE}))
    by_hand = by_curve(CURVE, Sample(artifact_work(path, 1, 128), "onnxruntime", DEVICE, "fp32", 1, 0.0))
    assert reported("onnxruntime") == by_hand != constant
    assert reported("openvino") == constant  # no curve of it: the two ceilings alone
    (tmp_path / "model.xml").write_text("<net/>")
    monkeypatch.setattr(efficiency, "fitted", lambda: Fitted(curves={"openvino": CURVE}))
    assert reported("openvino", tmp_path / "model.xml") is None


def test_curves_of_this_version_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = Fitted(curves={"onnxruntime": CURVE}, hosts=["a CPU"], samples=3)
    (tmp_path / "efficiency.json").write_text(made.model_dump_json())
    monkeypatch.setattr(efficiency, "FITTED", tmp_path / "efficiency.json")
    efficiency.fitted.cache_clear()
    assert efficiency.fitted() == made
    efficiency.fitted.cache_clear()
