"""Records of one model over time, and where something got worse by more than noise: the statistics of comparison.py.

Each record is held to the best and to the one before it, in latency, accuracy and size. What the machine, or another
wish, explains is said as such and does not count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, computed_field

from fmopt.core import formatting
from fmopt.core.errors import BundleError, StoreError
from fmopt.core.results import Estimate, Frozen, Scores
from fmopt.core.stages.store import write_whole
from fmopt.evaluation import bootstrap
from fmopt.evaluation.comparison import (
    NOISE,
    SIZE_NOISE,
    against_accuracy,
    against_latency,
    against_size,
    between_times,
    beyond_noise,
    differing,
    ratio_of,
)
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.record import FILE, Record, as_displayed, value_of
from fmopt.evaluation.record_view import RecordView, view_of_record

HARDWARE = ("cpu", "arch", "isa", "cores")  # what another of is another machine
ASKED = ("max_drop", "min_speedup", "max_latency_ms", "max_size_mb", "max_memory_mb")


class Regression(Frozen):
    """Something that got worse than noise explains."""

    what: Literal["latency", "accuracy", "size"]
    than: str  # "the best so far", "the one before"
    date: str  # of that one
    change: str  # in words, with its interval where there are raw samples
    explained: str = ""  # why it may not be the model's; such a one does not count


class Entry(Frozen):
    """One record in its place in time; figures are of the variant that it ships."""

    path: str
    date: str
    fmopt: str
    effort: str
    shipped: str
    verdict: str
    threads: int
    latency: Estimate | None  # of the median, ms
    speedup: Estimate | None
    metric: str
    value: float | None
    items: int
    drop: Estimate | None  # against its own full precision, as displayed
    size_bytes: int | None
    regressions: list[Regression]
    differs: list[str]  # circumstances that are not those of the one before

    @computed_field  # type: ignore[prop-decorator]
    @property
    def regressed(self) -> bool:
        """True when something got worse that nothing explains."""
        return any(not regression.explained for regression in self.regressions)


class Group(Frozen):
    """Records of one model for one task, target and shape, the oldest first."""

    title: str
    digest: str
    task: str
    target: str
    batch: int
    length: int | None
    from_raw: bool = False  # judged from raw input to answer; False: the model alone
    entries: list[Entry]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def regressed(self) -> bool:
        """True when the newest record got worse."""
        return self.entries[-1].regressed


class History(Frozen):
    """Every group that was found, and what could not be read."""

    groups: list[Group]
    skipped: list[str] = Field(default_factory=list)

    @property
    def regressed(self) -> bool:
        """True when the newest record of any group got worse."""
        return any(group.regressed for group in self.groups)


def history(*paths: str | Path) -> History:
    """The records under folders (every `record.json`) and those named themselves, in groups, the oldest first.

    Arguments:
        paths: folders, which are searched, and files; a file that is no record is skipped and named in `skipped`.

    Returns a `History`: groups of the same model, task, target and shape, each entry held to the one before and to the best so
    far. Raises BundleError when a path is not there or no record is left.

    >>> [group.task for group in fmopt.history(made).groups]
    ['text-classification']
    """
    found, skipped = [], []
    for path in record_files(paths):
        try:
            found.append(Dated(path, Record.load(path, lenient=True)))
        except BundleError as error:
            skipped.append(str(error).partition(";")[0])
    if not found:
        raise BundleError(
            f"there is no record under {', '.join(map(str, paths))}; name folders that `fmopt optimize` wrote, or records"
        )
    groups: dict[tuple[Any, ...], list[Dated]] = {}
    for one in sorted(found, key=lambda one: one.record.circumstances.date):
        groups.setdefault(one.group, []).append(one)
    return History(groups=[_group(members) for members in groups.values()], skipped=skipped)


def keep(record: Record, folder: str | Path) -> Path:
    """Add a record to those in `folder`, under a name made of its date and its content, and return its file.

    `history(folder)` finds it there. One that is there already is not written again. StoreError when it cannot be written.
    """
    text = record.model_dump_json()
    day_and_time = re.sub(r"[^0-9T-]", "", record.circumstances.date)[:17]
    place = Path(folder) / f"{day_and_time}-{hashlib.sha256(text.encode()).hexdigest()[:8]}" / FILE
    if not place.is_file():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot keep a history ({error.strerror}); name another folder") from error
        write_whole(place, text)
    return place


def record_files(paths: Iterable[str | Path]) -> list[Path]:
    """Files named, and every record.json under folders named; each once. BundleError for a path that is not there."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise BundleError(f"there is nothing at {path}; name folders that `fmopt optimize` wrote, or records")
        for file in sorted(path.rglob(FILE)) if path.is_dir() else [path]:
            found.setdefault(file.resolve(), file)
    return list(found.values())


@dataclass(frozen=True)
class Dated:
    """A record with where it lies."""

    path: Path
    record: Record

    @cached_property
    def side(self) -> RecordView:
        """As comparisons see it."""
        return view_of_record(self.record)

    @property
    def group(self) -> tuple[Any, ...]:
        """What records must have in common to be one history."""
        record = self.record
        model = [str(record.model.get(name, "")) for name in ("title", "digest", "task")]
        workload = record.judged_on
        judged = (workload.batch, workload.length, workload.arrival, workload.from_raw)
        return (*model, record.target.name, *judged)

    @property
    def date(self) -> str:
        """When it was made."""
        return self.record.circumstances.date

    @property
    def hardware(self) -> dict[str, Any]:
        """What makes it another machine."""
        return {name: self.record.circumstances.host.get(name) for name in HARDWARE}

    @property
    def asked(self) -> dict[str, Any]:
        """What the user wanted."""
        return {name: self.record.budget.get(name) for name in ASKED}

    @property
    def p50(self) -> float | None:
        """Median latency of what is shipped, ms."""
        return self.record.winning.p50 if self.record.winning else None

    @property
    def scores(self) -> tuple[str, Scores | None]:
        """(split, values) of the metric that it is judged by."""
        shipped = self.record.winning
        split = "test_scores" if shipped and shipped.test_scores else "scores"
        return split, shipped.primary if shipped else None

    @property
    def size(self) -> int | None:
        """Bytes of what is shipped."""
        return self.record.winning.size_bytes if self.record.winning else None


def _group(members: Sequence[Dated]) -> Group:
    title, digest, task, target, batch, length, _, from_raw = members[0].group
    return Group(
        title=title,
        digest=digest,
        task=task,
        target=target,
        batch=batch,
        length=length,
        from_raw=from_raw,
        entries=[_entry(one, members[:number]) for number, one in enumerate(members)],
    )


def _entry(one: Dated, before: Sequence[Dated]) -> Entry:
    record, shipped = one.record, one.record.winning
    given = as_displayed(record).winning
    scores = one.scores[1]
    return Entry(
        path=str(one.path),
        date=one.date,
        fmopt=record.fmopt,
        effort=record.effort,
        shipped=record.winner,
        verdict=record.verdict.outcome.value,
        threads=record.circumstances.threads,
        latency=bootstrap.median_latency(shipped.latency, record.confidence) if shipped and shipped.latency else None,
        speedup=shipped.speedup if shipped else None,
        metric=scores.name if scores else "",
        value=value_of(scores) if scores else None,
        items=len(scores.values) if scores else 0,
        drop=given.final_drop if given else None,
        size_bytes=one.size,
        regressions=[found for measure in MEASURES if (found := _worst(measure, one, before)) is not None],
        differs=differences(before[-1], one) if before else [],
    )


@dataclass(frozen=True)
class Measure:
    """One figure that must not get worse: its cost (lower is better) where it can be compared, and the comparison."""

    what: Literal["latency", "accuracy", "size"]
    cost: Callable[[Dated, Dated], float | None]  # of the first, as far as it is comparable with the second
    margin: Callable[[float], float]  # the least cost that can be worse by more than noise
    worse: Callable[[Dated, Dated], str | None]  # in words, when the second is worse than the first beyond noise


def _latency_cost(one: Dated, judged: Dated) -> float | None:
    same = one.record.circumstances.threads == judged.record.circumstances.threads
    return one.p50 if same else None


def _latency_worse(a: Dated, b: Dated) -> str | None:
    cell = against_latency(a.side, b.side)
    return cell.change if cell and cell.matters and cell.estimate and cell.estimate.point < 1 else None


def _accuracy_cost(one: Dated, judged: Dated) -> float | None:
    (split, ours), (other, theirs) = one.scores, judged.scores
    if ours is None or theirs is None or one.record.data.get("digest") != judged.record.data.get("digest"):
        return None
    if (split, ours.name, len(ours.values)) != (other, theirs.name, len(theirs.values)):
        return None
    return -value_of(ours) if METRICS[ours.metric].higher_is_better else value_of(ours)


def _accuracy_worse(a: Dated, b: Dated) -> str | None:
    split, scores = a.scores
    assert scores is not None  # it has a cost
    cell = against_accuracy(a.side, b.side, split, scores.name)
    return cell.change if cell.matters and cell.estimate and cell.estimate.point > 0 else None


def _size_worse(a: Dated, b: Dated) -> str | None:
    cell = against_size(a.side, b.side)
    return cell.change if cell and cell.matters else None


MEASURES = (
    Measure("latency", _latency_cost, lambda cost: cost * (1 + NOISE), _latency_worse),
    Measure("accuracy", _accuracy_cost, lambda cost: cost, _accuracy_worse),
    Measure("size", lambda one, judged: one.size, lambda cost: cost * (1 + SIZE_NOISE), _size_worse),
)


def _worst(measure: Measure, one: Dated, before: Sequence[Dated]) -> Regression | None:
    """How `one` is worse than earlier ones, if it is.

    What the best one alike says counts first: where the machine explains that, it explains the others too. Else
    something that nothing explains comes before what something does.
    """
    now = measure.cost(one, one)
    costs = [(cost, other) for other in before if (cost := measure.cost(other, one)) is not None]
    if now is None or not costs:
        return None
    alike = [pair for pair in costs if (pair[1].hardware, pair[1].asked) == (one.hardware, one.asked)]
    best, last = min(costs, key=_cost), costs[-1]
    best_alike = min(alike, key=_cost) if alike else best
    held_to = {
        best_alike[1].path: (
            "the best so far" if best_alike == best else "the best so far on such a machine",
            *best_alike,
        )
    }
    held_to.setdefault(best[1].path, ("the best so far", *best))
    held_to.setdefault(last[1].path, ("the one before", *last))
    found = []
    for than, cost, other in held_to.values():
        if now > measure.margin(cost) and (change := measure.worse(other, one)):  # else no bound can be beyond noise
            explained = explanation(measure.what, other, one)
            found.append(Regression(what=measure.what, than=than, date=other.date, change=change, explained=explained))
            if alike and other is best_alike[1]:
                return found[0]
    return next((one for one in found if not one.explained), found[0] if found else None)


def _cost(pair: tuple[float, Dated]) -> float:
    return pair[0]


def explanation(what: str, a: Dated, b: Dated) -> str:
    """Why `b` may be worse than `a` without its model being worse; empty when nothing says so."""
    if a.asked != b.asked:
        changed = [
            name.removesuffix("_ms").removesuffix("_mb").replace("_", " ")
            for name in ASKED
            if a.asked[name] != b.asked[name]
        ]
        return f"something else was asked for ({', '.join(changed)})"
    if a.hardware != b.hardware and (what == "latency" or a.record.winner != b.record.winner):
        other = ", ".join(name for name in HARDWARE if a.hardware[name] != b.hardware[name])
        chose = ", where another variant is the fastest" if what != "latency" else ""
        return f"another machine ({other}){chose}"
    if what != "latency":
        return ""
    return _slower_machine(a, b)


def _slower_machine(a: Dated, b: Dated) -> str:
    """Words when what did not change between two runs, full precision under the same versions, got slower as well."""
    name = a.record.reference
    one, two = a.record.find(name), b.record.find(name)
    if a.record.circumstances.versions != b.record.circumstances.versions or one is None or two is None:
        return ""
    moved = between_times(one.latency, two.latency, max(a.record.confidence, b.record.confidence))
    if moved is None or not moved.matters or moved.estimate is None or moved.estimate.point >= 1:
        return ""
    ours, theirs = (side.record.winning.speedup if side.record.winning else None for side in (b, a))
    if ours is None or theirs is None or (beyond_noise(ratio := ratio_of(ours, theirs)) and ratio.point < 1):
        return ""
    return f"the machine: {name}, under the same versions, is {moved.change} too, and the speedup is no worse"


def differences(a: Dated, b: Dated) -> list[str]:
    """Circumstances of `b` that are not those of `a`, as `name: before → now`."""
    one, two = a.record.circumstances, b.record.circumstances
    metadata: list[tuple[str, Any, Any]] = [
        ("", one.host, two.host),
        ("version of ", one.versions, two.versions),
        ("", {"threads": one.threads, "effort": a.record.effort}, {"threads": two.threads, "effort": b.record.effort}),
        ("", _words(a.asked), _words(b.asked)),
        ("", {"data": a.record.data.get("digest", "")[:8]}, {"data": b.record.data.get("digest", "")[:8]}),
    ]
    return [
        f"{what}: {' → '.join(str(value) for _, value in groups)}"
        for prefix, first, second in metadata
        for what, groups in differing(prefix, [first, second])
    ]


def _words(asked: dict[str, Any]) -> dict[str, str]:
    """A budget with each limit as text."""
    plain = {name: f"{v['amount']:g} {v['unit']}" if isinstance(v, dict) else v for name, v in asked.items()}
    return {
        f"asked for {name.replace('_', ' ')}": "none" if value is None else str(value) for name, value in plain.items()
    }


def day(date: str) -> str:
    """An ISO date and time as people write it."""
    return date[:16].replace("T", " ")


def place(group: Group) -> str:
    """What a group has in common, in words."""
    tokens = formatting.tokens(group.length)
    judged = f"batch {group.batch:,}, {tokens}{', from raw input to answer' if group.from_raw else ''}"
    return f"{group.task} on {group.target}, {judged}, model {group.digest[:8] or formatting.MISSING}"
