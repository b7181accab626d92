"""Pruned networks against the time asked for: judged over several timing runs of the clock, and made up for where too slow."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from fmopt.core.progress import Silent
from fmopt.core.recipe import Recipe
from fmopt.core.stages.store import Store
from fmopt.evaluation.gate import Budget
from fmopt.evaluation.record import RecipeLine, Trial
from fmopt.measurement.backends import Timed, Work
from fmopt.workflow.job.request import Request
from fmopt.workflow.search import followups, trials
from fmopt.workflow.search.followups import RESERVE, Pruning
from fmopt.workflow.search.run import Run

BASE = Recipe(name="int8", runtime="openvino", precision="int8")


def run_of(tmp_path, request: Request, **job) -> Run:
    return Run(
        job=SimpleNamespace(
            request=request,
            data=SimpleNamespace(digest="data"),
            metadata=SimpleNamespace(digest="model", pipeline={}, layers=2),
            **job,
        ),
        builder=SimpleNamespace(store=Store(tmp_path)),
        progress=Silent(),
    )


class TimingRuns:
    """A clock that says what was written down for each time that it is asked."""

    host: Mapping[str, str] = {}
    note = ""

    def __init__(self, *reported: dict[str, list[float]]) -> None:
        self.reported, self.asked = list(reported), []

    def in_turn(self, work, progress) -> Timed:
        self.asked.append((list(work.artifacts), work.samples))
        return Timed(self.reported[len(self.asked) - 1], [], {})


def test_rounds_of_several_timing_runs_are_judged_together(tmp_path, monkeypatch):
    clock = TimingRuns(
        {"fp32": [30.0] * 40, "int8": [10.0] * 20, "narrow": [5.0] * 40},  # int8 was stopped after twenty rounds
        {"fp32": [31.0] * 40, "narrow": [6.0] * 40},
        {"fp32": [32.0] * 40, "narrow": [7.0] * 40},
    )
    run = run_of(tmp_path, Request(model="m"), clock=clock)
    names = ["fp32", "int8", "narrow"]
    run.artifacts.update({name: SimpleNamespace(digest=name) for name in names})
    for name in names:
        line = RecipeLine(name=name, runtime="openvino", steps=[], options={}, effort="standard", precision="fp32")
        run.put(Trial(recipe=line, status="measured"))
    monkeypatch.setattr(trials, "timed_work", lambda run, names, workload: Work(dict.fromkeys(names), {}, 1, 0))
    trials.time_in_turn(run, names, timing_runs=3)
    assert clock.asked == [(names, 100), (["fp32", "narrow"], 100), (["fp32", "narrow"], 100)]
    assert run.trials["narrow"].latency.samples_ms == [5.0] * 40 + [6.0] * 40 + [7.0] * 40
    assert run.trials["fp32"].latency.samples_ms == [30.0] * 40 + [31.0] * 40 + [32.0] * 40
    assert run.trials["int8"].latency.samples_ms == [10.0] * 20
    trials.time_in_turn(run, names, timing_runs=3)  # as a run that goes on does
    assert len(clock.asked) == 3


@pytest.mark.parametrize(
    ("effort", "took", "again"),
    [
        ("standard", 5.2, [2.0 * 5.2 / (RESERVE["standard"] * 5.0)]),
        ("standard", 4.95, []),  # a little of the reserve is used up: it is within what was asked
        ("max", 5.2, []),  # would be trained anew
    ],
)
def test_a_network_slower_than_asked_is_made_up_for_by_another(tmp_path, monkeypatch, effort, took, again):
    run = run_of(tmp_path, Request(model="m", effort=effort, budget=Budget.parse(min_speedup="6x")))
    tried: list[float] = []
    monkeypatch.setattr(Pruning, "tried", lambda self, speedup: tried.append(speedup) or True)
    monkeypatch.setattr(Pruning, "recipe", lambda self, speedup: BASE.model_copy(update={"name": "narrow"}))
    monkeypatch.setattr(followups, "median_ms", lambda run, name: {"fp32": 30.0, "int8": 10.0, "narrow": took}[name])
    Pruning(run, BASE, "fp32", ahead=3.0).corrected(2.0)
    assert tried == pytest.approx(again)
