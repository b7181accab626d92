"""NNCF on OpenVINO: it quantizes, deterministically, and is refused where it is known to lose."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fmopt.core.errors import ConfigError, PassError
from fmopt.exporters.openvino_graph import read_ir, save_ir
from fmopt.passes.quantize_nncf import PASS, QuantizeNncf
from tests.passes.conftest import items, target
from tests.passes.running import cosine, run, run_openvino


@pytest.fixture
def ir(graph):
    """The tiny graph as IR."""
    return replace(graph, format="openvino", path=save_ir(read_ir(graph.path), graph.path.with_suffix(".xml")))


def test_it_quantizes_and_the_answer_stays(graph, ir, make_context, tmp_path):
    made = PASS().apply(ir, make_context("avx2"), tmp_path / "out")
    operators = [op.get_type_name() for op in read_ir(made.path).get_ops()]
    assert operators.count("FakeQuantize") >= 4
    assert (made.format, made.history) == ("openvino", ("quantize_nncf(mixed, 16 items)",))
    assert min(cosine(run_openvino(made.path, item), run(graph.path, item)) for item in items(4, seed=5)) > 0.98
    assert made.path.with_suffix(".bin").stat().st_size < 0.6 * ir.path.with_suffix(".bin").stat().st_size


def test_same_graph_same_bytes(ir, make_context, tmp_path):
    made = [PASS().apply(ir, make_context("avx2"), tmp_path / name).path for name in ("a", "b")]
    assert made[0].with_suffix(".bin").read_bytes() == made[1].with_suffix(".bin").read_bytes()
    assert made[0].read_bytes() == made[1].read_bytes()


def test_nothing_to_calibrate_on(ir, make_context, tmp_path):
    with pytest.raises(PassError, match="no calibration items"):
        PASS().apply(ir, make_context("avx2", count=0), tmp_path / "out")


def test_refused_on_x86_without_dot_products(metadata):
    assert "has no VNNI or AMX; without them OpenVINO's INT8 is slower" in PASS().refusal(metadata, target("avx2"))
    assert PASS().refusal(metadata, target("avx2", "avx512_vnni")) is None
    assert PASS().refusal(metadata, target(arch="aarch64")) is None
    assert PASS().refusal(metadata, target(precisions=("fp32",))) == "test-cpu does not compute in int8"


@pytest.mark.parametrize(("options", "said"), [({"preset": "fast"}, "it is mixed or performance"),
                                               ({"items": 301}, "between 1 and 300")])  # fmt: skip
def test_wrong_options(options, said):
    with pytest.raises(ConfigError, match=said):
        QuantizeNncf(**options)
