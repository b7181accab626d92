"""A CPU whose 8-bit products saturate is caught by a bundle's self-test; one that is exact passes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fmopt.core import plugins
from fmopt.core.model import Artifact
from fmopt.edge import loading
from fmopt.edge.text import open_preprocessor
from fmopt.exporters.bundles import bundle_writer
from fmopt.exporters.bundles.golden import measure_golden
from fmopt.exporters.to_onnx import export_onnx
from fmopt.passes.quantize_dynamic import QuantizeDynamic
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.torch_models import context_of, model_of, padded


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


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_the_self_test_sees_what_saturates(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    model = model_of(tiny_checkpoint("bert", task))
    graph = export_onnx(model, padded(model), tmp_path / "fp32")
    graph = QuantizeDynamic(weights="int8").apply(graph, context_of(model), tmp_path / "int8")
    kinds = [node.op_type for node in onnx.load(graph.path).graph.node]
    assert kinds.count("MatMulInteger") > 4
    pipeline = dict(model.metadata.pipeline)
    preprocessor = open_preprocessor(model.metadata.folder, pipeline)
    exact, saturating = (
        loading.Model({"pipeline": pipeline}, preprocessor, Reference(graph.path, *changed))
        for changed in ((), (MatMulInteger,))
    )
    samples = list(SENTENCES[:6])
    artifact = Artifact("onnxruntime", graph.path)
    # As it was judged: by a CPU that is exact, which this one need not be.
    runtime = type(plugins.find("runtimes", "onnxruntime"))
    monkeypatch.setattr(runtime, "open", lambda self, artifact, threads: Reference(artifact.path))
    items = list(zip(samples, exact.predict(samples), strict=True))
    golden = measure_golden(model.metadata, artifact, items, "int8", "texts of the test")
    assert len(golden.items) == len(samples)
    folder = bundle_writer.write_bundle(
        tmp_path / "bundle", metadata=model.metadata, artifact=artifact, recipe={"precision": "int8"}, verdict="UNMEASURED",
        golden=golden, needs_isa=[],
    )  # fmt: skip
    worst, tolerance = loading.self_test(folder, exact)
    assert worst < tolerance
    with pytest.raises(loading.EdgeError, match="computes something else here than where it was judged"):
        loading.self_test(folder, saturating)
