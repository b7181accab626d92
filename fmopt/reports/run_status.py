"""What a run under way leaves on disk for those who watch it: its record so far, and the stage it is in.

Two small files under `OUT/running`, each replaced whole: `record-so-far.json` when a variant has changed, at the latest
when the next stage begins; `stage.json` when a stage begins and at most once a second within it. Nothing is written
within a call that is being timed, the run reads nothing of it, and the folder goes when the run has ended well. A run
that broke off leaves it, with the reason where there was time to say it, until the next one in the same folder begins.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
from pydantic import Field, ValidationError

from fmopt.core.errors import StoreError
from fmopt.core.progress import Progress
from fmopt.core.results import Frozen
from fmopt.core.stages.store import write_whole
from fmopt.evaluation.record import Record

FOLDER = "running"
STAGE, SO_FAR = "stage.json", "record-so-far.json"
SECONDS_BETWEEN = 1.0  # writes while nothing but a count has changed
T = TypeVar("T", bound=Frozen)


class Stage(Frozen):
    """Where a run is. Times are seconds since 1970."""

    pid: int
    process_began: float  # a process number is used again; with this it is known who it was
    began: float  # of the run
    minutes: float  # what the plan says the whole takes
    text: str = "starting"
    done: int = 0
    total: int = 0
    stage_began: float = 0.0
    said: str = ""  # the last line worth keeping
    ended: str = ""  # why it broke off; empty while it runs

    @property
    def alive(self) -> bool:
        """Whether the process that wrote this still runs, on this machine."""
        if self.ended:
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.process_began) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def seconds_left(self, now: float) -> float | None:
        """Of the running stage, if it goes on as it went so far; None when that cannot be said."""
        if not 0 < self.done < self.total:
            return None
        return (now - self.stage_began) / self.done * (self.total - self.done)


class SoFar(Frozen):
    """The record of a run as far as it got: no winner, no verdict, no raw values but latencies."""

    record: Record
    waiting: list[str] = Field(default_factory=list)  # recipes that are planned and not built yet


class Notes:
    """The progress of a run, handed on to whoever shows it, and noted on disk."""

    def __init__(self, out: Path, progress: Progress, minutes: float) -> None:
        self.folder = out / FOLDER
        self.progress = progress
        now, born = time.time(), psutil.Process().create_time()
        self.stage = Stage(pid=os.getpid(), process_began=born, began=now, minutes=minutes, stage_began=now)
        self.done = 0  # steps of the stage; a count is cheaper than a new value at every step
        self.so_far: Callable[[], SoFar] | None = None
        self.stale = True  # something has changed since the record so far was written
        self.written = {STAGE: float("-inf"), SO_FAR: float("-inf")}

    def say(self, text: str) -> None:
        """Hand on and note."""
        self.progress.say(text)
        self.note_stage(said=text)

    def start(self, text: str, total: int) -> None:
        """Hand on and note; what came out before is written now, since a stage may be silent for long."""
        self.progress.start(text, total)
        self.done = 0
        self.note_so_far(after=0)
        self.note_stage(text=text, total=total, stage_began=time.time())

    def step(self, done: int = 1) -> None:
        """Hand on, and note now and then."""
        self.progress.step(done)
        self.done += done
        if time.monotonic() - self.written[STAGE] >= SECONDS_BETWEEN:
            self.note_stage()

    def stop(self) -> None:
        """Hand on."""
        self.progress.stop()

    def changed(self) -> None:
        """Something came out about a variant."""
        self.stale = True
        self.note_so_far(after=SECONDS_BETWEEN)

    def note_stage(self, **changes: str | float) -> None:
        """Write where the run is."""
        self.stage = self.stage.model_copy(update={"done": self.done, **changes})
        self._write(STAGE, self.stage)

    def note_so_far(self, after: float) -> None:
        """Write what came out, if that is news and so many seconds have passed."""
        if self.stale and self.so_far is not None and time.monotonic() - self.written[SO_FAR] >= after:
            self._write(SO_FAR, self.so_far())
            self.stale = False

    def _write(self, name: str, value: Frozen) -> None:
        # whoever watches is a guest: a note that cannot be written must not end the run
        with suppress(OSError, StoreError):
            self.folder.mkdir(exist_ok=True)
            write_whole(self.folder / name, value.model_dump_json())
        self.written[name] = time.monotonic()


@contextmanager
def noted(out: Path, progress: Progress, minutes: float) -> Iterator[Notes]:
    """Note a run in `out`, which it holds alone; gone when the block ends well, with the reason when it does not."""
    notes = Notes(out, progress, minutes)
    notes.note_stage()  # in place of an earlier run's
    with suppress(OSError):
        (out / FOLDER / SO_FAR).unlink()
    try:
        yield notes
    except BaseException as error:
        why = "it was interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        notes.note_so_far(after=0)
        notes.note_stage(ended=" ".join(why.split()))
        raise
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def read_stage(out: Path) -> Stage | None:
    """Where the run in `out` is or broke off; None when there is none."""
    return _read(out / FOLDER / STAGE, Stage)


def read_so_far(out: Path) -> SoFar | None:
    """What came out in `out` so far; None before the first variant, and when there is no run."""
    return _read(out / FOLDER / SO_FAR, SoFar)


def stamp(out: Path) -> tuple[int, int]:
    """Changes whenever one of the two files does; zero for one that is not there."""
    return _changed(out / FOLDER / STAGE), _changed(out / FOLDER / SO_FAR)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return kind.model_validate_json(path.read_bytes(), extra="ignore")
    except (OSError, ValidationError):  # not there, gone meanwhile, or of another version
        return None
