"""Axes of the report's plots: values to pixels, linear or logarithmic, with round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOG_FROM = 8.0  # a wider spread than this factor is drawn on a logarithmic axis
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


def nice_step(rough: float) -> float:
    """The round number (1, 2 or 5 times a power of ten) next above `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def nice_below(value: float) -> float:
    """The round number (1, 2 or 5 times a power of ten) next below `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(m * power for m in (1, 2, 5) if m * power <= value * (1 + 1e-9))


def tick(value: float, *, sign: bool = False) -> str:
    """A value as an axis writes it: `+0.5`, `−1`."""
    return f"{value:{'+' if sign and value else ''},g}".replace("-", "−")


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) <= about + 1:
            return ticks
    return ticks
