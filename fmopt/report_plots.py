"""The geometry of the report's plots: scales, ticks, marks, labels that do not collide. Drawing is the template's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmopt import wording
from fmopt.record import Record, Trial, latency_of, percentile

LANES = 14  # variants whose distribution is drawn; all of them are in the table
BINS = 160
LOG_FROM = 8.0  # a wider spread than this factor is drawn on a logarithmic axis
LABEL_PLACES = (  # px from a mark's middle, tried in this order
    (15, 4, "start"),
    (-15, 4, "end"),
    (0, -15, "middle"),
    (0, 24, "middle"),
    (11, -9, "start"),
    (11, 17, "start"),
    (-11, -9, "end"),
    (-11, 17, "end"),
    (0, -30, "middle"),
    (0, 38, "middle"),
)
CHARACTER = 6.4  # px, width of an average character at the labels' 11 px


@dataclass(frozen=True)
class Scale:
    """Maps values of `low` … `high` to pixels `start` … `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; values outside are put on the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, about: int) -> list[float]:
        """Round values, about `about` of them."""
        if self.log:
            return _log_ticks(self.low, self.high, about)
        step = nice_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(first, last + 1)]


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
    below: bool  # its accuracy lies below the scale
    role: str  # "winner", "reference", "baseline", "candidate"
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True)
class Scatter:
    """Accuracy against latency, ready to draw."""

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
    allowed: float | None  # pixel of the allowed drop
    allowed_text: str
    max_latency: float | None  # pixel of the latency limit
    max_latency_text: str
    metric: str  # what the change is of
    predicted: bool  # latencies are predictions: the device was not here
    missing: int  # variants without an accuracy or a latency


@dataclass(frozen=True)
class Lane:
    """The latency distribution of one variant."""

    number: int
    trial: Trial
    role: str
    path: str  # SVG path in a box of 1000 × 40
    p50: float  # percent of the width
    p90: float
    p99: float
    samples: int


@dataclass(frozen=True)
class Lanes:
    """Latency distributions over one common axis."""

    lanes: list[Lane]
    ticks: list[tuple[float, str]]  # percent of the width, text
    log: bool
    left_out: int


def role_of(record: Record, trial: Trial) -> str:
    """What a variant is in this record."""
    if trial.name == record.winner:
        return "winner"
    if trial.name == record.reference:
        return "reference"
    return "baseline" if trial in record.baselines else "candidate"


def scatter(record: Record, rows: Sequence[Trial], width: int, height: int) -> Scatter | None:
    """The plot of accuracy against latency of `rows`, numbered from 1; None when nothing has both figures."""
    placed = [(i, t, ms) for i, t in enumerate(rows, 1) if (ms := latency_of(t)) is not None and t.drop is not None]
    if not placed:
        return None
    left, right, top, bottom = 60, width - 18, 18, height - 48
    x = _latency_scale([ms for _, _, ms in placed], left + 8, right - 8)
    limit = _limit(record, "drop")
    y = _drop_scale([t for _, t, _ in placed], limit, bottom, top)
    marks = [_mark(record, number, trial, ms, x, y) for number, trial, ms in placed]
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
        [(x.at(v), _tick(v)) for v in x.ticks(max(3, width // 110))],
        [(y.at(v), _tick(v, sign=True)) for v in y.ticks(6)],
        _labelled(marks, left, right, top, bottom),
        None if limit is None else y.at(-100 * limit),
        "" if limit is None else f"allowed drop {wording.points(limit)} pt",
        None if latency_limit is None else x.at(latency_limit),
        "" if latency_limit is None else f"allowed {wording.milliseconds(latency_limit)}",
        metric=next((t.primary.name for _, t, _ in placed if t.primary), ""),
        predicted=all(t.latency is None for _, t, _ in placed),
        missing=len(rows) - len(placed),
    )


def lanes(record: Record, rows: Sequence[Trial]) -> Lanes | None:
    """Distributions of the winner, the baselines and the fastest others; None when nothing was timed."""
    timed = [(i, t) for i, t in enumerate(rows, 1) if t.p50 is not None]
    if not timed:
        return None
    first = [pair for pair in timed if role_of(record, pair[1]) != "candidate"]
    others = [pair for pair in timed if pair not in first]
    shown = sorted([*first, *others[: max(0, LANES - len(first))]], key=lambda pair: pair[1].p50 or 0)
    high = max(percentile(t.latency, 99) or 0 for _, t in shown) * 1.02
    low = min(percentile(t.latency, 0) or 0 for _, t in shown)
    log = high / low > LOG_FROM
    scale = Scale(low * 0.96, high, 0, 100, log=True) if log else Scale(min(0.0, low), high, 0, 100)
    return Lanes(
        [_lane(record, number, trial, scale) for number, trial in shown],
        [(scale.at(v), _tick(v)) for v in scale.ticks(5)],
        log,
        len(timed) - len(shown),
    )


def nice_step(rough: float) -> float:
    """The round number (1, 2 or 5 times a power of ten) next above `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _tick(value: float, *, sign: bool = False) -> str:
    return f"{value:{'+' if sign and value else ''},g}".replace("-", "−")


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) <= about + 1:
            return ticks
    return ticks


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


def _mark(record: Record, number: int, trial: Trial, ms: float, x: Scale, y: Scale) -> Mark:
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
        change < y.low,
        role_of(record, trial),
    )


def _limit(record: Record, word: str) -> float | None:
    return next((check.limit for check in record.verdict.checks if word in check.name), None)


def _labelled(marks: Sequence[Mark], left: int, right: int, top: int, bottom: int) -> list[Mark]:
    """Names for the winner and the reference, row numbers for the others, where there is room."""
    taken = [(m.x - 7, m.y - 7, m.x + 7, m.y + 7) for m in marks]
    order = sorted(marks, key=lambda m: ("winner", "reference", "baseline", "candidate").index(m.role))
    done = {}
    for mark in order:
        text = mark.trial.name if mark.role in ("winner", "reference") else str(mark.number)
        wide = len(text) * CHARACTER
        for dx, dy, anchor in LABEL_PLACES:
            x = mark.x + dx - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            box = (x - 1, mark.y + dy - 10, x + wide + 1, mark.y + dy + 3)
            inside = left < box[0] and box[2] < right and top < box[1] and box[3] < bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                done[mark.number] = (text, mark.x + dx, mark.y + dy, anchor)
                break
    return [
        Mark(
            **{
                **m.__dict__,
                **dict(
                    zip(("label", "label_x", "label_y", "anchor"), done.get(m.number, ("", 0, 0, "start")), strict=True)
                ),
            }
        )
        for m in marks
    ]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _lane(record: Record, number: int, trial: Trial, scale: Scale) -> Lane:
    """A smoothed histogram as a closed path, as high as its own peak."""
    assert trial.latency is not None
    places = np.asarray([scale.at(ms) for ms in trial.latency.samples_ms if ms <= scale.high])
    counts, _ = np.histogram(places, bins=BINS, range=(0, 100))
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / 1.2) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum(), mode="same")
    # square root: the tail is what users feel, and it would vanish under the body
    height = 38 * np.sqrt(smooth / max(smooth.max(), 1e-9))
    used = np.flatnonzero(height > 0.4)
    first, last = (max(0, used[0] - 1), min(BINS - 1, used[-1] + 1)) if len(used) else (0, 0)
    points = " ".join(f"{1000 * (i + 0.5) / BINS:.0f},{40 - height[i]:.1f}" for i in range(first, last + 1))
    begin, end = 1000 * (first + 0.5) / BINS, 1000 * (last + 0.5) / BINS
    p50, p90, p99 = (scale.at(percentile(trial.latency, q) or 0) for q in (50, 90, 99))
    return Lane(
        number,
        trial,
        role_of(record, trial),
        f"M{begin:.0f},40 L{points} L{end:.0f},40 Z",
        p50,
        p90,
        p99,
        len(trial.latency.samples_ms),
    )
