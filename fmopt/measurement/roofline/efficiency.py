"""How much of a device's ceilings a runtime reaches, as curves fitted on measured hosts; and predictions by them.

Beyond the roofline's two ceilings a runtime pays for every product (packing, edges of tiles) and for every node. With x
operations a product takes (a·x + b) / ceiling, so that it reaches x / (a·x + b) of the ceiling: little when it is small,
1 / a when it is large. All else moves bytes at a share of the memory's bandwidth, and every node costs a little. That is
linear in what is unknown, so it is fitted by least squares of relative errors, with bounds. The form is that of Hockney's
r∞ and n½ (The Science of Computer Benchmarking, 1996) in a roofline's units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import Field

from fmopt.core.results import Frozen
from fmopt.core.target import Target
from fmopt.measurement.roofline import model
from fmopt.measurement.roofline.model import CONVOLUTIONS, PRODUCTS, Work

FITTED = Path(__file__).with_name("efficiency.json")
PRECISIONS = ("fp32", "bf16", "int8")  # whose ceilings a probe measures
LOWEST, HIGHEST = 0.5, 50.0  # of the time at the ceiling that a large product may take


class Curve(Frozen):
    """What one runtime makes of ceilings. A precision that no sample ran in is left out, and takes fp32's."""

    slope: dict[str, float]  # a, by precision
    start: dict[str, float]  # b, operations, by precision
    moved: float  # time of bytes that no product moves, in times at the full bandwidth
    node: float  # operations at one core's fp32 ceiling that a node costs

    def efficiency(self, precision: str, operations: float) -> float:
        """Share of the ceiling that a product of so many operations reaches."""
        return operations / (self._of(self.slope, precision) * operations + self._of(self.start, precision))

    @staticmethod
    def _of(values: Mapping[str, float], precision: str) -> float:
        return values.get(precision, values["fp32"])


class Fitted(Frozen):
    """Curves by runtime, and where they come from."""

    curves: dict[str, Curve]
    hosts: list[str] = Field(default_factory=list)  # CPUs that samples were measured on
    samples: int = 0
    source: str = ""  # what made it


@dataclass(frozen=True)
class Sample:
    """One measured variant: its work, where and how it ran, and what it took."""

    work: Sequence[Work]
    runtime: str
    target: Target
    precision: str  # of float products
    threads: int
    ms: float


@cache
def fitted() -> Fitted | None:
    """The curves that come with fmopt; None before any were fitted."""
    return Fitted.model_validate_json(FITTED.read_text()) if FITTED.is_file() else None


def artifact_work(path: Path, batch: int, length: int) -> list[Work]:
    """The work of a model.onnx or model.xml."""
    if path.suffix == ".xml":
        from fmopt.measurement.roofline.openvino_work import ir_work

        return list(ir_work(path, batch, length))
    return list(model.graph_work(path, batch, length))


def predict_ms(
    path: Path, runtime: str, target: Target, batch: int, length: int, precision: str, *, threads: int
) -> float | None:
    """Milliseconds that a model.onnx or model.xml would take on `target` by `runtime`; None when that is unknown.

    By the runtime's fitted curve, or by `roofline.predict_ms` where there is none. `precision` is that of float products.
    """
    found = fitted()
    if found is None or runtime not in found.curves:
        wide = path.suffix == ".onnx"
        return model.predict_ms(path, target, batch, length, precision, threads=threads) if wide else None
    try:
        work = artifact_work(path, batch, length)
    except (RuntimeError, KeyError, IndexError, ValueError):  # a graph whose shapes a library does not follow
        return None
    return by_curve(found.curves[runtime], Sample(work, runtime, target, precision, threads, 0.0))


def by_curve(curve: Curve, sample: Sample) -> float | None:
    """Milliseconds of a sample's work; None when a ceiling or a product's shapes are unknown."""
    row = terms(sample)
    if row is None:
        return None
    seconds = row["moved"] * curve.moved + row["nodes"] * curve.node
    for precision in PRECISIONS:
        seconds += row[f"operations {precision}"] * curve._of(curve.slope, precision)
        seconds += row[f"products {precision}"] * curve._of(curve.start, precision)
    return 1e3 * max(seconds, row["least"])


def terms(sample: Sample) -> dict[str, float] | None:
    """What is linear in a curve's unknowns: seconds at the ceilings, products and nodes over them, bytes over bandwidth.

    "least" is what the products' bytes take at the full bandwidth: no efficiency makes it less.
    """
    target, cores = sample.target, min(sample.threads, sample.target.cores)
    one = target.gops.get("fp32")
    if one is None or target.bandwidth_gbs is None:
        return None
    whole = cores if target.gops_scope == "core" else 1
    row = {f"{kind} {name}": 0.0 for kind in ("operations", "products") for name in PRECISIONS}
    row |= {"moved": 0.0, "nodes": 0.0, "least": 0.0}
    for node in sample.work:
        if math.isnan(node.operations):
            return None
        if node.operations == 0 and node.bytes == 0:
            continue
        row["nodes"] += 1 / (one * 1e9)
        if node.kind not in (*PRODUCTS, *CONVOLUTIONS):
            row["moved"] += node.bytes / (target.bandwidth_gbs * 1e9)
            continue
        precision = own_precision(node, sample.precision)
        floats = "fp32" if sample.precision in ("int8", "int4", "fp8") else sample.precision
        computed = "int8" if node.integer else floats
        ceiling = target.gops.get(computed, one) * 1e9 * whole  # type: ignore[call-overload]
        row[f"operations {precision}"] += node.operations / ceiling
        row[f"products {precision}"] += 1 / ceiling
        row["least"] += node.bytes / (target.bandwidth_gbs * 1e9) if node.operations < node.bytes else 0.0
    return row


def own_precision(node: Work, precision: str) -> str:
    """Which curve a product is on: INT8 where it is quantized, else that of what floats are computed in, as far as there is
    one."""
    return "int8" if node.integer else "bf16" if precision == "bf16" else "fp32"


def fit(samples: Iterable[Sample]) -> dict[str, Curve]:
    """A curve for every runtime of the samples, by least squares of relative errors."""
    by_runtime: dict[str, list[Sample]] = {}
    for sample in samples:
        by_runtime.setdefault(sample.runtime, []).append(sample)
    return {runtime: _fit_one(those) for runtime, those in sorted(by_runtime.items())}


def _fit_one(samples: Sequence[Sample]) -> Curve:
    from scipy.optimize import lsq_linear

    pairs = [(row, sample.ms / 1e3) for sample in samples if (row := terms(sample)) is not None]
    names = [name for name in pairs[0][0] if name != "least" and any(row[name] for row, _ in pairs)]
    matrix = np.array([[row[name] / seconds for name in names] for row, seconds in pairs])
    # Columns of very different sizes: scaled to one, so that the solver's tolerances mean the same for all.
    scale = matrix.max(axis=0)
    slopes = np.array([name.startswith("operations") for name in names])
    low = np.where(slopes, LOWEST, 0.0) * scale
    high = np.where(slopes, HIGHEST, np.inf) * scale
    found = dict(zip(names, lsq_linear(matrix / scale, np.ones(len(pairs)), (low, high)).x / scale, strict=True))
    present = [name for name in PRECISIONS if f"operations {name}" in found]
    return Curve(
        slope={name: float(found[f"operations {name}"]) for name in present},
        start={name: float(found[f"products {name}"]) for name in present},
        moved=float(found.get("moved", 0.0)),
        node=float(found.get("nodes", 0.0)),
    )
