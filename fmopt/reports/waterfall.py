"""The report's waterfall: what each pass of the shipped variant gave in latency, size and accuracy, as bars that go on
where the one before ended. Drawing is the template's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fmopt.core import formatting
from fmopt.evaluation.record import AblationStep, Record, drop_unit

Kind = Literal["total", "better", "worse", "same"]


@dataclass(frozen=True)
class Bar:
    """One step of one figure, in percent of the width."""

    name: str
    kind: Kind
    start: float
    width: float
    came_from: float  # where the one before ended
    value: str
    change: str  # by this pass; empty for a total
    low: float | None = None  # interval
    high: float | None = None
    interval: str = ""


@dataclass(frozen=True)
class Fall:
    """The waterfall of one figure."""

    title: str
    bars: list[Bar]
    zero: float  # percent of the width


def falls(record: Record) -> list[Fall]:
    """Latency, size and accuracy; empty without steps. The first and the last bar are totals."""
    ablation_steps, unit = record.waterfall, drop_unit(record)
    if not ablation_steps:
        return []
    return [
        _fall("Latency, median", ablation_steps, [r.p50 for r in ablation_steps], formatting.milliseconds, _ratio),
        _fall("Size", ablation_steps, [float(r.size_bytes) for r in ablation_steps], formatting.size, _bytes),
        _fall(
            "Accuracy on validation", ablation_steps, [-r.drop.point for r in ablation_steps],
            lambda v: f"{formatting.points(v, sign=True)} {unit}",
            lambda before, after: f"{formatting.points(after - before, sign=True)} {unit}", more_is_better=True,
            bounds=[(-r.drop.high, -r.drop.low) for r in ablation_steps],
        ),
    ]  # fmt: skip


def _fall(
    title: str,
    ablation_steps: Sequence[AblationStep],
    values: Sequence[float],
    words: Callable[[float], str],
    change: Callable[[float, float], str],
    *,
    more_is_better: bool = False,
    bounds: Sequence[tuple[float, float]] = (),
) -> Fall:
    seen = [0.0, *values, *(bound for pair in bounds for bound in pair)]
    low, high = min(seen), max(seen)
    wide = (high - low) or 1.0

    def at(value: float) -> float:
        return round(100 * (value - low) / wide, 2)

    def bar(name: str, before: float, after: float, number: int, kind: Kind) -> Bar:
        start, end = sorted((at(before), at(after)))
        span = bounds[number] if bounds else None
        return Bar(
            name, kind, start, round(end - start, 2), at(after if kind == "total" else before), words(after),
            "" if kind == "total" else change(before, after),
            None if span is None else at(span[0]), None if span is None else at(span[1]),
            "" if span is None else f"{words(span[0])} to {words(span[1])}",
        )  # fmt: skip

    bars = [bar(ablation_steps[0].name, 0.0, values[0], 0, "total")]
    for number in range(1, len(ablation_steps)):
        before, after = values[number - 1], values[number]
        kind: Kind = "same" if after == before else "better" if (after > before) is more_is_better else "worse"
        bars.append(bar(ablation_steps[number].name, before, after, number, kind))
    bars.append(bar("shipped", 0.0, values[-1], len(ablation_steps) - 1, "total"))
    return Fall(title, bars, at(0.0))


def _ratio(before: float, after: float) -> str:
    return f"{before / after:.2f}× as fast"


def _bytes(before: float, after: float) -> str:
    return f"{'−' if after < before else '+'}{formatting.size(abs(after - before))}" if after != before else "no change"
