"""The command as a user meets it: exit codes, one-line errors, JSON on stdout only."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest

from fmopt.cli.app import main


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fmopt", *argv], capture_output=True, text=True, check=False)


def test_help_lists_the_verbs():
    got = run("--help")
    assert got.returncode == 0
    for verb in (
        "optimize",
        "export",
        "bench",
        "eval",
        "explain",
        "predict",
        "compare",
        "history",
        "inspect",
        "targets",
        "report",
        "verify",
        "doctor",
        "finetune",
    ):
        assert f"  {verb} " in got.stdout


def test_the_version_is_that_of_the_installed_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fmopt {metadata.version('fmopt')}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["optimize", "no-such-folder"], "no-such-folder"),
        (["optimize", "minilm", "--max-drop", "one"], "one"),
        (["optimize", "minilm", "--effort", "heroic"], "--effort 'heroic' is not one of"),
        (["optimize", "minilm", "--length", "0"], "--length '0' is neither a positive number nor 'from-data'"),
        (["optimize", "minilm", "--length", "100000"], "--length 100000 is more than the"),
        (["optimize", "minilm", "--threads", "many"], "--threads 'many'"),
        (["optimize", "minilm", "--target", "rasberry-pi-5"], "did you mean 'raspberry-pi-5'"),
        (["optimize", "minilm", "--columns", "text"], "--columns 'text' is not of the form"),
        (["optimize", "minilm", "--time-limit", "soon"], "--time-limit 'soon' is not a time like"),
        (["optimize", "minilm", "--data", "nothing.csv"], "nothing.csv"),
        (["bench", "minilm", "--batch", "1,x"], "--batch '1,x' is not a list"),
        (["explain", "no-such-bundle"], "no-such-bundle is neither a bundle nor an ONNX file"),
        (["verify", "no-such-bundle"], "no-such-bundle"),
        (["predict", "no-such-bundle", "text"], "no-such-bundle"),
        (["report", "no-such-out"], "no-such-out"),
        (["report", "no-such-out", "--watch"], "there is no folder no-such-out"),
        (["targets", "show", "toaster"], "there is no target 'toaster'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    got = capsys.readouterr()
    assert message in got.err
    assert got.err.startswith("fmopt: ")
    assert got.err.count("\n") == 1
    assert got.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_option_is_a_usage_error():
    got = run("optimize", "minilm", "--faster")
    assert got.returncode == 2
    assert "--faster" in got.stderr
    assert "Traceback" not in got.stderr


def test_dry_run_prints_the_plan_as_json_and_writes_nothing(capsys, tmp_path, monkeypatch, minilm):
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            ["optimize", str(minilm), "--task", "sentence-embedding", "--data", "builtin:pydoc", "--dry-run", "--json"]
        )
        == 0
    )
    plan = json.loads(capsys.readouterr().out)
    names = [recipe["name"] for recipe in plan["candidates"]]
    assert "onnxruntime-dynamic-int8" in names
    assert plan["estimates"]["ram_gb"] > 0
    assert {"torch-fp32", "onnxruntime-fp32", "openvino-fp32"} == {recipe["name"] for recipe in plan["baselines"]}
    assert all(refusal["reason"] for refusal in plan["refused"])
    assert list(tmp_path.iterdir()) == []


def test_inspect_says_what_a_checkpoint_is(capsys):
    assert main(["inspect", "minilm", "--json"]) == 0
    metadata = json.loads(capsys.readouterr().out)
    assert (metadata["model_type"], metadata["task"], metadata["layers"], metadata["hidden_size"]) == (
        "bert",
        "sentence-embedding",
        6,
        384,
    )
    assert 22_000_000 < metadata["parameters"] < 23_000_000


def test_doctor_names_the_runtimes(capsys):
    assert main(["doctor", "--json"]) == 0
    lines = {line["what"]: line for line in json.loads(capsys.readouterr().out)}
    for name in ("runtime onnxruntime", "runtime openvino"):
        assert lines[name]["state"] == "ok"
        assert lines[name]["here"] == {"built": "yes", "judged": "yes", "timed": "yes"}


def test_doctor_tells_apart_what_can_be_built_judged_and_timed(capsys, monkeypatch):
    """TensorRT "could be used" on a machine without a GPU, where nothing of it can be timed."""
    monkeypatch.setattr("fmopt.edge.tensorrt.absent", lambda: "this machine has no NVIDIA GPU")
    assert main(["doctor", "--json"]) == 0
    line = next(line for line in json.loads(capsys.readouterr().out) if line["what"] == "runtime tensorrt")
    assert line["state"] == "warning"
    assert line["here"]["built"].startswith("the graph")
    assert "ONNX Runtime" in line["here"]["judged"]
    assert line["here"]["timed"] == "no: this machine has no NVIDIA GPU"
    assert "timed here: no: this machine has no NVIDIA GPU" in line["detail"]
