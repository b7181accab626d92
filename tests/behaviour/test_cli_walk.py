"""Every verb of the command on one tiny model, as a person reads it and as JSON."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fmopt.cli.app import main
from tests.conftest import SENTENCES, TinyCheckpoint

RECIPE = 'name = "mine"\nruntime = "onnxruntime"\nprecision = "int8"\n[[steps]]\nuse = "quantize_dynamic"\n'


class Walk:
    """Runs commands on one folder and keeps what they printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def say(self, *argv: Any, code: int = 0) -> str:
        """What a person reads."""
        assert main([str(word) for word in argv]) == code
        got = self.capsys.readouterr()
        assert "Traceback" not in got.err
        return got.out

    def json(self, *argv: Any, code: int = 0) -> Any:
        """The one document on stdout."""
        return json.loads(self.say(*argv, "--json", code=code))


@pytest.fixture
def walk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Walk:
    (tmp_path / "mine.toml").write_text(RECIPE)
    with (tmp_path / "data.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        rows.writerows((f"{SENTENCES[n % len(SENTENCES)]} {n}", ("negative", "positive")[n % 2]) for n in range(90))
    return Walk(tmp_path, capsys)


@pytest.mark.long
def test_the_whole_command(walk: Walk, tiny_checkpoint: TinyCheckpoint):
    model, data, out = tiny_checkpoint("bert", "text-classification"), walk.folder / "data.csv", walk.folder / "out"
    asked = ("optimize", model, "--data", data, "--recipe", walk.folder / "mine.toml", "--max-drop", "100pt",
             "--length", 16, "-o", out)  # fmt: skip
    assert "mine" in walk.say(*asked, "--dry-run")
    assert not out.exists()
    record = walk.json(*asked)
    assert record["verdict"]["outcome"] == "PASS"
    assert record["winner"] in walk.say(*asked)  # the same again is found finished
    assert walk.json("report", out)["html"] == str(out / "report.html")
    assert walk.json("verify", out)["problems"] == []
    assert "every file is as it was made" in walk.say("verify", out)
    assert {"label", "score"} <= set(walk.json("predict", out, "one text")[0])
    assert walk.say("predict", out, "one text", "another").count("\n") == 2
    of_bundle, of_model = walk.json("eval", out, "--data", data), walk.json("eval", model, "--data", data)
    assert [row["metric"] for row in of_bundle] == [row["metric"] for row in of_model]
    assert of_bundle[0]["items"] == of_model[0]["items"] > 0
    assert of_bundle[0]["metric"] in walk.say("eval", out, "--data", data)
    shapes = {(row["batch"], row["length"]) for row in walk.json("bench", out, model, "--batch", "1,2", "--length", 8)}
    assert shapes == {(1, 8), (2, 8)}
    assert "accuracy" in walk.say("compare", out, out)

    made = walk.folder / "made"
    assert "model.onnx" in walk.say("export", model, "--precision", "int8", "--data", data, "-o", made)
    assert walk.json("export", model, "--format", "openvino", "-o", walk.folder / "ir")["model_file"] == "model.xml"
    assert walk.json("inspect", model)["task"] == "text-classification"
    assert "bert" in walk.say("inspect", model)


def test_what_needs_no_model(walk: Walk):
    names = {target["name"] for target in walk.json("targets", "list")}
    assert {"x86-avx2", "raspberry-pi-5", "nvidia-h100"} <= names
    assert "raspberry-pi-5" in walk.say("targets", "list")
    assert walk.json("targets", "show", "x86-avx2")["arch"] == "x86_64"
    assert "x86_64" in walk.say("targets", "show", "x86-avx2")
    assert "onnxruntime" in walk.say("doctor")


def test_a_speedup_out_of_reach_fails_and_writes_the_best_all_the_same(walk: Walk, tiny_checkpoint: TinyCheckpoint):
    out = walk.folder / "out"
    model = tiny_checkpoint("bert", "text-classification")
    asked = ("optimize", model, "--data", walk.folder / "data.csv", "--recipe", walk.folder / "mine.toml",
             "--min-speedup", "1000x", "--length", 16, "-o", out)  # fmt: skip
    assert walk.json(*asked, code=1)["verdict"]["outcome"] == "FAIL"
    assert json.loads((out / "fmopt.json").read_text())["verdict"] == "FAIL"
    assert walk.json("verify", out)["problems"] == []


def test_a_vocabulary_is_trimmed_to_texts(walk: Walk, tiny_checkpoint: TinyCheckpoint):
    model, texts = tiny_checkpoint("bert", "text-classification"), walk.folder / "texts.txt"
    texts.write_text("\n".join(SENTENCES[:2]))
    got = walk.json("trim", model, "--texts", texts, "-o", walk.folder / "small")
    assert got["tokens"] < got["tokens_before"]
    assert got["bytes"] < got["bytes_before"]
    assert got["load_ms"] > 0
    assert walk.json("inspect", walk.folder / "small")["parameters"] < walk.json("inspect", model)["parameters"]
    assert "same tokens" in walk.say("trim", model, "--texts", texts, "-o", walk.folder / "again")
    assert walk.say("trim", model, "--texts", walk.folder / "none.txt", "-o", walk.folder / "third", code=2) == ""


def test_a_masked_language_model_all_the_way(walk: Walk, tiny_checkpoint: TinyCheckpoint):
    model, data = tiny_checkpoint("roberta", "sentence-embedding"), walk.folder / "text.txt"
    lines = [f"{one} {two}. " * 2 for one in SENTENCES for two in SENTENCES]
    data.write_text("\n\n".join(lines))
    ckpt, out = walk.folder / "ckpt", walk.folder / "out"
    trained = walk.json("finetune", model, "--task", "fill-mask", "--data", data, "-o", ckpt, "--epochs", 2,
                        "--learning-rate", "1e-3")  # fmt: skip
    assert trained["metric"] == "pseudo-perplexity"
    record = walk.json("optimize", ckpt, "--task", "fill-mask", "--data", data, "--recipe", walk.folder / "mine.toml",
                       "--max-drop", "50pt", "--length", 16, "-o", out)  # fmt: skip
    assert record["verdict"]["outcome"] == "PASS"
    check, _ = record["verdict"]["checks"]  # and that of its batches
    assert check["limit"] > 2  # points of a perplexity are percent of it, and 0.5 otherwise
    assert walk.json("verify", out)["problems"] == []
    (fills,) = walk.json("predict", out, "the cat <mask> on the mat")
    assert len(fills) == 5
    assert fills[0]["score"] >= fills[1]["score"] > 0
    assert "the cat" in fills[0]["sequence"]
    run = subprocess.run(
        [sys.executable, out / "run.py", "predict", "--json", "<mask> is <mask>"],
        capture_output=True, text=True, check=True, env={},
    )  # fmt: skip
    assert [len(mask) for mask in json.loads(run.stdout)[0]] == [5, 5]
    assert main(["predict", str(out), "no mask here"]) == 2
    error = walk.capsys.readouterr().err.strip()
    assert "has no <mask>" in error
    assert error.count("\n") == 0
    scores = {row["metric"]: row["value"] for row in walk.json("eval", out, "--data", data)}
    assert 1 < scores["pseudo-perplexity"] < 400
    assert 0 <= scores["accuracy@1"] <= 1
    assert walk.json("export", ckpt, "--task", "fill-mask", "-o", walk.folder / "plain")["model_file"] == "model.onnx"
    assert walk.json("inspect", ckpt)["task"] == "sentence-embedding"  # unless one asks for words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--effort", "max", "--teacher", "nowhere"), "no known model 'nowhere'"),
        (("--effort", "max", "--unlabelled", "none.txt"), "there is no file none.txt"),
        (("--effort", "standard", "--epochs", "3"), "only --effort max"),
        (("--family", "2x", "--min-speedup", "2x"), "leave --min-speedup out"),
        (("--output", "/proc/nowhere/out"), "choose another folder"),
    ],
)
def test_what_training_cannot_use_is_refused_in_one_line(walk: Walk, tiny_checkpoint: TinyCheckpoint, words, said):
    asked = (
        "optimize",
        tiny_checkpoint("bert", "text-classification"),
        "--data",
        walk.folder / "data.csv",
        "--length",
        16,
    )
    walk.capsys.readouterr()  # of making the checkpoint
    assert main([str(word) for word in (*asked, *words)]) == 2
    error = walk.capsys.readouterr().err.strip()
    assert said in error
    assert error.count("\n") == 0
