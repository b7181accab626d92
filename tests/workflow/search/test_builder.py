"""What a runtime makes of a graph is held against the network before anything is built for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmopt.core.errors import ParityError
from fmopt.core.progress import Silent
from fmopt.core.recipe import Recipe, Step
from fmopt.core.stages.store import Store
from fmopt.edge.text import open_preprocessor
from fmopt.measurement.host_probe import load_target
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.runtimes.openvino import OpenVino
from fmopt.workflow.search.builder import Builder
from tests.conftest import SENTENCES, TinyCheckpoint

PLAIN = Recipe(name="openvino-fp32", runtime="openvino", options={"precision": "f32"})
INT8 = Recipe(name="openvino-int8", runtime="openvino", precision="int8", steps=(Step(use="quantize_static"),))


class Wrong:
    """A runtime with a faulty operator: what it gives has the shape of an answer, and is none."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        return {name: np.flip(value, axis=-1) for name, value in self.runner.run(inputs).items()}

    def close(self) -> None:
        self.runner.close()


@pytest.fixture
def builder(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> Builder:
    metadata = checkpoint.inspect(resolve(str(tiny_checkpoint("bert", "text-classification"))))
    return Builder(
        metadata=metadata, target=load_target("host"), store=Store(tmp_path / "store"),
        preprocessor=open_preprocessor(metadata.folder, dict(metadata.pipeline)), calibration=SENTENCES,
        calibration_digest="sentences", seed=0, memory_cap_bytes=1 << 30, progress=Silent(),
    )  # fmt: skip


def test_a_runtime_that_computes_something_else_builds_nothing(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OpenVino.open
    monkeypatch.setattr(OpenVino, "open", lambda *given, **more: Wrong(opened(*given, **more)))
    for recipe in (PLAIN, INT8):
        with pytest.raises(ParityError, match=r"^openvino \S+ computes something else than the network"):
            builder.artifact(recipe)
    assert builder.artifact(Recipe(name="onnxruntime-fp32", runtime="onnxruntime")).path.is_file()


def test_a_runtime_is_looked_at_once(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, count = OpenVino.open, 0

    def counted(*given: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        return opened(*given, **more)

    monkeypatch.setattr(OpenVino, "open", counted)
    for recipe in (PLAIN, INT8, PLAIN):
        assert builder.artifact(recipe).path.is_file()
    assert count == 1
