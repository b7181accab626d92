"""Where the time of two variants goes: by kind of operator and by layer, from their runtimes' profiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fmopt.core.results import OpTime
from fmopt.evaluation.record import Trial

KINDS_SHOWN = 12
SAY_NOTHING = (
    "dense",
    "activation",
    "out_proj",
)  # of a layer outside of the stack, where the module around it says more


@dataclass(frozen=True)
class Spent:
    """Time of one kind of operator, or of one layer, before and after; bytes where the record has them."""

    name: str
    before: float
    after: float
    before_bytes: int | None = None
    after_bytes: int | None = None


def spent_by_kind(before: Trial | None, after: Trial | None) -> list[Spent]:
    """Milliseconds by kind of operator, the largest first, the small ones together."""
    found = _spent(before, after, lambda op: op.kind)
    if len(found) <= KINDS_SHOWN + 1:
        return found
    rest = found[KINDS_SHOWN:]
    return [
        *found[:KINDS_SHOWN],
        Spent(f"{len(rest)} other kinds", sum(s.before for s in rest), sum(s.after for s in rest)),
    ]


def spent_by_layer(before: Trial | None, after: Trial | None) -> list[Spent]:
    """Milliseconds and bytes by layer, in the model's order; operators that no layer is known of come last."""
    if not any(op.layer for trial in (before, after) if trial for op in trial.profile):
        return []
    times = {s.name: s for s in _spent(before, after, lambda op: layer_of(op.layer))}
    sizes = [_sizes(trial) for trial in (before, after)]
    names = sorted({*times, *sizes[0], *sizes[1]}, key=_layer_order)
    nothing = Spent("", 0.0, 0.0)
    return [
        Spent(
            name,
            times.get(name, nothing).before,
            times.get(name, nothing).after,
            sizes[0].get(name),
            sizes[1].get(name),
        )
        for name in names
    ]


def layer_of(module: str) -> str:
    """The Transformer layer of a module: `encoder.layer.3.output` -> `layer 3`, `decoder.layers.3.fc1` -> `decoder layer 3`; else
    the part that says most."""
    parts = [part for part in module.split("/")[0].split(".") if part]
    for place, part in enumerate(parts):
        if part.isdigit():
            return f"decoder layer {part}" if "decoder" in parts[:place] else f"layer {part}"
    if not parts:
        return "elsewhere"
    if len(parts) > 1 and parts[-1] in SAY_NOTHING:
        parts.pop()
    return next((part for part in parts if "embed" in part), parts[-1])


def _spent(before: Trial | None, after: Trial | None, name_of: Callable[[OpTime], str]) -> list[Spent]:
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for side, trial in enumerate((before, after)):
        ops: Sequence[OpTime] = trial.profile if trial else []
        for op in ops:
            totals[name_of(op)][side] += op.ms
    return sorted(
        (Spent(name, both[0], both[1]) for name, both in totals.items()), key=lambda s: -max(s.before, s.after)
    )


def _sizes(trial: Trial | None) -> dict[str, int]:
    totals: dict[str, int] = defaultdict(int)
    for module, count in (trial.layer_bytes if trial else {}).items():
        totals[layer_of(module)] += count
    return totals


def _layer_order(name: str) -> tuple[int, int, str]:
    stack, layer, number = name.rpartition("layer ")
    if layer and number.isdigit():
        return 2 if stack else 1, int(number), name
    return (0 if "embed" in name else 4 if name == "elsewhere" else 3), 0, name
