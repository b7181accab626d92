"""Records and bundles side by side, judged by the gate's statistics on raw samples; the first is what others are held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any

from pydantic import computed_field

from fmopt.core import formatting, notebook
from fmopt.core.errors import ConfigError
from fmopt.core.results import Estimate, Frozen, Latency, Scores
from fmopt.evaluation import bootstrap
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.record import Record, Trial, percentile, value_of
from fmopt.evaluation.record_view import RecordView, read_view

# Two runs are not timed in turn, so a difference within what a quiet machine shows from day to day is not called one.
NOISE = 0.03
MEMORY_NOISE = 0.05
SIZE_NOISE = 0.01
UNKNOWN = "not known"


class Cell(Frozen):
    """What one record has in a line of a comparison."""

    shown: str
    value: float | None = None  # in the line's unit
    change: str = ""  # against the first record, in words, with its interval where there are raw samples
    # a ratio for times and speedups (above 1: better than the first), a drop in units of the metric for accuracy
    estimate: Estimate | None = None
    matters: bool = False


class Difference(Frozen):
    """One line of a comparison: a cell for each record."""

    what: str
    unit: str = ""
    cells: list[Cell]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def matters(self) -> bool:
        """True when any record differs from the first by more than noise."""
        return any(cell.matters for cell in self.cells)


class Comparison(Frozen):
    """What is different between records, what matters first, and what makes them hard to compare."""

    titles: list[str]  # of A, B, …
    rows: list[Difference]
    caveats: list[str]

    def _repr_html_(self) -> str:
        letters = LETTERS[: len(self.titles)]
        rows = [(row.what, *(f"{cell.shown}\n{cell.change}".strip() for cell in row.cells)) for row in self.rows]
        named = [f"{letter}: {title}" for letter, title in zip(letters, self.titles, strict=True)]
        return notebook.view("comparison", ("", *letters), rows, [*named, *self.caveats])


def compare(a: Record | str | Path, b: Record | str | Path, *more: Record | str | Path) -> Comparison:
    """Everything that records or bundles know, each held to the first; lines with differences that matter come first.

    A record's shipped variant stands for it.

    Arguments:
        a, b, more: records, or paths of records (JSON), of folders of an optimization, or of bundles; one without a record is
            compared by its files, precision and versions.

    Returns a `Comparison`: `rows` with a cell for each record, and `caveats`, what makes them hard to compare. Raises BundleError
    for anything else, ConfigError for more than one table holds.

    >>> fmopt.compare(made, made).rows[0].matters
    False
    """
    sides = [read_view(thing) for thing in (a, b, *more)]
    if len(sides) > len(LETTERS):
        raise ConfigError(f"{len(sides)} records are too many for one table; at most {len(LETTERS)} can be compared")
    rows = [
        words_row("verdict", sides, lambda side: side.verdict),
        words_row("shipped variant", sides, lambda side: side.shipped.name if side.shipped else ""),
        words_row("shipped as", sides, lambda side: side.shipped.title if side.shipped else ""),
        times_row("latency, shipped", sides, lambda side: side.shipped.latency if side.shipped else None),
        times_row("end to end, shipped", sides, lambda side: side.shipped.end_to_end if side.shipped else None),
        row("speedup, shipped", "times", sides, _speedup_of, against_speedup),
        accuracy_row(sides),
        row("size", "bytes", sides, _size_of, against_size),
        row("peak memory", "MB", sides, _memory_of, _against_memory),
    ]
    shipped = {side.shipped.name for side in sides if side.shipped}
    for trial in sides[0].trials:
        others = [side.find(trial.name) for side in sides[1:]]
        if trial.latency and any(others) and shipped != {trial.name}:
            rows.append(times_row(f"latency, {trial.name}", sides, lambda side, n=trial.name: _latency(side.find(n))))  # type: ignore[misc]
    rows += _tried(sides)
    return Comparison(
        titles=[side.title for side in sides],
        rows=sorted(rows, key=lambda row: not row.matters),
        caveats=caveats(sides),
    )


def caveats(sides: Sequence[RecordView]) -> list[str]:
    """What makes records hard to compare: circumstances that differ, and how the comparison is made."""
    found = circumstances(sides)
    found.append(
        "they were timed in different runs, not in turn: "
        f"differences under {formatting.percent(NOISE)} are not called differences"
    )
    if len(sides) > 2:
        found.append("each is held to A alone; bounds are not widened for their number")
    return found


def circumstances(sides: Sequence[RecordView]) -> list[str]:
    """Circumstances that differ, so that a difference may not be the models'."""
    found = [
        f"{letter} is a bundle without a record: its latency, accuracy and memory are {UNKNOWN}"
        for letter, side in zip(LETTERS, sides, strict=False)
        if not side.measured
    ]
    for what in ("model", "data", "target"):
        groups = _groups([getattr(side, what) for side in sides])
        if len(groups) > 1:
            who = "" if len(sides) == 2 else ": " + "; ".join(_listed(letters) for letters, _ in groups)
            found.append(f"the {what} is not the same{who}")
    for prefix, metadata in (("", [side.host for side in sides]), ("version of ", [side.versions for side in sides])):
        for what, groups in differing(prefix, metadata):
            found.append(f"{what}: " + ", ".join(f"{value} in {_listed(who)}" for who, value in groups))
    return found


def differing(prefix: str, metadata: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """What is not the same everywhere: (name, [(letters of those who have a value, the value)]).

    A record without any such value has no say; with a prefix, one that lacks a name that others know has "–" for it.
    """
    found = []
    for key in sorted(set().union(*metadata)):
        values = [
            (one.get(key, formatting.MISSING) if key in one or prefix else None) if one else None for one in metadata
        ]
        groups = _groups(values)
        if len(groups) < 2:
            continue
        if all(isinstance(value, list | tuple) for _, value in groups):
            common = set.intersection(*(set(value) for _, value in groups))
            groups = [(who, " ".join(sorted({*value} - common)) or "no more") for who, value in groups]
            key += " beyond what all have"
        found.append((f"{prefix}{key}", groups))
    return found


def words_row(what: str, sides: Sequence[RecordView], word: Callable[[RecordView], str]) -> Difference:
    """A line of words; any difference matters."""
    first = word(sides[0])
    cells = [
        Cell(shown=got or formatting.MISSING, change="" if got == first else "changed", matters=got != first)
        for got in map(word, sides)
    ]
    return Difference(what=what, cells=cells)


def times_row(what: str, sides: Sequence[RecordView], latency: Callable[[RecordView], Latency | None]) -> Difference:
    """A line of median latencies."""
    return row(what, "ms", sides, lambda side: _shown_latency(latency(side)), lambda a, b: between_times(latency(a), latency(b),
               max(a.confidence, b.confidence)))  # fmt: skip


def row(
    what: str,
    unit: str,
    sides: Sequence[RecordView],
    value: Callable[[RecordView], tuple[float | None, str]],
    against: Callable[[RecordView, RecordView], Cell | None],
) -> Difference:
    """A line of figures: (number, in words) of each, and how each but the first is held to the first."""
    cells = []
    for number, side in enumerate(sides):
        got, shown = value(side)
        if got is None and not side.measured:
            shown = UNKNOWN
        change = against(sides[0], side) if number else None
        cells.append((change or Cell(shown="")).model_copy(update={"shown": shown, "value": got}))
    return Difference(what=what, unit=unit, cells=cells)


def accuracy_row(sides: Sequence[RecordView]) -> Difference:
    """The metric that the first is judged by; paired item by item where the items are the same."""
    split, name = judging_metric(sides)

    def value(side: RecordView) -> tuple[float | None, str]:
        scores = scores_of(side, split, name)
        got = value_of(scores) if scores else None
        return got, formatting.score(got, bounded=scores is None or METRICS[scores.metric].bounded)

    return row(f"{name}, shipped", "", sides, value, lambda a, b: against_accuracy(a, b, split, name))


def against_accuracy(a: RecordView, b: RecordView, split: str, name: str) -> Cell:
    """The paired drop of a metric from `a` to `b`, or why there is none."""
    first, second = scores_of(a, split, name), scores_of(b, split, name)
    if first is None or second is None:
        return Cell(shown="", change="no metric in common" if b.measured else "")
    if a.data != b.data or len(first.values) != len(second.values):
        return Cell(shown="", change="not comparable: other items")
    drop = bootstrap.paired_drop(first, second, confidence=max(a.confidence, b.confidence))
    matters = drop.low > 0 or drop.high < 0
    whole = None if METRICS[first.metric].bounded else value_of(first) or None
    shown = drop if whole is None else Estimate(point=drop.point / whole, low=drop.low / whole, high=drop.high / whole)
    moved = f"{'loses' if drop.point >= 0 else 'gains'} {formatting.loss(abs(drop.point), whole)}"
    change = f"{moved} (drop {formatting.points_interval(shown)})"
    return Cell(shown="", estimate=drop, matters=matters, change=change if matters else f"not significant: {change}")


def against_latency(a: RecordView, b: RecordView) -> Cell | None:
    """The ratio of median latencies of what is shipped; None when one was not timed."""
    one, two = (side.shipped.latency if side.shipped else None for side in (a, b))
    return between_times(one, two, max(a.confidence, b.confidence))


def against_speedup(a: RecordView, b: RecordView) -> Cell | None:
    """How many times the speedup of `a` that of `b` is. Each is a ratio within its own run, so the machines cancel."""
    one, two = (side.shipped.speedup if side.shipped else None for side in (a, b))
    if one is None or two is None:
        return None
    ratio = ratio_of(two, one)
    return _beyond_noise(ratio, f"{formatting.times(ratio)} of A's ({formatting.times_interval(ratio)})")


def ratio_of(a: Estimate, b: Estimate) -> Estimate:
    """a / b of two independent figures: relative errors add in quadrature, on the scale of logarithms (delta method)."""

    def error(up: Estimate, down: Estimate, *, high: bool) -> float:
        rise, fall = (up.high, down.low) if high else (up.low, down.high)
        return math.hypot(math.log(max(rise, 1e-9) / up.point), math.log(max(fall, 1e-9) / down.point))

    point = a.point / b.point
    return Estimate(
        point=point, low=point * math.exp(-error(a, b, high=False)), high=point * math.exp(error(a, b, high=True))
    )


def between_times(a: Latency | None, b: Latency | None, confidence: float) -> Cell | None:
    """Median against median with the interval of their ratio, if they are of one shape.

    The two were not timed in turn: each median has its own block bootstrap, over all of its samples.
    """
    if a is None or b is None or not a.samples_ms or not b.samples_ms:
        return None
    if (a.batch, a.length, a.threads, a.end_to_end) != (b.batch, b.length, b.threads, b.end_to_end):
        what = "from raw input to answer" if b.end_to_end else "the model alone"
        return Cell(shown="", change=f"not comparable: {formatting.shape(b.batch, b.length, b.threads)}, {what}")
    ratio = ratio_of(bootstrap.median_latency(a, confidence), bootstrap.median_latency(b, confidence))
    slower = ratio.point < 1
    shown = Estimate(point=1 / ratio.point, low=1 / ratio.high, high=1 / max(ratio.low, 1e-9)) if slower else ratio
    return _beyond_noise(
        ratio, f"{formatting.times(shown)} as {'slow' if slower else 'fast'} ({formatting.times_interval(shown)})"
    )


def beyond_noise(ratio: Estimate) -> bool:
    """Whether a ratio's whole interval lies further from 1 than two runs of the same thing do."""
    return ratio.low > 1 + NOISE or ratio.high < 1 / (1 + NOISE)


def _beyond_noise(ratio: Estimate, change: str) -> Cell:
    matters = beyond_noise(ratio)
    return Cell(shown="", estimate=ratio, matters=matters, change=change if matters else f"same within noise: {change}")


def _amount(a: float | None, b: float | None, noise: float) -> Cell | None:
    if not a or b is None:
        return None
    share = b / a - 1
    change = f"{'+' if share > 0 else '−'}{formatting.percent(abs(share))}" if abs(share) > 1e-9 else ""
    return Cell(shown="", change=change, matters=abs(share) > noise)


def against_size(a: RecordView, b: RecordView) -> Cell | None:
    """How many percent larger `b` is; one percent is noise."""
    return _amount(_size_of(a)[0], _size_of(b)[0], SIZE_NOISE)


def _against_memory(a: RecordView, b: RecordView) -> Cell | None:
    return _amount(_memory_of(a)[0], _memory_of(b)[0], MEMORY_NOISE)


def _size_of(side: RecordView) -> tuple[float | None, str]:
    size = side.shipped.size_bytes if side.shipped else None
    return size, formatting.size(size)


def _memory_of(side: RecordView) -> tuple[float | None, str]:
    memory = side.shipped.footprint.peak_memory_mb if side.shipped and side.shipped.footprint else None
    return memory, formatting.megabytes(memory)


def _speedup_of(side: RecordView) -> tuple[float | None, str]:
    speedup = side.shipped.speedup if side.shipped else None
    return speedup.point if speedup else None, formatting.times(speedup)


def _shown_latency(latency: Latency | None) -> tuple[float | None, str]:
    median = percentile(latency, 50)
    return median, formatting.milliseconds(median)


def _latency(trial: Trial | None) -> Latency | None:
    return trial.latency if trial else None


def judging_metric(sides: Sequence[RecordView]) -> tuple[str, str]:
    """(split, name) of the metric that the first is judged by; on the split where others have it too, test first."""
    splits = ("test_scores", "scores")
    first = sides[0].shipped
    had = [(split, s.name) for split in splits for s in (getattr(first, split) if first else []) if s.primary]
    shared = [pair for pair in had if any(scores_of(side, *pair) for side in sides[1:])]
    return (shared or had or [(splits[0], "accuracy")])[0]


def scores_of(side: RecordView, split: str, name: str) -> Scores | None:
    """What is shipped scored so on that split; None where it was not."""
    if side.shipped is None:
        return None
    return next((s for s in getattr(side.shipped, split) if s.primary and s.name == name), None)


def _tried(sides: Sequence[RecordView]) -> list[Difference]:
    """A line for each variant that only some have tried."""
    measured = [side for side in sides if side.measured]
    names = sorted({trial.name for side in measured for trial in side.trials})
    return [
        Difference(
            what=f"variant {name}",
            cells=[
                Cell(shown=UNKNOWN if not side.measured else "tried" if side.find(name) else formatting.MISSING)
                for side in sides
            ],
        )
        for name in names
        if not all(side.find(name) for side in measured)
    ]


def _groups(values: Iterable[Any]) -> list[tuple[str, Any]]:
    """Letters of those that have the same value, and the value, in order; None is no value."""
    found: list[tuple[str, Any]] = []
    for letter, value in zip(LETTERS, values, strict=False):
        if value is None:
            continue
        place = next((i for i, (_, other) in enumerate(found) if other == value), None)
        if place is None:
            found.append((letter, value))
        else:
            found[place] = (found[place][0] + letter, value)
    return found


def _listed(letters: str) -> str:
    """`A, B and C`."""
    return letters if len(letters) == 1 else f"{', '.join(letters[:-1])} and {letters[-1]}"
