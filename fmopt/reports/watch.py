"""Follow a run by what it leaves on disk: what is out so far, where it is, and how it ended. It reads; the run knows nothing.

Whoever watches on the machine that is being measured takes time from it, so nothing is read or drawn but what changed,
and the page is not drawn again while only a count goes up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fmopt.core import formatting
from fmopt.core.errors import BundleError
from fmopt.core.results import Frozen
from fmopt.edge.manifest import MANIFEST
from fmopt.evaluation.record import FILE, Record
from fmopt.reports.html import Unfinished, write_markdown, write_report
from fmopt.reports.run_status import FOLDER, SoFar, Stage, read_so_far, read_stage, stamp

POLL_SECONDS = 1.0
PAGE_SECONDS = 5  # after which a browser loads the page of a running optimization again


class Seen(Frozen):
    """A run as it is seen now."""

    state: Literal["running", "finished", "died"]
    stage: Stage | None = None  # None: it has finished
    so_far: SoFar | None = None  # None: nothing is out yet, or it has finished
    record: Record | None = None  # of a run that has finished


def look(out: Path) -> Seen:
    """The run in `out` as it is; BundleError when there is none."""
    stage = read_stage(out)
    if stage is None:
        if not (out / FILE).is_file():
            raise BundleError(_no_run(out))
        return Seen(state="finished", record=Record.load(out))
    so_far = read_so_far(out)
    if stage.alive:
        return Seen(state="running", stage=stage, so_far=so_far)
    again = read_stage(out)  # it may have ended, or begun anew, just between the two looks
    if again != stage:
        return look(out)
    return Seen(state="died", stage=stage, so_far=so_far)


def follow(out: Path) -> Iterator[Seen]:
    """The run in `out` whenever something has changed, until it has ended; the last one says how."""
    before: tuple[int, int] | None = None
    while True:
        now = stamp(out)
        seen = look(out)
        if now != before or seen.state != "running":
            yield seen
        if seen.state != "running":
            return
        before = now
        time.sleep(POLL_SECONDS)


class Page:
    """`OUT/report.html` of a run that is followed: says that it runs and loads itself again, until it is the report."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.drawn: object = None

    def draw(self, seen: Seen) -> None:
        """Draw what is seen, unless that has been drawn."""
        if seen.record is not None:
            write_markdown(seen.record, self.out / "report.md")
            write_report(seen.record, self.out / "report.html")
        elif seen.so_far is not None and seen.stage is not None:
            state = (seen.state, seen.stage.text, seen.so_far)
            if state == self.drawn:
                return
            record = seen.so_far.record.model_copy(update={"summary": sentence(seen)})
            refresh = PAGE_SECONDS if seen.state == "running" else None
            write_report(record, self.out / "report.html", Unfinished(BADGES[seen.state], refresh))
            self.drawn = state


BADGES = {"running": "RUNNING", "died": "STOPPED"}


def sentence(seen: Seen) -> str:
    """Where a run is, in plain words."""
    if seen.record is not None:
        return seen.record.summary
    stage, so_far = seen.stage, seen.so_far
    assert stage is not None  # a run that has not finished has one
    counts = ""
    if so_far is not None:
        trials = so_far.record.everything
        timed = sum(trial.p50 is not None for trial in trials)
        waiting = f", {len(so_far.waiting)} are to come" if so_far.waiting else ""
        counts = f" {len(trials)} variants were tried so far and {timed} timed{waiting}."
    if seen.state == "died":
        why = stage.ended or f"its process ({stage.pid}) is gone without a word"
        return (
            f"The run broke off while {stage.text}: {why}.{counts} "
            "The same fmopt optimize command goes on where it stopped."
        )
    return f"Running: {stage.text}.{counts}"


def time_words(stage: Stage, now: float) -> str:
    """Time gone, time left of the stage where that can be said, and what the plan expects of the whole."""
    words = [f"{formatting.seconds(max(0.0, now - stage.began))} gone"]
    left = stage.seconds_left(now)
    if left is not None:
        words.append(f"about {formatting.seconds(left)} left of this stage")
    if stage.minutes:
        words.append(f"planned as about {stage.minutes:g} min in all")
    return ", ".join(words)


def _no_run(out: Path) -> str:
    if not out.is_dir():
        return f"there is no folder {out}; name the --output of an `fmopt optimize` that has begun"
    members = sorted(path.parent.name for path in [*out.glob(f"*/{FILE}"), *out.glob(f"*/{FOLDER}")])
    if members:
        return f"{out} holds the runs {', '.join(dict.fromkeys(members))}; watch one of them, like {out / members[0]}"
    what = "a bundle without a record" if (out / MANIFEST).is_file() else "no run"
    return f"{out} holds {what}; name the --output of an `fmopt optimize` that has begun"
