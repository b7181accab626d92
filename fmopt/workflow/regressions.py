"""Whether a record or bundle is worse than another: accuracy, time, size, answers, each by the gate's statistics."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fmopt.core import notebook
from fmopt.core.results import Check, Estimate, Frozen, Outcome, Verdict
from fmopt.edge import parts
from fmopt.evaluation.bootstrap import paired_drop
from fmopt.evaluation.comparison import (
    against_accuracy,
    between_times,
    circumstances,
    judging_metric,
    ratio_of,
    scores_of,
)
from fmopt.evaluation.gate import Drop, at_most
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.record import Record, value_of
from fmopt.evaluation.record_view import RecordView, read_view
from fmopt.exporters.bundles import bundle
from fmopt.reports.check_reports import in_words

MACHINE = ("cpu", "cores", "isa")  # what two timings must share to be held against each other


class Tolerances(Frozen):
    """How much worse is accepted; None: that is not looked at."""

    max_drop: Drop | None = Drop(amount=1.0)
    max_slowdown: float | None = Field(0.05, ge=0)  # share of the other's time
    max_growth: float | None = Field(0.05, ge=0)  # share of the other's bytes
    max_change: float | None = Field(None, ge=0)  # of an answer to a golden item, by the task's own distance


class Regressions(Frozen):
    """What came of each check, and what makes the two hard to compare."""

    candidate: str
    reference: str
    verdict: Verdict
    caveats: list[str]

    def _repr_html_(self) -> str:
        rows = [(one.name, one.outcome.value, in_words(one)) for one in self.verdict.checks]
        held = f"B: {self.candidate}, held to A: {self.reference}"
        return notebook.view(self.verdict.outcome.value, ("check", "", ""), rows, [held, *self.caveats])


def check(
    candidate: Record | str | Path, reference: Record | str | Path, tolerances: Tolerances | None = None
) -> Regressions:
    """Hold a record, a folder with one, or a bundle to another.

    Times of one machine and one workload are compared as they are; of different machines the speedups that each run found over
    its own full precision, so that the machines cancel. The candidate's own verdict counts too. What cannot be compared is
    UNMEASURED and never passes. Raises BundleError for what is neither a record nor a bundle.
    """
    wanted = tolerances or Tolerances()
    new, old = read_view(candidate), read_view(reference)
    checks = [_own_verdict(new)] if new.measured else []
    if wanted.max_drop is not None:
        checks.append(_accuracy(old, new, wanted.max_drop))
    if wanted.max_slowdown is not None:
        checks.append(_time(old, new, wanted.max_slowdown))
    if wanted.max_growth is not None:
        checks.append(_size(old, new, wanted.max_growth))
    if wanted.max_change is not None:
        checks.append(_answers(reference, candidate, wanted.max_change))
    return Regressions(
        candidate=new.title, reference=old.title, verdict=Verdict(checks=checks), caveats=circumstances([old, new])
    )


def _own_verdict(new: RecordView) -> Check:
    return Check(name="its own verdict", outcome=Outcome(new.verdict))


def _accuracy(old: RecordView, new: RecordView, allowed: Drop) -> Check:
    name = "accuracy drop"
    split, metric = judging_metric([old, new])
    first, second = scores_of(old, split, metric), scores_of(new, split, metric)
    said = against_accuracy(old, new, split, metric)
    if first is None or second is None or said.estimate is None:
        return Check(name=name, outcome=Outcome.UNMEASURED, note=said.change or "it was not scored")
    limit = allowed.limit(value_of(first) or 0.0, bounded=METRICS[first.metric].bounded)
    drop = paired_drop(first, second, confidence=max(old.confidence, new.confidence))
    return at_most(name, drop, limit, note=f"{metric} on the same {len(first.values)} items")


def _time(old: RecordView, new: RecordView, allowed: float) -> Check:
    name, limit = "time", 1 + allowed
    one, two = (side.shipped.latency if side.shipped else None for side in (old, new))
    same_machine = [old.host.get(key) for key in MACHINE] == [new.host.get(key) for key in MACHINE]
    if same_machine and old.target == new.target:
        found = between_times(one, two, max(old.confidence, new.confidence))
        if found is not None and found.estimate is not None:
            return at_most(name, _inverse(found.estimate), limit, unit="×", note="of the other's, on one machine")
        return Check(name=name, outcome=Outcome.UNMEASURED, note=found.change if found else "it was not timed")
    speedups = [side.shipped.speedup if side.shipped else None for side in (old, new)]
    if speedups[0] is None or speedups[1] is None:
        return Check(name=name, outcome=Outcome.UNMEASURED, note="another machine, and no speedup to hold it to")
    ratio = ratio_of(speedups[0], speedups[1])
    return at_most(name, ratio, limit, unit="×", note="by the speedup that each has on its own machine")


def _inverse(ratio: Estimate) -> Estimate:
    return Estimate(point=1 / ratio.point, low=1 / ratio.high, high=1 / max(ratio.low, 1e-9))


def _size(old: RecordView, new: RecordView, allowed: float) -> Check:
    sizes = [side.shipped.size_bytes if side.shipped else None for side in (old, new)]
    if not sizes[0] or sizes[1] is None:
        return Check(name="size", outcome=Outcome.UNMEASURED, note="it is not known")
    ratio = sizes[1] / sizes[0]
    return at_most("size", Estimate(point=ratio, low=ratio, high=ratio), 1 + allowed, unit="×")


def _answers(old: Record | str | Path, new: Record | str | Path, allowed: float) -> Check:
    """The largest change of an answer to the golden items of the other bundle."""
    name = "answers"
    both = [one for one in (old, new) if not isinstance(one, Record) and bundle.is_bundle(Path(one))]
    if len(both) < 2:
        return Check(name=name, outcome=Outcome.UNMEASURED, note="both must be bundles")
    samples = bundle.golden_samples(Path(both[0]))
    if not samples:
        return Check(name=name, outcome=Outcome.UNMEASURED, note="the other carries no golden items")
    models = [bundle.load(one) for one in both]
    if models[0].pipeline["task"] != models[1].pipeline["task"]:
        return Check(name=name, outcome=Outcome.UNMEASURED, note="the two are for different tasks")
    what, apart = parts.distance_of(models[0].pipeline)
    before, after = (model.predict(samples) for model in models)
    most = max(apart(one, other) for one, other in zip(before, after, strict=True))
    note = f"largest {what} of {len(samples)} golden items"
    return at_most(name, Estimate(point=most, low=most, high=most), allowed, note=note)
