"""The order of one cell: baselines, the fixed plan's trials, further ones, a last clock for the best, one judgement, a bundle.

As in `optimize`, selection and judgement use different items, and only the winner is asked for the test split, once.
"""

from __future__ import annotations

import time
from contextlib import closing, suppress
from pathlib import Path

from fmopt.core import formatting
from fmopt.core.progress import Progress
from fmopt.core.results import Estimate
from fmopt.core.stages.store import content_key, disk_errors, own_folder
from fmopt.evaluation.record import Record, as_displayed, drop_unit, latency_of
from fmopt.passes.prune_structured import PruneStructured
from fmopt.reports.plots import on_front
from fmopt.reports.run_status import noted
from fmopt.workflow.job.disk import drop_shared, require_room
from fmopt.workflow.job.publish import make_record, publish
from fmopt.workflow.job.start import start
from fmopt.workflow.judgement import chosen_and_judged
from fmopt.workflow.optimize import build_all, losing_reason, time_all
from fmopt.workflow.search import run as search_run
from fmopt.workflow.search import trials
from fmopt.workflow.search.followups import TIMING_RUNS, training_of
from fmopt.workflow.search.partial_record import so_far
from fmopt.workflow.search.run import SCORING, Job, Run, by_speed
from fmopt.workflow.search.selection import choose, drop_limit, fastest_baseline, keeps_accuracy, score_candidates
from fmopt.workflow.sweep.attempts import Attempts, TimeOverError
from fmopt.workflow.sweep.one_clock import on_one_clock
from fmopt.workflow.sweep.plan import Place, SweepPlan
from fmopt.workflow.sweep.record import Cell, Tried
from fmopt.workflow.sweep.space import Space, space_of
from fmopt.workflow.sweep.study import HopelessError, Study

FINALISTS = 4  # of those that keep their accuracy, timed once more on one clock
NOTHING_NEW = 30  # trials in a row that were tried before: then the space is as good as searched


def space_around(run: Run) -> Space:
    """Where a run's cell is searched."""
    job = run.job
    narrower = PruneStructured(speedup=2.0).refusal(job.metadata, job.target) is None
    prunes = job.request.effort != "quick" and job.target.here and narrower
    return space_of(job.plan.candidates, job.request.effort, training_of(run), prunes=prunes)


def sweep_cell(job: Job, plan: SweepPlan, place: Place, folder: Path, progress: Progress) -> Cell:
    """Search, choose, judge and bundle in one cell; what `folder` holds of it already is not done again."""
    request, begun = job.request, time.monotonic()
    require_room(
        request.out, request.stages_folder, (job.plan.estimates.disk_gb - job.plan.estimates.optional_gb) * 1e9
    )
    with (
        closing(job.executor),
        closing(job.clock),
        own_folder(request.out),
        noted(request.out, progress, job.plan.estimates.minutes) as notes,
        disk_errors(request.stages_folder),
    ):
        run = start(job, notes)
        job.executor.begin(run)
        run.on_change, notes.so_far = notes.changed, so_far(run)
        build_all(run, job.plan.baselines)
        time_all(run)
        reference = fastest_baseline(run)
        score_candidates(run, reference)
        space = space_around(run)
        study = Study(folder, study_name(run, place, plan, space), space, len(plan.objectives), plan.sampler, plan.seed)
        before = study.seconds()
        search(Attempts(run, space, reference, plan.objectives), study, plan.trials, place.name)
        planned = time_finalists(run, reference)
        winner, verdict = chosen_and_judged(run, reference)
        explain(run, winner, reference)
        record = make_record(run, winner, reference, verdict, [])
        publish(run, record, winner)
        drop_shared(request.stages_folder)
        seconds = before + time.monotonic() - begun
        study.keep_seconds(seconds)
        run.progress.stop()
        return cell_of(run, record, place, planned, seconds / 60)


def study_name(run: Run, place: Place, plan: SweepPlan, space: Space) -> str:
    """What tells a cell's study from all others: with another model, data, target or workload it is another search."""
    job = run.job
    key = {
        "model": job.metadata.digest,
        "data": job.data.digest,
        "target": job.target.model_dump(mode="json"),
        "workload": job.request.workload.model_dump(),
        "budget": job.request.budget.model_dump(mode="json"),
        "objectives": plan.objectives,
        "effort": plan.effort,
        "seed": plan.seed,
        "space": {name: list(values) for name, values in space.values.items()},
        "bases": {name: base.recipe.model_dump(mode="json") for name, base in space.bases.items()},
    }
    return f"{place.name}-{content_key('study', key)[:16]}"


def search(attempts: Attempts, study: Study, wanted: int, title: str) -> None:
    """Trials until so many recipes were tried, the space is searched, or the time is over; the plan's first."""
    run, space = attempts.run, attempts.space
    done = study.finished()
    if done:
        run.progress.say(f"{title}: {len(done)} trials are finished already and are not done again")
    for one in done:
        with suppress(HopelessError):
            attempts.again(one.params, one.user_attrs.get("status"), one.user_attrs.get("reason", ""))
    full = len(run.job.plan.baselines)
    stale = 0
    while (study.waiting() or len(run.trials) - full < min(wanted, len(space))) and stale < NOTHING_NEW:
        if run.out_of_time(SCORING):
            break
        known = len(run.trials)
        try:
            study.step(lambda chosen, trial: attempts.attempt(chosen, trial.set_user_attr))
        except TimeOverError:
            break
        if len(run.trials) == known:
            stale += 1
            continue
        stale = 0
        name = list(run.trials)[-1]
        run.progress.say(f"{title}: {known - full + 1} of {wanted}, {said(run, name)}")
    if run.out_of_time(SCORING):
        run.warn("the time limit was reached before all recipes were tried; the same command goes on")


def said(run: Run, name: str) -> str:
    """A trial in a line: `openvino-static-int8: 1.82×, −0.12 pt`, or why it ended."""
    trial = run.trials[name]
    if trial.drop is None:
        return f"{name} {trial.status}: {trial.reason}"
    return f"{name}: {formatting.times(trial.speedup)}, drop {formatting.points(trial.drop.point)}"


def time_finalists(run: Run, reference: str) -> str | None:
    """The best on one clock, and the one to be chosen once more on another: the fastest of many is so by luck too, which does not
    come again. Returns the candidate that the fixed plan alone would choose; None where none keeps its accuracy."""
    limit, full = drop_limit(run, reference), {recipe.name for recipe in run.job.plan.baselines}

    def kept() -> list[str]:
        return [name for name in by_speed(run) if name not in full and keeps_accuracy(run, name, limit)]

    def planned() -> list[str]:
        return [name for name in kept() if name in run.job.candidates][:1]

    if not run.job.target.present:
        trials.predict_latency(run)
        return next(iter(planned()), None)
    finalists = list(dict.fromkeys([*kept()[:FINALISTS], *planned()]))
    if finalists:
        trials.time_in_turn(run, [reference, *finalists])
        last = list(dict.fromkeys([reference, choose(run, reference), *planned()]))
        trials.time_in_turn(run, last, TIMING_RUNS)
        for name in finalists:
            run.update(name, speedup=search_run.speedup(run, name, reference))
    trials.predict_latency(run)
    return next(iter(planned()), None)


def explain(run: Run, winner: str, reference: str) -> None:
    """Why each other one was not chosen, and where the time of the winner and of the reference goes."""
    if not run.job.target.present:
        return
    if run.job.target.here:
        for name in sorted({winner, reference}):
            run.update(name, profile=trials.profile(run, name))
    for name in run.artifacts:
        if name != winner and not run.trials[name].reason:
            run.update(name, reason=losing_reason(run, name, winner, reference))


def cell_of(run: Run, record: Record, place: Place, planned: str | None, minutes: float) -> Cell:
    """What is kept of a cell beside its record."""
    shown = on_one_clock(as_displayed(record))
    winner = record.winning
    assert winner is not None  # something is shipped, or there was a PlanError
    displayed = shown.winning or winner
    other = planned if planned not in (None, record.winner) else None
    ahead = search_run.speedup(run, record.winner, other) if other else None
    return Cell(
        place=place,
        title=str(record.model["title"]),
        target=record.target.title,
        data=str(record.data["name"]),
        unit=drop_unit(record),
        reference=record.reference,
        winner=record.winner,
        planned=planned,
        ahead=ahead,
        verdict=record.verdict,
        test_drop=displayed.test_drop,
        speedup=winner.speedup,
        looked_at=run.further,
        sentence=sentence(record, planned, ahead, run.further, run.job.candidates),
        tried=tried(shown, run.job.candidates),
        minutes=round(minutes, 2),
        predicted=not record.target.present,
        warnings=list(record.circumstances.warnings),
    )


def tried(record: Record, planned: set[str]) -> list[Tried]:
    """Every recipe of a record, baselines first."""
    front, full = on_front(record.everything), {trial.name for trial in record.baselines}
    return [
        Tried(
            name=trial.name,
            runtime=trial.recipe.runtime,
            precision=trial.recipe.precision,
            steps=trial.recipe.steps,
            status=trial.status,
            reason=trial.reason,
            planned=trial.name in planned,
            baseline=trial.name in full,
            front=trial.name in front,
            p50_ms=latency_of(trial),
            speedup=trial.speedup,
            drop=trial.drop,
            size_bytes=trial.size_bytes,
        )
        for trial in record.everything
    ]


def sentence(record: Record, planned: str | None, ahead: Estimate | None, further: int, candidates: set[str]) -> str:
    """What came of searching further than the fixed plan, in words."""
    looked = f"{further} recipe{'s' if further != 1 else ''} beyond the fixed plan {'were' if further != 1 else 'was'} scored"
    full = {trial.name for trial in record.baselines}
    found = record.winner not in candidates | full
    if not found:
        best = planned if record.winner in candidates else record.reference
        what = "the fixed plan's" if record.winner in candidates else "full precision,"
        return f"The sweep found no variant that is at least as fast as {what} {best}, at equal accuracy; {looked}."
    if planned is None:
        return f"{record.winner} keeps its accuracy, and no candidate of the fixed plan does; {looked}."
    if ahead is None:
        return f"{record.winner} is expected to be faster than the fixed plan's {planned}, which was not measured; {looked}."
    by = f"{formatting.times(ahead)} ({formatting.times_interval(ahead)}) as fast as the fixed plan's {planned}"
    if ahead.low > 1:
        return f"{record.winner} is {by}, and keeps its accuracy too; {looked}."
    return f"{record.winner} is {by}: no faster by more than chance; {looked}."
