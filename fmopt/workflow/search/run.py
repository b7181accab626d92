"""One optimization under way: what is built, timed and scored so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import Any

import numpy as np

from fmopt.core import plugins
from fmopt.core.model import Artifact, CheckpointMetadata, Runner
from fmopt.core.progress import Progress
from fmopt.core.recipe import Recipe
from fmopt.core.results import Estimate, Latency, Scores
from fmopt.core.stages.store import Store
from fmopt.core.target import Target
from fmopt.data.datasets import Dataset
from fmopt.evaluation import bootstrap
from fmopt.evaluation.record import RecipeLine, Trial
from fmopt.measurement.backends import HostBackend, TimingBackend
from fmopt.tasks.base import Item, Task
from fmopt.workflow.job.request import Request
from fmopt.workflow.search.builder import Builder, tool_versions
from fmopt.workflow.search.executor import Executor, LocalExecutor
from fmopt.workflow.search.plan import Plan

VALIDATION_ROWS = 600  # selection needs less certainty than judgement
# Shares of a time limit after which nothing further is built, and nothing further scored: the rest is for judgement.
BUILDING, SCORING = 0.5, 0.75


@dataclass(frozen=True)
class Job:
    """A request with everything looked up and checked, before any work."""

    request: Request
    metadata: CheckpointMetadata
    task: Task
    target: Target
    data: Dataset
    plan: Plan
    clock: TimingBackend = field(default_factory=HostBackend)
    executor: Executor = field(default_factory=LocalExecutor)
    begun: float = field(default_factory=time.monotonic)  # when what its time limit counts began

    @property
    def candidates(self) -> set[str]:
        """Names of the recipes that are no baseline."""
        return {recipe.name for recipe in self.plan.candidates}


@dataclass
class Run:
    """One optimization under way: what is built, timed and scored so far."""

    job: Job
    builder: Builder
    progress: Progress
    validated: int = 0  # items of the validation split that the reference was scored on
    further: int = 0  # candidates beyond the plan's that were scored, of which a lucky one could be chosen
    judged: int | None = None  # items of the test split that the verdict is about; None: all of them
    trials: dict[str, Trial] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    timings: list[dict[str, Latency]] = field(default_factory=list)  # of every run of the clock, by variant
    of_networks: set[str] = field(
        default_factory=set
    )  # variants built of a network that was there, not of the checkpoint
    on_change: Callable[[], object] = lambda: None  # called when a trial is new or another one now

    @property
    def store(self) -> Store:
        """Where finished stages are."""
        return self.builder.store

    @property
    def clock(self) -> TimingBackend:
        """What times its variants."""
        return self.job.clock

    @property
    def executor(self) -> Executor:
        """Where its variants are built and scored."""
        return self.job.executor

    def clock_versions(self) -> dict[str, Any]:
        """What a timing depends on besides: our own tools, and the runtimes where the clock stands."""
        own = tool_versions()
        return own if not self.clock.note else {**own, "there": self.clock.versions}

    def out_of_time(self, share: float = 1.0) -> bool:
        """True when the user's time limit, or that share of it, is used up."""
        return self.seconds_left(share) < 0

    def seconds_left(self, share: float = 1.0) -> float:
        """Of that share of the user's time limit; infinity without one."""
        limit = self.job.request.time_limit_s
        return math.inf if limit is None else self.job.begun + share * limit - time.monotonic()

    def put(self, trial: Trial) -> None:
        """Take a trial in, in place of one of that name."""
        self.trials[trial.name] = trial
        self.on_change()

    def update(self, name: str, **changes: Any) -> None:
        """Replace fields of a trial."""
        self.put(self.trials[name].model_copy(update=changes))

    def failed(self, name: str, reason: str) -> None:
        """A variant that was built cannot be used: a failed trial, and no artifact to choose."""
        self.progress.say(f"{name} failed: {reason}")
        self.update(name, status="failed", reason=reason)
        self.artifacts.pop(name, None)

    def warn(self, line: str) -> None:
        """A line for the record's warnings, once."""
        if line not in self.warnings:
            self.warnings.append(line)

    def open(self, name: str, threads: int) -> Runner:
        """A variant opened as deployed."""
        artifact = self.artifacts[name]
        return plugins.find("runtimes", artifact.runtime).open(artifact, threads)

    def timed_together(self, *names: str) -> tuple[Latency, ...] | None:
        """Latencies of some variants from the last run of the clock that all of them were in; None when there is none."""
        for timed in reversed(self.timings):
            if all(name in timed for name in names):
                return tuple(timed[name] for name in names)
        return None

    def items(self, split: str) -> list[Item]:
        """Items of a split, of a long one with its rows in random order: a file may be sorted, and not all of them be needed. Of
        validation no more than it takes, of test those that are judged."""
        rows = self.job.data.split(split)
        items = self.job.task.items(rows, self.job.metadata)
        if len(rows) > VALIDATION_ROWS:
            place = np.random.default_rng(self.job.request.seed).permutation(len(rows))  # of each row in the new order
            items = sorted(items, key=lambda item: int(place[item.row]))  # those of one row stay together
            if split == "validation":
                items = [item for item in items if place[item.row] < VALIDATION_ROWS]
        return items[: self.judged] if split == "test" else items


def line(run: Run, recipe: Recipe) -> RecipeLine:
    """A recipe as the record shows it."""
    return RecipeLine(
        name=recipe.name,
        runtime=recipe.runtime,
        steps=[str(step) for step in recipe.steps],
        options=recipe.options,
        effort=run.job.request.effort,
        precision=recipe.precision,
    )


def speedup(run: Run, name: str, reference: str) -> Estimate | None:
    """How many times faster than the reference, with its interval, in the last run of the clock that both were in; None when
    there is none."""
    both = run.timed_together(reference, name)
    if both is None:
        return None
    theirs, ours = both
    return bootstrap.speedup(theirs, ours, confidence=run.job.request.budget.confidence, seed=run.job.request.seed)


def time_ratio(run: Run, name: str, other: str) -> float | None:
    """How many times as long as `other` a variant takes, over the rounds of one run of the clock that both have.

    Two that never ran together are compared by way of a third that each ran with. None where there is none.
    """
    direct = _ratio(run, name, other)
    if direct is not None:
        return direct
    for third in run.trials:
        first, second = _ratio(run, name, third), _ratio(run, third, other)
        if first is not None and second is not None:
            return first * second
    return None


def _ratio(run: Run, name: str, other: str) -> float | None:
    both = run.timed_together(name, other)
    if both is None:
        return None
    shared = min(len(latency.samples_ms) for latency in both)
    ours, theirs = (float(np.median(latency.samples_ms[:shared])) for latency in both)
    return ours / theirs


def primary(scores: Sequence[Scores]) -> Scores:
    """The metric that the budget's drop is judged by."""
    return next(score for score in scores if score.primary)


def by_speed(run: Run, names: Iterable[str] | None = None) -> list[str]:
    """Names of what was built, or of some of it, fastest first: by latency in one run of the clock, by prediction, or by size
    when neither is known."""

    def slow(name: str) -> float:
        trial = run.trials[name]
        if trial.latency is not None:
            return float(np.median(trial.latency.samples_ms))
        return trial.predicted_ms if trial.predicted_ms is not None else (trial.size_bytes or 0) * 1e3

    def order(one: str, other: str) -> int:
        # Medians of different runs of the clock are not compared: the machine may have been another one by then.
        ratio = time_ratio(run, one, other)
        behind = slow(one) - slow(other) if ratio is None else ratio - 1
        return (behind > 0) - (behind < 0)

    return sorted(run.artifacts if names is None else names, key=cmp_to_key(order))
