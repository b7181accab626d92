"""What each pass of the winner gave: the network after every change of its structure, measured as the winner was.

Variants that exist already are taken as they are. Only networks between the passes that prune or train are made anew, in
full precision on the winner's runtime, so that what pruning cost stands apart from what quantization cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fmopt import gate, trials, wording
from fmopt.errors import FmoptError
from fmopt.recipe import Recipe
from fmopt.record import Rung, Trial
from fmopt.trials import Run, primary


def waterfall(run: Run, winner: str, reference: str) -> list[Rung]:
    """From full precision on the winner's runtime to the winner, in the order of its passes; empty for a baseline.

    Scored on validation, and timed in turn where some are new. A network that cannot be built is left out.
    """
    last = run.recipes[winner]
    start = next((recipe for recipe in run.job.plan.baselines if recipe.runtime == last.runtime), None)
    if start is None or start.name not in run.artifacts or start.name == winner or not run.job.target.present:
        return []
    # A run of its own: what is made here is no candidate.
    side = replace(run, trials=dict(run.trials), artifacts=dict(run.artifacts), recipes=dict(run.recipes))
    between = list(_between(side, last, start))
    chain = [start, *between, last]
    if between:
        trials.time_in_turn(side, [recipe.name for recipe in chain])
    befores = [None, *chain]
    return [_rung(side, recipe, before, reference) for recipe, before in zip(chain, befores, strict=False)]


def _between(run: Run, last: Recipe, start: Recipe) -> Iterator[Recipe]:
    """`last` cut off after each pass that left a checkpoint, built as `start` is."""
    for number, folder in run.shop.networks(last.steps).items():
        if number == len(last.steps):
            continue
        name = f"{last.name} after {number}"
        run.progress.say(f"building {name} of its passes in {start.precision}")
        try:
            run.artifacts[name] = run.shop.of_network(folder).artifact(start)
        except FmoptError as error:
            run.progress.say(f"{name} of its passes is left out of the waterfall: {error}")
            continue
        recipe = start.model_copy(update={"name": name, "steps": last.steps[:number]})
        run.trials[name] = Trial(recipe=trials.line(run, recipe), status="measured")
        yield recipe


def _rung(run: Run, recipe: Recipe, before: Recipe | None, reference: str) -> Rung:
    job, items = run.job, run.items("validation")
    baseline, got = (trials.predictions(run, name, "validation") for name in (reference, recipe.name))
    theirs, ours = (primary(job.task.scores(one, items, baseline, job.facts)) for one in (baseline, got))
    drop = gate.paired_drop(theirs, ours, confidence=job.request.budget.confidence, seed=job.request.seed)
    latency = run.trials[recipe.name].latency
    assert latency is not None
    return Rung(
        name=_name(recipe, before), p50=float(np.median(latency.samples_ms)),
        size_bytes=run.artifacts[recipe.name].size_bytes, drop=drop,
    )  # fmt: skip


def _name(recipe: Recipe, before: Recipe | None) -> str:
    """What this rung adds to the one before."""
    if before is None:
        return f"{wording.precision(recipe.precision)} on {wording.runtime(recipe.runtime)}"
    return " → ".join(step.use for step in recipe.steps[len(before.steps) :]) or f"run in {recipe.precision}"
