"""The clock of this machine: what cannot compute its inputs is a failed variant, not the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, save

from fmopt.core.model import Artifact
from fmopt.core.progress import Silent
from fmopt.measurement.backends import HostBackend, Work

INPUTS: list[Mapping[str, np.ndarray]] = [{"input_ids": np.ones((1, n), np.int64)} for n in (4, 6)]
PIPELINE = {"task": "text-classification", "inputs": ["input_ids"], "outputs": ["logits"]}


def graph(folder: Path, tokens: int | str) -> Artifact:
    """One that takes so many tokens and no others."""
    value = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, tokens])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, tokens])
    node = helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)
    path = folder / f"{tokens}.onnx"
    model = helper.make_model(
        helper.make_graph([node], "g", [value], [out]), opset_imports=[helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    save(model, path)
    return Artifact("onnxruntime", path, {})


def test_a_variant_that_fails_on_an_input_is_reported_and_the_others_are_timed(tmp_path: Path) -> None:
    """It took the first input; the second would have ended the run in the middle of timing."""
    artifacts = {"any": graph(tmp_path, "tokens"), "four": graph(tmp_path, 4)}
    work = Work(artifacts, PIPELINE, 1, 0, INPUTS, full_precision=["any"])
    timed = HostBackend().in_turn(work, Silent())
    assert set(timed.samples) == {"any"}
    assert len(timed.samples["any"]) >= 10
    assert set(timed.failed) == {"four"}
    assert timed.failed["four"].startswith("it cannot compute what is timed: ")
    alone = HostBackend().in_turn(replace(work, artifacts={"four": artifacts["four"]}), Silent())
    assert alone.samples == {}
    assert set(alone.failed) == {"four"}


def test_a_file_that_the_runtime_cannot_open_is_reported_and_the_others_are_timed(tmp_path: Path) -> None:
    """The error that the runtime raised, in a class of its own, ended the run before anything was timed."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph at all")
    artifacts = {"broken": Artifact("onnxruntime", broken, {}), "any": graph(tmp_path, "tokens")}
    timed = HostBackend().in_turn(Work(artifacts, PIPELINE, 1, 0, INPUTS, full_precision=["any"]), Silent())
    assert set(timed.samples) == {"any"}
    assert timed.failed["broken"].startswith("it cannot be opened: ")
