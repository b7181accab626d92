"""Work on several boards at once, one thing at a time on each; a board that is lost is tried again while there is reason to."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from fmopt.core import escaping
from fmopt.core.errors import FmoptError, UnmeasuredError
from fmopt.core.progress import Progress
from fmopt.measurement.remote.ssh import NotReachedError

T = TypeVar("T")
TRIES = 6
State = Literal["measured", "lost", "refused"]


@dataclass(frozen=True)
class Ended(Generic[T]):
    """What became of the work on one board: its value, or why there is none."""

    state: State
    value: T | None = None
    reason: str = ""


class NamedProgress:
    """The lines of one board among others, each after its name. Bars are left out: they would replace each other."""

    def __init__(self, name: str, shared: Progress, lock: threading.Lock) -> None:
        self.name, self.shared, self.lock = name, shared, lock

    def say(self, text: str) -> None:
        """One line."""
        with self.lock:
            self.shared.say(escaping.one_line(f"{self.name}: {text}"))  # ssh's words and a board's are in it

    def start(self, text: str, total: int) -> None:
        """Nothing."""

    def step(self, done: int = 1) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


def at_once(
    works: Mapping[str, Callable[[], T]], say: Callable[[str], object], *, pause_s: float, tries: int = TRIES
) -> dict[str, Ended[T]]:
    """Do each work in a thread of its own; what became of each, by the same names.

    A work that ends with NotReachedError or UnmeasuredError is a board that does not answer: it is done again after a pause
    (seconds, doubled each time), `tries` times at most and no longer than once more when all others have ended. Any other
    FmoptError is a board that cannot be used. Whatever else is raised is raised here.
    """
    ended: queue.Queue[tuple[str, Ended[T] | BaseException]] = queue.Queue()
    busy, lock = set(works), threading.Lock()

    def lead(name: str, work: Callable[[], T]) -> None:
        try:
            ended.put((name, _persistent(name, work, say, busy, lock, tries, pause_s)))
        except BaseException as error:  # a fault of ours: it ends the command, not the thread alone
            ended.put((name, error))
        finally:
            with lock:
                busy.discard(name)

    # Daemons: an interrupt does not wait for a line that is down; what runs on the boards goes on there.
    for name, work in works.items():
        threading.Thread(target=lead, args=(name, work), daemon=True, name=f"fmopt-{name}").start()
    found: dict[str, Ended[T]] = {}
    while len(found) < len(works):
        name, one = ended.get()
        if isinstance(one, BaseException):
            raise one
        found[name] = one
    return {name: found[name] for name in works}


def _persistent(
    name: str,
    work: Callable[[], T],
    say: Callable[[str], object],
    busy: set[str],
    lock: threading.Lock,
    tries: int,
    pause_s: float,
) -> Ended[T]:
    """One board, as often as it takes or makes sense."""
    for number in range(tries):
        with lock:
            busy.add(name)
        try:
            return Ended("measured", work())
        except (NotReachedError, UnmeasuredError) as error:
            reason = str(error)
        except FmoptError as error:
            return Ended("refused", reason=str(error))
        with lock:
            busy.discard(name)
            alone = not busy
        if number + 1 == tries or (alone and number):
            break
        say(f"{name} is lost ({reason}); it is tried again in {pause_s * 2**number:.0f} s")
        time.sleep(pause_s * 2**number)
    return Ended("lost", reason=reason)
