"""One trial of a cell: its recipe is built, timed beside the reference and scored, as `optimize` does it, unless it is hopeless.

Knows what a trial takes, not which ones there are: that is cell.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fmopt.core.errors import ConfigError
from fmopt.core.recipe import Recipe
from fmopt.evaluation.record import Trial
from fmopt.workflow.search import run as search_run
from fmopt.workflow.search import trials
from fmopt.workflow.search.candidates import refusal
from fmopt.workflow.search.run import SCORING, Run, by_speed, time_ratio
from fmopt.workflow.search.selection import drop_limit, keeps_accuracy, overtaken, score, stop_early
from fmopt.workflow.sweep.plan import Objective
from fmopt.workflow.sweep.space import Space
from fmopt.workflow.sweep.study import HopelessError

Status = Literal["measured", "stopped early", "failed", "refused"]


class TimeOverError(Exception):
    """The time limit was reached within a trial: a later run does it again."""


@dataclass
class Attempts:
    """What trials of a cell share."""

    run: Run
    space: Space
    reference: str
    objectives: Sequence[Objective]

    def attempt(self, chosen: Mapping[str, Any], keep: Callable[[str, Any], None]) -> tuple[float, ...]:
        """The objectives' values of some choices, all to be made small. HopelessError, with the reason, where there is no need to
        know them; `keep(name, value)` writes down what a later run is to know of the trial."""
        run = self.run
        recipe = self.recipe(chosen)
        keep("recipe", recipe.name)
        if recipe.name in run.trials:
            return self._known(recipe.name)
        try:
            self._measure(recipe)
        except HopelessError:
            keep("status", run.trials[recipe.name].status)
            raise
        return self.values(recipe.name)

    def recipe(self, chosen: Mapping[str, Any]) -> Recipe:
        """The recipe of some choices. HopelessError for options that a pass does not take, of which a trial is kept."""
        try:
            return self.space.recipe(chosen)
        except ConfigError as error:
            raise HopelessError(str(error)) from error

    def again(self, chosen: Mapping[str, Any], status: Status | None, reason: str) -> None:
        """A trial that an earlier run finished: from its stages, or, where it was hopeless, from what was kept of it."""
        try:
            recipe = self.space.recipe(chosen)
        except ConfigError:
            return
        if recipe.name in self.run.trials:
            return
        if status is not None or reason:
            self._put(recipe, status or "refused", reason)
            return
        if trials.build(self.run, recipe):
            self._time(recipe.name)
            self._score(recipe.name)

    def leader(self) -> str | None:
        """The fastest candidate so far that keeps its accuracy on validation."""
        limit = drop_limit(self.run, self.reference)
        full = {recipe.name for recipe in self.run.job.plan.baselines}
        kept = (name for name in by_speed(self.run) if name not in full and self.run.trials[name].drop is not None)
        return next((name for name in kept if keeps_accuracy(self.run, name, limit)), None)

    def values(self, name: str) -> tuple[float, ...]:
        """Time as a part of the reference's, drop in units of the metric, bytes: of these what is asked for. Milliseconds of
        different runs of the clock are not compared."""
        trial = self.run.trials[name]
        assert trial.drop is not None
        found = {
            "latency": self._time_part(name),
            "accuracy": float(np.clip(trial.drop.point, -1e9, 1e9)),  # a perplexity that is lost whole has no end
            "size": float(trial.size_bytes or 0),
        }
        return tuple(found[objective] for objective in self.objectives)

    def _measure(self, recipe: Recipe) -> None:
        run, name = self.run, recipe.name
        if reason := refusal(recipe, run.job.metadata, run.job.target):
            self._put(recipe, "refused", reason)
            raise HopelessError(reason)
        run.progress.start(f"building {name}", 1)
        if not trials.build(run, recipe):
            self._require_time()
            raise HopelessError(run.trials[name].reason)
        run.progress.step()
        self._time(name)
        leader = self.leader()
        if leader is not None and self._beaten(name, leader):
            stop_early(run, name, search_run.speedup(run, name, self.reference))
            run.update(
                name, status="stopped early", reason=f"slower than {leader}, which is as small and keeps its accuracy"
            )
            raise HopelessError(run.trials[name].reason)
        self._score(name)
        if run.trials[name].drop is None:
            self._require_time()
            reason = run.trials[name].reason or f"certainly slower than {self.reference}"
            status: Status = "failed" if run.trials[name].status == "failed" else "stopped early"
            run.update(name, status=status, reason=reason)
            raise HopelessError(reason)

    def _time(self, name: str) -> None:
        """Beside the reference alone: what others were there would be another measurement, which a later run had to repeat."""
        run = self.run
        if run.job.target.present:
            trials.time_in_turn(run, [self.reference, name])
        else:
            trials.predict_latency(run)
        if name not in run.artifacts:
            raise HopelessError(run.trials[name].reason)

    def _score(self, name: str) -> None:
        run = self.run
        score(run, name, self.reference)
        if run.trials[name].drop is not None and name not in run.job.candidates:
            run.further += 1

    def _beaten(self, name: str, leader: str) -> bool:
        """Whether it can neither be chosen nor be the smallest: certainly slower than one that keeps its accuracy, no smaller."""
        ours, theirs = (self.run.trials[one].size_bytes or 0 for one in (name, leader))
        smaller = "size" in self.objectives and ours < theirs
        return not smaller and overtaken(self.run, name, leader)

    def _require_time(self) -> None:
        if self.run.out_of_time(SCORING):
            raise TimeOverError

    def _known(self, name: str) -> tuple[float, ...]:
        """Of a recipe that was tried already: nothing is done twice."""
        if self.run.trials[name].drop is None:
            raise HopelessError(self.run.trials[name].reason or "tried before")
        return self.values(name)

    def _put(self, recipe: Recipe, status: Status, reason: str) -> None:
        run = self.run
        run.recipes[recipe.name] = recipe
        run.put(Trial(recipe=search_run.line(run, recipe), status=status, reason=reason))

    def _time_part(self, name: str) -> float:
        ratio = time_ratio(self.run, name, self.reference)
        if ratio is not None:
            return ratio
        ours, theirs = (self.run.trials[one].predicted_ms for one in (name, self.reference))
        return 1.0 if ours is None or not theirs else ours / theirs
