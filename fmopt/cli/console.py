"""The terminal: tables on stdout, plain into a pipe, coloured on a terminal (NO_COLOR, FORCE_COLOR say otherwise), never too
wide, and progress on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.console import Group as Stack
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column, Table

from fmopt.core import escaping

LOG_COLUMNS = 100  # of a table in a log: cells fold within so many
INTERRUPTED = "fmopt: interrupted; the same command goes on where this one stopped"
SECONDS_BETWEEN = 10.0  # lines of progress where there is no terminal to draw a bar in
NAMED = ("model", "variant", "candidate", "bundle", "target")


class PlainConsole(Console):
    """A console that obeys nothing in a text: neither rich's markup, nor what a terminal would take for a command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    @property
    def size(self) -> ConsoleDimensions:
        """A file or a pipe has no width to fit into; what reads logs shows about so many columns."""
        return super().size if self.is_terminal else ConsoleDimensions(LOG_COLUMNS, 25)

    @size.setter
    def size(self, wanted: tuple[int, int]) -> None:
        self._width, self._height = wanted

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Everything that is shown comes by here, cell by cell."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaping.terminal(segment.text))


out = PlainConsole()


def table_of(*columns: Column | str, **options: Any) -> Table:
    """A table without frames, which a narrow terminal has no room for."""
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", **options)


def show(drawn: Table | Stack) -> None:
    """Print a table, or tables and lines, whose long words go on in the next line instead of being cut."""
    tables = [drawn] if isinstance(drawn, Table) else [one for one in drawn.renderables if isinstance(one, Table)]
    for table in tables:
        for column in table.columns:
            column.overflow = "fold"
        named = next((column for column in table.columns if column.header in NAMED), None)
        if named is not None:  # others give way before a name is broken, where that leaves them room
            before = named.min_width
            named.min_width = max((cell_len(str(cell).split("\n")[0]) for cell in named.cells), default=1)
            if Measurement.get(out, out.options.update(width=10**4), table).minimum > out.width:
                named.min_width = before
        if Measurement.get(out, out.options.update(width=10**4), table).minimum > out.width:
            for column in table.columns:  # else some would be left out
                column.min_width, column.no_wrap = None, False
    out.print(drawn)


class LiveProgress:
    """A bar with the time left for the running stage; finished things scroll by above it."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bars.console.print(text, highlight=False, markup=False)

    def start(self, text: str, total: int) -> None:
        """Replace the bar."""
        self.stop()
        self.bars.start()  # not before there is something to show: an error at once stays one line
        self.task = self.bars.add_task(text, total=total)

    def step(self, done: int = 1) -> None:
        """Move the bar."""
        if self.task is not None:
            self.bars.advance(self.task, done)

    def stop(self) -> None:
        """Remove the bar."""
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None


class LoggedProgress:
    """Lines for a log: each stage when it begins, and how far it is at least every `SECONDS_BETWEEN`, also where a stage does
    not step meanwhile."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write
        self.lock = threading.Lock()
        self.text, self.done, self.total = "", 0, 0
        self.said = self.begun = time.monotonic()
        self.ended = threading.Event()
        threading.Thread(target=self._remind, daemon=True, name="fmopt-progress").start()

    def say(self, text: str) -> None:
        """A line."""
        self._line(text)

    def start(self, text: str, total: int) -> None:
        """A line for a stage that begins."""
        with self.lock:
            self.text, self.done, self.total, self.begun = text, 0, total, time.monotonic()
        self._line(text)

    def step(self, done: int = 1) -> None:
        """Count; it is written when it is time to."""
        self.done += done

    def stop(self) -> None:
        """No stage runs."""
        self.text = ""

    def close(self) -> None:
        """No more lines."""
        self.ended.set()

    def _line(self, text: str) -> None:
        with self.lock:
            self.said = time.monotonic()
            self.write(text)

    def _remind(self) -> None:
        while not self.ended.wait(1.0):
            if self.text and time.monotonic() - self.said >= SECONDS_BETWEEN:
                count = f", {self.done} of {self.total}" if self.total > 1 else ""
                self._line(f"{self.text}{count}, for {time.monotonic() - self.begun:.0f} s")


@contextmanager
def live_progress() -> Iterator[LiveProgress | LoggedProgress]:
    """Progress on stderr, a bar in a terminal and lines in a log; an interrupt says that nothing finished is lost."""
    if not sys.stderr.isatty():
        logged = LoggedProgress(lambda text: print(text, file=sys.stderr, flush=True))
        try:
            yield logged
        except KeyboardInterrupt:
            print(INTERRUPTED, file=sys.stderr)
            raise
        finally:
            logged.close()
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = PlainConsole(stderr=True)
    bars = Progress(*columns, console=console, transient=True)
    try:
        yield LiveProgress(bars)
    except KeyboardInterrupt:
        bars.stop()
        print(INTERRUPTED, file=sys.stderr)
        raise
    finally:
        if bars.live.is_started:
            bars.stop()
