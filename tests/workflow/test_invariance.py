"""Other batches and padding: looked at as far as they make a difference, and judged by the worst."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fmopt.core.errors import PassError
from fmopt.core.results import Outcome
from fmopt.tasks.base import find_task
from fmopt.workflow import invariance
from fmopt.workflow.search.scoring import FIRST

ITEMS = 300
ALONE = list(np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32))


class Answers:
    """Stands for a predictor whose answers are moved from one item on; says how many it was asked for."""

    allows_subsets = True
    moved_from, asked = ITEMS, 0

    def __init__(self, run: Any, name: str, split: str, **options: int) -> None:
        Answers.asked = 0

    def upto(self, count: int) -> list[np.ndarray]:
        Answers.asked = count
        return [-one if number >= self.moved_from else one + 1e-6 for number, one in enumerate(ALONE[:count])]

    def close(self) -> None:
        pass


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(invariance, "Predictor", Answers)
    items = [SimpleNamespace(sample=str(number), role="", row=number, label=None) for number in range(ITEMS)]
    metadata = SimpleNamespace(pipeline={"task": "sentence-embedding", "part": "embedding"})
    job = SimpleNamespace(metadata=metadata, task=find_task("sentence-embedding"))
    return SimpleNamespace(job=job, items=lambda split: items, builder=SimpleNamespace(preprocessor=None))


@pytest.mark.parametrize(
    ("moved_from", "one_by_one", "looked_at", "changed"),
    [
        (ITEMS, False, FIRST, 0),  # no difference in the first block: that stands for all
        (10, False, ITEMS, ITEMS - 10),
        (10, True, invariance.REPORTED, invariance.REPORTED - 10),  # only told of
    ],
)
def test_a_way_is_looked_at_as_far_as_it_makes_a_difference(
    run: Any, monkeypatch: pytest.MonkeyPatch, moved_from: int, one_by_one: bool, looked_at: int, changed: int
):
    monkeypatch.setattr(Answers, "moved_from", moved_from)
    (way,) = invariance.other_ways(run, "winner", ALONE, one_by_one=one_by_one)
    assert (Answers.asked, len(way.predictions), way.changed) == (looked_at, looked_at, changed)
    check = invariance.invariance_check(run, [way], one_by_one=one_by_one)
    assert check.outcome == (Outcome.FAIL if changed and not one_by_one else Outcome.PASS)
    assert f"{changed} of {looked_at} answers change" in check.note


def test_what_is_not_judged_in_parts_is_looked_at_whole(run: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Answers, "allows_subsets", False)
    (way,) = invariance.other_ways(run, "winner", ALONE, one_by_one=False)
    assert len(way.predictions) == ITEMS


def test_a_way_that_its_runtime_does_not_take_is_left_out(run: Any, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Answers, count: int) -> list[Any]:
        raise PassError("it was compiled for one row")

    monkeypatch.setattr(Answers, "upto", refuse)
    assert invariance.other_ways(run, "winner", ALONE, one_by_one=False) == []
