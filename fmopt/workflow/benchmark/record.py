"""What a benchmark of a matrix found: raw samples of every cell, and the figures that follow from them. It is JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from fmopt.core.errors import BundleError
from fmopt.core.received import record_bytes
from fmopt.core.results import Estimate, Frozen, HostFacts
from fmopt.core.stages.store import write_whole
from fmopt.evaluation import bootstrap
from fmopt.workflow.benchmark.scenarios import SINGLE_STREAM_QUANTILE, Load, Scenario

FILE = "benchmark.json"


class Variant(Frozen):
    """What is timed: a bundle as deployed, or a checkpoint on one runtime."""

    name: str
    runtime: str
    precision: str
    size_bytes: int
    digest: str

    @property
    def full_precision(self) -> bool:
        """Whether ratios may be against it."""
        return self.precision == "fp32"


class Place(Frozen):
    """Where in the matrix a cell is."""

    scenario: Scenario
    batch: int
    length: int | None  # tokens; None: items as they are
    threads: int


class SingleStream(Frozen):
    """One query of `batch` items after the other; what counts is the 90th percentile of latency."""

    kind: Literal["single-stream"] = "single-stream"
    samples_ms: dict[str, list[float]]  # by variant; sample i of each was taken in round i

    def point(self, name: str, batch: int) -> float | None:
        """Milliseconds, without an interval."""
        return float(_p90(np.asarray(self.samples_ms[name])))

    def figure(self, name: str, batch: int) -> Estimate | None:
        """Milliseconds."""
        return bootstrap.of_rounds(_p90, [np.asarray(self.samples_ms[name])])

    def ratio(self, name: str, reference: str) -> Estimate | None:
        """How many times faster than the reference."""
        series = [np.asarray(self.samples_ms[one]) for one in (reference, name)]
        return bootstrap.of_rounds(lambda base, ours: _p90(base) / _p90(ours), _paired(series))


class Offline(Frozen):
    """Batches without a pause, in bursts that take turns; what counts is items per second."""

    kind: Literal["offline"] = "offline"
    calls: dict[str, int]  # batches of one burst, by variant
    bursts_ms: dict[str, list[float]]  # burst i of each was run in round i

    def point(self, name: str, batch: int) -> float | None:
        """Items/s, without an interval."""
        return batch * self.calls[name] * 1e3 / float(np.mean(self.bursts_ms[name]))

    def figure(self, name: str, batch: int) -> Estimate | None:
        """Items/s over all bursts."""
        items = batch * self.calls[name] * 1e3
        return bootstrap.of_rounds(lambda ms: items / ms.mean(axis=-1), [np.asarray(self.bursts_ms[name])])

    def ratio(self, name: str, reference: str) -> Estimate | None:
        """How many times as much as the reference."""
        more = self.calls[name] / self.calls[reference]
        series = [np.asarray(self.bursts_ms[one]) for one in (reference, name)]
        return bootstrap.of_rounds(lambda base, ours: more * base.mean(axis=-1) / ours.mean(axis=-1), _paired(series))


class Server(Frozen):
    """Queries of one item that arrive by chance; what counts is the highest rate whose p99 is within the limit.

    Its interval is that of the search: `low` is the highest rate that kept the limit, `high` the lowest that missed it.
    """

    kind: Literal["server"] = "server"
    limit_ms: float
    limit_words: str  # where the limit comes from
    service_ms: dict[str, dict[int, list[float]]]  # by variant and by how many queries were answered together
    loads: dict[str, list[Load]]  # in the order they were tried

    def bracket(self, name: str) -> Estimate:
        """The search's two ends, in queries/s; 0 when no rate kept the limit, and infinity when none missed it."""
        met = max((load.rate for load in self.loads[name] if load.met), default=0.0)
        missed = min((load.rate for load in self.loads[name] if not load.met), default=float("inf"))
        return Estimate(point=met, low=met, high=max(missed, met))

    def point(self, name: str, batch: int) -> float | None:
        """Queries/s; None when no rate that was tried kept the limit."""
        return self.bracket(name).point or None

    def figure(self, name: str, batch: int) -> Estimate | None:
        """Queries/s with the ends of the search; None when no rate that was tried kept the limit."""
        found = self.bracket(name)
        return found if found.point else None

    def ratio(self, name: str, reference: str) -> Estimate | None:
        """How many times as many as the reference."""
        ours, base = self.bracket(name), self.bracket(reference)
        if not base.point or not ours.point:
            return None
        if name == reference:
            return Estimate(point=1, low=1, high=1)
        return Estimate(point=ours.point / base.point, low=ours.low / base.high, high=ours.high / base.low)


Measured = Annotated[SingleStream | Offline | Server, Field(discriminator="kind")]


class Cell(Frozen):
    """One cell: all variants at one place."""

    place: Place
    measured: Measured
    warnings: list[str] = Field(default_factory=list)  # what disturbed it
    seconds: float = 0.0

    def figure(self, name: str) -> Estimate | None:
        """The figure of the scenario, with its interval: ms, items/s or queries/s."""
        return self.measured.figure(name, self.place.batch)

    def reference(self, variants: Iterable[Variant]) -> str:
        """What ratios are against here: the best of those in full precision; the first of all when there is none."""
        every = list(variants)
        full = [one.name for one in every if one.full_precision] or [every[0].name]
        return self.best(full) or full[0]

    def best(self, names: Iterable[str]) -> str | None:
        """The one with the best figure; None when none has any."""
        found = {name: self.measured.point(name, self.place.batch) for name in names}
        there = {name: point for name, point in found.items() if point is not None}
        if not there:
            return None
        return (min if self.place.scenario == "single-stream" else max)(there, key=lambda name: there[name])


class Benchmark(Frozen):
    """The whole of it; the only thing its report reads."""

    fmopt: str
    command: str
    variants: list[Variant]
    places: list[Place]  # all that was asked for, in the order of measuring
    cells: list[Cell]  # those that are measured so far
    host: HostFacts
    versions: dict[str, str]
    seed: int
    date: str
    stopped: str = ""  # why places are missing

    def save(self, path: Path) -> Path:
        """Write as JSON into a folder or file; it is whole or not there. StoreError when it cannot be written."""
        return write_whole(path / FILE if path.is_dir() else path, self.model_dump_json())

    @classmethod
    def load(cls, path: Path) -> Benchmark:
        """Read a file, or the `benchmark.json` of a folder; BundleError when it is absent or damaged."""
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise BundleError(f"there is no benchmark at {path}; name a folder that `fmopt bench --matrix` wrote")
        try:
            return cls.model_validate_json(record_bytes(path))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise BundleError(
                f"{path} is damaged at {where}: {first['msg']}; run `fmopt bench --matrix` again, "
                "what is finished is not redone"
            ) from error


def _p90(ms: np.ndarray) -> np.ndarray:
    # as scenarios.quantile, of many rows: finding one rank is ten times as fast as np.quantile
    rank = math.ceil(SINGLE_STREAM_QUANTILE * ms.shape[-1]) - 1
    return np.partition(ms, rank, axis=-1)[..., rank]


def _paired(series: list[np.ndarray]) -> list[np.ndarray]:
    """The rounds that both have."""
    shared = min(map(len, series))
    return [one[:shared] for one in series]
