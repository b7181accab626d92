"""Whether an answer depends on its batch: the winner judged alone, in mixed batches and padded, and the worst of the three."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from fmopt.core.errors import FmoptError
from fmopt.core.model import generates
from fmopt.core.results import Check, Estimate, Outcome, Scores
from fmopt.edge.parts import distance_of
from fmopt.edge.runners import mixes_rows
from fmopt.evaluation import bootstrap
from fmopt.measurement import host_probe
from fmopt.workflow.search.run import Run, primary
from fmopt.workflow.search.scoring import FIRST, Predictor

BATCH = 8
CHANGED = 0.05  # of the answers at most may be others in a batch; what that costs in accuracy, the worst of the three ways tells
GENERATED = 32  # items of a network that makes texts: each is as long as many of others
REPORTED = 256  # items of a bundle that answers one by one, whose other ways are only told of
SAME = 1e-4  # distance of two predictions that only the order of sums makes: what a first block shows so of, all would


@dataclass(frozen=True)
class Way:
    """The winner's predictions of the first items, computed in one way."""

    name: str
    predictions: Sequence[Any]
    changed: int  # items for which people see another answer than alone
    distance: float  # the farthest that a prediction is from the one alone

    @property
    def share(self) -> float:
        """Of its items, those that changed."""
        return self.changed / max(len(self.predictions), 1)


def other_ways(run: Run, winner: str, alone: Sequence[Any], *, one_by_one: bool) -> list[Way]:
    """The winner in mixed batches and padded to the longest item; a way that its runtime does not take is left out, and both
    where padding changes what the checkpoint itself answers.

    Of all items, but where the first block shows that the way makes no difference, or a bundle answers one by one.
    """
    pipeline = dict(run.job.metadata.pipeline)
    if pipeline.get("no_padding"):
        return []
    most = GENERATED if generates(pipeline) else REPORTED if one_by_one else len(alone)
    items, alone = run.items("test")[:most], alone[:most]
    asked: dict[str, dict[str, int]] = {f"in batches of {BATCH}": {"batch": BATCH}}
    if longest := _longest(run, items):
        asked["padded"] = {"length": longest}
    found = []
    for name, options in asked.items():
        try:
            with closing(Predictor(run, winner, "test", **options)) as predictor:
                first = min(FIRST, len(items)) if predictor.allows_subsets else len(items)
                way = _compared(run, name, predictor.upto(first), alone)
                if way.changed or way.distance > SAME:
                    way = _compared(run, name, predictor.upto(len(items)), alone)
        except FmoptError:  # compiled for one shape, or for so many rows
            continue
        found.append(way)
    return found


def _compared(run: Run, name: str, got: Sequence[Any], alone: Sequence[Any]) -> Way:
    items, alone = run.items("test")[: len(got)], alone[: len(got)]
    distance = distance_of(run.job.metadata.pipeline)[1]
    changed = len(run.job.task.changes(got, items, alone, run.job.metadata))
    return Way(name, got, changed, max(map(distance, alone, got), default=0.0))


def _longest(run: Run, items: Sequence[Any]) -> int | None:
    """Tokens of the longest item; None where items have none."""
    preprocessor = run.builder.preprocessor
    if not hasattr(preprocessor, "rows") or generates(run.job.metadata.pipeline):
        return None
    return max((len(row) for item in items for row in preprocessor.rows([item.sample])[0]), default=None)


def worst_scores(run: Run, ways: Sequence[Way], alone: Scores, baseline: Sequence[Any], theirs: Scores) -> Scores:
    """The primary metric of the way in which the winner loses most to the baseline."""
    request, items = run.job.request, run.items("test")
    found = [alone]
    for way in ways:
        if len(way.predictions) == len(items):
            found.append(primary(run.job.task.scores(way.predictions, items, baseline, run.job.metadata)))

    def lost(scores: Scores) -> float:
        drop = bootstrap.paired_drop(theirs, scores, confidence=request.budget.confidence, seed=request.seed)
        return drop.point

    return max(found, key=lost)


def answers_alone(run: Run, winner: str) -> bool:
    """Whether a bundle of the winner answers one by one: its scales come from a whole batch, or its items are no texts."""
    if not hasattr(run.builder.preprocessor, "rows"):
        return True
    with closing(run.open(winner, host_probe.cores())) as runner:
        return mixes_rows(runner) or bool(run.job.metadata.pipeline.get("no_padding"))


def invariance_check(run: Run, ways: Sequence[Way], *, one_by_one: bool) -> Check:
    """The share of answers that a batch or padding changes; where a bundle answers one by one, only
    reported."""
    if not ways:
        return Check(name="invariance", outcome=Outcome.PASS, note="it takes one item at a time")
    worst = max(ways, key=lambda way: (way.share, way.distance))
    share = worst.share
    distance = distance_of(run.job.metadata.pipeline)[0]
    said = "; ".join(
        f"{way.name}: {way.changed} of {len(way.predictions)} answers change, {distance} up to {way.distance:.2g}"
        for way in ways
    )
    kept = one_by_one or share <= CHANGED
    note = f"{said}; the bundle answers one by one" if one_by_one else said
    return Check(
        name="invariance",
        outcome=Outcome.PASS if kept else Outcome.FAIL,
        limit=None if one_by_one else CHANGED,
        got=Estimate(point=share, low=share, high=share),
        note=note,
    )
