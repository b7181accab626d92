"""Where each layer of a running graph sits under the roof: its time against the ceilings that were measured here.

The roofline model (Williams, Waterman and Patterson, CACM 2009), on what was executed (see executed_work.py) instead of
on what is predicted (roofline.py): a layer is bound by memory where the ceiling of its arithmetic intensity is the
memory's, by arithmetic else. Pure: a profile in, points out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from fmopt.explain import group_of
from fmopt.results import Frozen, OpTime
from fmopt.target import Precision, Target


class LayerPoint(Frozen):
    """The operators of one group in one layer, together: what they did, how long it took, how long it had to take."""

    layer: str  # the torch module, or the operator's name where the graph names no module
    group: str  # "matrix products", "softmax", … (see explain.GROUPS)
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
