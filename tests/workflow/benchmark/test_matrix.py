"""A real tiny model through the command, in all three scenarios."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmopt.cli.app import main
from fmopt.edge.board import interleaved
from fmopt.workflow.benchmark import matrix
from fmopt.workflow.benchmark.matrix import places
from fmopt.workflow.benchmark.record import Benchmark
from tests.conftest import TinyCheckpoint


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same measurements, only fewer."""
    monkeypatch.setattr(interleaved, "WARM_SECONDS", 0.05)
    monkeypatch.setattr(interleaved, "MIN_SAMPLES", 30)
    monkeypatch.setattr(matrix, "BURST_MS", 2.0)
    monkeypatch.setattr(matrix, "MOST_QUERIES", 100)
    monkeypatch.setattr(matrix, "FEWEST_QUERIES", 100)
    monkeypatch.setattr(matrix, "MOST_LOADS", 4)
    monkeypatch.setattr(matrix, "SEARCH_SECONDS", 2.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: TinyCheckpoint) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    assert main(["export", str(tiny_checkpoint("bert", "text-classification")), "-o", str(out)]) == 0
    return out


def say(capsys: pytest.CaptureFixture[str], *argv: Any, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main([str(word) for word in argv]) == code
    got = capsys.readouterr()
    assert "Traceback" not in got.err
    return got.out, got.err


@pytest.mark.usefixtures("short")
def test_all_scenarios_of_a_model(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "out", tiny_checkpoint("bert", "text-classification")
    asked = ("bench", model, "--matrix", "--batch", "2", "--length", "16", "-o", out)
    found = Benchmark.model_validate_json(say(capsys, *asked, "--json")[0])
    names = [f"tiny-bert {kind}-fp32" for kind in ("torch", "onnxruntime", "openvino")]
    assert [one.name for one in found.variants] == names
    assert [cell.place.scenario for cell in found.cells] == ["single-stream", "offline", "server"]
    single, offline, server = (cell.measured for cell in found.cells)
    assert single.kind == "single-stream"
    assert {name: len(ms) for name, ms in single.samples_ms.items()} == dict.fromkeys(names, 30)
    assert offline.kind == "offline"
    assert all(offline.calls[name] >= 1 and len(offline.bursts_ms[name]) == 40 for name in names)
    assert server.kind == "server"
    assert all(set(server.service_ms[name]) == {1, 2} for name in names)
    within = [name for name in names if np.median(server.service_ms[name][1]) <= server.limit_ms]
    assert within  # the reference at least
    assert all(bool(server.loads[name]) == (name in within) for name in names)
    assert all(len(load.samples_ms) == 100 for loads in server.loads.values() for load in loads if load.met)
    assert found.stopped == ""
    assert {path.name for path in out.iterdir()} >= {"benchmark.json", "benchmark.html", "benchmark.md"}
    assert Benchmark.load(out) == found

    # the same again finds every cell finished, with the very same samples
    shown, _ = say(capsys, *asked)
    assert Benchmark.load(out).cells == found.cells
    assert "server, 1 thread" in shown
    assert "benchmark.html" in shown
    assert say(capsys, "report", out)[0].strip() == str(out / "benchmark.html")


@pytest.mark.usefixtures("short")
def test_a_time_limit_keeps_what_is_finished_and_the_same_command_goes_on(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    asked = ("bench", bundle, "--matrix", "--scenario", "single-stream", "--batch", "1,2", "--length", "8", "-o", out)

    class StoppedError(Exception):
        pass

    def stop(*_: Any) -> Any:
        raise StoppedError

    whole = matrix.single_stream
    calls: list[int] = []

    def once_only(*words: Any) -> Any:
        calls.append(1)
        return whole(*words) if len(calls) == 1 else stop()

    monkeypatch.setattr(matrix, "single_stream", once_only)
    with pytest.raises(StoppedError):
        main([str(word) for word in asked])
    first = Benchmark.load(out)
    assert [cell.place.batch for cell in first.cells] == [1]
    assert "1 of 2 cells is not measured" in (out / "benchmark.html").read_text("utf-8")
    monkeypatch.setattr(matrix, "single_stream", whole)

    _, _ = say(capsys, *asked, "--time-limit", "0s")
    assert Benchmark.load(out).cells == first.cells
    assert "the time limit of 0.0 s was over" in (out / "benchmark.md").read_text("utf-8")

    say(capsys, *asked)
    second = Benchmark.load(out)
    assert [cell.place.batch for cell in second.cells] == [1, 2]
    assert second.cells[0] == first.cells[0]
    assert second.stopped == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--matrix", "--scenario", "multi-stream"), "--scenario 'multi-stream' is not one of single-stream, offline"),
        (("--matrix", "--latency-limit", "soon"), "latency-limit is 'soon'; give a time like"),
        (("--matrix", "--time-limit", "soon"), "--time-limit 'soon' is not a time like"),
        (("--matrix", "--length", "16,1000"), "--length 1000 is more than the 64 tokens that"),
        (("--scenario", "offline"), "--scenario goes with --matrix"),
        (("-o", "out"), "--output goes with --matrix"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    bundle: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    _, error = say(capsys, "bench", bundle, *words, code=2)
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_of_others_are_left_alone(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    before = (bundle / "fmopt.json").read_bytes()
    assert "was not made by fmopt" in say(capsys, "bench", bundle, "--matrix", "-o", tmp_path, "--length", 8, code=2)[1]
    assert "choose another" in say(capsys, "bench", bundle, "--matrix", "-o", bundle, "--length", 8, code=2)[1]
    assert "named twice" in say(capsys, "bench", bundle, bundle, "--matrix", "--length", 8, code=2)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert (bundle / "fmopt.json").read_bytes() == before


def test_places_are_each_once_in_order() -> None:
    found = places(("server", "single-stream"), (8, 1, 8), (128, 32), (2, 1))
    assert len(found) == 16
    assert [place.scenario for place in found[:5]] == ["single-stream"] * 4 + ["server"]
    assert [(place.batch, place.length) for place in found[:4]] == [(1, 32), (1, 128), (8, 32), (8, 128)]
    assert json.loads(found[0].model_dump_json())["threads"] == 1
