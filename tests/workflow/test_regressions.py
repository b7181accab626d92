"""`fmopt check`: what is worse is found and named, what cannot be compared never passes, and CI reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from typer.testing import CliRunner

import fmopt
from fmopt.cli.app import app
from fmopt.core.errors import FmoptError
from fmopt.core.results import Check, Outcome
from fmopt.evaluation.record import Record
from fmopt.reports import check_reports
from fmopt.workflow.regressions import Tolerances, check
from tests import records
from tests.conftest import TinyCheckpoint

ROOT = Path(__file__).resolve().parents[2]


def outcomes(*held: Any) -> dict[str, str]:
    return {one.name: one.outcome.value for one in check(*held).verdict.checks}


def changed(record: Record, path: Path, **changes: Any) -> Record:
    """The record with other values of what it ships, by way of its JSON."""
    document = json.loads(record.model_dump_json())
    (shipped,) = [one for one in document["trials"] if one["recipe"]["name"] == record.winner]
    for key, change in changes.items():
        shipped[key] = change(shipped[key])
    document["circumstances"]["host"]["cpu"] = changes.get("cpu", document["circumstances"]["host"].get("cpu"))
    path.write_text(json.dumps(document))
    return Record.load(path)


def slower(by: float) -> Any:
    return lambda latency: {**latency, "samples_ms": [by * value for value in latency["samples_ms"]]}


def test_a_record_is_no_worse_than_itself() -> None:
    record = records.realistic()
    found = outcomes(record, record)
    assert set(found) == {"its own verdict", "accuracy drop", "time", "size"}
    assert found["time"] == found["size"] == found["accuracy drop"] == "PASS"


def test_slower_and_larger_are_found(tmp_path: Path) -> None:
    record = records.realistic()
    worse = changed(record, tmp_path / "worse.json", latency=slower(1.2), size_bytes=lambda size: int(1.5 * size))
    found = outcomes(worse, record)
    assert (found["time"], found["size"]) == ("FAIL", "FAIL")
    allowed = check(worse, record, Tolerances(max_slowdown=0.5, max_growth=None)).verdict.checks
    assert {one.name: one.outcome.value for one in allowed}["time"] == "PASS"
    assert "size" not in {one.name for one in allowed}
    assert outcomes(record, worse)["time"] == "PASS"  # faster is no fault


def test_less_accurate_is_found(tmp_path: Path) -> None:
    record = records.realistic()

    def half_wrong(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**one, "values": [value * (number % 2) for number, value in enumerate(one["values"])]} for one in scores
        ]

    worse = changed(record, tmp_path / "worse.json", scores=half_wrong, test_scores=half_wrong)
    (drop,) = [one for one in check(worse, record).verdict.checks if one.name == "accuracy drop"]
    assert drop.outcome is Outcome.FAIL
    assert drop.got is not None
    assert drop.got.point > 0.2


def test_another_machine_is_judged_by_its_own_speedup(tmp_path: Path) -> None:
    record = records.realistic()
    document = json.loads(record.model_dump_json())
    document["circumstances"]["host"]["cpu"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(document))
    other = changed(Record.load(tmp_path / "other.json"), tmp_path / "other.json", latency=slower(3))
    (time,) = [one for one in check(other, record).verdict.checks if one.name == "time"]
    assert time.outcome is Outcome.PASS  # the same speedup over its own full precision
    assert "by the speedup" in time.note


def test_bundles_are_held_by_size_and_answers(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    base = tiny_checkpoint("bert", "text-classification")
    one, two = (fmopt.export(base, tmp_path / kind, format=kind) for kind in ("onnx", "openvino"))
    other = fmopt.export(tiny_checkpoint("roberta", "text-classification"), tmp_path / "other")
    wanted = Tolerances(max_drop=None, max_slowdown=None, max_growth=9.0, max_change=1e-3)
    assert [found.outcome.value for found in check(two, one, wanted).verdict.checks] == ["PASS", "PASS"]
    (answers,) = [found for found in check(other, one, wanted).verdict.checks if found.name == "answers"]
    assert answers.outcome is Outcome.FAIL
    sentences = fmopt.export(tiny_checkpoint("bert", "sentence-embedding"), tmp_path / "sentences")
    (answers,) = [found for found in check(sentences, one, wanted).verdict.checks if found.name == "answers"]
    assert (answers.outcome, answers.note) == (Outcome.UNMEASURED, "the two are for different tasks")
    unmeasured = {"accuracy drop": "UNMEASURED", "time": "UNMEASURED"}
    assert outcomes(two, one).items() >= unmeasured.items()


def test_reports_hold_whatever_a_note_says() -> None:
    checks = [
        Check(name="time", outcome=Outcome.FAIL, note="a <b> & \x1b[2J 100%, x:\n::error::y"),
        Check(name="size", outcome=Outcome.PASS),
    ]
    suite = ElementTree.fromstring(check_reports.junit("t", checks))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    first, second = check_reports.github_annotations(checks)
    assert first.startswith("::error title=fmopt%3A time FAIL::a <b>")
    assert "\n" not in first
    assert "100%25" in first
    assert second.startswith("::notice")
    page = check_reports.markdown("a", "b", Outcome.FAIL, checks, ["a caveat"])
    assert "<b>" not in page
    assert "* a caveat" in page


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    record = records.realistic()
    (tmp_path / "before.json").write_text(record.model_dump_json())
    changed(record, tmp_path / "after.json", latency=slower(1.5))
    return tmp_path / "after.json", tmp_path / "before.json"


def test_the_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    after, before = map(str, pair)
    done = CliRunner().invoke(app, ["check", after, "--against", before, "--junit", str(tmp_path / "j.xml")])
    assert done.exit_code == 1
    assert "FAIL       time: 1.5×" in done.stdout
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("failures") == "1"
    done = CliRunner().invoke(app, ["check", before, "--against", before, "--json"])
    assert json.loads(done.stdout)["verdict"]["outcome"] in ("PASS", "UNDECIDED")
    done = CliRunner().invoke(app, ["check", before, "--against", before, "--max-slowdown", "fast"])
    assert "--max-slowdown 'fast' is not a share like 5%, or none" in str(done.exception)
    for option in ("--junit", "--markdown"):
        done = CliRunner().invoke(app, ["check", before, "--against", before, option, str(tmp_path / "no" / "file")])
        assert isinstance(done.exception, FmoptError), option
    done = CliRunner().invoke(app, ["check", after, "--against", before, "--github", "--json"])
    assert json.loads(done.stdout)["verdict"]["outcome"] == "FAIL"
    assert "::error" in done.stderr


def test_the_history_is_fed_by_checks(pair: tuple[Path, Path], tmp_path: Path) -> None:
    after, before = pair
    document = json.loads(after.read_text())
    document["circumstances"]["date"] = "2030-01-01T00:00:00+00:00"  # later, so that it is held to the other
    after.write_text(json.dumps(document))
    kept = tmp_path / "kept"
    for candidate in (before, before, after):
        CliRunner().invoke(app, ["check", str(candidate), "--against", str(before), "--history", str(kept)])
    found = fmopt.history(kept)
    (group,) = found.groups
    assert [entry.regressed for entry in group.entries] == [False, True]  # the same record twice is kept once
    assert group.entries[1].path.startswith(str(kept / "2030-01-01T00"))
    assert CliRunner().invoke(app, ["history", str(kept)]).exit_code == 1
    exported = tmp_path / "exported"
    exported.mkdir()
    done = CliRunner().invoke(app, ["check", str(exported), "--against", str(before), "--history", str(kept)])
    assert "there is no record at" in str(done.exception)
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["check", str(after), "--against", str(before), "--history", str(tmp_path / "file")])
    assert isinstance(done.exception, FmoptError)


def run_steps(steps: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Shell steps of a template, with fmopt on the path as it is here."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-c", "\n".join(steps)], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, **variables},
    )  # fmt: skip


def test_the_action_and_the_template_run_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    after, before = map(str, pair)
    action = yaml.safe_load((ROOT / "ci" / "action.yml").read_text())
    step = action["runs"]["steps"][-1]
    assert set(step["env"]) <= {name.upper() for name in action["inputs"]}
    summary = tmp_path / "summary.md"
    done = run_steps(
        [step["run"]], tmp_path, CANDIDATE=after, AGAINST=before, OPTIONS="--max-growth none", JUNIT="j.xml",
        GITHUB_STEP_SUMMARY=str(summary),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert "::error title=fmopt%3A time FAIL::" in done.stdout
    assert summary.read_text().startswith("### fmopt check: FAIL")
    job = yaml.safe_load((ROOT / "ci" / "gitlab.yml").read_text())[".fmopt-check"]
    done = run_steps(
        [*job["before_script"], *job["script"]], tmp_path, CANDIDATE=before, AGAINST=before, INSTALL="", OPTIONS=""
    )
    assert done.returncode in (0, 3), done.stderr
    assert {path.name for path in tmp_path.iterdir()} >= {"fmopt-check.xml", "fmopt-check.md"}
