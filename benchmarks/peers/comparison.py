"""A comparison as a table or a page shows it, read from a result's JSON alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.results import Estimate, Latency, Scores
from fmopt.evaluation import bootstrap
from fmopt.evaluation.record import value_of

ONNX_RUNTIME_FP32 = "optimum_onnx fp32"
OURS = "fmopt"
BUSY = 4.0  # load average before a variant was made; building one after the other on few cores reaches half of that
NEAR = 0.01  # a variant that loses more, as measured, is no alternative


@dataclass(frozen=True)
class Row:
    """One variant that was timed."""

    name: str
    peer: str
    full_precision: bool
    median: Estimate  # ms
    p90: float  # ms
    samples: int
    speedup: Estimate | None  # over the fastest full precision; None for itself
    over_onnx_runtime: Estimate | None  # over ONNX Runtime fp32; None for itself, or where that is missing
    value: float | None  # of the metric, a share of 1
    drop: Estimate | None  # of the metric to PyTorch fp32; low = point = high where no per-item scores were kept
    others: Mapping[str, float]  # further metrics
    size_bytes: int
    minutes: float | None  # of wall clock
    cpu_minutes: float | None  # where the machine was busy with other things: those of the processor say more
    lines: int | None
    error: str | None  # timed, but not scored

    @property
    def ours(self) -> bool:
        """A bundle of fmopt's."""
        return self.peer == OURS

    @property
    def lost(self) -> bool:
        """Loses more than `NEAR`, as measured."""
        return self.drop is not None and self.drop.point > NEAR + 1e-9  # ten items of a thousand are one point


@dataclass(frozen=True)
class Failure:
    """A variant that a peer could not make, or whose file could not be run."""

    name: str
    error: str
    minutes: float | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """One model and task on one machine: rows fastest first, and what failed."""

    file: str
    subject: str
    title: str
    task: str
    metric: str
    items: int
    items_of: int
    reference: float | None  # value of the metric of PyTorch fp32
    rows: Sequence[Row]
    failures: Sequence[Failure]
    fastest_full: str  # name of the fastest full-precision row; empty when there is none
    best_peer: str  # name of the fastest other row that loses at most NEAR; empty when there is none
    over_best_peer: Estimate | None  # how many times faster ours is than that
    document: Mapping[str, Any]  # host, versions, date, command, shape, warnings

    @property
    def ours(self) -> Row | None:
        """fmopt's fastest bundle."""
        return next((row for row in self.rows if row.ours), None)


def read_all(folder: Path) -> list[Comparison]:
    """The newest result of each subject and shape in a folder, the newest first."""
    newest: dict[tuple[Any, ...], Comparison] = {}
    for path in folder.glob("peers-*.json"):
        found = read(path)
        key = (found.subject, *(found.document[name] for name in ("batch", "length", "threads")))
        if key not in newest or newest[key].document["date"] < found.document["date"]:
            newest[key] = found
    return sorted(newest.values(), key=lambda found: found.document["date"], reverse=True)


def read(path: Path) -> Comparison:
    """One result."""
    document = json.loads(path.read_text(encoding="utf-8"))
    timed = sorted((row for row in document["rows"] if row["samples_ms"]), key=_median)
    full = next((row for row in timed if row["full_precision"]), None)
    common = next((row for row in timed if row["name"] == ONNX_RUNTIME_FP32), None)
    base = _scores(document["reference"])
    rows = [_row(row, document, base, full, common) for row in timed]
    failures = [
        Failure(row["name"], row["error"], row["made"].get("minutes"), row["made"].get("versions") or {})
        for row in document["rows"]
        if not row["samples_ms"]
    ]
    ours = next((row for row in rows if row.ours), None)
    best = next((row for row in rows if not row.ours and row.drop and not row.lost), None)
    first = next((row["scores"] for row in document["rows"] if row["scores"]), None)
    return Comparison(
        path.name, document["subject"], document["model"]["title"], document["task"],
        first["name"] if first else "", document["items"]["scored"], document["items"]["of"],
        value_of(base) if base else document["reference"].get("value"), rows, failures,
        full["name"] if full else "", best.name if best else "", _over(ours, best, document), document,
    )  # fmt: skip


def _row(
    row: dict[str, Any], document: dict[str, Any], base: Scores | None, full: dict | None, common: dict | None
) -> Row:
    scores, reported = _scores(row), row["scores"] or {}
    kept = Estimate(**reported["drop"]) if "drop" in reported else None
    drop = bootstrap.paired_drop(base, scores) if base and scores else kept
    return Row(
        row["name"], row["made"]["peer"], row["full_precision"], bootstrap.median_latency(_latency(row, document)),
        float(np.percentile(row["samples_ms"], 90)), len(row["samples_ms"]),
        _faster(full, row, document), _faster(common, row, document),
        value_of(scores) if scores else reported.get("value"), drop, row["others"], row["size_bytes"],
        row["made"].get("minutes"), _cpu_minutes(row["made"]), row["made"].get("lines"), row["error"],
    )  # fmt: skip


def _cpu_minutes(made: Mapping[str, Any]) -> float | None:
    return made.get("cpu_minutes") if made.get("load_before", 0) > BUSY else None


def _scores(row: Mapping[str, Any]) -> Scores | None:
    return Scores(**row["scores"]) if row["scores"] and "values" in row["scores"] else None


def _faster(slow: dict[str, Any] | None, row: dict[str, Any], document: dict[str, Any]) -> Estimate | None:
    if slow is None or slow is row:
        return None
    return bootstrap.speedup(_latency(slow, document), _latency(row, document))


def _over(ours: Row | None, best: Row | None, document: dict[str, Any]) -> Estimate | None:
    if ours is None or best is None:
        return None
    named = {row["name"]: row for row in document["rows"]}
    return _faster(named[best.name], named[ours.name], document)


def _latency(row: dict[str, Any], document: dict[str, Any]) -> Latency:
    shape = {key: document[key] for key in ("batch", "length", "threads")}
    return Latency(samples_ms=row["samples_ms"], **shape)


def _median(row: dict[str, Any]) -> float:
    return float(np.median(row["samples_ms"]))
