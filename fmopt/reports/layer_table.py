"""The report's table of layers: time, bytes, precision, sensitivity, and what pruning left, before and after."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fmopt.core import formatting
from fmopt.core.results import Sensitivity
from fmopt.evaluation.record import Record, Trial
from fmopt.measurement.roofline.layers import LayerPoint
from fmopt.reports.profile import Spent, layer_of, spent_by_layer
from fmopt.reports.roofline import distance_by_layer

WORTH_SAYING = 0.05  # share of a layer's time from which a precision is named


@dataclass(frozen=True)
class LayerLine:
    """One layer before and after; None where the record does not know."""

    spent: Spent
    precision: str  # of its operators, by time: "INT8 71 %, fp32 29 %"
    sensitivity: float | None  # damage to the outputs of quantizing its products alone, its groups added up
    heads: tuple[int, int] | None  # left, of how many
    neurons: tuple[int, int] | None
    distance: tuple[float, float] | None  # milliseconds of its floor, how many times that it takes


@dataclass(frozen=True)
class LayerTable:
    """All layers of the reference and the shipped variant."""

    lines: list[LayerLine]
    measured_on: str  # the variant whose sensitivity it is; "" where none was measured
    pruned: bool

    @property
    def widths(self) -> bool:
        """Whether heads and neurons are known."""
        return any(line.heads for line in self.lines)

    @property
    def most_sensitive(self) -> float:
        """The largest sensitivity, at least a hair above nothing."""
        return max((line.sensitivity or 0.0 for line in self.lines), default=0.0) or 1e-30


def layer_table(record: Record, points: Sequence[LayerPoint] = ()) -> LayerTable | None:
    """The table, with distances to the roof by `points`; None where no profile says which layer an operator is of."""
    before, after = record.fastest_full_precision, record.winning
    layers = spent_by_layer(before, after)
    if not layers:
        return None
    source = sensitive_trial(record)
    damage = damages(source.layers.sensitivity) if source else {}
    widths = left_by_layer(record)
    precisions, distances = precision_by_layer(after), distance_by_layer(points)
    lines = []
    for spent in layers:
        heads, neurons = widths.get(spent.name, (None, None))
        lines.append(
            LayerLine(
                spent,
                precision=precisions.get(spent.name, ""),
                sensitivity=damage.get(spent.name),
                heads=heads,
                neurons=neurons,
                distance=distances.get(spent.name),
            )
        )
    pruned = any(left[0] < left[1] for line in lines for left in (line.heads, line.neurons) if left)
    return LayerTable(lines, source.name if source else "", pruned)


def sensitive_trial(record: Record) -> Trial | None:
    """Of the variants whose layers' sensitivity was measured, the shipped one, else the first."""
    measured = [trial for trial in record.everything if trial.layers.sensitivity]
    return next((trial for trial in measured if trial.name == record.winner), next(iter(measured), None))


def damages(groups: Sequence[Sensitivity]) -> dict[str, float]:
    """Layer → damage of its groups, added up."""
    found: dict[str, float] = defaultdict(float)
    for entry in groups:
        found[layer_of(entry.group[0])] += entry.damage
    return found


def left_by_layer(record: Record) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Layer → (heads left, of how many, those of both attentions of a decoder), (FFN neurons left, of how many); empty where
    the family is not known."""
    winner = record.winning
    left = winner.layers.structure if winner else None
    whole = next((trial.layers.structure for trial in record.baselines if trial.layers.structure), None)
    if left is None or whole is None or len(left.layers) != len(whole.layers):
        return {}
    found, numbers = {}, Counter[str]()
    for now, was in zip(left.layers, whole.layers, strict=True):
        number = numbers[now.stack]
        numbers[now.stack] += 1
        heads = (len(now.heads) + len(now.cross), len(was.heads) + len(was.cross))
        # OPT is a decoder by its modules' names too.
        for stack in {"": ("", "decoder "), "decoder": ("decoder ",)}.get(now.stack, ("",)):
            found[f"{stack}layer {number}"] = (heads, (now.ffn, was.ffn))
    return found


def precision_by_layer(trial: Trial | None) -> dict[str, str]:
    """Layer → its operators' precisions with their share of its time, the largest first."""
    times: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for op in trial.profile if trial else ():
        times[layer_of(op.layer)][op.precision] += op.ms
    found = {}
    for layer, by_precision in times.items():
        total = sum(by_precision.values()) or 1.0
        shares = sorted(((ms / total, name) for name, ms in by_precision.items() if name), reverse=True)
        named = [(share, formatting.precision(name)) for share, name in shares if share >= WORTH_SAYING]
        found[layer] = ", ".join(f"{name} {formatting.percent(share)}" for share, name in named)
    return found
