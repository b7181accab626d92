"""A CPU whose 8-bit products saturate is caught by a bundle's self-test; one that is exact passes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import fmopt
from fmopt.core.recipe import Recipe, Step
from fmopt.edge import loading
from fmopt.edge.manifest import GOLDEN, read_manifest
from fmopt.edge.text import open_preprocessor
from tests.conftest import SENTENCES, TinyCheckpoint


class MatMulInteger(OpRun):
    """u8 × s8 as `vpmaddubsw` adds it: neighbours in 16 bits, which are cut off at 32,767, and then in 32."""

    op_domain = ""

    def _run(self, a: Any, b: Any, a_zero_point: Any = None, b_zero_point: Any = None) -> tuple[np.ndarray]:
        a, b = a.astype(np.int32), b.astype(np.int32)
        pairs = a[..., 0::2, None] * b[0::2] + a[..., 1::2, None] * b[1::2]
        total = pairs.clip(-32768, 32767).sum(axis=-2)
        return ((total - int(a_zero_point or 0) * b.sum(axis=0)).astype(np.int32),)


class Reference:
    """A runner that computes as the operators are specified, but for those that it is given."""

    def __init__(self, path: Path, *changed: type[OpRun]) -> None:
        self.evaluator = ReferenceEvaluator(onnx.load(path), new_ops=list(changed))

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {name: inputs[name] for name in self.evaluator.input_names}
        return dict(zip(self.evaluator.output_names, self.evaluator.run(None, given), strict=True))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("task", ["sentence-embedding", "text-classification"])
def test_the_self_test_sees_what_saturates(tiny_checkpoint: TinyCheckpoint, tmp_path: Path, task: str) -> None:
    rows = [{"text": text, "label": number % 3} for number, text in enumerate(SENTENCES)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = Step(use="quantize_dynamic", options={"weights": "int8"})
    recipe = Recipe(name="int8", runtime="onnxruntime", precision="int8", steps=(step,))
    folder = tmp_path / "out"
    fmopt.optimize(
        tiny_checkpoint("bert", task), data=tmp_path / "data.jsonl", recipe=recipe, out=folder, golden="synthetic",
        workload=fmopt.Workload(length=16), budget=fmopt.Budget.parse(max_drop="90pt"),
    )  # fmt: skip
    manifest = read_manifest(folder)
    kinds = [node.op_type for node in onnx.load(folder / manifest["model_file"]).graph.node]
    assert kinds.count("MatMulInteger") > 4
    preprocessor = open_preprocessor(folder, manifest["pipeline"])
    exact, saturating = (
        loading.Model(manifest, preprocessor, Reference(folder / manifest["model_file"], *changed))
        for changed in ((), (MatMulInteger,))
    )
    golden = json.loads((folder / GOLDEN).read_text())  # as it was judged: by a CPU that is exact
    samples = loading.read_golden(folder)[0]
    for item, got in zip(golden["items"], exact.predict(samples), strict=True):
        item["prediction"] = loading.prediction_to_json(got)
    (folder / GOLDEN).write_text(json.dumps(golden))
    worst, tolerance = loading.self_test(folder, exact)
    assert worst < tolerance
    with pytest.raises(loading.EdgeError, match="computes something else here than where it was judged"):
        loading.self_test(folder, saturating)
