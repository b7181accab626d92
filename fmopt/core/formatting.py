"""Numbers as people read them: three digits that matter, a unit, thousands set apart. Used by every page and table."""

from __future__ import annotations

import math
from typing import Protocol

MISSING = "–"


class Interval(Protocol):
    """A number with its bounds, as `core.results.Estimate` has them."""

    @property
    def point(self) -> float: ...  # noqa: D102
    @property
    def low(self) -> float: ...  # noqa: D102
    @property
    def high(self) -> float: ...  # noqa: D102


class Judged(Protocol):
    """A figure with its name and unit, as `core.results.Check` has them."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102
    @property
    def got(self) -> Interval | None: ...  # noqa: D102


_RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "PyTorch",
    "tensorrt": "TensorRT",
    "executorch": "ExecuTorch",
}


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits without exponent: 0.0123, 1.23, 12.3, 1,234."""
    if not math.isfinite(value):
        return "∞" if value > 0 else MISSING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return _minus(text)


def milliseconds(value: float | None) -> str:
    """`14.8 ms`; from ten seconds on in seconds."""
    if value is None:
        return MISSING
    return f"{number(value / 1000)} s" if abs(value) >= 10_000 else f"{number(value)} ms"


def seconds(value: float | None) -> str:
    """`0.3 s`, `42 s`, `3 min 05 s`, `1 h 02 min`."""
    if value is None:
        return MISSING
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(value: float | None) -> str:
    """Bytes in decimal units, as file managers and the budget's `25MB` count them."""
    if value is None:
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= scale:
            return f"{number(value / scale)} {unit}"
    return f"{value:,.0f} B"


def megabytes(value: float | None) -> str:
    """A figure that is already in MB."""
    return size(None if value is None else value * 1e6)


def points(value: float, *, sign: bool = False) -> str:
    """A share of 1 as points of a metric, without the unit: 0.0012 -> `0.12`."""
    text = f"{value * 100:{'+' if sign else ''}.2f}"
    return "0.00" if float(text) == 0 else _minus(text)


def loss(value: float, whole: float | None = None) -> str:
    """A drop: `0.12 pt`, or of a metric without an end, of which there is `whole`, `2.10 %`."""
    return f"{points(value)} pt" if whole is None else f"{points(value / whole)} %"


def score(value: float | None, *, bounded: bool = True) -> str:
    """A metric in percent: 0.9001 -> `90.01`; one without an end (perplexity) as it is: 44.712 -> `44.71`."""
    if value is None or not math.isfinite(value):
        return MISSING
    return points(value) if bounded else number(value, 4)


def change(before: float | None, after: float, *, bounded: bool = True) -> str:
    """How a metric moved: `−0.12 pt`, or in percent where it has no end: `+2.10 %`."""
    if before is None or not (bounded or before):
        return MISSING
    return f"{points(after - before, sign=True)} pt" if bounded else f"{points(after / before - 1, sign=True)} %"


def times(estimate: Interval | None) -> str:
    """`2.11×`."""
    return MISSING if estimate is None else f"{estimate.point:.2f}×"


def times_interval(estimate: Interval | None) -> str:
    """`2.05–2.17`."""
    return "" if estimate is None else f"{estimate.low:.2f}–{estimate.high:.2f}"


def points_interval(estimate: Interval | None) -> str:
    """`−0.12 to 0.43`."""
    return "" if estimate is None else f"{points(estimate.low)} to {points(estimate.high)}"


def confidence(share: float) -> str:
    """`95 %`, `99.9 %`: what differs near 100 is told."""
    return f"{100 * share:.3g} %"


def percent(share: float | None) -> str:
    """`42 %`; under one percent one digit more."""
    if share is None:
        return MISSING
    return f"{share * 100:.1f} %" if abs(share) < 0.01 else f"{share * 100:.0f} %"


def runtime(name: str) -> str:
    """What a runtime is called by its makers."""
    return _RUNTIMES.get(name, name)


def precision(name: str) -> str:
    """INT8 and INT4 in capitals, floats as everyone writes them."""
    return name.upper() if name.startswith(("int", "fp8")) else name


def tokens(length: int | None) -> str:
    """`128 tokens`; `items as they are` for texts at their own lengths, and for what is not made of tokens."""
    return "items as they are" if length is None else f"{length:,} tokens"


def shape(batch: int, length: int | None, threads: int) -> str:
    """`batch 1, 128 tokens, 1 thread`."""
    return f"batch {batch:,}, {tokens(length)}, {threads:,} thread{'s' if threads != 1 else ''}"


def quantity(value: float | None, check: Judged) -> str:
    """A figure of a check with its unit. A drop is shown in points, or in percent where the check says so."""
    if value is None:
        return MISSING
    if check.name.endswith("drop"):
        return f"{points(value)} {check.unit or 'pt'}"
    return f"{value:.2f}×" if check.unit == "×" else f"{number(value)} {check.unit}".strip()


def check_interval(check: Judged) -> str:
    """The interval of a check's figure; nothing where it has none (a file's size)."""
    got = check.got
    return "" if got is None or got.low == got.high else f"{quantity(got.low, check)} to {quantity(got.high, check)}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
