"""Which candidate is chosen: scored on the validation split, fastest first, against what the budget lets go.

Half of the allowed drop is kept in reserve, because the test split judges with a bound, and on other items.
"""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np

from fmopt.core.errors import PassError, PlanError, UnmeasuredError
from fmopt.core.results import Estimate, Scores
from fmopt.evaluation import bootstrap, winners_curse
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.record import value_of
from fmopt.workflow.search import run as search_run
from fmopt.workflow.search.executor import Predict
from fmopt.workflow.search.run import SCORING, Run, by_speed, primary, time_ratio
from fmopt.workflow.search.scoring import FIRST, Predictor, looks, predictions

NEAR = 1.02  # variants this close are one for choosing; both are scored
CLEARLY = 1.1  # times as long, by ratios of two timing runs, is slower, whatever changed between them
PATIENCE = 10.0  # seconds that predicting the rest of validation may take without looking whether it is needed
# Seconds of predicting validation for one candidate, beyond the first block, after which what is known must do.
MOST_SECONDS = {"quick": 60.0, "standard": 300.0, "max": 600.0}
CERTAIN = 0.999  # one-sided confidence at which a candidate is asked for no more of validation


def fastest_baseline(run: Run) -> str:
    """The full-precision variant that every speedup is claimed against: one that answers what others are held to."""
    names = [recipe.name for recipe in run.job.plan.baselines]
    while built := [name for name in by_speed(run) if name in names]:
        try:
            predictions(run, built[0], "validation", most=FIRST)
            return built[0]
        except (PassError, UnmeasuredError) as error:
            run.failed(built[0], str(error))
    reasons = "; ".join(f"{name}: {run.trials[name].reason}" for name in names)
    raise PlanError(f"no full-precision variant of {run.job.metadata.source.title} works here: {reasons}")


def score_candidates(run: Run, reference: str) -> None:
    """Score on validation, fastest first; those that can no longer be chosen are not scored."""
    begun = time.monotonic()
    nothing = Estimate(point=0.0, low=0.0, high=0.0)
    with closing(Predictor(run, reference, "validation")) as theirs:
        # Where it is slow, the first look's: more are predicted as candidates turn out to need them.
        count, whole = next(looks([theirs], len(theirs.items), PATIENCE))
        reference_scores(run, theirs, count)
    run.update(reference, drop=nothing, speedup=Estimate(point=1.0, low=1.0, high=1.0))
    passed: str | None = None
    run.executor.ahead([Predict(run.recipes[name], "validation", count) for name in by_speed(run) if name != reference])
    for name in by_speed(run):
        if name == reference:
            continue
        # Where validation is dear, one that is as fast, or nearly, as one that keeps its accuracy gains nothing worth it.
        if passed is not None and (not whole or overtaken(run, name, passed)):
            stop_early(run, name, search_run.speedup(run, name, reference))
            continue
        score(run, name, reference)
        if passed is None and keeps_accuracy(run, name, drop_limit(run, reference)):
            passed = name
    run.seconds["validation"] = round(time.monotonic() - begun, 3)


def reference_scores(run: Run, theirs: Predictor, count: int) -> list[Scores]:
    """The reference's own scores on the first items of validation; its trial keeps those on the most."""
    got, items = theirs.upto(count), theirs.items[:count]
    scores = run.job.task.scores(got, items, got, run.job.metadata)
    if count >= run.validated:
        run.validated = count
        run.update(theirs.name, scores=scores)
    return scores


def overtaken(run: Run, name: str, passed: str) -> bool:
    """Whether a variant is certainly slower than one that keeps its accuracy: it would not be chosen."""
    behind = search_run.speedup(run, passed, name)
    if behind is None:  # timed in groups, each beside a third
        ratio = time_ratio(run, name, passed)
        return ratio is not None and ratio > CLEARLY
    return behind.low > NEAR


def stop_early(run: Run, name: str, speedup: Estimate | None) -> None:
    """Keep a variant's latency and spend no more on it; a baseline is as measured as it needs to be."""
    run.update(name, speedup=speedup, status="stopped early" if name in run.job.candidates else "measured")


def score(run: Run, name: str, reference: str) -> None:
    """One candidate's accuracy on validation and its speedup; one that cannot answer is a failed trial.

    It is asked for as many items as it takes to be certain whether it keeps its accuracy, where all of them take long.
    """
    speedup = search_run.speedup(run, name, reference)
    run.update(name, speedup=speedup)
    if speedup is not None and speedup.high < 1:
        stop_early(run, name, speedup)  # it cannot win any more, whatever its accuracy
        return
    if run.out_of_time(SCORING):
        run.update(name, status="stopped early", reason="the time limit was reached before it was scored")
        return
    confidence = run.job.request.budget.confidence
    with (
        closing(Predictor(run, reference, "validation")) as theirs,
        closing(Predictor(run, name, "validation")) as ours,
    ):
        try:
            seconds = min(run.seconds_left(SCORING), MOST_SECONDS[run.job.request.effort])
            for count, last in looks([theirs, ours], len(ours.items), PATIENCE, seconds):
                got, baseline = ours.upto(count), theirs.upto(count)
                before = primary(reference_scores(run, theirs, count))
                scores = run.job.task.scores(got, ours.items[:count], baseline, run.job.metadata)
                limit = drop_limit(run, reference)
                if last or limit is None or _is_certain(run, before, primary(scores), limit):
                    break
        except (PassError, UnmeasuredError) as error:
            run.failed(name, str(error))
            return
    drop = bootstrap.paired_drop(before, primary(scores), confidence=confidence, seed=run.job.request.seed)
    run.update(name, scores=scores, drop=drop)


def _is_certain(run: Run, before: Scores, scores: Scores, limit: float) -> bool:
    """Whether more items would hardly change what `within_reserve` says, or the drop is known so well that it lies near the line:
    then what more items would say is as good as luck."""
    drop = bootstrap.paired_drop(before, scores, confidence=CERTAIN, seed=run.job.request.seed)
    return drop.low > limit / 2 or drop.high <= limit / 2 or drop.high - drop.low <= limit / 2


def choose(run: Run, reference: str) -> str:
    """The fastest candidate that keeps its accuracy on validation; the fastest full-precision variant when none does.

    Half of the allowed drop is kept in reserve: the test split judges with a bound, and on other items. Where no
    full-precision variant can be put into a bundle, the fastest that keeps its accuracy, however slow. PlanError when there is
    none of either.
    """
    full = {recipe.name for recipe in run.job.plan.baselines}
    ready = [name for name in by_speed(run) if run.artifacts[name].runtime != "torch"]  # a bundle runs without torch
    limit = drop_limit(run, reference)
    as_it_is = next((name for name in ready if name in full), None)
    ahead = ready if as_it_is is None else ready[: ready.index(as_it_is)]
    chosen = next((name for name in ahead if keeps_accuracy(run, name, limit)), as_it_is)
    if chosen is None:
        others = [trial for name, trial in run.trials.items() if run.recipes[name].runtime != "torch"]
        reasons = "; ".join(f"{trial.name}: {trial.reason or 'it loses too much'}" for trial in others)
        raise PlanError(
            f"nothing that runs {run.job.metadata.source.title} without torch could be made, so there is no bundle: {reasons}. "
            f"What was measured is kept; see it with: fmopt report {run.job.request.out} --watch"
        )
    return chosen


def keeps_accuracy(run: Run, name: str, limit: float | None) -> bool:
    """Whether a scored candidate may be judged: its drop on validation is at most half of what is allowed, or less where it was
    chosen from more candidates than the plan's."""
    drop = run.trials[name].drop
    if drop is None or limit is None:
        return drop is not None
    if not run.further or name in run.job.candidates:
        return within_reserve(drop, limit)
    times_as_many = run.further / max(len(run.job.candidates), 1)
    return drop.point <= winners_curse.most_seen(drop, limit, times_as_many, run.job.request.budget.confidence)


def within_reserve(drop: Estimate, limit: float) -> bool:
    """Whether a drop on validation leaves half of what is allowed in reserve for the judgement on test."""
    return drop.point <= winners_curse.RESERVE * limit


def drop_limit(run: Run, reference: str) -> float | None:
    """The allowed drop in units of the metric; None when the budget has none."""
    allowed = run.job.request.budget.max_drop
    if allowed is None:
        return None
    score = primary(run.trials[reference].scores)
    return allowed.limit(value_of(score), bounded=METRICS[score.metric].bounded)


def median_ms(run: Run, name: str) -> float:
    """Median latency of a variant that was timed."""
    latency = run.trials[name].latency
    assert latency is not None
    return float(np.median(latency.samples_ms))
