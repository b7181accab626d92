"""Two gloo processes train as one does: the same losses, one of them writing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmopt.cli.app import main
from fmopt.core.errors import ConfigError
from fmopt.training import distributed
from tests.conftest import SENTENCES, TinyCheckpoint

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def undropped(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> Path:
    """A checkpoint without dropout, whose draws depend on how many processes draw."""
    folder = shutil.copytree(tiny_checkpoint("bert", "text-classification"), tmp_path / "undropped")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(*command: object) -> subprocess.CompletedProcess[str]:
    around = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(word) for word in command], cwd=ROOT, env=around, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.parametrize("what", ["distill", "qat"])
def test_training_from_a_teacher_takes_the_same_course(undropped: Path, tmp_path: Path, what: str):
    courses = []
    for name, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        got = run(*start, ROOT / "tests" / "two_processes.py", what, undropped, tmp_path / name)
        assert got.returncode == 0, got.stderr
        (record,) = (tmp_path / name).glob("distill-*/distill.json")
        courses.append(json.loads(record.read_text()))
    one, two = courses
    assert one["steps"] == two["steps"] > 20
    np.testing.assert_allclose([loss for _, loss in two["losses"]], [loss for _, loss in one["losses"]], rtol=0.05)
    assert one["losses"][-1][1] < one["losses"][0][1]
    shards = [sorted(path.name for path in (tmp_path / name).glob("teacher-*/*")) for name in ("one", "two")]
    assert shards[0] == shards[1]
    assert len(shards[0]) > 2


@pytest.mark.long
def test_finetuning_takes_the_same_course(undropped: Path, tmp_path: Path):
    rows = ["text,label", *(f"{SENTENCES[n % 10].replace(',', '')} {n},{('no', 'yes')[n % 2]}" for n in range(64))]
    for split in ("train", "validation"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.csv").write_text("\n".join(rows))
    words = ["finetune", str(undropped), "--data", str(tmp_path / "data"), "--epochs", "3", "--batch", "8",
             "--learning-rate", "1e-3", "-o"]  # fmt: skip
    assert main([*words, str(tmp_path / "one")]) == 0
    got = run(*TORCHRUN, "-m", "fmopt", *words, tmp_path / "two")
    assert got.returncode == 0, got.stderr
    assert got.stdout.count("on validation") == 1
    one, two = (json.loads((tmp_path / name / "finetune.json").read_text())["epochs"] for name in ("one", "two"))
    np.testing.assert_allclose([e["loss"] for e in two], [e["loss"] for e in one], rtol=0.02)


def test_a_batch_that_does_not_come_out_even_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="32 cannot be shared evenly by 3"):
        distributed.share_of(32)


@pytest.mark.parametrize(
    ("size", "place", "found"),
    [
        ("", "", (1, 0)),
        ("abc", "1", (1, 0)),
        ("-1", "0", (1, 0)),
        ("2", "x", (1, 0)),
        ("0", "", (1, 0)),
        ("3", "2", (3, 2)),
    ],
)
def test_an_environment_without_whole_numbers_means_one_process(
    monkeypatch: pytest.MonkeyPatch, size: str, place: str, found: tuple[int, int]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", place)
    assert (distributed.world(), distributed.rank()) == found


def test_jobs_that_accelerate_does_not_tell_of_each_other_are_refused():
    """`accelerate launch --cpu --num_machines 2` used to run the whole command once on each machine, in silence."""
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_machines",
        "2",
        "--num_processes",
        "2",
    ]
    meet = ["--machine_rank", "0", "--main_process_ip", "127.0.0.1", "--main_process_port", "29511"]
    got = run(*launch, *meet, "-m", "fmopt", "targets", "list")
    assert "fmopt: accelerate launch --cpu starts processes that do not know of each other" in got.stderr
    assert "returned non-zero exit status 2" in got.stderr
    assert "raspberry-pi-5" not in got.stdout
