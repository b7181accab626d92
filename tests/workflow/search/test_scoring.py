"""No more is predicted than a decision needs, nothing twice, and what is decided early is what all items would say."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fmopt.core.progress import Silent
from fmopt.core.recipe import Recipe, Step
from fmopt.core.results import Scores
from fmopt.core.workload import Workload
from fmopt.evaluation import bootstrap
from fmopt.evaluation.gate import Budget, confidence_of_look
from fmopt.exporters.bundles.bundle import verify_bundle
from fmopt.tasks.base import find_task
from fmopt.workflow import judgement
from fmopt.workflow.job.request import Request
from fmopt.workflow.optimize import optimize_request
from fmopt.workflow.search import scoring, selection
from fmopt.workflow.search.run import Run
from fmopt.workflow.search.scoring import FIRST, Predictor, blocks, looks


@dataclass
class Asked:
    """Stands for a predictor that takes as long for every item."""

    seconds: float
    allows_subsets: bool = True
    upto_counts: list[int] = field(default_factory=list)

    @property
    def seconds_per_item(self) -> float:
        return self.seconds if self.upto_counts else 0.0

    def upto(self, count: int) -> list[Any]:
        self.upto_counts.append(count)
        return []


def test_blocks_cover_the_items_and_end_where_those_of_fewer_items_do():
    ends = {FIRST, *range(2 * FIRST, 10_000, 2 * FIRST)}
    for count in (1, FIRST - 1, FIRST, FIRST + 1, 600, 872, 3058):
        found = list(blocks(count))
        assert found[0][0] == 0
        assert found[-1][1] == count
        assert all(one[1] == other[0] for one, other in itertools.pairwise(found))
        assert {end for _, end in found[:-1]} <= ends


def test_what_is_quick_is_looked_at_once_and_what_is_slow_after_twice_as_many_each_time():
    assert list(looks([Asked(0.001)], 600, 10.0)) == [(600, True)]
    assert list(looks([Asked(0.5), Asked(0.1)], 600, 10.0)) == [
        (64, False),
        (128, False),
        (256, False),
        (512, False),
        (600, True),
    ]
    assert list(looks([Asked(0.5)], 50, 10.0)) == [(50, True)]
    assert list(looks([Asked(0.1)], 600, 40.0)) == [(64, False), (128, False), (600, True)]  # of 256 on 34 s are left


def test_what_is_looked_for_among_others_is_looked_at_whole():
    assert list(looks([Asked(0.5, allows_subsets=False)], 600, 10.0, seconds=1.0)) == [(600, True)]


def test_a_long_split_comes_in_random_order_and_rows_stay_whole():
    """Pairs of texts were torn apart: two items of a row, one after the other, and how alike they are."""
    rows = [{"sentence1": f"a {n}", "sentence2": f"b {n}", "score": str(n % 5)} for n in range(900)]
    job = SimpleNamespace(
        data=SimpleNamespace(split=lambda name: rows),
        task=find_task("sentence-embedding"),
        metadata=None,
        request=SimpleNamespace(seed=0),
    )
    run = Run(job=job, builder=None, progress=Silent())
    validation, test = run.items("validation"), run.items("test")
    assert (len(validation), len(test)) == (1200, 1800)
    for items in (validation, test):
        assert all(first.row == second.row for first, second in zip(items[0::2], items[1::2], strict=True))
        assert {(item.role, item.sample[0]) for item in items[0::2]} == {("first", "a")}
        assert all(item.sample == f"{item.sample[0]} {item.row}" for item in items)
    assert [item.row for item in test[:40:2]] != sorted(item.row for item in test[:40:2])
    run.judged = 64
    assert run.items("test") == test[:64]
    assert all(end % 2 == 0 for _, end in blocks(1800))


def test_a_time_limit_leaves_as_many_items_as_fit():
    assert list(looks([Asked(0.5)], 3000, 1e9, seconds=100.0)) == [(256, True)]  # 264 fit, and 256 are whole blocks
    assert list(looks([Asked(0.5)], 3000, 10.0, seconds=-5.0)) == [(64, True)]  # 4 more would take 2 s


@pytest.mark.parametrize("number", [0, 1, 5, 12])
def test_all_looks_together_err_no_more_often_than_one(number):
    """The union bound, whatever the looks have in common."""
    for confidence in (0.9, 0.95, 0.99):
        spent = sum(1 - confidence_of_look(confidence, early, last=False) for early in range(number))
        last = 1 - confidence_of_look(confidence, number, last=True)
        assert spent + last == pytest.approx(1 - confidence)
        assert last >= 0.75 * (1 - confidence)  # hardly wider than a single look


@pytest.mark.parametrize(
    ("task", "row", "allowed"),
    [
        ("sentence-embedding", {"query": "who?", "document": "she"}, False),
        ("sentence-embedding", {"sentence1": "a", "sentence2": "b", "score": "1"}, True),
        ("image-feature-extraction", {"image": b"", "label": "cat"}, False),
        ("image-feature-extraction", {"image": b""}, True),
        ("text-generation", {"text": "it was"}, True),
    ],
)
def test_what_is_found_among_others_needs_all_of_them(task, row, allowed):
    kind = find_task(task)
    assert kind.allows_subsets(kind.items([row, row], SimpleNamespace(pipeline={}))) is allowed


class Said(Silent):
    """Keeps what was begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def start(self, text: str, total: int) -> None:
        self.begun.append(text)


class Known:
    """A predictor whose answers are there: which items are right. Each takes a second, it says."""

    allows_subsets = True
    seconds_per_item = 1.0

    def __init__(self, run: Any, name: str, split: str) -> None:
        self.found = self.items = run.answers[name]

    def upto(self, count: int) -> list[Any]:
        return self.found[:count]

    def close(self) -> None:
        """Nothing is open."""


class Accuracy:
    """A task whose predictions are right or wrong."""

    @staticmethod
    def scores(got: Any, items: Any, baseline: Any, metadata: Any) -> list[Scores]:
        return [Scores(name="accuracy", metric="mean", values=[[float(one)] for one in got], primary=True)]


@pytest.mark.parametrize("lost", [0.0, 0.01, 0.04])
def test_looking_several_times_errs_no_more_often_than_looking_once(lost, monkeypatch):
    """Of candidates that lose exactly what is allowed, 1 point, about one in twenty may pass."""
    monkeypatch.setattr(judgement, "Predictor", Known)
    rng = np.random.default_rng(7)
    runs, total, passed, judged = 100, 2048, 0, []
    for _ in range(runs):
        harmed = rng.random(total) < lost
        run = SimpleNamespace(
            answers={"reference": [True] * total, "candidate": list(~harmed)},
            job=SimpleNamespace(
                request=SimpleNamespace(budget=Budget.parse(max_drop="1pt"), seed=0, effort="standard"),
                task=Accuracy,
                metadata=None,
            ),
            seconds_left=lambda: float("inf"),
            warn=lambda line: None,
        )
        confidence = judgement._decide_on(run, "candidate", "reference")
        before, after = (Accuracy.scores(one[: run.judged], None, None, None)[0] for one in run.answers.values())
        passed += bootstrap.paired_drop(before, after, confidence=confidence).high <= 0.01
        judged.append(run.judged)
    if lost == 0.01:
        assert passed <= 10  # 5 are expected; more than 10 come by chance in one of 90 sets of runs
    else:
        assert passed == (runs if lost == 0 else 0)
        assert np.mean(judged) <= total / 2  # they were certain earlier


def test_a_run_that_looks_predicts_no_item_twice(tiny_checkpoint, labelled, tmp_path, monkeypatch):
    """Everything counts as slow, and blocks are small: candidates and winner are looked at in growing parts."""
    monkeypatch.setattr(scoring, "FIRST", 8)
    monkeypatch.setattr(selection, "PATIENCE", 0.0)
    monkeypatch.setattr(judgement, "PATIENCE", 0.0)
    predicted: Counter[tuple[Any, ...]] = Counter()
    make = Predictor._make

    def counted(one: Predictor, first: int, end: int, folder: Path) -> None:
        predicted.update((one.name, one.split, one.batch, one.length, number) for number in range(first, end))
        make(one, first, end, folder)

    monkeypatch.setattr(Predictor, "_make", counted)
    request = Request(
        model=str(tiny_checkpoint("bert", "text-classification")), data=str(labelled), workload=Workload(length=32),
        budget=Budget.parse(max_drop="30pt"), out=tmp_path / "out", command="fmopt optimize …",
        recipe=Recipe(name="mine", runtime="onnxruntime", precision="int8", steps=(Step(use="quantize_dynamic"),)),
    )  # fmt: skip
    said = Said()
    record = optimize_request(request, said)
    assert max(Counter(said.begun).values()) <= 4  # a line for a look, not for each of its blocks
    assert said.begun.count("test: onnxruntime-fp32 in batches of 8") <= 1
    winner, reference = record.find(record.winner), record.find(record.reference)
    n = len(winner.primary.values)
    assert n == len(reference.primary.values)
    assert n in (8, 16, 32, 64, record.data["rows"]["test"])
    assert n < record.data["rows"]["test"]
    (told,) = [line for line in record.circumstances.warnings if line.startswith("judged on")]
    assert told.startswith(
        f"judged on {n} of the {record.data['rows']['test']} items of the test split, for the verdict"
    )
    assert record.verdict.checks[0].outcome.value == "PASS"
    assert winner.test_confidence == pytest.approx(0.999)  # of a look, not the budget's 95 %
    optimize_request(request)
    assert set(predicted.values()) == {1}  # nor by the second run: all of it was kept


def test_a_time_limit_that_is_over_at_once_still_ends_with_a_bundle(tiny_checkpoint, labelled, tmp_path):
    request = Request(
        model=str(tiny_checkpoint("bert", "text-classification")), data=str(labelled), workload=Workload(length=32),
        budget=Budget.parse(max_drop="1pt"), out=tmp_path / "out", time_limit_s=0.001, command="fmopt optimize …",
    )  # fmt: skip
    record = optimize_request(request)
    candidates = [trial for trial in record.everything if trial.recipe.precision != "fp32"]
    assert {trial.status for trial in candidates} == {"stopped early"}
    assert {trial.reason for trial in candidates} == {"the time limit was reached"}
    assert record.winner not in {trial.name for trial in candidates}
    assert len(record.find(record.winner).primary.values) == record.data["rows"]["test"]
    assert verify_bundle(tmp_path / "out") == []
