"""What attention and FFN sublayers cost at each width, measured where and as the network will run.

Every figure is a difference between whole networks that were built as a candidate is built (exported, quantized,
opened by its runtime) and timed in turn: all layers with so many heads and no FFN, all with so many neurons and no
attention, all with neither. So caches, threads and fused kernels are those of the real thing. A network that generates is
timed as it makes one more token, and cannot do without any attention: what must stay is in all of them, and is subtracted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fmopt.cutting import cut_layer, least_heads
from fmopt.errors import PassError
from fmopt.families.base import Family
from fmopt.model import TorchModel
from fmopt.results import Frozen

if TYPE_CHECKING:
    import torch

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of all heads or neurons; in between, time is taken as linear
_VERSION = 1  # of what is saved


class Clock(Protocol):
    """Times networks where a recipe will run them."""

    @property
    def key(self) -> str:
        """Identifies device, runtime, precision, batch, length and threads."""

    def __call__(self, networks: Mapping[str, Callable[[], TorchModel]]) -> dict[str, float]:
        """Median milliseconds of every network, timed in turn; each is made, built and forgotten one after the other."""


class LatencyTable(Frozen):
    """Milliseconds of one sublayer at the measured widths, 0 being none, and of everything else."""

    base_ms: float  # embeddings, norms, residuals, head
    heads: tuple[int, ...]
    attention_ms: tuple[float, ...]
    neurons: tuple[int, ...]
    ffn_ms: tuple[float, ...]
    layers: int
    whole_ms: float  # the uncut network, measured beside the others
    least: tuple[int, ...] = ()  # heads that must stay, layer by layer; empty: none

    def attention(self, heads: int) -> float:
        """Of one attention sublayer with so many heads."""
        return float(np.interp(heads, self.heads, self.attention_ms))

    def ffn(self, neurons: int) -> float:
        """Of one FFN sublayer with so many neurons."""
        return float(np.interp(neurons, self.neurons, self.ffn_ms))

    def total(self, widths: Sequence[tuple[int, int]]) -> float:
        """Of a network whose layers have these (heads, neurons)."""
        return self.base_ms + sum(self.attention(heads) + self.ffn(neurons) for heads, neurons in widths)

    @property
    def floor_ms(self) -> float:
        """Of a network with nothing but what must stay."""
        return self.base_ms + sum(self.attention(heads) for heads in self.least)

    @property
    def additivity_error(self) -> float:
        """How far the sum of its parts is from the uncut network as measured: 0.03 is 3 % too much."""
        return self.total([(self.heads[-1], self.neurons[-1])] * self.layers) / self.whole_ms - 1


def latency_table(model: TorchModel, family: Family, clock: Clock, multiple: int, scratch: Path | None) -> LatencyTable:
    """The table of networks shaped like `model` was before any cut, measured once and kept in `scratch`."""
    config = model.net.config.to_json_string()  # type: ignore[union-attr,operator]
    known = repr((_VERSION, type(model.net).__name__, config, multiple, clock.key))
    path = scratch / f"latency-table-{hashlib.sha256(known.encode()).hexdigest()[:16]}.json" if scratch else None
    if path is not None and path.is_file():
        return LatencyTable.model_validate_json(path.read_text())
    table = measure(model, family, clock, multiple)
    if path is not None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(table.model_dump_json())
        part.replace(path)
    return table


def measure(model: TorchModel, family: Family, clock: Clock, multiple: int) -> LatencyTable:
    """Time networks of random weights in the shapes of `model`; FFN widths are multiples of `multiple`."""
    net = uncut(model)
    layers, least = family.layers(net), least_heads(net, family)
    if not layers:
        raise PassError(f"{model.facts.model_type} has no layers to time")
    heads = _levels(layers[0].attention.heads, 1, *filter(None, least))
    neurons = _levels(layers[0].ffn.width, multiple)
    shapes = {
        "base": (0, 0),
        "whole": (heads[-1], neurons[-1]),
        **{f"{count} heads": (count, 0) for count in heads},
        **{f"{count} neurons": (0, count) for count in neurons},
    }
    ms = clock({name: partial(_uniform, model, family, *shape) for name, shape in shapes.items()})
    more, free = {name: max(taken - ms["base"], 0.0) for name, taken in ms.items()}, least.count(0)
    one = more[f"{heads[0]} heads"] / free if free and any(least) else 0.0  # of what must stay, in a layer
    bound = (len(layers) - free) * one
    return LatencyTable(
        base_ms=ms["base"] - bound, heads=(0, *heads), neurons=(0, *neurons), layers=len(layers), whole_ms=ms["whole"],
        attention_ms=_rising((more[f"{count} heads"] + bound) / len(layers) for count in heads),
        ffn_ms=_rising(more[f"{count} neurons"] / len(layers) for count in neurons), least=least,
    )  # fmt: skip


def _levels(most: int, multiple: int, *also: int) -> tuple[int, ...]:
    rounded = (round(most * share / multiple) * multiple for share in SHARES)
    return tuple(sorted({max(min(count, most), min(multiple, most)) for count in rounded} | {most, *also}))


def _rising(times: object) -> tuple[float, ...]:
    """From 0 for nothing; noise cannot make a wider sublayer cheaper."""
    return tuple(float(value) for value in np.maximum.accumulate([0.0, *times]))  # type: ignore[misc]


def uncut(model: TorchModel) -> torch.nn.Module:
    """A network of the same class and configuration; its weights, which time does not depend on, are random."""
    net: torch.nn.Module = type(model.net)(model.net.config)
    return net.eval()


def _uniform(model: TorchModel, family: Family, heads: int, neurons: int) -> TorchModel:
    net = uncut(model)
    for layer, least in zip(family.layers(net), least_heads(net, family), strict=True):
        cut_layer(net, layer, range(max(heads, least)), range(neurons))
    return TorchModel(net, model.facts, family)
