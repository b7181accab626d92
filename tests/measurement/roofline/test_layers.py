"""Points under the roof: operations and bytes as counted by hand, on graphs that the runtimes really ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from fmopt.core import plugins
from fmopt.core.model import Artifact
from fmopt.core.results import OpTime
from fmopt.core.target import Target, read_target
from fmopt.measurement.roofline.layers import LayerPoint, layer_points, roof
from fmopt.measurement.roofline.model import graph_work
from tests.measurement.roofline.test_model import save

DEVICE = Target(
    name="d", title="d", kind="cpu", arch="x86_64", cores=4, memory_gb=8, bandwidth_gbs=10, gops_scope="core",
    gops={"fp32": 50, "int8": 200}, precisions=("fp32", "int8"), runtimes=("onnxruntime",),
)  # fmt: skip
BATCH, TOKENS, WIDTH, FFN = 2, 192, 64, 256  # so many that a lookup takes longer than what clocks of runtimes tell


def encoder(folder: Path) -> Path:
    """A table, a product and a softmax of its result times its transpose times itself: attention's two products."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], "embeddings/Gather"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "up/MatMul"),
        helper.make_node("Transpose", ["y"], ["yt"], "attention/Transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["y", "yt"], ["scores"], "attention/MatMul"),
        helper.make_node("Softmax", ["scores"], ["p"], "attention/Softmax", axis=-1),
        helper.make_node("MatMul", ["p", "y"], ["out"], "attention/MatMul_1"),
    ]
    rng = np.random.default_rng(0)
    weights = {"table": rng.standard_normal((1000, WIDTH)).astype(np.float32),
               "w": rng.standard_normal((WIDTH, FFN)).astype(np.float32)}  # fmt: skip
    return save(folder, nodes, weights, FFN)


def ran(path: Path, runtime: str) -> list[OpTime]:
    inputs = {"ids": np.arange(BATCH * TOKENS, dtype=np.int64).reshape(BATCH, TOKENS)}
    return list(plugins.find("runtimes", runtime).profile(Artifact(runtime, path, {}), inputs, threads=1))


@pytest.fixture(params=["onnxruntime", "openvino"])
def points(request, tmp_path: Path) -> dict[str, LayerPoint]:
    return {f"{p.layer} {p.group}": p for p in layer_points(ran(encoder(tmp_path), request.param), DEVICE, threads=1)}


def test_a_product_with_weights_is_counted_by_hand(points):
    product = points["up matrix products"]
    assert product.operations == 2 * BATCH * TOKENS * WIDTH * FFN
    assert product.bytes == 4 * (BATCH * TOKENS * WIDTH + WIDTH * FFN + BATCH * TOKENS * FFN)
    assert product.intensity == pytest.approx(product.operations / product.bytes)
    assert product.gops == pytest.approx(product.operations / product.ms / 1e6)
    assert product.floor_ms == pytest.approx(max(product.operations / 50e6, product.bytes / 10e6))


def test_the_products_of_attention_are_counted_also_where_they_are_fused(points):
    found = sum(point.operations for point in points.values()) - points["up matrix products"].operations
    assert found == pytest.approx(
        2 * (2 * BATCH * TOKENS * TOKENS * FFN), rel=0.01
    )  # and the softmax, where it is apart


def test_a_lookup_reads_the_rows_it_takes_and_not_the_table(points):
    lookups = points["embeddings lookups"]
    assert (lookups.operations, lookups.bytes) == (0, 2 * 4 * BATCH * TOKENS * WIDTH)
    assert lookups.bound == "memory"


def test_a_product_that_took_in_its_neighbours_stays_in_its_layer(tmp_path):
    assert {op.layer for op in ran(encoder(tmp_path), "onnxruntime")} == {"embeddings", "up", "attention"}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_was_executed_agrees_with_what_the_graph_says(tmp_path, runtime):
    path = encoder(tmp_path)
    wanted = sum(work.operations for work in graph_work(path, BATCH, TOKENS) if work.kind == "MatMul")
    done = sum(op.operations or 0 for op in ran(path, runtime))
    assert done == pytest.approx(wanted, rel=0.05)  # the rest is the softmax and the layout


def op(kind: str, ms: float, operations: float | None, moved: float | None, precision: str = "fp32") -> OpTime:
    return OpTime(name=kind, kind=kind, ms=ms, precision=precision, operations=operations, bytes=moved)


def test_the_lower_ceiling_binds():
    # the ridge of one core is at 50 / 10 = 5 operations per byte in fp32, at 20 in int8
    profile = [op("MatMul", 4, 100e6, 10e6), op("MatMulInteger", 2, 100e6, 10e6, "int8"), op("Add", 2, 1e6, 8e6)]
    product, integer, add = layer_points(profile, DEVICE, threads=1)
    assert [point.bound for point in (product, integer, add)] == ["arithmetic", "memory", "memory"]
    assert [point.floor_ms for point in (product, integer, add)] == pytest.approx([2, 1, 0.8])
    assert [point.of_roof for point in (product, integer, add)] == pytest.approx([0.5, 0.5, 0.4])
    assert [point.share for point in (product, integer, add)] == [0.5, 0.25, 0.25]
    assert add.roof_gops == pytest.approx(10 / 8)


def test_threads_raise_the_ceiling_of_arithmetic_up_to_the_cores_and_not_that_of_memory():
    assert roof(DEVICE, 4).ceiling("fp32") == roof(DEVICE, 99).ceiling("fp32") == 200
    assert roof(DEVICE, 4).ridge("int8") == 80
    assert roof(DEVICE, 1).ceiling("bf16") == 50  # has no ceiling of its own
    assert layer_points([op("MatMul", 4, 100e6, 10e6)], DEVICE, threads=4)[0].bound == "memory"


def test_no_points_without_ceilings_or_shapes():
    assert layer_points([op("MatMul", 4, 100e6, 10e6)], read_target("browser"), threads=1) == []
    assert layer_points([op("mm", 4, None, None)], DEVICE, threads=1) == []
    assert layer_points([], DEVICE, threads=1) == []
    assert [p.share for p in layer_points([op("MatMul", 3, 1e6, 1e6), op("Reshape", 1, 0, 0)], DEVICE, 1)] == [0.75]
