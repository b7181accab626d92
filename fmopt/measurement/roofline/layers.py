"""Where each layer of a running graph sits under the roof: its time against the ceilings that were measured here.

The roofline model (Williams, Waterman and Patterson, CACM 2009), on what was executed (see executed_work.py) instead of
on what is predicted (roofline.py): a layer is bound by memory where the ceiling of its arithmetic intensity is the
memory's, by arithmetic else. Pure: a profile in, points out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from fmopt.core.results import Finding, Frozen, OpTime
from fmopt.core.target import Precision, Target
from fmopt.measurement.roofline.findings import NOTABLE, QUANTIZE, SMALLER_NETWORK, group_of

AT_THE_ROOF = 0.6  # good kernels reach this much of a ceiling on Transformer shapes (see roofline.COMPUTE_EFFICIENCY)
OWN_FINDING = ("quantization and casts", "layout", "lookups")  # only move bytes, and findings.py has a word for each
FAR_FROM_IT = 0.2  # below this, neither arithmetic nor memory explains the time


class LayerPoint(Frozen):
    """The operators of one group in one layer, together: what they did, how long it took, how long it had to take."""

    layer: str  # the torch module, or the operator's name where the graph names no module
    group: str  # "matrix products", "softmax", … (see findings.GROUPS)
    precision: str  # what most of its time is computed in: "fp32", "int8", …; "" where the runtime does not say
    ms: float
    share: float  # of the whole profile's time
    operations: float  # a multiply-add is two
    bytes: float  # every operand and result once
    intensity: float  # operations per byte: the x of a roofline plot
    gops: float  # 10⁹ operations/s reached: the y of a roofline plot
    roof_gops: float  # the roof at this intensity: the lower of arithmetic's ceiling and bandwidth × intensity
    floor_ms: float  # what the ceilings allow at best
    of_roof: float  # floor_ms / ms; over 1 where its bytes come from a cache and not from memory
    bound: Literal["arithmetic", "memory"]  # which of the two ceilings is the lower one


class Roof(Frozen):
    """The ceilings of a device at a number of threads, for lines of a plot."""

    gops: dict[Precision, float]  # 10⁹ operations/s
    bandwidth_gbs: float

    def ridge(self, precision: str) -> float:
        """Operations per byte from which on arithmetic is the limit."""
        return self.ceiling(precision) / self.bandwidth_gbs

    def ceiling(self, precision: str) -> float:
        """Arithmetic in a precision; fp32's for one that has none of its own, for runtimes compute in that then."""
        return next((gops for name, gops in self.gops.items() if name == precision), self.gops["fp32"])


def roof(target: Target, threads: int) -> Roof | None:
    """The ceilings of `threads` threads of `target`; None where its arithmetic or its bandwidth is not known."""
    if target.bandwidth_gbs is None or "fp32" not in target.gops:
        return None
    cores = min(threads, target.cores) if target.gops_scope == "core" else 1
    return Roof(gops={name: gops * cores for name, gops in target.gops.items()}, bandwidth_gbs=target.bandwidth_gbs)


def layer_points(profile: Sequence[OpTime], target: Target, threads: int) -> list[LayerPoint]:
    """A point for every layer and group of operators in it, the longest first.

    Empty where the target's ceilings are not known, or the runtime tells no shapes (PyTorch). Operators that move
    nothing (reshapes, shapes) are left out.
    """
    ceilings = roof(target, threads)
    total = math.fsum(op.ms for op in profile)
    if ceilings is None or not total:
        return []
    together: dict[tuple[str, str], list[OpTime]] = defaultdict(list)
    for op in profile:
        if op.operations is not None and op.bytes and op.ms > 0:
            together[op.layer or op.name, group_of(op.kind)].append(op)
    points = [_point(layer, group, ops, ceilings, total) for (layer, group), ops in together.items()]
    return sorted(points, key=lambda point: -point.ms)


def roof_findings(points: Sequence[LayerPoint], ceilings: Roof | None, threads: int) -> list[Finding]:
    """What the ceilings explain of the time: at arithmetic's, at memory's, or far from both."""
    if ceilings is None:
        return []
    products = [point for point in points if point.group == "matrix products"]
    full = [point for point in products if point.bound == "arithmetic" and point.of_roof >= AT_THE_ROOF]
    found = []
    if (share := _share(full)) > NOTABLE:
        precision = max(full, key=lambda point: point.ms).precision
        reached = _floor(full) / math.fsum(point.ms for point in full)
        text = (
            f"{len(full)} layers of products take {share:.0%} of the time at {reached:.0%} of what {threads} "
            f"thread{'s' if threads != 1 else ''} can compute in {precision} ({ceilings.ceiling(precision):.0f} GOPS)"
        )
        faster = ceilings.ceiling("int8") / ceilings.ceiling(precision)
        remedy = f"{QUANTIZE} (INT8's ceiling is {faster:.1f}× as high)" if faster > 1.2 else SMALLER_NETWORK
        found.append(Finding(kind="arithmetic-bound", text=text, share=share, remedy=remedy))
    waiting = [
        point
        for point in points
        if point.bound == "memory" and point.of_roof >= AT_THE_ROOF and point.group not in OWN_FINDING
    ]
    if (share := _share(waiting)) > NOTABLE:
        weights = _share(point for point in waiting if point.group == "matrix products") > share / 2
        text = (
            f"{len(waiting)} layers wait for their bytes for {share:.0%} of the time (mostly {waiting[0].group}: "
            f"{waiting[0].intensity:.1f} operations per byte, arithmetic is the limit only from "
            f"{ceilings.ridge(waiting[0].precision):.0f} on)"
        )
        remedy = "fewer bytes of weights (quantize_dynamic), or more texts for each reading of them (--batch 8)"
        found.append(
            Finding(kind="memory-bound", text=text, share=share, remedy=remedy if weights else SMALLER_NETWORK)
        )
    slow = [point for point in products if point.of_roof < FAR_FROM_IT]
    if (share := _share(slow)) > NOTABLE:
        lost = share * (1 - _floor(slow) / math.fsum(point.ms for point in slow))
        text = (
            f"{len(slow)} layers of products reach under {FAR_FROM_IT:.0%} of either ceiling, {share:.0%} of the time: "
            f"fixed costs, small shapes, a kernel that does not suit them or a busy machine"
        )
        remedy = "several texts at once (--batch 8), or the other runtime; fmopt bench shows both"
        found.append(Finding(kind="far-from-the-roof", text=text, share=lost, remedy=remedy))
    return found


def _share(points: Iterable[LayerPoint]) -> float:
    return math.fsum(point.share for point in points)


def _floor(points: Iterable[LayerPoint]) -> float:
    return math.fsum(point.floor_ms for point in points)


def _point(layer: str, group: str, ops: Sequence[OpTime], ceilings: Roof, total: float) -> LayerPoint:
    precision = max(ops, key=lambda op: op.ms).precision
    ms = math.fsum(op.ms for op in ops)
    operations, moved = math.fsum(op.operations or 0 for op in ops), math.fsum(op.bytes or 0 for op in ops)
    arithmetic_ms = operations / ceilings.ceiling(precision) / 1e6
    memory_ms = moved / ceilings.bandwidth_gbs / 1e6
    floor = max(arithmetic_ms, memory_ms)
    return LayerPoint(
        layer=layer,
        group=group,
        precision=precision,
        ms=ms,
        share=ms / total,
        operations=operations,
        bytes=moved,
        intensity=operations / moved,
        gops=operations / ms / 1e6,
        roof_gops=operations / floor / 1e6,
        floor_ms=floor,
        of_roof=floor / ms,
        bound="arithmetic" if arithmetic_ms >= memory_ms else "memory",
    )
