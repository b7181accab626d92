"""The history of a model as a page: a panel of points with intervals for each figure, and the table. Whole without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmopt.core import formatting
from fmopt.core.results import Estimate
from fmopt.evaluation.history import Entry, Group, History, day, place
from fmopt.reports.axes import Scale
from fmopt.reports.html import write_page

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 540, 210, 58, 524, 14, 176
DATES_SHOWN = 6


@dataclass(frozen=True)
class Point:
    """One record in a panel. Pixels."""

    number: int  # its row in the table
    x: float
    y: float
    low: float
    high: float
    state: str  # "worse", "explained" or "fine", as to this figure
    tip: str


@dataclass(frozen=True)
class Panel:
    """One figure over time."""

    name: str
    points: list[Point]
    path: str  # the line through them
    y_ticks: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Figure:
    """What a panel shows of an entry."""

    name: str
    what: str  # of the regressions that mark it
    of: Callable[[Entry], Estimate | None]
    words: Callable[[float], str]


def _exactly(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(point=value, low=value, high=value)


FIGURES = (
    Figure("median latency, ms · down is better", "latency", lambda e: e.latency, formatting.milliseconds),
    Figure("speedup over full precision · up is better", "", lambda e: e.speedup, lambda v: f"{v:.2f}×"),
    Figure(
        "drop against full precision · down is better",
        "accuracy",
        lambda e: e.drop and Estimate(point=100 * e.drop.point, low=100 * e.drop.low, high=100 * e.drop.high),
        lambda v: f"{formatting.points(v / 100)} pt",
    ),
    Figure(
        "size, MB · down is better",
        "size",
        lambda e: _exactly(e.size_bytes / 1e6 if e.size_bytes else None),
        lambda v: formatting.megabytes(v),
    ),
)


def write_history(found: History, path: Path) -> Path:
    """Write the page; returns its path. StoreError when it cannot be written."""
    shown = {
        "history": found, "groups": [(group, place(group), panels(group)) for group in found.groups],
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM,
    }  # fmt: skip
    return write_page("history.html.j2", shown, path)


def panels(group: Group) -> list[Panel]:
    """A panel for each figure that any record has."""
    return [panel for figure in FIGURES if (panel := _panel(figure, group.entries)) is not None]


def _panel(figure: Figure, entries: Sequence[Entry]) -> Panel | None:
    got = [(number, entry, value) for number, entry in enumerate(entries) if (value := figure.of(entry)) is not None]
    if not got:
        return None
    lows, highs = [value.low for _, _, value in got], [value.high for _, _, value in got]
    room = 0.12 * (max(highs) - min(lows)) or 0.1 * abs(max(highs)) or 1.0
    y = Scale(min(lows) - room, max(highs) + room, BOTTOM, TOP)
    last = max(len(entries) - 1, 1)
    # records are evenly spaced: several of one day and one of last year would lie on two points of an axis of time
    x = Scale(-0.5, last + 0.5, LEFT, RIGHT)
    points = [
        Point(
            number + 1, x.at(number), y.at(value.point), y.at(value.low), y.at(value.high), _state(figure, entry),
            _tip(figure, entry, value),
        )
        for number, entry, value in got
    ]  # fmt: skip
    every = -(-len(entries) // DATES_SHOWN)
    return Panel(
        figure.name,
        points,
        " ".join(f"{'L' if i else 'M'}{point.x},{point.y}" for i, point in enumerate(points)),
        [(y.at(value), f"{value:,g}".replace("-", "−")) for value in y.ticks(6)],
        [(x.at(number), entry.date[:10]) for number, entry in enumerate(entries) if number % every == 0],
    )


def _state(figure: Figure, entry: Entry) -> str:
    found = [regression for regression in entry.regressions if regression.what == figure.what]
    if not found:
        return "fine"
    return "explained" if all(regression.explained for regression in found) else "worse"


def _tip(figure: Figure, entry: Entry, value: Estimate) -> str:
    interval = f" ({figure.words(value.low)} to {figure.words(value.high)})" if value.low < value.high else ""
    worse = "".join(f"\n{r.what}: {r.change} against {r.than}" for r in entry.regressions if r.what == figure.what)
    return f"{day(entry.date)} · {entry.shipped}\n{figure.words(value.point)}{interval}{worse}"
