"""What each pass of the winner gave: the network after every change of its structure, measured as the winner was.

Variants that exist already are taken as they are. Only networks between the passes that prune or train are made anew, in
full precision on the winner's runtime, so that what pruning cost stands apart from what quantization cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fmopt.core import formatting
from fmopt.core.errors import PassError, UnmeasuredError
from fmopt.core.recipe import Recipe
from fmopt.core.results import Latency
from fmopt.evaluation import bootstrap
from fmopt.evaluation.record import AblationStep
from fmopt.workflow.search import trials
from fmopt.workflow.search.run import Run, primary
from fmopt.workflow.search.scoring import predictions


def waterfall(run: Run, winner: str, reference: str) -> list[AblationStep]:
    """From full precision on the winner's runtime to the winner, in the order of its passes; empty for a baseline.

    Scored on validation, and timed in turn where some are new. A network that cannot be built is left out.
    """
    last, start = run.recipes[winner], full_precision(run, winner)
    if start is None or start.name not in run.artifacts or start.name == winner or not run.job.target.present:
        return []
    side = aside(run)
    between = list(networks(side, winner))
    chain = [start, *between, last]
    if between or side.timed_together(start.name, winner) is None:
        trials.time_in_turn(side, [recipe.name for recipe in chain])
    # others failed when they were timed, or cannot answer
    chain = [recipe for recipe in chain if recipe.name in side.artifacts and _answers(side, recipe.name, run.validated)]
    times = side.timed_together(*(recipe.name for recipe in chain))
    if times is None or winner not in side.artifacts:
        return []
    steps = zip(chain, times, [None, *chain], strict=False)
    return [_step(side, recipe, latency, before, reference) for recipe, latency, before in steps]


def aside(run: Run) -> Run:
    """A run that begins as `run` is: what is made in it is no candidate."""
    return replace(
        run,
        trials=dict(run.trials),
        artifacts=dict(run.artifacts),
        recipes=dict(run.recipes),
        timings=list(run.timings),
        on_change=lambda: None,
    )


def full_precision(run: Run, name: str) -> Recipe | None:
    """The baseline on the runtime of a variant."""
    runtime = run.recipes[name].runtime
    return next((recipe for recipe in run.job.plan.baselines if recipe.runtime == runtime), None)


def networks(side: Run, name: str) -> Iterator[Recipe]:
    """Recipes, built, of a variant's network after each of its passes that prunes or trains, in full precision."""
    last, start = side.recipes[name], full_precision(side, name)
    for number, folder in side.builder.networks(last.steps).items():
        if start is None or number == len(last.steps):
            continue
        recipe = start.model_copy(update={"name": f"{name} after {number}", "steps": last.steps[:number]})
        side.progress.say(f"building {recipe.name} of its passes in {start.precision}")
        if trials.build(side, recipe, folder):
            yield recipe


def _answers(run: Run, name: str, most: int) -> bool:
    """Whether a network can predict the first items of validation; one that cannot is a failed trial."""
    try:
        predictions(run, name, "validation", most=most)
    except (PassError, UnmeasuredError) as error:
        run.failed(name, str(error))
        return False
    return True


def _step(run: Run, recipe: Recipe, latency: Latency, before: Recipe | None, reference: str) -> AblationStep:
    job, most = run.job, run.validated
    items = run.items("validation")[:most]
    baseline, got = (predictions(run, name, "validation", most=most) for name in (reference, recipe.name))
    theirs, ours = (primary(job.task.scores(one, items, baseline, job.metadata)) for one in (baseline, got))
    drop = bootstrap.paired_drop(theirs, ours, confidence=job.request.budget.confidence, seed=job.request.seed)
    return AblationStep(
        name=_name(recipe, before), p50=float(np.median(latency.samples_ms)),
        size_bytes=run.artifacts[recipe.name].size_bytes, drop=drop,
    )  # fmt: skip


def _name(recipe: Recipe, before: Recipe | None) -> str:
    """What this step adds to the one before."""
    if before is None:
        return f"{formatting.precision(recipe.precision)} on {formatting.runtime(recipe.runtime)}"
    return " → ".join(step.use for step in recipe.steps[len(before.steps) :]) or f"run in {recipe.precision}"
