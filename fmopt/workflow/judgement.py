"""The winner on the test split: on all of it, or, where that takes long, on as many items as make the verdict certain.

Looking several times makes no error more likely: see `gate.confidence_of_look`, and `benchmarks/gate_calibration.py looks`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np

from fmopt.core import formatting
from fmopt.core.errors import PassError, UnmeasuredError
from fmopt.core.results import Verdict
from fmopt.core.workload import Workload
from fmopt.evaluation import bootstrap, gate
from fmopt.evaluation.gate import Drop
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.record import value_of
from fmopt.tasks.base import Item
from fmopt.workflow.invariance import answers_alone, invariance_check, other_ways, worst_scores
from fmopt.workflow.search import trials, under_load
from fmopt.workflow.search.run import Run, primary, speedup
from fmopt.workflow.search.scoring import FIRST, Predictor, looks, predictions
from fmopt.workflow.search.selection import choose

PATIENCE = 60.0  # seconds that predicting the rest of the test split may take without looking whether it is needed
PREDICTING = 0.4  # of what a time limit leaves; the rest is for other batches, timing and writing
QUICK_SECONDS = 300.0  # of predicting the test split with effort "quick", beyond the first block


def chosen_and_judged(run: Run, reference: str) -> tuple[str, Verdict]:
    """(The winner, its verdict); one that cannot answer the test split is a failed trial, and another is chosen."""
    begun = time.monotonic()
    predictions(run, reference, "test", most=FIRST)  # where that fails there is nothing to hold anything to
    while True:
        winner = choose(run, reference)
        try:
            confidence = _decide_on(run, winner, reference)
        except (PassError, UnmeasuredError) as error:
            run.failed(winner, str(error))
        else:
            return winner, judge(run, winner, reference, confidence, begun)


def _decide_on(run: Run, winner: str, reference: str) -> float:
    """On how many items the verdict is: `run.judged`. Returns the confidence of its bounds on the drop."""
    budget, quick = run.job.request.budget, run.job.request.effort == "quick"
    reason = "as many as there was time for (see --time-limit" + (" and --effort)" if quick else ")")
    with closing(Predictor(run, reference, "test")) as theirs, closing(Predictor(run, winner, "test")) as ours:
        total, seconds = len(ours.items), PREDICTING * run.seconds_left()
        seconds = min(seconds, QUICK_SECONDS) if quick else seconds
        for number, (count, last) in enumerate(looks([theirs, ours], total, PATIENCE, seconds)):
            baseline, got = theirs.upto(count), ours.upto(count)
            confidence = gate.confidence_of_look(budget.confidence, number, last=last)
            if last or budget.max_drop is None:  # without a limit more items decide nothing
                break
            if _is_certain(run, budget.max_drop, ours.items[:count], baseline, got, confidence):
                reason = (
                    f"for the verdict is certain by then (bounds at {formatting.confidence(confidence)} confidence)"
                )
                break
    if count < total:
        run.warn(f"judged on {count} of the {total} items of the test split, {reason}")
    run.judged = count
    return confidence


def _is_certain(
    run: Run, allowed: Drop, items: Sequence[Item], baseline: Sequence[Any], got: Sequence[Any], at: float
) -> bool:
    """Whether the drop on these items lies within the limit, or beyond it, with bounds at that confidence."""
    job = run.job
    theirs, ours = (primary(job.task.scores(one, items, baseline, job.metadata)) for one in (baseline, got))
    drop = bootstrap.paired_drop(theirs, ours, confidence=at, seed=job.request.seed)
    limit = allowed.limit(value_of(theirs), bounded=METRICS[theirs.metric].bounded)
    return drop.high <= limit or drop.low > limit


def judge(run: Run, winner: str, reference: str, confidence: float, begun: float) -> Verdict:
    """The winner on the test split, its footprint and its latency against the budget; its drop with bounds at `confidence`. What
    is judged was begun to be predicted at `begun`."""
    request, items = run.job.request, run.items("test")
    baseline = predictions(run, reference, "test")
    got = predictions(run, winner, "test")
    for name, predicted in ((reference, baseline), (winner, got)):
        run.update(name, test_scores=run.job.task.scores(predicted, items, baseline, run.job.metadata))
    ours, theirs = primary(run.trials[winner].test_scores), primary(run.trials[reference].test_scores)
    one_by_one = answers_alone(run, winner)
    ways = other_ways(run, winner, got, one_by_one=one_by_one)
    if not one_by_one:
        ours = worst_scores(run, ways, ours, baseline, theirs)
    drop = bootstrap.paired_drop(theirs, ours, confidence=confidence, seed=request.seed)
    run.update(winner, test_drop=drop, test_confidence=confidence if confidence != request.budget.confidence else None)
    run.seconds["test"] = round(time.monotonic() - begun, 3)
    present = run.job.target.present
    if present:
        if run.timed_together(reference, winner) is None:  # each in a group of its own
            trials.time_in_turn(run, [reference, winner])
        time_for_comparison(run, sorted({reference, winner}))
        run.progress.start("memory and load time of fresh processes", len({reference, winner}))
        for name in sorted({reference, winner}):
            trials.footprint(run, name)
            run.progress.step()
    both = run.timed_together(reference, winner)
    if both is not None:  # each may have been timed again beside others since
        for name, latency in zip((reference, winner), both, strict=True):
            run.update(name, latency=latency)
        run.update(winner, speedup=speedup(run, winner, reference))
    trial = run.trials[winner]
    verdict = gate.judge(
        request.budget,
        drop=drop,
        baseline_metric=value_of(theirs),
        bounded=METRICS[theirs.metric].bounded,
        speedup=trial.speedup,
        latency_ms=bootstrap.median_latency(trial.latency, request.budget.confidence, request.seed)
        if trial.latency
        else None,
        size_mb=(trial.size_bytes or 0) / 1e6,
        memory_mb=trial.footprint.peak_memory_mb if trial.footprint else None,
        device_present=present,
        items_changed=int(np.any(np.not_equal(*ours.paired(theirs)), axis=1).sum()),
        n=len(ours.values),
        samples=len(trial.latency.samples_ms) if trial.latency else 0,
    )
    if request.workload.arrival == "server":
        verdict = Verdict(checks=[*verdict.checks, under_load.check(run, winner, reference)])
    check = invariance_check(run, ways, one_by_one=one_by_one)
    return Verdict(checks=[*verdict.checks, check])


def time_for_comparison(run: Run, names: Sequence[str]) -> None:
    """What is reported beside the speed that is judged: a stated shape beside the data's items, their own items beside that."""
    workload = run.job.request.workload
    if workload.also_length is not None:
        shape = Workload(length=workload.also_length, threads=workload.threads)
        for name, latency in trials.time_beside(run, names, shape).items():
            run.update(name, at_length=latency)
    if not workload.from_raw:
        own = Workload(batch=workload.batch, threads=workload.threads)
        for name, latency in trials.time_beside(run, names, own).items():
            run.update(name, end_to_end=latency)
