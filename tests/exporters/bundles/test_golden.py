"""Golden items: what they allow follows from the runtime's own noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from fmopt.core import plugins
from fmopt.edge import loading, parts
from fmopt.edge import manifest as edge_manifest
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import to_onnx
from fmopt.exporters.bundles.bundle_writer import write_bundle
from fmopt.exporters.bundles.golden import measure_golden
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.passes.quantize_dynamic import QuantizeDynamic
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.torch_models import model_of, padded


class Evaluator:
    """A runner by onnx's reference implementation: another machine, as far as sums go."""

    def __init__(self, path: Path):
        self.session = ReferenceEvaluator(str(path))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        wanted = self.session.input_names
        got = self.session.run(None, {name: inputs[name] for name in wanted})
        return dict(zip(self.session.output_names, got, strict=True))


@pytest.fixture(scope="module", params=["fp32", "int8"])
def bundled(
    request: Any, tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A precision, and a bundle of a tiny network in it."""
    folder, place = tiny_checkpoint(), tmp_path_factory.mktemp("golden")
    model = model_of(folder)
    graph = to_onnx.export_onnx(model, padded(model), place / "fp32")
    if request.param == "int8":
        context: Any = SimpleNamespace(target=SimpleNamespace(int8_dot=True))
        graph = QuantizeDynamic().apply(graph, context, place / "int8")
    metadata = checkpoint.inspect(resolve(str(folder)), "sentence-embedding")
    artifact = plugins.find("runtimes", "onnxruntime").build(graph, {}, place / "built")
    opened = loading.Model(
        {"pipeline": dict(metadata.pipeline)},
        open_preprocessor(folder, dict(metadata.pipeline)),
        plugins.find("runtimes", "onnxruntime").open(artifact, 1),
    )
    samples = list(SENTENCES[:6])
    items = list(zip(samples, opened.predict(samples), strict=True))
    golden = measure_golden(metadata, artifact, items, request.param, "six sentences")
    out = write_bundle(
        place / "out", metadata=metadata, artifact=artifact, recipe={}, verdict="PASS", golden=golden, needs_isa=[]
    )
    return request.param, out


def by(runner: Any, folder: Path) -> loading.Model:
    metadata = edge_manifest.read_manifest(folder)
    return loading.Model(metadata, open_preprocessor(folder, metadata["pipeline"]), runner)


def test_other_arithmetic_passes_within_the_measured_noise(bundled: tuple[str, Path]) -> None:
    precision, folder = bundled
    golden = json.loads((folder / "golden.json").read_text())
    assert (golden["distance"], golden["origin"]) == ("cosine distance", "six sentences")
    assert set(golden["noise"]) == {"threads", "batch", "length"}
    assert golden["tolerance"] <= (1e-5 if precision == "fp32" else 5e-3)
    worst, allowed = loading.self_test(folder, by(Evaluator(folder / "model.onnx"), folder))
    assert worst <= allowed
    if precision == "int8":
        assert edge_manifest.read_manifest(folder)["invariance"]["batched"] > 0


@pytest.mark.parametrize(
    ("task", "written", "near", "far"),
    [
        ("sentence-embedding", [0.6, 0.8], [0.6001, 0.7999], [0.8, 0.6]),
        ("text-classification", [8.0, -8.0], [8.01, -8.01], [7.0, -7.0]),
        ("token-classification", [[5.0, 0.0]], [[5.01, 0.0]], [[0.0, 5.0]]),
        ("text-regression", [0.5], [0.5001], [0.6]),
        ("fill-mask", np.log([[0.9, 0.1]]), np.log([[0.9001, 0.0999]]), np.log([[0.7, 0.3]])),
    ],
)
def test_predictions_are_compared_as_their_task_means_them(task: str, written: Any, near: Any, far: Any) -> None:
    _, distance = parts.distance_of({"task": task})
    assert distance(written, written) == pytest.approx(0, abs=1e-12)
    assert distance(written, near) < 2e-3
    assert distance(written, far) > 0.03
    assert distance(written, [float("nan")] * len(written)) == float("inf")
    assert distance(written, [1.0, 2.0, 3.0]) == float("inf")


def test_another_answer_is_as_far_as_can_be() -> None:
    _, distance = parts.distance_of({"task": "question-answering"})
    answer = {"text": "Paris", "start": 3, "end": 8, "score": 0.7}
    assert distance(answer, {**answer, "score": 0.69}) == pytest.approx(0.01)
    assert distance(answer, {**answer, "text": "Berlin"}) == 1.0
