"""The plot of accuracy against latency of a comparison: where every mark and its label lie. Drawing is the template's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comparison import Comparison, Row

from fmopt.core import formatting
from fmopt.reports.axes import CHARACTER, LOG_FROM, Scale
from fmopt.reports.plots import LABEL_PLACES

FLOOR, CEILING = -3.0, 2.5  # points; what lies lower is drawn on the edge and says so
EDGE = 10  # px from a mark's middle to its edge
BOLD = 1.15  # how much wider our name is than others
LEAST = 0.6  # points on either side of no change


@dataclass(frozen=True)
class Mark:
    """One variant. Pixels; `number` is its row in the table."""

    number: int
    row: Row
    x: float
    y: float
    y_low: float
    y_high: float
    below: bool  # its accuracy lies below the scale
    label: str
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Plot:
    """Ready to draw."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    log: bool
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    marks: Sequence[Mark]


def plot(found: Comparison, width: int, height: int) -> Plot | None:
    """Every row that was both timed and scored; None when there is none."""
    rows = [(number, row) for number, row in enumerate(found.rows, 1) if row.drop is not None]
    if not rows:
        return None
    left, right, top, bottom = 60, width - 18, 18, height - 48
    times = [row.median.point for _, row in rows]
    log = max(times) / min(times) > LOG_FROM
    x = (
        Scale(min(times) / 1.15, max(times) * 1.15, left + 8, right - 8, log=True)
        if log
        else Scale(0.0, max(times) * 1.08, left + 8, right - 8)
    )
    y = _points_scale([row for _, row in rows], bottom, top)
    return Plot(
        width, height, left, right, top, bottom, log,
        [(x.at(value), _tick(value)) for value in x.ticks(max(3, width // 110))],
        [(y.at(value), _tick(value, sign=True)) for value in y.ticks(6)],
        _marks(rows, found, x, y, (left, right, top, bottom)),
    )  # fmt: skip


def _points_scale(rows: Sequence[Row], start: float, end: float) -> Scale:
    """Points of change, up is better; one ruined variant must not flatten all others."""
    near = [row.drop for row in rows if row.drop and -100 * row.drop.point >= FLOOR]
    bounds = [-100 * bound for drop in near for bound in (drop.low, drop.high)] or [0.0]
    low = min(-LEAST, max(min(bounds), FLOOR))
    high = max(LEAST, min(max(bounds), CEILING))
    room = 0.06 * (high - low)
    return Scale(low - room, high + room, start, end)


def _marks(
    rows: Sequence[tuple[int, Row]], found: Comparison, x: Scale, y: Scale, frame: tuple[int, int, int, int]
) -> list[Mark]:
    """Ours, the best peer and the fastest full precision by name, the others by row number where there is room."""
    places = {number: (x.at(row.median.point), y.at(-100 * row.drop.point)) for number, row in rows if row.drop}
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in places.values()]
    named = {row.name for row in found.rows if row.ours} | {found.best_peer, found.fastest_full}
    marks = []
    for number, row in sorted(rows, key=lambda pair: (not pair[1].ours, pair[1].name not in named)):
        assert row.drop is not None
        px, py = places[number]
        below = -100 * row.drop.point < y.low
        text = row.name if row.name in named else str(number)
        text += f": {formatting.points(-row.drop.point)}" if below else ""
        at = _free(text, BOLD if row.ours else 1.0, (px, py), frame, taken)
        marks.append(
            Mark(
                number, row, px, py, y.at(-100 * row.drop.high), y.at(-100 * row.drop.low),
                below, text if at else "", *(at or (0.0, 0.0, "start")),
            )
        )  # fmt: skip
    return marks


def _free(
    text: str,
    wider: float,
    mark: tuple[float, float],
    frame: tuple[int, int, int, int],
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float, str] | None:
    """Where a label meets no other and stays inside, which is taken then; None when there is no such place."""
    (x, y), (left, right, top, bottom) = mark, frame
    wide = len(text) * CHARACTER * wider
    for dx, dy, ux, uy, anchor in LABEL_PLACES:
        at_x, at_y = x + dx + ux * EDGE, y + dy + uy * EDGE
        start = at_x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        box = (start - 1, at_y - 10, start + wide + 1, at_y + 3)
        inside = left < box[0] and box[2] < right and top < box[1] and box[3] < bottom
        clear = all(box[2] <= b[0] or b[2] <= box[0] or box[3] <= b[1] or b[3] <= box[1] for b in taken)
        if inside and clear:
            taken.append(box)
            return at_x, at_y, anchor
    return None


def _tick(value: float, *, sign: bool = False) -> str:
    return f"{value:{'+' if sign and value else ''},g}".replace("-", "−")
