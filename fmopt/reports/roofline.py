"""The report's roofline: where each layer of the shipped variant sits under the ceilings that were measured here, and how far
from its floor. Drawing is the template's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fmopt.core import formatting
from fmopt.evaluation.record import Record
from fmopt.measurement.roofline.layers import LayerPoint, Roof, layer_points, roof
from fmopt.reports.axes import Scale, tick
from fmopt.reports.profile import layer_of

LISTED = 15  # points in the table; all of them are in the plot
LARGEST = 13.0  # px, radius of the point that takes most time
SMALLEST = 3.0


@dataclass(frozen=True)
class Dot:
    """The operators of one kind in one module. Pixels."""

    point: LayerPoint
    x: float
    y: float
    floor_y: float  # where the roof is above it, in the precision that it runs in
    radius: float  # its area is its time


@dataclass(frozen=True)
class RoofLine:
    """The roof in one precision."""

    precision: str
    path: str
    text: str
    x: float
    y: float


@dataclass(frozen=True)
class RoofPlot:
    """Operations per byte against operations per second, both logarithmic, ready to draw."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    roofs: list[RoofLine]
    dots: list[Dot]
    memory_text: str


def points_of(record: Record) -> list[LayerPoint]:
    """Where the shipped variant's layers sit, the longest first; empty where its runtime or its target does not tell."""
    winner = record.winning
    return layer_points(winner.profile, record.target, record.circumstances.threads) if winner else []


def roof_plot(record: Record, points: Sequence[LayerPoint], width: int, height: int) -> RoofPlot | None:
    """The plot of what computes; what only moves bytes has no place on a logarithmic axis and is in the table."""
    ceilings = roof(record.target, record.circumstances.threads)
    shown = [point for point in points if point.operations > 0]
    if ceilings is None or not shown:
        return None
    left, right, top, bottom = 60, width - 18, 18, height - 48
    used = [name for name in ceilings.gops if name == "fp32" or name in {point.precision for point in shown}]
    x = Scale(
        min(point.intensity for point in shown) / 2,
        max([point.intensity for point in shown] + [ceilings.ridge(name) for name in used]) * 2,
        left,
        right,
        log=True,
    )
    y = Scale(
        min(point.gops for point in shown) / 2,
        max([point.gops for point in shown] + [ceilings.gops[name] for name in used]) * 2,
        bottom,
        top,
        log=True,
    )
    longest = max(point.ms for point in shown)
    return RoofPlot(
        width,
        height,
        left,
        right,
        top,
        bottom,
        [(x.at(v), tick(v)) for v in x.ticks(max(3, width // 110))],
        [(y.at(v), tick(v)) for v in y.ticks(6)],
        [_roof_line(ceilings, name, x, y) for name in used],
        [
            Dot(
                point,
                x.at(point.intensity),
                y.at(point.gops),
                y.at(point.roof_gops),
                round(max(SMALLEST, LARGEST * math.sqrt(point.ms / longest)), 1),
            )
            for point in shown
        ],
        f"memory: {formatting.number(ceilings.bandwidth_gbs)} GB/s",
    )


def distance_by_layer(points: Sequence[LayerPoint]) -> dict[str, tuple[float, float]]:
    """Layer → (milliseconds that the ceilings allow at best, how many times that it took)."""
    floors: dict[str, float] = defaultdict(float)
    times: dict[str, float] = defaultdict(float)
    for point in points:
        floors[layer_of(point.layer)] += point.floor_ms
        times[layer_of(point.layer)] += point.ms
    return {layer: (floor, times[layer] / floor) for layer, floor in floors.items() if floor > 0}


def _roof_line(ceilings: Roof, precision: str, x: Scale, y: Scale) -> RoofLine:
    ceiling, bandwidth = ceilings.ceiling(precision), ceilings.bandwidth_gbs
    ridge = ceilings.ridge(precision)
    begin = max(x.low, y.low / bandwidth)  # the slope may enter through the floor of the plot
    path = f"M{x.at(begin)},{y.at(begin * bandwidth)} L{x.at(ridge)},{y.at(ceiling)} H{x.end}"
    text = f"{formatting.precision(precision)}: {formatting.number(ceiling)} · 10⁹/s"
    return RoofLine(precision, path, text, x.end - 4, y.at(ceiling) - 5)
