"""Candidates that depend on how the planned ones came out: sensitive layers back in float, networks pruned to a time.

Each is built, timed beside what is chosen so far, and scored; what follows depends on that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from fmopt.core.model import makes_answers
from fmopt.core.recipe import Recipe, Step
from fmopt.passes.base import traits_of
from fmopt.workflow.job.request import Training
from fmopt.workflow.search import run as search_run
from fmopt.workflow.search import trials
from fmopt.workflow.search.ablation import aside, networks
from fmopt.workflow.search.candidates import gradual, pruned, trained_rounding
from fmopt.workflow.search.run import SCORING, Run, by_speed, time_ratio
from fmopt.workflow.search.selection import choose, drop_limit, keeps_accuracy, median_ms, score

GROUPS_PER_LAYER = 4  # tensors that feed products in a layer: into q, k, v; into the output; into and out of the FFN
FLOAT_GROUPS = (1, 2, 4, 8)  # how many of the most sensitive groups of layers go back to float, one after the other
# Of the time asked for: its interval has to lie within, and pruning may take 1 % more than it was to. What was trained is not
# made up for by another, and training wins back what a narrower network loses.
RESERVE = {"standard": 0.985, "max": 0.97}
TIMING_RUNS = 3  # of the clock for a pruned network and for what it is measured by
FASTER = (1.25, 1.6, 2.0, 2.5)  # than the unpruned network, without a wish
BETWEEN = 2  # networks tried between one that keeps its accuracy and one that does not


def fallback_to_mixed_precision(run: Run, reference: str) -> None:
    """Where our INT8 is fastest but misses the gate, return its most sensitive layers to float, fewest first."""
    limit = drop_limit(run, reference)
    chosen = choose(run, reference)
    ahead = by_speed(run)[: by_speed(run).index(chosen)]
    names = [name for name in ahead if any(traits_of(step).partly for step in run.recipes[name].steps)]
    if limit is None or not names:
        return
    base = run.recipes[names[0]]
    quantizer = next(number for number, step in enumerate(base.steps) if traits_of(step).partly)
    partly = traits_of(base.steps[quantizer]).partly
    for float_groups in FLOAT_GROUPS:
        if not may_gain(run, base.name, chosen, reference, float_groups):
            return
        recipe = base.model_copy(
            update={
                "name": f"{base.name}-{float_groups}-float",
                "steps": (
                    *base.steps[:quantizer],
                    Step(use=partly, options={**base.steps[quantizer].options, "groups": float_groups}),
                    *base.steps[quantizer + 1 :],
                ),
            }
        )
        if run.out_of_time(SCORING) or not trials.build(run, recipe):
            return
        if not judged(run, recipe.name, chosen, reference):
            return
        gained = by_speed(run).index(recipe.name) < by_speed(run).index(chosen)
        if not gained or keeps_accuracy(run, recipe.name, limit):
            return


def may_gain(run: Run, name: str, chosen: str, reference: str, float_groups: int) -> bool:
    """Whether `name` with so many groups of layers in float can still be faster than what is chosen already.

    Priced from the two ends: all groups in float take the reference's time, none `name`'s own. True when not timed.
    """
    quantized, rival = (time_ratio(run, which, reference) for which in (name, chosen))
    if quantized is None or rival is None:
        return True
    groups = GROUPS_PER_LAYER * run.job.metadata.layers
    return quantized + float_groups * (1 - quantized) / groups < rival


def prune_to_budget(run: Run, reference: str) -> None:
    """Efforts beyond quick: the best quick recipe on networks of fewer heads and neurons, for the time that was asked for.

    Where that loses too much, further ones between it and the unpruned network, those on the way to it first; without a
    wish, ever faster ones while they keep their accuracy.
    """
    base = to_prune(run, reference)
    if run.job.request.effort == "quick" or base is None or not run.job.target.here:
        return
    begun = time.monotonic()
    # As pruned networks will be judged, without the many others that share the rounds of all: what is asked of pruning hangs
    # on the ratio of these two.
    if not time_followup(run, base.name, base.name, reference, TIMING_RUNS):
        return
    wish = wished_speedup(run, base.name, reference)
    slower = tuple(_ahead(run, base.name, median_ms(run, reference) / one) for one in run.job.request.slower)
    # Said once: both are timed again later, when the machine may have another clock.
    pruning = Pruning(run, base, reference, median_ms(run, reference) / median_ms(run, base.name), slower)
    if wish is None:
        for speedup in FASTER:
            if not pruning.tried(speedup):
                break
    elif wish > 1 and pruning.tried(wish):
        pruning.corrected(wish)
    elif wish > 1:
        kept, lost = pruning.on_the_way(wish)
        for _ in range(BETWEEN):
            middle = (kept * lost) ** 0.5
            kept, lost = (middle, lost) if pruning.tried(middle) else (kept, middle)
    run.seconds["pruning"] = round(time.monotonic() - begun, 3)


def to_prune(run: Run, reference: str) -> Recipe | None:
    """The recipe that pruned networks are deployed by: the fastest of INT8 or INT4 that keeps its accuracy, else the fastest."""
    limit = drop_limit(run, reference)
    quantized = [name for name in by_speed(run) if run.recipes[name].precision in ("int8", "int4")]
    best = next((name for name in quantized if keeps_accuracy(run, name, limit)), next(iter(quantized), None))
    return None if best is None else run.recipes[best]


def wished_speedup(run: Run, base: str, reference: str) -> float | None:
    """How many times faster than `base` meets the budget, with some reserve for the interval; None when it asks for none."""
    budget = run.job.request.budget
    ends = [] if budget.max_latency_ms is None else [budget.max_latency_ms]
    ends += [] if budget.min_speedup is None else [median_ms(run, reference) / budget.min_speedup]
    return _ahead(run, base, min(ends)) if ends else None


def _ahead(run: Run, base: str, ms: float) -> float:
    """How many times faster than `base` takes so long at most, with the reserve."""
    return median_ms(run, base) / (RESERVE[run.job.request.effort] * ms)


@dataclass(frozen=True)
class Pruning:
    """Networks of `base` pruned to speedups over its uncut one, and what came of them."""

    run: Run
    base: Recipe
    reference: str
    ahead: float  # how many times faster than the reference `base` is
    slower: tuple[float, ...] = ()  # speedups over `base` that are on the way in any case

    def recipe(self, speedup: float) -> Recipe:
        """`base` on a network that is so many times faster."""
        effort = self.run.job.request.effort
        name = f"{self.base.name}-pruned-{self.ahead * speedup:.3g}x"
        return pruned(self.base, self.stops(speedup), name, effort, training_of(self.run))

    def stops(self, speedup: float) -> tuple[float, ...]:
        """Where pruning to a speedup stops to train, the last one included."""
        return gradual(speedup, self.run.job.request.effort, self.slower)

    def tried(self, speedup: float) -> bool:
        """Build, time and score it; whether it keeps its accuracy."""
        run, recipe = self.run, self.recipe(speedup)
        if run.out_of_time(SCORING):
            return False
        run.progress.start(f"building {recipe.name}", 1)
        built = trials.build(run, recipe)
        run.progress.step()
        if not built:
            return False
        return judged_late(run, recipe.name, self.reference) or (
            run.job.request.effort == "max"
            and any(traits_of(step).rounds_products for step in recipe.steps)  # narrow weights are not trained
            and rounding_costs(run, recipe.name, self.reference)
            and try_rounding(run, recipe.name, self.reference)
        )

    def corrected(self, speedup: float) -> None:
        """Where a network that keeps its accuracy turned out slower than the budget says, one that makes up for that: in one
        shot only, where it costs a few minutes, not a training."""
        run, name = self.run, self.recipe(speedup).name
        short = wished_speedup(run, name, self.reference)
        if run.job.request.effort == "standard" and short is not None and RESERVE["standard"] * short > 1:
            self.tried(speedup * short)

    def on_the_way(self, speedup: float) -> tuple[float, float]:
        """(speedup of the fastest network that keeps its accuracy, of the slowest that does not) among those that gradual
        pruning to `speedup` has made already: nothing is trained for them."""
        made = self.run.builder.networks(self.recipe(speedup).steps)
        stops, lost = self.stops(speedup), speedup
        for number in range(len(stops) - 1, 0, -1):
            stop = stops[number - 1]
            recipe = self.recipe(stop)
            steps = 2 * number  # each stop is pruned to and distilled at
            if steps not in made or not trials.build(self.run, recipe, made[steps]):
                continue
            if judged_late(self.run, recipe.name, self.reference):
                return stop, lost
            lost = stop
        return 1.0, lost


def training_of(run: Run) -> Training:
    """What the request says of training, with epochs that fit the data."""
    return run.job.request.training.over(len(run.job.data.splits.get("train", ())))


def rounding_costs(run: Run, name: str, reference: str) -> bool:
    """Whether it is quantization that loses a variant's accuracy: its network keeps it in full precision."""
    side = aside(run)
    before = list(networks(side, name))
    if not before or run.out_of_time(SCORING):
        return False
    score(side, before[-1].name, reference)
    return keeps_accuracy(side, before[-1].name, drop_limit(run, reference))


def try_rounding(run: Run, name: str, reference: str) -> bool:
    """A variant's network with its rounding trained in place; whether it keeps its accuracy."""
    made = run.builder.networks(run.recipes[name].steps)
    metadata = run.job.metadata
    recipe = trained_rounding(
        run.recipes[name], training_of(run), str(metadata.folder), answers=makes_answers(metadata.pipeline)
    )
    run.progress.start(f"building {recipe.name}", 1)
    built = trials.build(run, recipe, made[max(made)])
    run.progress.step()
    return built and judged_late(run, recipe.name, reference)


def judged_late(run: Run, name: str, reference: str) -> bool:
    """Time and score a pruned variant; whether it keeps its accuracy."""
    return judged(run, name, choose(run, reference), reference, TIMING_RUNS) and keeps_accuracy(
        run, name, drop_limit(run, reference)
    )


def judged(run: Run, name: str, chosen: str, reference: str, timing_runs: int = 1) -> bool:
    """Time and score a variant made after the others; whether it could be."""
    if not time_followup(run, name, chosen, reference, timing_runs):
        return False
    score(run, name, reference)
    return name in run.artifacts


def time_followup(run: Run, name: str, chosen: str, reference: str, timing_runs: int = 1) -> bool:
    """Time a variant made after the others, beside what it is compared with; whether it ran beside the reference."""
    if not run.job.target.present:
        return True
    trials.time_in_turn(run, list(dict.fromkeys([reference, chosen, name])), timing_runs)
    # both of a ratio come from the same rounds; the other variants keep the ratio of their own
    run.update(chosen, speedup=search_run.speedup(run, chosen, reference))
    return name in run.artifacts and run.timed_together(reference, name) is not None
