"""A whole optimization for a board: built and judged here, timed there, with the line cut while a timing is under way."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmopt.cli.parsing import parse_threads
from fmopt.core.errors import ConfigError
from fmopt.core.model import Artifact
from fmopt.core.progress import Silent
from fmopt.core.target import read_target
from fmopt.core.workload import Workload
from fmopt.edge.board.agent import FOLDER
from fmopt.evaluation.record import Record
from fmopt.measurement.backends import Work
from fmopt.measurement.remote import backend
from fmopt.measurement.remote import ssh as boards
from fmopt.measurement.remote.ssh import open_board
from fmopt.workflow.job.request import Request
from fmopt.workflow.optimize import optimize_request
from tests import openssh
from tests.conftest import LABELS, SENTENCES
from tests.exporters.bundles.test_bundle import facts_of, write_graph

REASON = openssh.absent()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
CPU = "The board's own CPU"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[openssh.Device]:
    """A device whose CPU has another name than ours, where this user may show it so."""
    line = openssh.Line(tmp_path, openssh.namespaces_allowed())
    hide: tuple[str, ...] = ()
    if line.spaces and shutil.which("unshare"):
        text = Path("/proc/cpuinfo").read_text().splitlines()
        mine = [f"model name\t: {CPU}" if row.startswith("model name") else row for row in text]
        (tmp_path / "cpuinfo").write_text("\n".join(mine) + "\n")
        hide = ("unshare", "-m", "sh", "-c", f'mount --bind {tmp_path}/cpuinfo /proc/cpuinfo && exec "$@"', "sh")
    quick = {"ServerAliveInterval=5": "ServerAliveInterval=1", "ServerAliveCountMax=3": "ServerAliveCountMax=2"}
    monkeypatch.setattr(boards, "OPTIONS", tuple(quick.get(word, word) for word in boards.OPTIONS))
    made = openssh.Device(line, tmp_path / "device", openssh.python_path(), tmp_path / "device" / "home", hide)
    monkeypatch.setenv("PATH", made.client_path)
    yield made
    if line.spaces:
        made.mend()
    made.stop()
    line.close()


def cut_during_the_timing(device: openssh.Device, noticed: threading.Event) -> None:
    """Cut the line once the timing of all variants runs there, until this end has noticed."""
    until = time.monotonic() + 300
    while time.monotonic() < until and not any(_timing_runs(device, path) for path in _requests(device)):
        time.sleep(0.05)
    device.cut()
    noticed.wait(120)
    device.mend()


def _requests(device: openssh.Device) -> list[Path]:
    return [path for path in (device.home / FOLDER / "timer").glob("*.json") if path.is_file()]


def _timing_runs(device: openssh.Device, request: Path) -> bool:
    started = (device.home / FOLDER / "jobs" / request.stem / "pid").is_file()
    try:
        return started and '"min_samples": 200' in request.read_text()
    except FileNotFoundError:  # a first try, over by now
        return False


def test_variants_are_timed_there_and_judged_here(device: openssh.Device, tmp_path: Path, tiny_checkpoint: Any) -> None:
    data = tmp_path / "reviews.csv"
    words, draw = sorted({word.strip(",?;") for one in SENTENCES for word in one.split()}), random.Random(0)
    rows = [f"{' '.join(draw.choices(words, k=9))},{draw.choice(LABELS['text-classification'])}" for _ in range(120)]
    data.write_text("\n".join(["text,label", *rows]) + "\n")
    recipe = tmp_path / "dynamic.toml"
    recipe.write_text('runtime = "onnxruntime"\nprecision = "int8"\n[[steps]]\nuse = "quantize_dynamic"\n')
    said: list[str] = []
    noticed = threading.Event()

    class Reported(Silent):
        def say(self, text: str) -> None:
            said.append(text)
            if "was cut" in text:
                noticed.set()

    cutter = threading.Thread(target=cut_during_the_timing, args=(device, noticed), daemon=True)
    cutter.start()
    out = tmp_path / "out"
    record = optimize_request(
        Request(
            model=str(tiny_checkpoint("bert", "text-classification")), data=str(data), workload=Workload(length=16),
            out=out, recipe=recipe, on=device.url, clean=True,
        ),
        Reported(),
    )  # fmt: skip
    cutter.join()
    assert record == Record.load(out)
    assert record.target.over_ssh
    assert record.circumstances.host["cpu"] == (CPU if device.before else record.target.title)
    assert {trial.recipe.runtime for trial in record.everything} == {"onnxruntime", "openvino"}
    for trial in record.everything:
        assert trial.latency is not None
        assert len(trial.latency.samples_ms) >= 10  # rounds that bound a median
        assert trial.profile == []  # of this machine it would mean nothing
    winner = record.find(record.winner)
    assert winner is not None
    assert winner.end_to_end is not None
    assert winner.footprint is not None
    assert winner.footprint.peak_memory_mb > 10
    assert winner.test_drop is not None
    assert any("a board reached over ssh" in warning for warning in record.circumstances.warnings)
    assert any("was cut" in line for line in said)
    assert any("runs there" in line for line in said)
    assert "reached over ssh" in (out / "report.html").read_text()
    assert list(device.home.iterdir()) == []


def test_what_does_not_run_there_is_a_failed_trial_and_no_more(
    device: openssh.Device, tmp_path: Path, tiny_checkpoint: Any
) -> None:
    metadata = facts_of(tiny_checkpoint("bert", "text-classification"))
    _, clock = backend.board_target(device.url, "x86-avx2", metadata)
    good = Artifact("onnxruntime", write_graph(tmp_path / "good" / "model.onnx"), {})
    broken = Artifact("onnxruntime", write_graph(tmp_path / "broken" / "model.onnx", 2.0), {})
    broken.path.write_bytes(broken.path.read_bytes().replace(b"ReduceSum", b"ReduceSam"))
    ids = {"input_ids": np.ones((1, 8), np.int64)}
    for name in ("fp32", "int8"):
        arts = {"fp32": good, "int8": broken}
        clock.offer(name, lambda name=name, arts=arts: work({"fp32": good, name: arts[name]}, ids))
    timed = clock.in_turn(work({"fp32": good, "int8": broken}, ids), Silent())
    clock.close()
    assert list(timed.samples) == ["fp32"]
    assert list(timed.failed) == ["int8"]
    assert "ReduceSam" in timed.failed["int8"]


def work(artifacts: dict[str, Artifact], inputs: dict[str, np.ndarray]) -> Work:
    return Work(artifacts, {"task": "text-classification"}, threads=1, seed=0, inputs=[inputs], full_precision=["fp32"])


def test_a_target_that_the_board_is_not_is_refused(device: openssh.Device) -> None:
    board, _ = open_board(device.url)
    host = {"cpu": "Cortex-A53", "arch": "aarch64", "isa": ["neon"]}
    with pytest.raises(ConfigError, match="lacks dotprod, fp16, which target raspberry-pi-5 has"):
        backend.refuse_target(read_target("raspberry-pi-5"), board, host)
    with pytest.raises(ConfigError, match=r"is aarch64 .* and target x86-avx2 is x86_64"):
        backend.refuse_target(read_target("x86-avx2"), board, host)


def test_all_threads_are_not_those_of_this_machine() -> None:
    with pytest.raises(ConfigError, match="--threads all is about this machine"):
        parse_threads("all", "ssh://board")
