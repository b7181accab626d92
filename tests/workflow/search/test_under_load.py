"""A server workload: what keeps the limit passes, and what does not names the highest rate that was held."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from fmopt.core.progress import Silent
from fmopt.core.results import Outcome, UnderLoad
from fmopt.core.stages.store import Store
from fmopt.core.workload import Workload
from fmopt.evaluation.record import RecipeLine, Trial
from fmopt.workflow.job.request import Request
from fmopt.workflow.search import under_load
from fmopt.workflow.search.run import Run


def run_of(tmp_path, rate: float, p99_ms: float, *, here: bool = True) -> Run:
    preprocessor = SimpleNamespace(pipeline={"task": "text-classification", "inputs": [], "axes": {}})
    run = Run(
        job=SimpleNamespace(
            request=Request(model="m", workload=Workload(arrival="server", rate=rate, p99_ms=p99_ms)),
            data=SimpleNamespace(digest="data"),
            target=SimpleNamespace(here=here),
            metadata=SimpleNamespace(pipeline={}, digest="model"),
            clock=SimpleNamespace(host={}, note="", versions={}),
        ),
        builder=SimpleNamespace(store=Store(tmp_path), preprocessor=preprocessor),
        progress=Silent(),
    )
    for name in ("fp32", "int8"):
        run.artifacts[name] = SimpleNamespace(digest=name)
        run.put(Trial(recipe=RecipeLine(name=name, runtime="onnxruntime"), status="measured"))
    return run


@pytest.fixture
def two_milliseconds(monkeypatch):
    """A model that takes about as long for every query, however busy the machine is besides."""

    class Slow:
        def __init__(self, metadata, preprocessor, runner) -> None:
            pass

        def predict(self, samples, batch_size):
            time.sleep(0.002)
            return [0] * len(samples)

    monkeypatch.setattr(under_load, "Model", Slow)
    monkeypatch.setattr(Run, "open", lambda run, name, threads: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(Run, "items", lambda run, split: [SimpleNamespace(sample=f"text {n}") for n in range(30)])
    monkeypatch.setattr(under_load, "FEWEST", 60)
    monkeypatch.setattr(under_load, "MOST", 60)


def test_a_rate_with_room_is_held(tmp_path, two_milliseconds):
    run = run_of(tmp_path, rate=20, p99_ms=2_000)
    check = under_load.check(run, "int8", "fp32")
    assert (check.name, check.outcome, check.limit) == ("p99 at 20 per second", Outcome.PASS, 2_000)
    assert run.trials["int8"].under_load.met
    assert len(run.trials["fp32"].under_load.samples_ms) == 60


def test_a_rate_that_nothing_holds_is_undecided_with_the_highest_one(tmp_path, two_milliseconds):
    run = run_of(tmp_path, rate=20_000, p99_ms=300)
    check = under_load.check(run, "int8", "fp32")
    assert check.outcome is Outcome.UNDECIDED
    assert "the highest rate that was held is" in check.note or "no rate that was tried was held" in check.note
    assert run.trials["int8"].under_load.highest_rate < 1_000


def test_full_precision_is_named_where_it_holds_more(tmp_path, monkeypatch):
    rates = {"int8": 120.0, "fp32": 180.0}
    monkeypatch.setattr(
        under_load,
        "serve",
        lambda run, name: UnderLoad(rate=500, limit_ms=20, samples_ms=[30.0], met=False, highest_rate=rates[name]),
    )
    check = under_load.check(run_of(tmp_path, rate=500, p99_ms=20), "int8", "fp32")
    assert check.note == "the highest rate that was held is 180 per second, by fp32"


def test_a_device_elsewhere_is_unmeasured(tmp_path):
    check = under_load.check(run_of(tmp_path, rate=5, p99_ms=20, here=False), "int8", "fp32")
    assert check.outcome is Outcome.UNMEASURED
    assert check.note
