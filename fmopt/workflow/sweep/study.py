"""The search of a cell in Optuna: its storage on disk, its sampler, what is tried first, and what a killed run left.

Optuna is imported here only, for those who sweep.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from fmopt.core.errors import StoreError, explained
from fmopt.workflow.sweep.plan import Sampler
from fmopt.workflow.sweep.space import Space

FILE = "sweep.db"
BEAT_S, GRACE_S = 60, 180  # rarely, for a beat writes to the disk while a variant may be timed
AROUND = "seconds around the trials"  # baselines, the last clock, judgement
RETRIES = 3  # of a trial that was killed: one that kills its process each time is given up
POPULATION = 16  # of NSGA-II: tens of trials are several generations
STARTUP = 10  # finished trials, those of the plan among them, before TPE goes by them

optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it would say of trials is said by fmopt


class HopelessError(Exception):
    """A trial ends here: refused, broken, or certain not to be chosen. Its text says why."""


class Study:
    """The trials of one cell, on disk; a folder has one process at a time (see `own_folder`)."""

    def __init__(self, folder: Path, name: str, space: Space, directions: int, sampler: Sampler, seed: int) -> None:
        path = folder / FILE
        with _quiet(), explained(f"{path} cannot be used; remove it, and the trials in it are done again", StoreError):
            self.retry = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
            storage = RDBStorage(
                f"sqlite:///{path.absolute()}",
                heartbeat_interval=BEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=self.retry,
            )
            self.study = optuna.create_study(
                study_name=name,
                storage=storage,
                directions=["minimize"] * directions,
                load_if_exists=True,
                sampler=_sampler(sampler, seed),
            )
            # Another seed for each call: one that begins again with the first one's would draw its trials again.
            self.study.sampler = _sampler(sampler, seed + len(self.study.trials))
            self._retry_broken_off()
            for recipe, chosen in space.planned.values():
                self.study.enqueue_trial(dict(chosen), user_attrs={"recipe": recipe.name}, skip_if_exists=True)
        self.space = space

    def finished(self) -> list[FrozenTrial]:
        """Trials that came to an end, in the order they were begun."""
        return [one for one in self.study.trials if one.state in (TrialState.COMPLETE, TrialState.PRUNED)]

    def waiting(self) -> int:
        """Trials that are sure to come: of the plan, and of a run that was killed."""
        return sum(one.state == TrialState.WAITING for one in self.study.trials)

    def seconds(self) -> float:
        """What all runs took that came to an end, and all trials of those that did not."""
        took = [one.duration.total_seconds() for one in self.study.trials if one.duration is not None]
        return float(sum(took)) + float(self.study.user_attrs.get(AROUND, 0.0))

    def keep_seconds(self, seconds: float) -> None:
        """Keep that all runs took so long, trials and what is around them."""
        around = float(self.study.user_attrs.get(AROUND, 0.0)) + seconds - self.seconds()
        self.study.set_user_attr(AROUND, round(around, 3))

    def step(self, attempt: Callable[[Mapping[str, Any], Trial], Sequence[float]]) -> None:
        """One more trial: `attempt` gives the values to be made small, or raises HopelessError."""

        def objective(trial: Trial) -> Sequence[float]:
            chosen = self.space.suggest(trial)
            try:
                return tuple(attempt(chosen, trial))
            except HopelessError as why:
                trial.set_user_attr("reason", str(why))
                raise optuna.TrialPruned(str(why)) from why

        with _quiet():
            self.study.optimize(objective, n_trials=1)

    def _retry_broken_off(self) -> None:
        """Trials that a killed or interrupted run had not finished wait again. The folder's lock says that nobody works on them,
        so there is no need to wait until their heartbeat is missed."""
        again = {number for one in self.study.trials for number in self.retry.retry_history(one)}
        for one in self.study.trials:
            if one.state == TrialState.RUNNING:
                self.study.tell(one.number, state=TrialState.FAIL)
            if one.state in (TrialState.RUNNING, TrialState.FAIL) and one.number not in again:
                self.retry(self.study, one)


def _sampler(name: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    return optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Optuna warns of its own interfaces: which ones are pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
