"""Bundles on several boards at once: real OpenSSH servers on one machine, one of them away, and found again."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmopt.cli import app
from fmopt.edge.board.agent import FOLDER
from fmopt.workflow.benchmark import fleet
from fmopt.workflow.benchmark.fleet_record import FleetBenchmark
from tests import openssh
from tests.measurement.remote.test_ssh import write_tiny

REASON = openssh.absent()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
NewInventory = Callable[..., Path]


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[openssh.Device]]:
    """Two of them, each with host key, key to log in and home of its own."""
    line = openssh.Line(tmp_path, spaces=False)
    made = [
        openssh.Device(line, tmp_path / name, openssh.python_path(), tmp_path / name / "home")
        for name in ("kitchen", "attic")
    ]
    for one in made:
        one.know(None)  # what counts is the inventory's
    monkeypatch.setenv("PATH", made[0].client_path)
    monkeypatch.setattr(fleet, "PAUSE_S", 0.1)
    yield made
    for one in made:
        one.stop()


@pytest.fixture
def bundles(tmp_path: Path, tiny_checkpoint: Any) -> list[str]:
    """A reference and a candidate that is the same."""
    reference = write_tiny(tmp_path / "reference", tiny_checkpoint("bert", "text-classification"), tmp_path)
    shutil.copytree(reference, tmp_path / "candidate")
    return [str(reference), str(tmp_path / "candidate")]


def inventory(folder: Path, boards: list[openssh.Device], keys: list[openssh.Device] | None = None) -> Path:
    """A file that lists boards, with the host keys of `keys`."""
    entries = [
        f'[[board]]\nname = "{one.folder.name}"\naddress = "{one.url}"\nidentity = "{one.folder.name}/id"\n'
        f'host_key = "{(key.folder / "host_key.pub").read_text().strip()}"\n'
        for one, key in zip(boards, keys or boards, strict=True)
    ]
    path = folder / "fleet.toml"
    path.write_text("\n".join(entries))
    return path


def test_a_board_that_is_away_is_lost_and_measured_later_alone(
    boards: list[openssh.Device], bundles: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen, attic = boards
    attic.stop()
    out = tmp_path / "out"
    asked = ["bench", *bundles, "--on", str(inventory(tmp_path, boards)), "--length", "16", "-o", str(out)]
    asked += ["--min-speedup", "0.2x", "--max-latency", "1s"]
    assert app.main(asked) == 4
    said = capsys.readouterr()
    shown = " ".join(said.out.split())
    assert "1 of 2 boards answered" in shown
    assert "board attic was lost: nothing answers ssh at" in shown
    assert f"UNMEASURED {bundles[1]} passes on 1 of 2" in shown
    assert "attic is lost" in said.err
    assert [path.name for path in kitchen.home.iterdir()] == [FOLDER]

    kitchen.stop()  # what was measured is not asked again
    attic.start()
    assert app.main([*asked, "--json"]) == 0
    found = FleetBenchmark.model_validate_json(capsys.readouterr().out)
    assert json.loads((out / "fleet.json").read_text()) == found.model_dump(mode="json")
    assert [(board.name, board.state) for board in found.boards] == [("kitchen", "measured"), ("attic", "measured")]
    assert found.sentences()[0] == f"PASS {bundles[1]} passes on 2 of 2"
    assert {(one.board, one.variant) for one in found.figures} == {
        (board, bundle) for board in ("kitchen", "attic") for bundle in bundles
    }
    for board in found.boards:
        assert board.differs == dict.fromkeys(bundles, "")
        assert board.host["memory_gb"]
        assert min(len(ms) for ms in board.cells[0].measured.samples_ms.values()) >= 200
        assert (out / "boards" / board.name / "benchmark.html").is_file()
    assert "| kitchen |" in (out / "fleet.md").read_text()


def test_a_line_that_is_cut_during_the_run_is_found_again(
    boards: list[openssh.Device],
    bundles: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fleet, "PATIENCE_S", 0.2)
    attic = boards[1]

    def cut() -> None:
        until = time.monotonic() + 60
        while not list((attic.home / FOLDER).glob("timer/*.json")) and time.monotonic() < until:
            time.sleep(0.02)
        attic.cut()
        time.sleep(1)
        attic.mend()

    cutter = threading.Thread(target=cut)
    cutter.start()
    asked = ["bench", bundles[0], "--on", str(inventory(tmp_path, boards)), "--max-latency", "1s", "--clean"]
    assert app.main([*asked, "--length", "16", "-o", str(tmp_path / "out")]) == 0
    cutter.join()
    said = capsys.readouterr()
    assert f"PASS {bundles[0]} passes on 2 of 2" in " ".join(said.out.split())
    assert "attic is lost" in said.err
    assert [list(one.home.iterdir()) for one in boards] == [[], []]


def test_what_a_board_cannot_run_is_not_tried_there(
    boards: list[openssh.Device], bundles: list[str], tmp_path: Path, tiny_checkpoint: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    checkpoint = tiny_checkpoint("bert", "text-classification")
    unfit = write_tiny(tmp_path / "unfit", checkpoint, tmp_path / "other", needs=("no_such_feature",))
    path = inventory(tmp_path, boards[:1])
    asked = ["bench", bundles[0], str(unfit), "--on", str(path), "--length", "16", "-o", str(tmp_path / "out")]
    assert app.main(asked) == 1
    said = capsys.readouterr()
    assert f"kitchen: {unfit} is not tried there" in said.err
    assert "FAIL on kitchen: runs there:" in " ".join(said.out.split())
    assert "no_such_feature" in said.out
    assert len(list((boards[0].home / FOLDER / "bundles").iterdir())) == 1


def test_a_wrong_host_key_ends_the_command_before_any_work(
    boards: list[openssh.Device], bundles: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = inventory(tmp_path, boards, [boards[0], boards[0]])
    assert app.main(["bench", *bundles, "--on", str(path), "--length", "16", "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "board attic: the host key of" in said
    assert "is not the host_key of attic in the inventory" in said
    assert not (boards[1].home / FOLDER).exists()
    assert not (boards[0].home / FOLDER / "bundles").exists()


def test_only_what_can_be_compared_is_sent(
    bundles: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = ["--on", "ssh://a", "--on", "ssh://b", "-o", str(tmp_path / "out"), "--length", "16"]
    for words, what in (
        ([bundles[0], *two, "--min-speedup", "2x"], "--min-speedup is over a reference"),
        ([bundles[0], bundles[0], *two], "is named twice"),
        ([str(tmp_path), *two], "is not a bundle"),
        ([bundles[0], *two, "--matrix"], "--matrix is for this machine"),
        ([bundles[0], "--max-latency", "8ms"], "--max-latency goes with --on and several boards"),
    ):
        assert app.main(["bench", *words]) == 2
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        assert what in said
