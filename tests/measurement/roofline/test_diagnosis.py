"""Planted reasons to be slow, in real graphs run by the real runtimes: the right finding, and not in a clean graph."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import fmopt
from fmopt.cli import app
from fmopt.core import plugins
from fmopt.core.errors import BundleError, ConfigError
from fmopt.core.model import Artifact
from fmopt.core.results import Estimate, Finding, OpTime
from fmopt.measurement import host_probe
from fmopt.measurement.roofline import findings, layers
from fmopt.measurement.roofline.diagnosis import Diagnosis, diagnose, example_inputs, kind_times
from fmopt.measurement.roofline.findings import ThreadTime, thread_findings, why_not_faster
from fmopt.measurement.roofline.layers import LayerPoint, layer_points, roof, roof_findings
from tests import planted
from tests.passes.conftest import target

VNNI = target("avx2", "avx512_vnni", gops={"fp32": 80.0, "int8": 240.0}, gops_scope="core", bandwidth_gbs=20.0)


def ran(path: Path, runtime: str, batch: int, length: int) -> list[OpTime]:
    inputs = example_inputs(path, batch, length)
    return list(plugins.find("runtimes", runtime).profile(Artifact(runtime, path, {}), inputs, threads=1))


def found(folder: Path, plant: str, runtime: str = "onnxruntime", batch: int = 1, length: int = 128) -> list[Finding]:
    path = getattr(planted, plant)(folder)
    profile = ran(path, runtime, batch, length)
    return why_not_faster(profile, [], graph_path=path, target=VNNI, threads=1, shape=(batch, length))


def kinds(got: list[Finding]) -> list[str]:
    return [finding.kind for finding in got]


def test_pairs_on_every_operator_come_first(tmp_path):
    first = found(tmp_path, "pairs_everywhere", batch=8)[0]  # on fast cores fewer tokens are too few
    assert first.kind == "conversions"
    assert first.share > 0.35
    assert "49 quantizelinear" in first.text
    assert "of 52 Q/DQ pairs in the graph are not fused" in first.text


def test_dynamic_quantization_of_few_tokens_comes_first(tmp_path):
    got = found(tmp_path, "per_token", length=4)
    assert got[0].kind == "small-shapes"
    assert got[0].share > 0.4
    dynamic = next(finding for finding in got if finding.kind == "dynamic-quantization")
    assert "3 dynamicquantizelinear" in dynamic.text
    assert dynamic.remedy.endswith("a recipe with quantize_static")
    assert "casts" not in kinds(got)  # from sums to floats is part of the quantization


def test_casts_around_float_norms_are_named_with_what_they_stand_beside(tmp_path):
    got = found(tmp_path, "casts_around_norms", batch=4, length=256)
    casts = next(finding for finding in got if finding.kind == "casts")
    assert casts.share > 0.12
    assert "6 cast, in the graph beside LayerNormalization and Concat" in casts.text
    assert "emulated" not in kinds(got)  # nothing computes in fp16 here, it is only moved


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_that_mostly_looks_up_says_so(tmp_path, runtime):
    got = found(tmp_path, "lookups", runtime, batch=4, length=512)
    lookups = next(finding for finding in got if finding.kind == "lookups")
    assert lookups.share > 0.4
    if runtime == "onnxruntime":
        assert got[0] == lookups


def test_products_left_in_float_come_first(tmp_path):
    first = found(tmp_path, "left_in_float")[0]
    assert first.kind == "left-in-float"
    assert first.text.startswith("3 matrix products are left in float")
    assert first.share > 0.4


def test_openvino_says_that_it_computes_a_dynamic_int8_graph_in_float(tmp_path):
    first = found(tmp_path, "clean_int8", "openvino")[0]
    assert first.kind == "nothing-in-int8"


@pytest.mark.parametrize(("plant", "runtime", "expected"), [
    ("clean", "onnxruntime", ["nothing-in-int8"]), ("clean", "openvino", ["nothing-in-int8"]),
    ("clean_int8", "onnxruntime", []),
])  # fmt: skip
def test_a_clean_graph_gets_none_of_them(tmp_path, plant, runtime, expected):
    assert kinds(found(tmp_path, plant, runtime, batch=2, length=256)) == expected


def test_too_many_threads_are_found_by_measuring(tmp_path):
    path = planted.shared_products(tmp_path)
    artifact, inputs, crowd = Artifact("onnxruntime", path, {}), example_inputs(path, 1, 128), 32 * host_probe.cores()
    got = diagnose(artifact, lambda runner: inputs, VNNI, model="m", batch=1, length=128, threads=crowd, samples=80)
    assert got.findings[0].kind == "threads"
    assert got.findings[0].share > 0.3
    fewer = int(got.findings[0].remedy.removeprefix("--threads "))
    assert fewer < crowd
    assert {time.threads for time in got.threads} == {1, host_probe.cores(), crowd}
    assert Diagnosis.model_validate_json(got.model_dump_json()) == got


def measured(**times: tuple[float, float, float]) -> list[ThreadTime]:
    """`t1=(speedup, low, high)` against the number that was asked for, which took 10 ms."""
    return [
        ThreadTime(threads=int(name[1:]), p50_ms=10 / point, speedup=Estimate(point=point, low=low, high=high))
        for name, (point, low, high) in times.items()
    ]


def test_threads_that_wait_for_one_another():
    (idle,) = thread_findings(measured(t1=(0.5, 0.48, 0.52), t4=(1, 1, 1)), 4)
    assert idle.kind == "thread-imbalance"
    assert idle.share == pytest.approx(0.5)
    assert idle.text == "4 threads are 2.0× as fast as one, so that 50% of their time is lost"
    assert thread_findings(measured(t1=(0.27, 0.26, 0.28), t4=(1, 1, 1)), 4) == []
    assert thread_findings(measured(t1=(0.5, 0.2, 0.9), t4=(1, 1, 1)), 4) == []  # as good as 4 threads can be, perhaps
    assert thread_findings(measured(t1=(1.2, 0.9, 1.4), t2=(1, 1, 1)), 2)[0].kind == "thread-imbalance"
    assert thread_findings([], 1) == []


def point(group: str, share: float, of_roof: float, bound: str, intensity: float = 50.0) -> LayerPoint:
    return LayerPoint(
        layer=f"{group} {bound}", group=group, precision="fp32", ms=share, share=share, operations=1, bytes=1,
        intensity=intensity, gops=1, roof_gops=1, floor_ms=of_roof * share, of_roof=of_roof, bound=bound,
    )  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "remedy"), [
    (point("matrix products", 0.8, 0.9, "arithmetic"), "arithmetic-bound", "INT8's ceiling is 3.0× as high"),
    (point("matrix products", 0.8, 0.9, "memory", 0.5), "memory-bound", "--batch 8"),
    (point("normalization", 0.8, 0.9, "memory", 0.2), "memory-bound", "drop_layers"),
    (point("matrix products", 0.8, 0.1, "arithmetic"), "far-from-the-roof", "fmopt bench"),
])  # fmt: skip
def test_what_the_ceilings_explain(given, kind, remedy):
    (got,) = roof_findings([given], roof(VNNI, 1), 1)
    assert got.kind == kind
    assert remedy in got.remedy
    assert got.share == pytest.approx(0.72 if kind == "far-from-the-roof" else 0.8)
    assert roof_findings([given.model_copy(update={"share": 0.05})], roof(VNNI, 1), 1) == []
    assert roof_findings([given], None, 1) == []


def test_what_only_moves_bytes_has_a_finding_of_its_own():
    assert roof_findings([point("lookups", 0.9, 1.5, "memory", 0)], roof(VNNI, 1), 1) == []


def test_kinds_and_layers_share_the_whole_time(tmp_path):
    profile = ran(planted.left_in_float(tmp_path), "onnxruntime", 1, 64)
    rows = kind_times(profile)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert {(row.kind, row.operators) for row in rows} >= {("MatMul", 3), ("DynamicQuantizeMatMul", 3)}
    assert sum(layer.share for layer in layer_points(profile, VNNI, 1)) == pytest.approx(1)


def test_inputs_of_a_file_look_up_in_the_whole_table_and_fill_masks_with_ones(tmp_path):
    ids = example_inputs(planted.lookups(tmp_path), 2, 100)["input_ids"]
    assert ids.shape == (2, 100)
    assert ids.dtype == np.int64
    assert 6_000 < ids.max() < 8_000


def test_remedies_name_what_exists():
    """Every option is an option of a command, every pass a pass, every verb a verb."""
    source = "".join(Path(module.__file__).read_text("utf8") for module in (findings, layers))
    commands = "".join(path.read_text("utf8") for path in Path(app.__file__).parent.glob("*.py"))
    options = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", source))
    assert options >= {"--threads", "--batch", "--effort"}
    assert [option for option in options if f'"{option}"' not in commands] == []
    assert [verb for verb in re.findall(r"fmopt ([a-z]+)", source) if verb not in {v.__name__ for v in app.VERBS}] == []
    passes = set(re.findall(r"\b(?:quantize_(?!linear)\w+|mixed_precision|drop_layers|prune_structured)", source))
    assert passes >= {"quantize_static", "quantize_embeddings"}
    for name in passes:
        plugins.find("passes", name)


def test_the_command_prints_findings_first_and_the_same_as_json(tmp_path, capsys):
    path = planted.left_in_float(tmp_path)
    assert app.main(["explain", str(path), "--length", "64"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("why it is not faster") < shown.index("time by kind of operator") < shown.index("under the roof")
    assert app.main(["explain", str(path), "--length", "64", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert "left-in-float" in [finding["kind"] for finding in data["findings"]]
    assert data["p50_ms"] == pytest.approx(np.median(data["latency"]["samples_ms"]))
    assert data["layers"][0]["bound"] in ("arithmetic", "memory")


def test_what_cannot_be_explained_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="is neither a bundle nor an ONNX file"):
        fmopt.explain(tmp_path)
    (tmp_path / "broken.onnx").write_text("not a graph")
    with pytest.raises((ConfigError, BundleError), match=r"broken\.onnx"):
        fmopt.explain(tmp_path / "broken.onnx")
    with pytest.raises(ConfigError, match="batch is 0"):
        fmopt.explain(tmp_path, batch=0)
    assert callable(fmopt.explain)  # also after everything it needs has been imported
