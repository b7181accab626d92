"""Which heads and neurons a network misses least, and how what stays makes up for what goes: structured optimal brain
surgeon (Hassibi and Stork, 1993; in blocks as in ZipLM, Kurtic et al., 2023).

A head or neuron feeds columns of an output projection W [out, in]. With X [tokens, in] what reaches it on calibration
items, less its mean, and H = XᵀX / tokens, columns S are taken out at the cost tr(W_S (H⁻¹_SS)⁻¹ W_Sᵀ): the mean squared
change of the outputs once the other columns, and the bias for the mean, are updated to make up for them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fmopt.core.errors import PassError
from fmopt.core.model import Inputs, token_mask
from fmopt.core.stages import seals
from fmopt.models.families.base import Family, Kind, Stack
from fmopt.models.surgery.projections import projection, weight_of
from fmopt.models.surgery.pruned_modules import least_heads

DAMPING = 0.01  # of the mean of H's diagonal, added to it: calibration sees a part of all inputs
COMPACT = 8  # rebuild the matrices without what is gone once an eighth of them is
_VERSION = 2  # of what is saved


@dataclass(frozen=True)
class Sublayer:
    """What feeds one output projection: `units` heads of `size` columns each, or neurons of one column."""

    layer: int
    kind: Kind
    output: str  # dotted name of the projection
    units: int
    size: int
    least: int = 0  # units that must stay
    stack: Stack = ""

    def columns(self, kept: Iterable[int]) -> list[int]:
        """Columns of the projection that these units feed."""
        return [unit * self.size + column for unit in kept for column in range(self.size)]


@dataclass(frozen=True)
class Removal:
    """Units of one sublayer in the order in which they are missed least, and what their going costs."""

    order: tuple[int, ...]
    errors: tuple[float, ...]  # [units + 1]: with so many gone, the share of the outputs' variance that is lost

    def kept(self, count: int) -> tuple[int, ...]:
        """The `count` units that stay longest, in their own order."""
        return tuple(sorted(self.order[len(self.order) - count :]))

    def error(self, count: int) -> float:
        """What is lost when `count` units stay."""
        return self.errors[len(self.order) - count]


def sublayers(net: nn.Module, family: Family) -> tuple[Sublayer, ...]:
    """Attentions and FFN of every layer, in order, without those that are gone already."""
    found: list[Sublayer] = []
    for number, (layer, least) in enumerate(zip(family.layers(net), least_heads(net, family), strict=True)):
        kinds: tuple[Kind, ...] = ("attention", "cross")
        for kind, block, stays in zip(kinds, layer.attentions, least, strict=False):
            if block.heads:
                found.append(Sublayer(number, kind, block.output, block.heads, block.width, stays, layer.stack))
        if layer.ffn.width:
            found.append(Sublayer(number, "ffn", layer.ffn.narrow, layer.ffn.width, 1, stack=layer.stack))
    return tuple(found)


class Scores:
    """Removal orders of all sublayers, and their H kept in files so that weights can be updated one at a time."""

    def __init__(self, folder: Path, parts: Sequence[Sublayer]) -> None:
        self.folder = folder
        stored = json.loads((folder / "removals.json").read_text())
        self.removals = {
            part.output: Removal(tuple(order), tuple(errors))
            for part, (order, errors) in zip(parts, stored, strict=True)
        }

    def updated(self, net: nn.Module, part: Sublayer, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(weights [out, columns kept], bias [out]) of the projection in `net` when the best `count` units stay."""
        linear = projection(net, part.output)
        weight = weight_of(linear)
        if count == part.units:
            return weight, linear.bias
        stored = load_file(_file(self.folder, part))
        columns = part.columns(self.removals[part.output].kept(count))
        made = updated_weight(weight, stored["h"], columns)
        if linear.bias is None:
            return made, None
        return made, linear.bias.detach() + weight @ stored["mean"] - made @ stored["mean"][columns]


def score(
    net: nn.Module,
    parts: Sequence[Sublayer],
    stream: Callable[[], Iterable[Inputs]],
    folder: Path,
    *,
    memory_cap_bytes: int,
    progress: Callable[[str], None],
    importance: Callable[[], Sequence[torch.Tensor]] | None = None,
) -> Scores:
    """Take statistics and find removal orders, into `folder`, which is found finished when it is there already.

    As many sublayers at once as the cap has room for; every such group is one pass over the stream. With `importance`,
    which gives one number per unit of every sublayer, the least important goes first, whatever the others make up for.
    """
    if not seals.reusable(folder, progress):
        work = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        found: list[Removal] = []
        given = None if importance is None else by_importance(importance())
        for group in _groups(parts, memory_cap_bytes):
            progress(f"scoring sublayers {len(found) + 1} to {len(found) + len(group)} of {len(parts)}")
            for part, (hessian, mean) in zip(group, collect(net, group, stream()), strict=True):
                save_file({"h": hessian.float(), "mean": mean.float()}, _file(work, part))
                weight = weight_of(projection(net, part.output))
                found.append(given[len(found)] if given else removal(weight, hessian, part.size))
        (work / "removals.json").write_text(json.dumps([(entry.order, entry.errors) for entry in found]))
        seals.seal(work)
        work.rename(folder)
    return Scores(folder, parts)


def collect(
    net: nn.Module, parts: Sequence[Sublayer], stream: Iterable[Inputs]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(damped H [in, in], mean [in]) of what reaches every projection in `parts`, over the tokens that are no padding.

    A projection without a bias has nothing to move a mean into: its mean is 0 and its H is about 0.
    """
    widths = [part.units * part.size for part in parts]
    squares, sums = [torch.zeros(width, width) for width in widths], [torch.zeros(width) for width in widths]
    counts = [0] * len(parts)
    with _watched(net, parts, squares, sums, counts) as begin, torch.inference_mode():
        for item in stream:
            mask = token_mask(item)
            begin(None if mask is None else torch.from_numpy(mask))
            net(**{name: torch.from_numpy(np.asarray(value)) for name, value in item.items()})
    if not all(bool(torch.isfinite(square).all()) for square in squares):
        raise PassError("scoring: activations of the model are not finite; it overflows in fp32")
    found = []
    for part, square, total, tokens in zip(parts, squares, sums, counts, strict=True):
        mean = total.double() / max(tokens, 1)
        if net.get_submodule(part.output).bias is None:
            mean.zero_()
        found.append((_damped(square.double() / max(tokens, 1) - torch.outer(mean, mean)), mean))
    return found


def removal(weight: torch.Tensor, hessian: torch.Tensor, size: int) -> Removal:
    """Greedy order of the units of `weight` [out, in], each `size` columns, by damped `hessian` [in, in].

    After each removal the remaining columns and H⁻¹ are updated, so that the costs add up to the error of the best
    weights with that many units (in exact arithmetic; float64 here).
    """
    left = weight.double().clone()
    inverse = _inverse(hessian.double())
    energy = float(((left @ hessian.double()) * left).sum())
    alive = torch.arange(left.shape[1] // size)
    gone = torch.zeros(len(alive), dtype=torch.bool)
    order: list[int] = []
    errors = [0.0]
    while len(order) < weight.shape[1] // size:
        if int(gone.sum()) * COMPACT > len(gone):
            columns = (~gone).repeat_interleave(size)
            left, inverse = left[:, columns], inverse[columns][:, columns]
            alive, gone = alive[~gone], gone[~gone]
        costs = _costs(left, inverse, size).masked_fill(gone, torch.inf)
        unit = int(costs.argmin())
        errors.append(errors[-1] + max(float(costs[unit]), 0.0))
        order.append(int(alive[unit]))
        _take_out(left, inverse, slice(unit * size, (unit + 1) * size))
        gone[unit] = True
    return Removal(tuple(order), tuple(min(error / energy, 1.0) if energy > 0 else 0.0 for error in errors))


def by_importance(units: Sequence[torch.Tensor]) -> list[Removal]:
    """Orders by a number for each unit of every sublayer; errors are shares of the sum over all of them."""
    whole = max(sum(float(one.sum()) for one in units), 1e-300)
    found = []
    for one in units:
        order = one.argsort(stable=True)
        lost = (one[order].double().cumsum(0) / whole).tolist()
        found.append(Removal(tuple(order.tolist()), (0.0, *lost)))
    return found


def updated_weight(weight: torch.Tensor, hessian: torch.Tensor, columns: Sequence[int]) -> torch.Tensor:
    """The best weights [out, columns] when only `columns` of `weight` [out, in] stay: least squares in the norm of H.

    What the updates of `removal` come to, at once and without their rounding.
    """
    if not columns:
        return weight[:, :0]
    index = torch.tensor(list(columns))
    hessian = hessian.double()
    factor = torch.linalg.cholesky(hessian[index][:, index])
    solved = torch.cholesky_solve(hessian[index] @ weight.double().T, factor)
    return solved.T.to(weight.dtype).contiguous()


def key_of(*known: Any, stream: Iterable[Inputs]) -> tuple[str, int]:
    """(a key for scores taken on `stream` with everything in `known`, how many items there are)."""
    digest = hashlib.sha256(repr((_VERSION, *known)).encode())
    count = 0
    for item in stream:
        count += 1
        for name in sorted(item):
            digest.update(np.ascontiguousarray(item[name]).tobytes())
    return digest.hexdigest()[:16], count


def _costs(weight: torch.Tensor, inverse: torch.Tensor, size: int) -> torch.Tensor:
    """tr(W_S (H⁻¹_SS)⁻¹ W_Sᵀ) of every unit S, [units]."""
    if size == 1:
        return weight.square().sum(0) / inverse.diagonal().clamp(min=1e-300)
    units = weight.shape[1] // size
    own = torch.arange(units)
    blocks = inverse.view(units, size, units, size)[own, :, own]  # [units, size, size]
    parts = weight.T.reshape(units, size, -1)
    identity = torch.eye(size, dtype=blocks.dtype)
    # Units that are gone have a block of zeros; what they cost is not looked at.
    dead = blocks.diagonal(dim1=1, dim2=2).sum(1) <= 0
    return (parts * torch.linalg.solve(torch.where(dead[:, None, None], identity, blocks), parts)).sum((1, 2))


def _take_out(weight: torch.Tensor, inverse: torch.Tensor, unit: slice) -> None:
    """Update the other columns and H⁻¹ for the loss of `unit`, in place; its own columns become exactly 0."""
    share = torch.linalg.solve(inverse[unit, unit], inverse[unit])  # [size, in]
    weight.addmm_(weight[:, unit].clone(), share, alpha=-1)  # in one pass over memory, which is what this waits for
    inverse.addmm_(inverse[:, unit].clone(), share, alpha=-1)
    weight[:, unit] = 0
    inverse[unit] = 0
    inverse[:, unit] = 0


def _damped(hessian: torch.Tensor) -> torch.Tensor:
    """A feature that never differs from 0 gets a diagonal too: it costs nothing to take out."""
    damping = DAMPING * float(hessian.diagonal().mean()) or 1.0
    return hessian + damping * torch.eye(len(hessian), dtype=hessian.dtype)


def _inverse(hessian: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian))


def _groups(parts: Sequence[Sublayer], cap: int) -> Iterator[list[Sublayer]]:
    """Consecutive sublayers whose H fit under the cap; one that alone does not is refused."""
    group: list[Sublayer] = []
    held = 0
    for part in parts:
        width = part.units * part.size
        need, working = 4 * width**2, 8 * 3 * width**2  # sums in float32; H, H⁻¹ and an update in float64
        if need + working > cap:
            raise PassError(f"scoring {part.output} needs {(need + working) / 1e6:.0f} MB and the cap is {cap / 1e6:.0f} MB; "
                            "raise --max-calibration-memory")  # fmt: skip
        if group and held + 3 * need + working > cap:  # float64 of every sum stays until its turn
            yield group
            group, held = [], 0
        group.append(part)
        held += 3 * need
    if group:
        yield group


@contextmanager
def _watched(
    net: nn.Module, parts: Sequence[Sublayer], squares: Sequence[torch.Tensor], sums: Sequence[torch.Tensor],
    counts: list[int],
) -> Iterator[Callable[[torch.Tensor | None], None]]:  # fmt: skip
    """Adds XᵀX, the sum and the number of what reaches each projection; the function yielded tells the next item's mask."""
    mask: torch.Tensor | None = None

    def begin(upcoming: torch.Tensor | None) -> None:
        nonlocal mask
        mask = upcoming

    def see(number: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen = args[0].detach().float()
            # An audio encoder reads samples and makes fewer frames: its mask is not one of these rows.
            fits = mask is not None and seen.shape[:2] == mask.shape
            rows = seen[mask] if fits else seen.reshape(-1, seen.shape[-1])
            squares[number].addmm_(rows.T, rows)
            sums[number].add_(rows.sum(0))
            counts[number] += len(rows)

        return hook

    handles = [
        net.get_submodule(part.output).register_forward_pre_hook(see(number)) for number, part in enumerate(parts)
    ]
    try:
        yield begin
    finally:
        for handle in handles:
            handle.remove()


def _file(folder: Path, part: Sublayer) -> Path:
    return folder / f"{part.layer}-{part.kind}.safetensors"
