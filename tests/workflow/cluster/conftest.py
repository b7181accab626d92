"""The same run with and without a cluster, and what must be alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmopt.core.workload import Workload
from fmopt.workflow.job.request import Request
from fmopt.workflow.optimize import optimize_request
from tests.workflow.test_shared_store import DYNAMIC, Lines


@pytest.fixture(autouse=True)
def quick_to_start(tmp_path_factory, monkeypatch):
    """Of the dev extra, rfc3987-syntax compiles a grammar whenever jsonschema is imported: three seconds in each of Ray's
    processes, which wait for one another no longer than 15 s."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError('left out of these processes')\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def request(checkpoint: Path, data: Path, out: Path, **changes) -> Request:
    return Request(
        model=str(checkpoint), data=str(data), recipe=DYNAMIC, workload=Workload(length=32), out=out, keep_stages=True,
        **changes,
    )  # fmt: skip


@pytest.fixture(scope="session")
def alone(tiny_checkpoint, labelled, tmp_path_factory):
    """The same on this machine without a cluster."""
    out = tmp_path_factory.mktemp("alone") / "out"
    return out, optimize_request(request(tiny_checkpoint("bert", "text-classification"), labelled, out))


def assert_made_by_others(lines: Lines) -> None:
    """Three artifacts, what was found out of them, and what they predict."""
    taken = next(line for line in lines.said if "were taken from" in line)
    assert int(taken.split()[0]) >= 8, taken


def assert_same_bytes(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> None:
    """Every artifact is the same; so is every graph and prediction that both have: what was slower by that run's clock, and so
    was not scored, may be another one."""
    assert {name for name in after if name.startswith("artifact-")} == {
        name for name in before if name.startswith("artifact-")
    }
    both = set(before) & set(after)
    assert len(both) >= 4  # three artifacts, and what one of them predicts at least
    assert {name: after[name] for name in both} == {name: before[name] for name in both}
