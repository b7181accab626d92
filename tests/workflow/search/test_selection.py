"""Which variant is chosen, by ratios within one run of the clock, and what becomes of those that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fmopt.core.errors import PassError, PlanError, UnmeasuredError
from fmopt.core.progress import Silent
from fmopt.core.recipe import Recipe, Step
from fmopt.core.results import Estimate, Latency
from fmopt.core.stages.store import Store
from fmopt.evaluation.gate import Budget
from fmopt.evaluation.record import RecipeLine, Trial
from fmopt.measurement.backends import Timed, Work
from fmopt.workflow.job.request import Request
from fmopt.workflow.search import ablation, followups, selection, trials
from fmopt.workflow.search.run import Run, by_speed, speedup, time_ratio

KEPT = Estimate(point=0.0, low=0.0, high=0.0)
FULL = {"fp32": "onnxruntime", "torch-fp32": "torch"}


class Clock:
    """Says what was written down for each time that it is asked; what it has no time for failed."""

    host: Mapping[str, str] = {}
    note = ""

    def __init__(self, *reported: dict[str, float]) -> None:
        self.reported, self.asked = list(reported), 0

    def in_turn(self, work: Work, progress: Any) -> Timed:
        took = self.reported[min(self.asked, len(self.reported) - 1)]
        self.asked += 1
        failed = {name: "it cannot be opened" for name in work.artifacts if name not in took}
        return Timed({name: [ms] * 40 for name, ms in took.items() if name in work.artifacts}, [], failed)

    def footprint(self, artifact: Any, inputs: Any, threads: int) -> Any:
        raise UnmeasuredError("serving it took over 600 s in a fresh process")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Variants that were built: two in full precision, two in INT8 by several steps."""
    baselines = [Recipe(name=name, runtime=runtime, precision="fp32") for name, runtime in FULL.items()]
    steps = (Step(use="drop_layers", options={"keep": (0,)}), Step(use="quantize_static", options={"smooth": None}))
    candidates = [Recipe(name=name, runtime="onnxruntime", precision="int8", steps=steps) for name in ("a", "b")]
    made = Run(
        job=SimpleNamespace(
            request=Request(model="m", budget=Budget.parse(max_drop="1pt"), out=tmp_path / "out"),
            data=SimpleNamespace(digest="data"),
            metadata=SimpleNamespace(
                digest="model", pipeline={}, layers=8, modality="text", source=SimpleNamespace(title="tiny")
            ),
            target=SimpleNamespace(present=True, here=True),
            plan=SimpleNamespace(baselines=baselines, candidates=candidates),
            candidates={"a", "b"},
            clock=Clock(),
        ),
        builder=SimpleNamespace(store=Store(tmp_path / "stages")),
        progress=Silent(),
    )
    for recipe in (*baselines, *candidates):
        line = RecipeLine(
            name=recipe.name, runtime=recipe.runtime, steps=[], options={}, effort="quick", precision=recipe.precision
        )
        made.recipes[recipe.name] = recipe
        made.put(Trial(recipe=line, status="measured", drop=KEPT))
        made.artifacts[recipe.name] = SimpleNamespace(digest=recipe.name, runtime=recipe.runtime)
    monkeypatch.setattr(trials, "timed_work", lambda run, names, workload: Work(dict.fromkeys(names), {}, 1, 0))
    monkeypatch.setattr(trials, "latency_inputs", lambda run: [{}])
    for module in (selection, followups):
        monkeypatch.setattr(module, "drop_limit", lambda run, reference: 0.01)
    return made


def timed(run: Run, **ms: float) -> None:
    """One run of the clock."""
    run.timings.append(
        {name: Latency(samples_ms=[took] * 40, batch=1, length=8, threads=1) for name, took in ms.items()}
    )
    for name, latency in run.timings[-1].items():
        run.update(name, latency=latency)
    run.artifacts = {name: artifact for name, artifact in run.artifacts.items() if run.trials[name].latency}


def test_what_ran_on_another_clock_is_compared_by_ratios(run: Run):
    """The machine was twice as fast when `a` was timed again; beside `b` it had been the slower one."""
    timed(run, fp32=40.0, a=20.0, b=18.0)
    timed(run, fp32=20.0, a=10.0)
    assert by_speed(run) == ["b", "a", "fp32"]
    assert selection.choose(run, "fp32") == "b"
    assert speedup(run, "b", "fp32").point == pytest.approx(40 / 18)
    assert speedup(run, "a", "fp32").point == pytest.approx(2.0)
    assert followups.may_gain(run, "b", "a", "fp32", 1)


def test_two_that_never_ran_together_are_compared_by_what_each_ran_with(run: Run):
    timed(run, fp32=40.0, a=20.0)
    run.artifacts["b"] = SimpleNamespace(digest="b", runtime="onnxruntime")
    timed(run, fp32=10.0, b=4.0)
    assert time_ratio(run, "b", "a") == pytest.approx(0.4 / 0.5)
    assert by_speed(run)[:2] == ["b", "a"]


@pytest.mark.parametrize(("whole", "validated"), [(True, ["a", "b"]), (False, ["a"])])
def test_where_validation_is_dear_one_that_keeps_its_accuracy_is_enough(
    run: Run, monkeypatch: pytest.MonkeyPatch, whole: bool, validated: list[str]
):
    """Three INT8 variants of mpnet within 2 % of each other were validated for a minute each, and the first was chosen."""
    timed(run, fp32=40.0, a=20.0, b=20.1)
    run.job.executor = SimpleNamespace(ahead=lambda tasks: None)
    scored: list[str] = []
    monkeypatch.setattr(selection, "Predictor", lambda *_: SimpleNamespace(items=[None] * 600, close=lambda: None))
    monkeypatch.setattr(selection, "looks", lambda *_: iter([(64, whole)]))
    monkeypatch.setattr(selection, "reference_scores", lambda *_: [])
    monkeypatch.setattr(selection, "score", lambda run, name, reference: scored.append(name))
    selection.score_candidates(run, "fp32")
    assert scored == validated
    assert selection.choose(run, "fp32") == "a"


def test_what_was_timed_before_is_not_tried_with_every_call_again(run: Run, monkeypatch: pytest.MonkeyPatch):
    asked: list[Work] = []
    timed(run, fp32=40.0, a=20.0)
    run.artifacts["b"] = SimpleNamespace(digest="b", runtime="onnxruntime")
    run.job.clock = Clock({"fp32": 40.0, "a": 20.0, "b": 10.0})
    in_turn = run.job.clock.in_turn
    monkeypatch.setattr(
        run.job.clock, "in_turn", lambda work, progress: (asked.append(work), in_turn(work, progress))[1]
    )
    trials.time_in_turn(run, ["fp32", "a", "b"])
    assert asked[0].timed_before == ["fp32", "a"]


def test_large_variants_are_timed_in_groups_beside_the_fastest(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Nine variants of mpnet, opened at once, took 6.9 GB."""
    run.artifacts["b"] = SimpleNamespace(digest="b", runtime="onnxruntime")
    for name in run.artifacts:
        run.update(name, size_bytes=400_000_000, latency=None)
    run.job.clock.reported = [
        {"torch-fp32": 50.0, "fp32": 40.0},
        {"fp32": 40.0, "a": 20.0},
        {"fp32": 40.0, "a": 20.0, "b": 10.0},
    ]
    trials.time_all(run)
    assert [sorted(timed) for timed in run.timings] == [["fp32", "torch-fp32"], ["a", "fp32"], ["a", "b", "fp32"]]
    assert by_speed(run) == ["b", "a", "fp32", "torch-fp32"]
    assert selection.overtaken(run, "torch-fp32", "b")  # which never ran beside it
    monkeypatch.setattr(trials, "OPEN_BYTES", 4e9)
    run.timings.clear()
    for name in run.artifacts:
        run.update(name, latency=None)
    run.job.clock.reported, run.job.clock.asked = [{"torch-fp32": 50.0, "fp32": 40.0, "a": 20.0, "b": 10.0}], 0
    trials.time_all(run)
    assert [sorted(timed) for timed in run.timings] == [["a", "b", "fp32", "torch-fp32"]]


def test_a_follow_up_that_cannot_be_timed_is_a_failed_trial(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Its artifact was gone when it was scored: KeyError, and again when the command was run again."""
    run.job.clock.reported += [{"fp32": 20.0, "a": 10.0}]
    timed(run, fp32=40.0, a=20.0)
    run.artifacts["b"] = SimpleNamespace(digest="b", runtime="onnxruntime")
    monkeypatch.setattr(followups, "score", lambda run, name, reference: run.artifacts[name])
    assert followups.judged_late(run, "b", "fp32") is False
    assert run.trials["b"].status == "failed"
    assert run.trials["b"].reason == "it cannot be opened"
    assert "b" not in run.artifacts


def test_one_that_fails_only_when_timed_again_keeps_its_time(run: Run):
    run.job.clock.reported += [{"fp32": 20.0, "b": 9.0}]
    timed(run, fp32=40.0, a=20.0)
    run.artifacts["b"] = SimpleNamespace(digest="b", runtime="onnxruntime")
    assert followups.time_followup(run, "b", "a", "fp32")
    assert "a" in run.artifacts
    assert run.trials["a"].latency.samples_ms[0] == 20.0
    assert run.warnings == ["a could not be timed again: it cannot be opened"]


def test_where_nothing_can_be_timed_the_reasons_are_said(run: Run):
    """The largest of no numbers was asked for."""
    run.job.clock.reported += [{}]
    trials.time_in_turn(run, list(run.artifacts))
    assert run.artifacts == {}
    with pytest.raises(PlanError, match=r"no full-precision variant of tiny works here: fp32: it cannot be opened"):
        selection.fastest_baseline(run)


def test_a_baseline_that_cannot_answer_is_not_what_others_are_held_to(run: Run, monkeypatch: pytest.MonkeyPatch):
    def predictions(run: Run, name: str, split: str, *, most: int) -> list[Any]:
        if name == "fp32":
            raise PassError("it cannot answer the items of validation: RuntimeError: no kernel")
        return []

    monkeypatch.setattr(selection, "predictions", predictions)
    timed(run, **{"fp32": 20.0, "torch-fp32": 40.0, "a": 10.0})
    assert selection.fastest_baseline(run) == "torch-fp32"
    assert run.trials["fp32"].reason == "it cannot answer the items of validation: RuntimeError: no kernel"


def test_without_a_full_precision_graph_a_candidate_is_chosen_or_one_line_says_why_none_is(run: Run):
    timed(run, **{"torch-fp32": 40.0, "a": 50.0, "b": 60.0})
    run.failed("fp32", "the graph computes something else")
    assert selection.choose(run, "torch-fp32") == "a"  # slower, but a bundle
    for name in ("a", "b"):
        run.update(name, drop=Estimate(point=0.5, low=0.4, high=0.6))
    with pytest.raises(
        PlanError, match=r"without torch could be made.*fp32: the graph computes something else.*--watch"
    ):
        selection.choose(run, "torch-fp32")


def test_the_step_that_quantizes_is_the_one_that_is_replaced(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Its first step was, whatever that did."""
    timed(run, fp32=40.0, a=10.0, b=11.0)
    for name in ("a", "b"):
        run.update(name, drop=Estimate(point=0.5, low=0.4, high=0.6))
    made: list[Recipe] = []
    monkeypatch.setattr(trials, "build", lambda run, recipe: made.append(recipe) or False)
    followups.fallback_to_mixed_precision(run, "fp32")
    assert [step.use for step in made[0].steps] == ["drop_layers", "mixed_precision"]
    assert made[0].steps[1].options == {"smooth": None, "groups": 1}


def test_a_footprint_that_cannot_be_taken_is_left_open(run: Run):
    """The run ended there, without a record and without a bundle."""
    trials.footprint(run, "a")
    assert run.trials["a"].footprint is None
    assert run.warnings == [
        "memory and load time of a were not measured: serving it took over 600 s in a fresh process"
    ]


def test_a_network_of_the_ablation_that_cannot_be_timed_is_left_out(run: Run, monkeypatch: pytest.MonkeyPatch):
    """KeyError, when all the work was done."""
    timed(run, fp32=40.0, a=10.0)
    between = run.recipes["a"].model_copy(update={"name": "a after 1", "steps": run.recipes["a"].steps[:1]})

    def networks(side: Run, name: str) -> list[Recipe]:
        side.recipes[between.name] = between
        side.artifacts[between.name] = SimpleNamespace(digest="between", runtime="onnxruntime", size_bytes=1)
        side.put(Trial(recipe=run.trials["a"].recipe.model_copy(update={"name": between.name}), status="measured"))
        return [between]

    monkeypatch.setattr(ablation, "networks", networks)
    monkeypatch.setattr(ablation, "_answers", lambda run, name, most: True)
    monkeypatch.setattr(ablation, "_step", lambda run, recipe, latency, before, reference: (recipe.name, latency))
    run.job.clock.reported += [{"fp32": 44.0, "a": 11.0}]
    assert [name for name, _ in ablation.waterfall(run, "a", "fp32")] == ["fp32", "a"]
    assert "a after 1" not in run.trials
