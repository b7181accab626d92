"""Two commands in two folders with one store: nothing is made twice, and both come to the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmopt.cli.app import main
from fmopt.core.recipe import Recipe, Step
from fmopt.core.stages.seals import sealed
from fmopt.core.workload import Workload
from fmopt.workflow.job.request import Request
from fmopt.workflow.optimize import optimize_request

DYNAMIC = Recipe(
    name="dynamic", runtime="onnxruntime", precision="int8", steps=(Step(use="quantize_dynamic"), Step(use="simplify"))
)


class Lines:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def start(self, text: str, total: int) -> None:
        pass

    def step(self, done: int = 1) -> None:
        pass

    def stop(self) -> None:
        pass


def contents(out: Path) -> dict[str, dict[str, str]]:
    """The sha256 of every file of every stage, but of what was measured."""
    stages = (
        path for path in (out / "stages").iterdir() if path.name.startswith(("graph-", "artifact-", "predictions-"))
    )
    return {stage.name: sealed(stage) for stage in stages}


@pytest.fixture
def two_runs(tiny_checkpoint, labelled, tmp_path):
    """What two runs with one store left and said."""
    found = []
    for name in "ab":
        lines = Lines()
        record = optimize_request(
            Request(
                model=str(tiny_checkpoint("bert", "text-classification")), data=str(labelled), recipe=DYNAMIC,
                workload=Workload(length=32), out=tmp_path / name, store=str(tmp_path / "shared"), keep_stages=True,
            ),
            lines,
        )  # fmt: skip
        found.append((tmp_path / name, record, lines.said))
    return found


def test_a_second_run_from_another_folder_makes_nothing(two_runs):
    (first, one, said), (second, other, said_then) = two_runs
    assert any(line.startswith("0 stages were taken from") for line in said)
    assert [line.rpartition(", ")[2] for line in said_then if "were taken from" in line] == ["0 were made here"]
    taken = contents(second)  # what nothing reads any more does not travel: graphs whose artifact is there
    assert any(name.startswith("artifact-") for name in taken)
    assert taken == {name: files for name, files in contents(first).items() if name in taken}
    assert one.winner == other.winner
    assert one.verdict == other.verdict


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (
            "http://example.org/x",
            "--store http://example.org/x: a store is a folder, file:///FOLDER or s3://BUCKET/PREFIX",
        ),
        ("/proc/no/such", "--store /proc/no/such cannot be written"),
    ],
)
def test_a_store_that_cannot_be_is_one_line(tiny_checkpoint, labelled, tmp_path, capsys, store, words):
    model = str(tiny_checkpoint("bert", "text-classification"))
    assert main(["optimize", model, "--data", str(labelled), "--store", store, "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1]
    assert "Traceback" not in "\n".join(said)
