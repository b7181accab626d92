"""Latency distributions of the report, one above the other over a common axis. Drawing is the template's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmopt.evaluation.record import Record, Trial, percentile, role_of
from fmopt.reports.axes import LOG_FROM, Scale, tick

LANES = 14  # variants whose distribution is drawn; all of them are in the table
BINS = 160


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
        [(scale.at(v), tick(v)) for v in scale.ticks(5)],
        log,
        len(timed) - len(shown),
    )


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
