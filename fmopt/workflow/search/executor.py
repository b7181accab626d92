"""The one place where the work of a candidate is handed over: its building and its scoring, here or on other machines.

A run asks for what it needs in its own order, makes it by the same code and finds it in its store, whoever made it. An executor
only sees to it that it is there by then: `LocalExecutor` does nothing, and the run makes it itself. So what comes out cannot
depend on where it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from fmopt.core.recipe import Recipe
from fmopt.measurement import host_probe


@dataclass(frozen=True)
class Build:
    """A recipe's artifact, with the graphs and networks on the way to it."""

    recipe: Recipe


@dataclass(frozen=True)
class Predict:
    """What a recipe's artifact predicts for a split: see `trials.predictions`."""

    recipe: Recipe
    split: str
    most: int | None = None
    batch: int | None = None
    length: int | None = None


Task: TypeAlias = Build | Predict


class Executor(Protocol):
    """Where candidates are built and scored."""

    @property
    def store(self) -> str | None:
        """What must be shared with where they are made; None: nothing."""

    @property
    def host(self) -> dict[str, Any]:
        """What computes there, as `host_probe.host_fingerprint` says it."""

    def begin(self, run: Any) -> None:
        """The run that tasks belong to (a `Run`), once and before any."""

    def ahead(self, tasks: Sequence[Task]) -> None:
        """These will be asked for, in this order: whoever has time may begin."""

    def finish(self, task: Task) -> None:
        """Return when its stages are in the store, or are for the run itself to make. FmoptError as it broke there."""

    def close(self) -> None:
        """The run is over."""


class LocalExecutor:
    """This process, when it comes to it."""

    store: str | None = None

    @property
    def host(self) -> dict[str, Any]:
        """This machine."""
        return host_probe.host_fingerprint()

    def begin(self, run: Any) -> None:
        """Nothing."""

    def ahead(self, tasks: Sequence[Task]) -> None:
        """Nothing."""

    def finish(self, task: Task) -> None:
        """Nothing: the run makes it."""

    def close(self) -> None:
        """Nothing is left."""
