"""The report's plot of accuracy, latency and size: marks, their front, labels that do not collide. Drawing is the template's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fmopt.core import formatting
from fmopt.evaluation.record import Record, Trial, drop_unit, latency_of, role_of
from fmopt.reports.axes import CHARACTER, LOG_FROM, Scale, nice_below, tick

LARGEST = (4.5, 0.011)  # px, radius of the largest file's mark: this much, and this share of the plot's width
SMALLEST = 3.5  # px, a mark that can still be seen and hit
LABEL_PLACES = (  # from a mark's edge in px, and how many radii the edge is from its middle; tried in this order
    (5, 4, 1, 0, "start"),
    (-5, 4, -1, 0, "end"),
    (0, -6, 0, -1, "middle"),
    (0, 15, 0, 1, "middle"),
    (3, -3, 0.7, -0.7, "start"),
    (3, 11, 0.7, 0.7, "start"),
    (-3, -3, -0.7, -0.7, "end"),
    (-3, 11, -0.7, 0.7, "end"),
    (0, -21, 0, -1, "middle"),
    (0, 29, 0, 1, "middle"),
)


@dataclass(frozen=True)
class Mark:
    """One variant in the plot of accuracy against latency. Pixels."""

    number: int  # its row in the table
    trial: Trial
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    radius: float  # its area is its size on disk
    below: bool  # its accuracy lies below the scale
    role: str  # "winner", "reference", "baseline", "candidate"
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"

    @property
    def ring(self) -> float:
        """Radius of the ring around it."""
        return self.radius + (5 if self.role in ("reference", "baseline") else 4)

    @property
    def side(self) -> float:
        """Of a square of the same area."""
        return round(self.radius * math.sqrt(math.pi), 1)


@dataclass(frozen=True)
class Scatter:
    """Accuracy against latency, with sizes, ready to draw."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x: Scale
    y: Scale
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[Mark]
    front: str  # SVG path along the variants that none is both faster and more accurate than
    sizes: list[tuple[float, str]]  # legend of the marks' areas: radius, bytes in words
    allowed: float | None  # pixel of the allowed drop
    allowed_text: str
    max_latency: float | None  # pixel of the latency limit
    max_latency_text: str
    metric: str  # what the change is of
    unit: str  # and its own unit, "pt" or "%"
    predicted: bool  # latencies are predictions: the device was not here
    missing: int  # variants without an accuracy or a latency


def scatter(record: Record, rows: Sequence[Trial], width: int, height: int) -> Scatter | None:
    """The plot of accuracy against latency of `rows`, numbered from 1; None when nothing has both figures."""
    placed = [(i, t, ms) for i, t in enumerate(rows, 1) if (ms := latency_of(t)) is not None and t.drop is not None]
    if not placed:
        return None
    left, right, top, bottom = 60, width - 18, 18, height - 48
    x = _latency_scale([ms for _, _, ms in placed], left + 12, right - 12)
    limit = _limit(record, "drop")
    y = _drop_scale([t for _, t, _ in placed], limit, bottom, top)
    largest = LARGEST[0] + LARGEST[1] * width
    radii = _radii([t for _, t, _ in placed], largest)
    marks = [_mark(record, number, trial, ms, x, y, radii) for number, trial, ms in placed]
    latency_limit = _limit(record, "latency")
    if latency_limit is not None and not x.low < latency_limit < x.high:
        latency_limit = None
    return Scatter(
        width,
        height,
        left,
        right,
        top,
        bottom,
        x,
        y,
        [(x.at(v), tick(v)) for v in x.ticks(max(3, width // 110))],
        [(y.at(v), tick(v, sign=True)) for v in y.ticks(6)],
        _labelled(marks, left, right, top, bottom),
        _front_path(marks, right),
        _size_legend(radii, largest),
        None if limit is None else y.at(-100 * limit),
        "" if limit is None else f"allowed drop {formatting.points(limit)} {drop_unit(record)}",
        None if latency_limit is None else x.at(latency_limit),
        "" if latency_limit is None else f"allowed {formatting.milliseconds(latency_limit)}",
        metric=next((t.primary.name for _, t, _ in placed if t.primary), ""),
        unit=drop_unit(record),
        predicted=all(t.latency is None for _, t, _ in placed),
        missing=len(rows) - len(placed),
    )


def on_front(trials: Sequence[Trial]) -> set[str]:
    """Names of those that no other is at least as good as in latency, accuracy and size, and better in one of them.

    By the measured values; their intervals may overlap. What lacks one of the three figures is not on the front.
    """
    known = {t.name: (ms, t.drop.point, t.size_bytes) for t in trials
             if (ms := latency_of(t)) is not None and t.drop is not None and t.size_bytes is not None}  # fmt: skip
    return {
        name for name, ours in known.items()
        if not any(theirs != ours and all(a <= b for a, b in zip(theirs, ours, strict=True)) for theirs in known.values())
    }  # fmt: skip


def _latency_scale(values: Sequence[float], start: float, end: float) -> Scale:
    low, high = min(values), max(values)
    if high / low > LOG_FROM:
        return Scale(low / 1.15, high * 1.15, start, end, log=True)
    return Scale(0.0, high * 1.08, start, end)


def _drop_scale(trials: Sequence[Trial], limit: float | None, start: float, end: float) -> Scale:
    """Points of change, up is better. One ruined variant must not flatten all others: the scale ends somewhere."""
    changes = [-100 * t.drop.point for t in trials if t.drop]
    allowed = 100 * limit if limit is not None else 1.0
    floor = -max(3.5 * allowed, 1.0, 3 * float(np.median(np.abs(changes))))
    bounds = [-100 * bound for t in trials if t.drop for bound in (t.drop.low, t.drop.high) if math.isfinite(bound)]
    low = min(0.0, -1.3 * allowed, max(min([*changes, *bounds]), floor))
    high = max(0.25 * allowed, min(max([*changes, *bounds]), -floor))
    room = 0.06 * (high - low)
    return Scale(low - room, high + room, start, end)


def _radii(trials: Sequence[Trial], largest: float) -> dict[int, float]:
    """Radius by bytes: areas are in the ratio of the sizes."""
    sizes = {t.size_bytes for t in trials if t.size_bytes}
    most = max(sizes, default=1)
    return {size: round(max(SMALLEST, largest * math.sqrt(size / most)), 1) for size in sizes}


def _size_legend(radii: Mapping[int, float], largest: float) -> list[tuple[float, str]]:
    """Three round sizes, none above the largest file."""
    most = max(radii, default=0)
    sizes = sorted({nice_below(most / times) for times in (1, 3, 9)}) if most else []
    return [(round(max(SMALLEST, largest * math.sqrt(size / most)), 1), formatting.size(size)) for size in sizes]


def _mark(record: Record, number: int, trial: Trial, ms: float, x: Scale, y: Scale, radii: Mapping[int, float]) -> Mark:
    assert trial.drop is not None
    low, high = ms, ms
    reference = record.fastest_full_precision
    if trial.speedup and trial.latency and reference and reference.p50 and trial.name != record.reference:
        low, high = reference.p50 / trial.speedup.high, reference.p50 / max(trial.speedup.low, 1e-9)
    change = -100 * trial.drop.point
    return Mark(
        number,
        trial,
        x.at(ms),
        y.at(change),
        x.at(low),
        x.at(high),
        y.at(-100 * trial.drop.high),
        y.at(-100 * trial.drop.low),
        radii.get(trial.size_bytes or 0, SMALLEST),
        change < y.low,
        role_of(record, trial),
    )


def _front_path(marks: Sequence[Mark], right: int) -> str:
    """A staircase through the marks that none is both faster and more accurate than: the best that a latency allows."""
    path, best = "", float("inf")
    for mark in sorted((m for m in marks if not m.below), key=lambda m: (m.x, m.y)):
        if mark.y < best:  # pixels grow downwards
            path += f" H{mark.x} V{mark.y}" if path else f"M{mark.x},{mark.y}"
            best = mark.y
    return f"{path} H{right}" if path else ""


def _limit(record: Record, word: str) -> float | None:
    return next((check.limit for check in record.verdict.checks if word in check.name), None)


def _labelled(marks: Sequence[Mark], left: int, right: int, top: int, bottom: int) -> list[Mark]:
    """Names for the winner and the reference, row numbers for the others, where there is room."""
    taken = [(m.x - m.radius - 1, m.y - m.radius - 1, m.x + m.radius + 1, m.y + m.radius + 1) for m in marks]
    order = sorted(marks, key=lambda m: ("winner", "reference", "baseline", "candidate").index(m.role))
    done: dict[int, Mark] = {}
    for mark in order:
        text = mark.trial.name if mark.role in ("winner", "reference") else str(mark.number)
        edge = mark.ring if mark.role in ("winner", "reference") else mark.radius + 2
        wide = len(text) * CHARACTER
        for dx, dy, ux, uy, anchor in LABEL_PLACES:
            at_x, at_y = round(mark.x + dx + ux * edge, 1), round(mark.y + dy + uy * edge, 1)
            x = at_x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            box = (x - 1, at_y - 10, x + wide + 1, at_y + 3)
            inside = left < box[0] and box[2] < right and top < box[1] and box[3] < bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                done[mark.number] = replace(mark, label=text, label_x=at_x, label_y=at_y, anchor=anchor)
                break
    return [done.get(mark.number, mark) for mark in marks]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
