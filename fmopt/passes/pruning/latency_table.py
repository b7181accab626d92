"""What attention and FFN sublayers cost at each width, measured where and as the network will run.

Every figure is a difference between whole networks that were built as a candidate is built (exported, quantized,
opened by its runtime) and timed in turn: all layers with so many heads and no FFN, all with so many neurons and no
attention, all with neither; of an encoder and a decoder, all layers of one of them. So caches, threads and fused kernels are
those of the real thing. A network that generates is timed as it makes one more token, one that answers with its whole answer,
and cannot do without any attention: what must stay is in all of them, and is subtracted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmopt.core.errors import PassError
from fmopt.core.results import Frozen
from fmopt.core.stages import seals
from fmopt.core.stages.store import write_whole
from fmopt.models.families.base import Family, Kind, Stack
from fmopt.models.loading import TorchModel
from fmopt.models.surgery.pruned_modules import least_heads, prune_layer
from fmopt.passes.base import NetworkTimer
from fmopt.passes.pruning.norm_merging import merge_norms
from fmopt.passes.pruning.obs_scores import Sublayer, sublayers

if TYPE_CHECKING:
    import torch


SHARES = (0.25, 0.5, 1.0)  # of all heads or neurons, beside the narrowest; in between, time is taken as linear


NOISE = 0.02  # what the weights of networks that are only timed are off their first values by


_VERSION = 5  # of what is saved


class Curve(Frozen):
    """Milliseconds of one sublayer of a kind at the measured widths, 0 being none."""

    stack: Stack
    kind: Kind
    widths: tuple[int, ...]  # heads or neurons
    ms: tuple[float, ...]
    least: tuple[int, ...]  # of each layer, how many must stay

    def at(self, width: int) -> float:
        """Of one sublayer so wide."""
        return float(np.interp(width, self.widths, self.ms))


class LatencyTable(Frozen):
    """What sublayers cost, those of two stacks by themselves, and everything else."""

    base_ms: float  # embeddings, head, and the norms and residuals that stay where sublayers go
    curves: tuple[Curve, ...]
    whole_ms: float  # the uncut network, measured beside the others

    def curve(self, kind: Kind, stack: str = "") -> Curve:
        """That of a kind of sublayers."""
        return next(one for one in self.curves if (one.kind, one.stack) == (kind, stack))

    @property
    def floor_ms(self) -> float:
        """Of a network with nothing but what must stay."""
        return self.base_ms + sum(one.at(width) for one in self.curves for width in one.least)

    @property
    def additivity_error(self) -> float:
        """How far the sum of its parts is from the uncut network as measured: 0.03 is 3 % too much."""
        return (self.base_ms + sum(one.ms[-1] * len(one.least) for one in self.curves)) / self.whole_ms - 1


def latency_table(
    model: TorchModel,
    family: Family,
    timer: NetworkTimer,
    multiple: int,
    scratch: Path | None,
    say: Callable[[str], None] = lambda line: None,
) -> LatencyTable:
    """The table of networks shaped like `model` was before any cut, measured once and kept in `scratch`."""
    config = model.net.config.to_json_string()  # type: ignore[union-attr,operator]
    known = repr((_VERSION, type(model.net).__name__, config, multiple, timer.key))
    path = scratch / f"latency-table-{hashlib.sha256(known.encode()).hexdigest()[:16]}.json" if scratch else None
    if path is not None and seals.reusable(path, say):
        return LatencyTable.model_validate_json(path.read_text())
    table = measure(model, family, timer, multiple)
    if path is not None:
        seals.seal(write_whole(path, table.model_dump_json()))
    return table


def measure(model: TorchModel, family: Family, timer: NetworkTimer, multiple: int) -> LatencyTable:
    """Time networks of random weights in the shapes of `model`; FFN widths are multiples of `multiple`."""
    groups = _groups(uncut(model), family, multiple)
    if not groups:
        raise PassError(f"{model.metadata.model_type} has no layers to time")
    shapes: dict[str, dict[tuple[str, str], int]] = {
        "base": {},
        "whole": {key: one.levels[-1] for key, one in groups.items()},
    }
    for key, one in groups.items():
        shapes |= {_name(key, width): {key: width} for width in one.levels}
    ms = timer({name: partial(_uniform, model, family, shape) for name, shape in shapes.items()})
    base_ms, curves = ms["base"], []
    for key, one in groups.items():
        more = [max(ms[_name(key, width)] - ms["base"], 0.0) for width in one.levels]
        free = one.least.count(0)
        bound = 0.0  # what must stay costs, which is in the base as in all others
        if free and any(one.least):
            bound = (len(one.least) - free) * more[0] / free
        base_ms -= bound
        times = _rising((taken + bound) / len(one.least) for taken in more)
        curves.append(Curve(stack=key[0], kind=key[1], widths=(0, *one.levels), ms=times, least=one.least))
    return LatencyTable(base_ms=base_ms, curves=tuple(curves), whole_ms=ms["whole"])


@dataclass(frozen=True)
class _Group:
    """Sublayers of one kind in one stack, all of one width in a network that was never cut."""

    levels: tuple[int, ...]  # widths that are timed
    least: tuple[int, ...]  # of each layer, what must stay


def _groups(net: torch.nn.Module, family: Family, multiple: int) -> dict[tuple[Stack, Kind], _Group]:
    """By stack and kind, in order."""
    whole: dict[tuple[Stack, Kind], list[Sublayer]] = {}
    for part in sublayers(net, family):
        whole.setdefault((part.stack, part.kind), []).append(part)
    return {
        key: _Group(
            _levels(
                parts[0].units,
                multiple if key[1] == "ffn" else 1,
                {part.least for part in parts if part.least},
            ),
            tuple(part.least for part in parts),
        )
        for key, parts in whole.items()
    }


def _name(key: tuple[str, str], width: int) -> str:
    stack, kind = key
    units = {"attention": "heads", "cross": "heads across", "ffn": "neurons"}[kind]
    return f"{stack} {width} {units}".strip()


def _levels(most: int, multiple: int, also: set[int]) -> tuple[int, ...]:
    """Widths at about those shares of the `most`, with the narrowest: it tells what having a sublayer costs at all, which is
    nearly all of a narrow one's time."""
    narrowest = min(multiple, most)
    rounded = (round(most * share / multiple) * multiple for share in SHARES)
    return tuple(sorted({max(min(count, most), narrowest) for count in rounded} | {narrowest, most} | also))


def _rising(times: object) -> tuple[float, ...]:
    """From 0 for nothing; noise cannot make a wider sublayer cheaper."""
    return tuple(float(value) for value in np.maximum.accumulate([0.0, *times]))  # type: ignore[misc]


def uncut(model: TorchModel) -> torch.nn.Module:
    """A network of the same class and configuration; its weights, which time does not depend on, are random, the same each time.

    None is left at what new networks have, biases of 0 and norms of 1: runtimes leave such operators out, and the whole seems
    faster than it is when trained.
    """
    import torch

    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        net: torch.nn.Module = type(model.net)(model.net.config)
        for value in net.parameters():
            value.add_(torch.randn_like(value), alpha=NOISE)
    return net.eval()


def _uniform(model: TorchModel, family: Family, widths: Mapping[tuple[str, str], int]) -> TorchModel:
    """A network whose sublayers have these widths by stack and kind, those not named none but what must stay."""
    net = uncut(model)
    for layer, least in zip(family.layers(net), least_heads(net, family), strict=True):
        heads = [
            range(max(widths.get((layer.stack, kind), 0), stays))
            for kind, stays in zip(("attention", "cross"), least, strict=False)
        ]
        prune_layer(net, layer, heads[0], range(widths.get((layer.stack, "ffn"), 0)), *heads[1:])
    merge_norms(net, family, None)
    return TorchModel(net, model.metadata, family)
