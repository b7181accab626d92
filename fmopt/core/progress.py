"""How long work tells the one who waits: what runs now, how far it is. The command draws it; the library is silent."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what happens; must not slow the work down."""

    def say(self, text: str) -> None:
        """One line worth keeping: a candidate was built, a stage was found finished."""

    def start(self, text: str, total: int) -> None:
        """A stage of `total` steps begins; it replaces the one before."""

    def step(self, done: int = 1) -> None:
        """`done` more steps of the stage are finished."""

    def stop(self) -> None:
        """The stage is over."""


class Silent:
    """Says nothing: the default of the Python API."""

    def say(self, text: str) -> None:
        """Nothing."""

    def start(self, text: str, total: int) -> None:
        """Nothing."""

    def step(self, done: int = 1) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""
