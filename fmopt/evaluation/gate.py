"""What the user accepts, and whether a measured candidate is within it: pure arithmetic on intervals.

A check passes only when its whole interval is within the limit, fails when all of it is outside, and is UNDECIDED when
the limit lies inside. What was not measured is UNMEASURED and never counts as a pass.
"""

from __future__ import annotations

import math
import re
from statistics import NormalDist
from typing import Literal, Self

from pydantic import Field

from fmopt.core.errors import ConfigError
from fmopt.core.results import Check, Estimate, Frozen, Outcome, Verdict
from fmopt.evaluation.bootstrap import median_latency, paired_drop, speedup

EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.UNDECIDED: 3, Outcome.UNMEASURED: 4}
PER_LOOK = 1 / 50  # of the error probability: what a look at a part of the items spends
POWER = 0.8  # how often the number of items or samples that is said to decide does, if the truth is as was seen
ROUNDING = 1e-9  # a bound that exceeds its limit by less than this is on the limit; means of floats are not exact

_DROP, _SPEEDUP = "accuracy drop", "speedup"
_NUMBER = r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*"


class Drop(Frozen):
    """An allowed loss: absolute points of the metric ("pt", 1 pt = 0.01) or percent of the baseline's value ("%")."""

    amount: float = Field(ge=0, allow_inf_nan=False)
    unit: Literal["pt", "%"] = "pt"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`1pt`, `0.5pt`, `1%`; ConfigError for anything else."""
        found = re.fullmatch(_NUMBER + r"(pt|%)\s*", text, re.IGNORECASE)
        if not found:
            raise ConfigError(
                f"max-drop is {text!r}; give absolute points of the metric like 1pt or 0.5pt, or a share of the "
                "baseline like 1%"
            )
        return cls(amount=float(found[1]), unit="%" if found[2] == "%" else "pt")

    def limit(self, baseline_metric: float, *, bounded: bool = True) -> float:
        """The allowed drop in units of the metric. One without an end (perplexity) has no points: they are percent of it."""
        points = self.unit == "pt" and (bounded or not baseline_metric)
        return self.amount / 100 * (1.0 if points else abs(baseline_metric))

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


class Budget(Frozen):
    """What the user accepts; None is no limit. Without a word about accuracy one point may be lost.

    >>> fmopt.Budget.parse(max_drop="0.5pt", max_latency="8ms").max_latency_ms
    8.0
    """

    max_drop: Drop | None = Drop(amount=1.0)
    min_speedup: float | None = Field(None, gt=0, allow_inf_nan=False)  # times, against the fastest full-precision
    max_latency_ms: float | None = Field(None, gt=0, allow_inf_nan=False)  # of the median
    max_size_mb: float | None = Field(None, gt=0, allow_inf_nan=False)  # model files, 10⁶ bytes
    max_memory_mb: float | None = Field(None, gt=0, allow_inf_nan=False)  # peak of a process that serves it
    confidence: float = Field(0.95, ge=0.5, lt=1)
    accept_undecided: bool = False

    @classmethod
    def parse(
        cls,
        *,
        max_drop: str | None = "1pt",
        min_speedup: str | None = None,
        max_latency: str | None = None,
        max_size: str | None = None,
        max_memory: str | None = None,
        confidence: float = 0.95,
        accept_undecided: bool = False,
    ) -> Self:
        """A budget from the words of the command: `1pt`, `2x`, `8ms`, `25MB`; ConfigError says which word and how."""
        if not 0.5 <= confidence < 1:
            raise ConfigError(f"confidence is {confidence:g}; it is a share from 0.5 to below 1, like 0.95")
        return cls(
            max_drop=None if max_drop is None else Drop.parse(max_drop),
            min_speedup=None if min_speedup is None else parse_speedup(min_speedup),
            max_latency_ms=None if max_latency is None else parse_latency(max_latency),
            max_size_mb=None if max_size is None else parse_megabytes(max_size, "max-size"),
            max_memory_mb=None if max_memory is None else parse_megabytes(max_memory, "max-memory"),
            confidence=confidence,
            accept_undecided=accept_undecided,
        )


def parse_speedup(text: str) -> float:
    """`2x`, `1.5x` or `2` → times; ConfigError for anything else."""
    return _parse(text, {"x": 1.0, "×": 1.0, "": 1.0}, "min-speedup", "a factor like 2x or 1.5x")


def parse_latency(text: str, what: str = "max-latency") -> float:
    """`8ms`, `0.5s`, `500us` → milliseconds; ConfigError names `what`."""
    return _parse(text, {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}, what, "a time like 8ms, 500us or 0.5s")


def parse_megabytes(text: str, what: str) -> float:
    """`25MB`, `300 kB`, `1.5GB`, `64MiB` → megabytes of 10⁶ bytes; ConfigError names `what`."""
    scale = {"kb": 1e-3, "mb": 1.0, "gb": 1e3, "kib": 2**10 / 1e6, "mib": 2**20 / 1e6, "gib": 2**30 / 1e6}
    return _parse(text, scale, what, "a size like 25MB, 1.5GB or 64MiB")


def at_most(name: str, got: Estimate | None, limit: float, *, unit: str = "", note: str = "") -> Check:
    """The check that the whole interval lies at or under `limit`."""
    if got is None:
        return Check(name=name, outcome=Outcome.UNMEASURED, limit=limit, unit=unit, note=note)
    if got.high <= limit + ROUNDING:
        outcome = Outcome.PASS
    else:
        outcome = Outcome.UNDECIDED if got.low <= limit + ROUNDING else Outcome.FAIL
    return Check(name=name, outcome=outcome, limit=limit, got=got, unit=unit, note=note)


def at_least(name: str, got: Estimate | None, limit: float, *, unit: str = "", note: str = "") -> Check:
    """The check that the whole interval lies at or over `limit`."""
    if got is None:
        return Check(name=name, outcome=Outcome.UNMEASURED, limit=limit, unit=unit, note=note)
    if got.low >= limit - ROUNDING:
        outcome = Outcome.PASS
    else:
        outcome = Outcome.UNDECIDED if got.high >= limit - ROUNDING else Outcome.FAIL
    return Check(name=name, outcome=outcome, limit=limit, got=got, unit=unit, note=note)


def judge(
    budget: Budget,
    *,
    drop: Estimate | None,
    baseline_metric: float,
    speedup: Estimate | None,
    latency_ms: Estimate | None,
    size_mb: float | None,
    memory_mb: float | None,
    device_present: bool,
    items_changed: int,
    n: int,
    samples: int = 0,
    bounded: bool = True,
) -> Verdict:
    """Every limit of the budget against what was found.

    `drop` and `baseline_metric` are in units of the metric, which has a largest value if it is `bounded`, over `n` items of
    which `items_changed` changed; `samples` is how often each variant was timed. Where the device is not here, its latency is
    UNMEASURED even without a limit: nothing about its speed was shown.
    """
    checks = []
    if budget.max_drop is not None:
        checks.append(
            _accuracy(budget, drop, budget.max_drop.limit(baseline_metric, bounded=bounded), items_changed, n)
        )
    absent = "" if device_present else "the device is not here; run the bundle's run.py bench on it"
    timed = (None, None, None) if absent else (speedup, latency_ms, memory_mb)
    if budget.min_speedup is not None:
        check = at_least(_SPEEDUP, timed[0], budget.min_speedup, unit="×", note=_why(timed[0], absent))
        checks.append(_with_samples_needed(check, samples, budget.confidence))
    if budget.max_latency_ms is not None:
        check = at_most("latency", timed[1], budget.max_latency_ms, unit="ms", note=_why(timed[1], absent))
        checks.append(_with_samples_needed(check, samples, budget.confidence))
    elif absent:
        checks.append(Check(name="latency", outcome=Outcome.UNMEASURED, unit="ms", note=absent))
    if budget.max_size_mb is not None:
        checks.append(at_most("size", _exact(size_mb), budget.max_size_mb, unit="MB"))
    if budget.max_memory_mb is not None:
        note = "" if timed[2] is not None else absent or "its memory was not measured"
        checks.append(at_most("memory", _exact(timed[2]), budget.max_memory_mb, unit="MB", note=note))
    return Verdict(checks=checks)


def confidence_of_look(confidence: float, number: int, *, last: bool) -> float:
    """At which confidence to take the bounds at look `number` (0, 1, …) at a growing part of the items, so that a verdict that is
    given at the first look which decides errs no more often than one about all items with `confidence`.

    Looks before the last spend `PER_LOOK` of the error probability each, and the last has what is left, which makes it hardly
    wider than a single look (Haybittle, British Journal of Radiology 1971; Peto et al., British Journal of Cancer 1976).
    """
    return 1 - (1 - confidence) * (1 - number * PER_LOOK if last else PER_LOOK)


def items_needed(drop: Estimate, limit: float, n: int, *, confidence: float = 0.95) -> int | None:
    """How many items would decide 4 times in 5 (`POWER`), if they behave like these `n`; None when none would.

    A pass needs its bound within the limit, not only on it: the standard error must shrink until z(confidence) +
    z(power) of them fit between the drop and the limit (sample size of a non-inferiority test: Julious, Statistics in
    Medicine 2004, section 4), and no fewer than the ln(1/α)/limit items of the rule of three. A drop below 0 is taken
    as 0: a gain seen on few items is more often luck than the start of a larger one, and counting on it would promise
    too much. None when the drop lies on the limit.
    """
    towards_pass = drop.point < limit
    if towards_pass:
        fewest = math.log(1 / (1 - confidence)) / limit if limit > 0 else math.inf
        wanted = max(_enough(n, drop.high - drop.point, limit - max(drop.point, 0.0), confidence), fewest)
    else:
        wanted = _enough(n, drop.point - drop.low, drop.point - limit, confidence)
    return _whole_number(wanted, n)


def samples_needed(got: Estimate, limit: float, n: int, *, confidence: float = 0.95) -> int | None:
    """How many samples of each variant would decide 4 times in 5 (`POWER`), if they behave like these `n`.

    As `items_needed`, for a speedup or a latency on either side of its limit. None when it lies on the limit, or when
    there is no interval to shrink.
    """
    half = got.high - got.point if got.point < limit else got.point - got.low
    return _whole_number(_enough(n, half, abs(limit - got.point), confidence), n)


def settle(verdict: Verdict, *, accept_undecided: bool) -> Outcome:
    """The verdict's outcome; PASS for an undecided one if the user accepts that and all point estimates are within."""
    if verdict.outcome is not Outcome.UNDECIDED or not accept_undecided:
        return verdict.outcome
    doubtful = [check for check in verdict.checks if check.outcome is Outcome.UNDECIDED]
    return Outcome.PASS if all(map(_point_within, doubtful)) else Outcome.UNDECIDED


def exit_code(verdict: Verdict, *, accept_undecided: bool = False) -> int:
    """0 every check passed, 1 one failed, 3 undecided, 4 something could not be measured."""
    if not verdict.checks:
        return 0  # the user set no limit at all, so nothing can be missed
    return EXIT_CODES[settle(verdict, accept_undecided=accept_undecided)]


def _accuracy(budget: Budget, drop: Estimate | None, limit: float, changed: int, n: int) -> Check:
    if drop is None:
        return at_most(_DROP, None, limit, note="it was not scored")
    check = at_most(_DROP, drop, limit)
    share = f"{changed} of {n} items changed"
    if check.outcome is not Outcome.UNDECIDED:
        return check.model_copy(update={"note": share})
    needed = items_needed(drop, limit, n, confidence=budget.confidence)
    return check.model_copy(update={"note": f"{share}; {_would_decide('items', needed, n, drop.point < limit)}"})


def _with_samples_needed(check: Check, n: int, confidence: float) -> Check:
    """An undecided check of a time, with how many samples would decide it; others as they are."""
    if check.outcome is not Outcome.UNDECIDED or check.got is None or check.limit is None or not n:
        return check
    needed = samples_needed(check.got, check.limit, n, confidence=confidence)
    return check.model_copy(update={"note": _would_decide("samples", needed, n, _point_within(check))})


def _would_decide(things: str, needed: int | None, n: int, passing: bool) -> str:
    if needed is None:
        return f"it lies on the limit, so no number of {things} decides"
    towards = "a pass" if passing else "a fail"
    return f"about {needed:,} {things} would decide ({needed - n:,} more), towards {towards} if they behave like these"


def _enough(n: int, half_width: float, distance: float, confidence: float) -> float:
    """How many of what gave `half_width` at `confidence` with `n` bring the bound within `distance` with `POWER`."""
    sure = NormalDist().inv_cdf(confidence)
    if distance <= 0 or sure <= 0:
        return math.inf
    return n * ((sure + NormalDist().inv_cdf(POWER)) * half_width / sure / distance) ** 2


def _whole_number(wanted: float, n: int) -> int | None:
    return None if not math.isfinite(wanted) else max(n + 1, math.ceil(wanted * (1 - ROUNDING)))


def _why(got: Estimate | None, absent: str) -> str:
    return "" if got is not None else absent or "it was not timed"


def _point_within(check: Check) -> bool:
    if check.got is None or check.limit is None:
        return False
    if check.name == _SPEEDUP:
        return check.got.point >= check.limit - ROUNDING
    return check.got.point <= check.limit + ROUNDING


def _exact(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(point=value, low=value, high=value)


def _parse(text: str, scale: dict[str, float], what: str, form: str) -> float:
    found = re.fullmatch(_NUMBER + r"([a-zµ×]*)\s*", text.lower())
    if not found or found[2] not in scale or float(found[1]) == 0:
        raise ConfigError(f"{what} is {text!r}; give {form}")
    return float(found[1]) * scale[found[2]]


__all__ = [
    "Budget",
    "Drop",
    "at_least",
    "at_most",
    "exit_code",
    "items_needed",
    "judge",
    "median_latency",
    "paired_drop",
    "parse_latency",
    "parse_megabytes",
    "parse_speedup",
    "samples_needed",
    "settle",
    "speedup",
]
