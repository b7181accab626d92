"""Where a post-norm sublayer was pruned away whole, its LayerNorm goes too: the one before does the work of both.

What is left of such a sublayer is a LayerNorm of what a LayerNorm has made (and a bias), a pass over all states that takes
some per cent of a small network's time. The second is close to a scale and a shift of every feature, for the variance of
what it is given hardly differs from token to token; so the first takes them on, as fitted to real items by least squares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from fmopt.core.model import Inputs, token_mask
from fmopt.models.families.base import AttentionBlock, Family, FeedForward, Layer
from fmopt.models.surgery.pruned_modules import is_merged, remove_norm


@dataclass(frozen=True)
class Merger:
    """A LayerNorm that stays, and the emptied sublayers after it, in order, whose own go."""

    stays: str
    emptied: tuple[AttentionBlock | FeedForward, ...]


def merge_norms(net: nn.Module, family: Family, items: Iterable[Inputs] | None) -> None:
    """Take the norms of emptied sublayers out, in place.

    The norms that stay are fitted to `items`, the arrays of one text each; None where only the time matters.
    """
    mergers = _mergers(net, family.layers(net))
    if not mergers:
        return
    fits = _fits(net, mergers, items) if items is not None else []
    for merger, (scale, shift) in zip(mergers, fits, strict=False):
        norm = cast(nn.LayerNorm, net.get_submodule(merger.stays))
        norm.bias = nn.Parameter(norm.bias.detach() * scale + shift)
        norm.weight = nn.Parameter(norm.weight.detach() * scale)
    for merger in mergers:
        for block in merger.emptied:
            remove_norm(net, block)


def _mergers(net: nn.Module, layers: Sequence[Layer]) -> list[Merger]:
    """What can be merged: sublayers without heads or neurons that come after a norm, with nothing else between."""
    found: list[Merger] = []
    stays = layers[0].before if layers else ""
    emptied: list[AttentionBlock | FeedForward] = []
    for layer in layers:
        for _, block in layer.sublayers:
            if stays and block.norm and not _width(block):
                emptied += [] if is_merged(net, block) else [block]
                continue
            if emptied:
                found.append(Merger(stays, tuple(emptied)))
            stays, emptied = block.norm, []
    return [*found, Merger(stays, tuple(emptied))] if emptied else found


def _width(block: AttentionBlock | FeedForward) -> int:
    return block.heads if isinstance(block, AttentionBlock) else block.width


def _fits(
    net: nn.Module, mergers: Sequence[Merger], items: Iterable[Inputs]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Scale and shift [width] of every merger: the regression, feature by feature, of the last norm's output on the first's."""
    sums: list[Any] = [0.0] * len(mergers)
    given: dict[int, torch.Tensor] = {}
    mask: torch.Tensor | None = None

    def rows(states: torch.Tensor) -> torch.Tensor:
        states = states.detach().double()
        return states[mask] if mask is not None else states.flatten(0, 1)

    def first(number: int) -> Any:
        return lambda module, args, out: given.__setitem__(number, rows(out))

    def last(number: int) -> Any:
        def see(module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> None:
            x, y = given.pop(number), rows(out)
            sums[number] += torch.stack([torch.ones_like(x).sum(0), x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0)])

        return see

    handles = []
    for number, merger in enumerate(mergers):
        handles.append(net.get_submodule(merger.stays).register_forward_hook(first(number)))
        handles.append(net.get_submodule(merger.emptied[-1].norm).register_forward_hook(last(number)))
    try:
        with torch.no_grad():
            for item in items:
                known = token_mask(item)
                mask = None if known is None else torch.from_numpy(known)
                net(**{name: torch.from_numpy(np.asarray(value)) for name, value in item.items()})
    finally:
        for handle in handles:
            handle.remove()
    return [_regression(*one) for one in sums]


def _regression(
    count: torch.Tensor, x: torch.Tensor, y: torch.Tensor, xx: torch.Tensor, xy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """y ≈ scale · x + shift of every feature; one that never varies keeps its value by the shift alone."""
    spread = (xx - x * x / count).clamp(min=0)
    scale = torch.where(spread > 1e-9 * count, (xy - x * y / count) / spread.clamp(min=1e-12), 0.0)
    return scale.float(), ((y - scale * x) / count).float()
