"""A run that is watched: what it leaves on disk as it goes, and what those who look make of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fmopt.cli.app import main
from fmopt.core.progress import Silent
from fmopt.core.results import Verdict
from fmopt.evaluation.record import Record
from fmopt.exporters.bundles.bundle import verify_bundle
from fmopt.reports import run_status
from fmopt.reports.run_status import SoFar, Stage, noted, read_so_far, read_stage
from fmopt.reports.watch import Page, Seen, follow, look, time_words
from tests import records
from tests.conftest import SENTENCES, TinyCheckpoint

ROOT = Path(__file__).resolve().parents[2]
RECIPE = 'name = "mine"\nruntime = "onnxruntime"\nprecision = "int8"\n[[steps]]\nuse = "quantize_dynamic"\n'


@pytest.fixture
def begin(tmp_path: Path, tiny_checkpoint: TinyCheckpoint) -> Callable[[], subprocess.Popen[bytes]]:
    """Starts `fmopt optimize` of a tiny model into tmp_path/out, in a process of its own."""
    (tmp_path / "mine.toml").write_text(RECIPE)
    rows = [
        {"text": f"{SENTENCES[n % len(SENTENCES)]} {n}", "label": ("negative", "positive")[n % 2]} for n in range(90)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["optimize", tiny_checkpoint("bert", "text-classification"), "--data", tmp_path / "data.jsonl", "--length", 16,
             "--recipe", tmp_path / "mine.toml", "--max-drop", "100pt", "-o", tmp_path / "out"]  # fmt: skip

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fmopt", *map(str, words)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    return start


def wait_for(process: subprocess.Popen[bytes], out: Path, holds: Callable[[Stage], bool]) -> Stage:
    """Until the stage of the run in `out`, which `process` makes, is of that kind."""
    while process.poll() is None:
        stage = read_stage(out)
        if stage is not None and holds(stage):
            return stage
        time.sleep(0.02)
    raise AssertionError("the run never came so far")


@pytest.mark.long
def test_a_run_is_watched_to_its_death_and_then_to_its_end(begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, first = tmp_path / "out", begin()
    died_in = wait_for(first, out, lambda stage: stage.text.startswith("building") and read_so_far(out) is not None)
    assert died_in.alive
    first.send_signal(signal.SIGKILL)
    assert main(["report", str(out), "--watch", "--json"]) == 1  # also while nobody has waited for the dead process
    first.wait()
    got = json.loads(capsys.readouterr().out)
    assert got["state"] == "died"
    assert f"process ({first.pid}) is gone" in got["said"]
    page = (out / "report.html").read_text("utf8")
    assert "<title>STOPPED ·" in page
    assert 'http-equiv="refresh"' not in page

    second = begin()
    wait_for(second, out, lambda stage: stage.pid == second.pid)
    page, states, pages, named = Page(out), [], [], set()
    for seen in follow(out):
        page.draw(seen)
        states.append(seen.state)
        pages.append((out / "report.html").read_text("utf8"))
        named |= {trial.name for trial in seen.so_far.record.everything} if seen.so_far else set()
    assert second.wait() == 0
    assert set(states[:-1]) == {"running"}
    assert states[-1] == "finished"
    drawn = [text for text in pages if "<title>RUNNING ·" in text]
    assert drawn
    assert all('http-equiv="refresh"' in text and "Nothing is judged yet." in text for text in drawn)
    assert 'http-equiv="refresh"' not in pages[-1]
    record = Record.load(out)
    assert named <= {trial.name for trial in record.everything}
    assert named
    assert record.summary.split(".")[0] in pages[-1]
    assert not (out / "running").exists()
    assert verify_bundle(out) == []

    assert main(["report", str(out), "--watch"]) == 0  # of a run that has finished
    assert record.winner in capsys.readouterr().out


def so_far(record: Record) -> SoFar:
    return SoFar(record=record.model_copy(update={"winner": "", "verdict": Verdict()}), waiting=["one-more"])


def test_an_interrupt_ends_the_watching_and_not_the_run(tmp_path: Path):
    with noted(tmp_path, Silent(), 2.0) as notes:
        notes.so_far = lambda: so_far(records.realistic())
        notes.start("timing 9 variants in turn", 200)
        command = [sys.executable, "-m", "fmopt", "report", str(tmp_path), "--watch"]
        watching = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )  # fmt: skip
        while not (tmp_path / "report.html").is_file():
            assert watching.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=120)
        assert watching.returncode == 130
        assert said == "fmopt: no longer watching; the run itself goes on\n"
        assert look(tmp_path).state == "running"
    page = (tmp_path / "report.html").read_text("utf8")
    assert "Running: timing 9 variants in turn. 10 variants were tried so far and 9 timed, 1 are to come." in page


def test_a_run_that_breaks_says_why_until_the_next_one_begins(tmp_path: Path):
    def breaks() -> None:
        with noted(tmp_path, Silent(), 0) as notes:
            notes.so_far = lambda: so_far(records.realistic())
            notes.start("building", 1)
            raise ValueError("no\nmore disk")

    with pytest.raises(ValueError, match="no"):
        breaks()
    seen = look(tmp_path)
    assert (seen.state, seen.stage.ended) == ("died", "ValueError: no more disk")
    assert seen.so_far is not None
    with noted(tmp_path, Silent(), 0):
        assert look(tmp_path) == Seen(state="running", stage=read_stage(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_notes_are_few_and_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_status, "SECONDS_BETWEEN", 3600.0)
    asked = []
    with noted(tmp_path, Silent(), 0) as notes:
        notes.so_far = lambda: asked.append(1) or so_far(records.realistic())
        notes.start("timing", 5000)
        before = run_status.stamp(tmp_path)
        for _ in range(5000):
            notes.step()
            notes.changed()
        assert run_status.stamp(tmp_path) == before
        assert len(asked) == 1
        notes.start("scoring", 1)  # a new stage says everything that is due
        assert run_status.stamp(tmp_path) != before
        assert len(asked) == 2
        assert read_stage(tmp_path).text == "scoring"


def test_notes_that_cannot_be_written_do_not_end_the_run(tmp_path: Path):
    (tmp_path / "running").write_text("in the way")
    with noted(tmp_path, Silent(), 0) as notes:
        notes.start("building", 1)
        notes.step()
    assert (tmp_path / "running").read_text() == "in the way"


def test_progress_is_handed_on(tmp_path: Path):
    heard: list[tuple[object, ...]] = []

    class Ear:
        def say(self, text: str) -> None:
            heard.append(("say", text))

        def start(self, text: str, total: int) -> None:
            heard.append(("start", text, total))

        def step(self, done: int = 1) -> None:
            heard.append(("step", done))

        def stop(self) -> None:
            heard.append(("stop",))

    with noted(tmp_path, Ear(), 0) as notes:
        notes.start("a", 3)
        notes.step(2)
        notes.say("b")
        notes.stop()
    assert heard == [("start", "a", 3), ("step", 2), ("say", "b"), ("stop",)]


def test_time_left_is_the_stages_own():
    stage = Stage(pid=os.getpid(), process_began=0, began=100, minutes=3, text="x", done=50, total=200, stage_began=160)
    assert stage.seconds_left(180) == pytest.approx(60)
    assert (
        time_words(stage, 180) == "1 min 20 s gone, about 1 min 00 s left of this stage, planned as about 3 min in all"
    )
    assert stage.model_copy(update={"done": 0}).seconds_left(180) is None
    assert not stage.alive  # a process of that number runs, but it is another one


@pytest.mark.parametrize(("member", "said"), [(None, "holds no run"), ("fmopt.json", "holds a bundle without a record"),
                                              ("2x/record.json", "holds the runs 2x; watch one of them, like")])  # fmt: skip
def test_what_is_no_run_is_one_line(member: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if member is not None:
        (tmp_path / member).parent.mkdir(exist_ok=True)
        (tmp_path / member).write_text("{}")
    assert main(["report", str(tmp_path), "--watch"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
