"""What can be made for TensorRT without one: graphs it takes, bundles that say how to go on, and no claim about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fmopt.cli.app import main
from fmopt.core import plugins
from fmopt.core.errors import PassError
from fmopt.core.model import Artifact, Graph
from fmopt.core.target import read_target
from fmopt.edge import tensorrt
from fmopt.edge.tensorrt import DEFAULTS, Profile, differences, profiles
from fmopt.exporters.half_precision import kept_of, magnitudes, to_half
from tests.behaviour.test_cli_walk import Walk, walk  # noqa: F401  the fixture
from tests.conftest import TinyCheckpoint
from tests.passes.conftest import build_graph, items
from tests.passes.running import run

RUNTIME = plugins.find("runtimes", "tensorrt")
HERE = {"gpu": "H100", "sm": "9.0", "driver": "13010", "tensorrt": "11.4.0", "graph": "a", "options": DEFAULTS}
here_only = pytest.mark.skipif(tensorrt.absent() is None, reason="an NVIDIA GPU with TensorRT is here")


def test_a_profile_for_every_bucket():
    found = profiles({"batch": [1, 8, 32], "lengths": [128, 32]})
    assert found == (Profile((1, 1), (8, 32), (32, 32)), Profile((1, 33), (8, 128), (32, 128)))
    assert [one.takes((8, 32)) for one in found] == [True, False]
    assert [one.takes((8, 33)) for one in found] == [False, True]
    assert not any(one.takes((33, 32)) for one in found)


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({}, {}, []),
        ({"gpu": "A100", "sm": "8.0"}, {}, ["GPU A100 there, H100 here", "compute capability 8.0 there, 9.0 here"]),
        ({"driver": "12080"}, {}, ["driver 12080 there, 13010 here"]),
        ({"tensorrt": "11.2.1"}, {}, ["TensorRT 11.2.1 there, 11.4.0 here"]),
        ({"graph": "b"}, {}, ["another graph"]),
        ({"gpu": "H200"}, {"hardware": "same_compute_capability"}, []),
        ({"gpu": "A100", "sm": "8.0"}, {"hardware": "ampere_plus"}, []),
        (
            {"gpu": "T4", "sm": "7.5"},
            {"hardware": "ampere_plus"},
            ["GPU T4 there, H100 here", "compute capability 7.5 there, 9.0 here"],
        ),
        ({"tensorrt": "11.2.1"}, {"version_compatible": True}, []),
        ({"tensorrt": "11.10.0"}, {"version_compatible": True}, ["TensorRT 11.10.0 there, 11.4.0 here"]),
        ({"tensorrt": "10.16.1"}, {"version_compatible": True}, ["TensorRT 10.16.1 there, 11.4.0 here"]),
    ],
)
def test_an_engine_that_does_not_fit_says_what_differs(changes: dict, options: dict, said: list[str]):
    wanted = {**DEFAULTS, **options}
    assert differences({**HERE, "options": wanted, **changes}, {**HERE, "options": wanted}) == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": [8, 1, 8]}, "it is [least, usual, most]"),
        ({"lengths": []}, "it is the longest texts of each bucket"),
        ({"level": 6}, "it is 0 to 5"),
        ({"hardware": "ampere"}, "did you mean 'ampere_plus'?"),
        ({"hardware": "ampere_plus"}, "is older than Ampere"),
        ({"tf32": 1}, "it is true or false"),
        ({"workspace": 1}, "did you mean 'workspace_mb'?"),
        ({"lengths": [32, 128], "strip_weights": True, "level": 5}, None),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], said: str | None):
    reason = RUNTIME.refusal(read_target("nvidia-t4"), options)
    assert reason is None if said is None else said in str(reason)
    assert "has no runtime 'tensorrt'" in RUNTIME.refusal(read_target("x86-amx"), {})


def graph_in(folder: Path, model: onnx.ModelProto) -> Graph:
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return Graph("onnx", folder / "model.onnx", ("input_ids",), ("last_hidden_state",))


def test_a_graph_that_tensorrt_would_not_take_is_no_artifact(tmp_path: Path):
    model = build_graph()
    model.graph.node[-1].op_type = "Unique"
    with pytest.raises(PassError, match=r"layer\.1\.norm/LayerNormalization: Unique is not supported"):
        RUNTIME.build(graph_in(tmp_path / "source", model), {}, tmp_path / "out")


@here_only
def test_without_a_gpu_the_numbers_are_those_of_the_rounded_graph(tmp_path: Path):
    model, batch = build_graph(), items(1)[0]
    plain = graph_in(tmp_path / "plain", model)
    to_half(model, "bf16", magnitudes(model, items(8)))
    artifact = RUNTIME.build(graph_in(tmp_path / "half", model), {}, tmp_path / "out")
    assert artifact == Artifact("tensorrt", tmp_path / "out" / "model.onnx", {})
    runner = RUNTIME.open(artifact, 1)
    gap = np.abs(runner.run(batch)["last_hidden_state"] - run(plain.path, batch)).max()
    runner.close()
    assert 1e-4 < gap < 5e-2
    assert "tensorrt is not installed" in RUNTIME.not_timed_here()


@here_only
def test_optimizing_for_a_gpu_ends_in_a_bundle_for_it_and_no_claim(walk: Walk, tiny_checkpoint: TinyCheckpoint):  # noqa: F811
    model, data, out = tiny_checkpoint("bert", "text-classification"), walk.folder / "data.csv", walk.folder / "out"
    asked = ("--target", "nvidia-h100", "--data", data, "--max-drop", "100pt", "--length", 16, "-o", out)
    record = walk.json("optimize", model, *asked, code=4)
    outcomes = {check["name"]: check["outcome"] for check in record["verdict"]["checks"]}
    assert outcomes == {"accuracy drop": "PASS", "latency": "UNMEASURED", "invariance": "PASS"}
    assert record["winner"].startswith("tensorrt-")
    made = {trial["recipe"]["name"]: trial for trial in record["trials"]}
    assert all(made[f"tensorrt-{kind}"]["status"] != "failed" for kind in ("fp16", "bf16", "int8", "fp8"))
    assert all(trial["latency"] is None for trial in (*record["trials"], *record["baselines"]))
    assert made["tensorrt-int8"]["predicted_ms"] <= made["tensorrt-fp16"]["predicted_ms"] * 1.2
    assert any("no engine was built" in warning for warning in record["circumstances"]["warnings"])
    assert kept_of(onnx.load(out / "model.onnx"))
    assert "0 faults" in walk.say("check-tensorrt", out)
    assert "run.py build" in (out / "README.md").read_text()
    assert walk.json("verify", out)["problems"] == []
    # what is here computes its numbers, and nobody times that
    assert main(["bench", str(out)]) == 4
    assert "cannot be timed here: tensorrt is not installed" in walk.capsys.readouterr().err

    def on_device(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], cwd=out, capture_output=True, text=True, check=False)

    for verb in ("build", "bench"):
        done = on_device("run.py", verb)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: tensorrt is not installed: pip install tensorrt, on a machine with")
    assert json.loads((out / "fmopt.json").read_text())["options"]["lengths"] == [16, 64]


@here_only
def test_the_script_for_the_device_says_what_is_missing(tmp_path: Path):
    script = Path(__file__).parents[2] / "benchmarks" / "tensorrt_on_device.sh"
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(script.parents[1])}
    command = ["bash", str(script), "minilm", "nvidia-h100", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("UNMEASURED: tensorrt is not installed")
    assert not list(tmp_path.iterdir())
