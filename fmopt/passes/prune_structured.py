"""Heads and FFN neurons pruned to a latency: found by the family, priced on the target, scored to second order, chosen
for the least loss in the time allowed, cut (ZipLM, Kurtic et al., 2023)."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata, Inputs
from fmopt.core.stages import seals
from fmopt.core.stages.store import write_whole
from fmopt.core.target import Target
from fmopt.models.families.base import Family, find_family
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context

if TYPE_CHECKING:
    import torch

    from fmopt.passes.pruning.latency_table import LatencyTable
    from fmopt.passes.pruning.obs_scores import Scores, Sublayer

MIN_ITEMS = 32
JUDGED_ITEMS = 32  # calibration items that the search measures real loss on
LEVELS = 24  # widths of an FFN that are considered, at most
UNDER, OVER = 0.02, 0.01  # a pruned network this near to the time it was to have is not chosen anew
ROUNDS = 3  # choices at most, each corrected by what those before really took; more would chase the timer's noise
AGAIN = 4  # a choice anew begins where the one before ended, and tries a quarter as often


@dataclass(frozen=True)
class PruneStructured:
    """Cut heads and neurons until the network takes `latency_ms`, or is `speedup` times faster than uncut.

    Both are of the network as the recipe deploys it, after its later steps, on its runtime, at the run's batch, length
    and threads. `items`: calibration items to score on. `tries`: how often the search for the sublayers' weights looks
    at the real loss of a pruned network; 0 takes the predicted losses as they are.
    """

    stage: ClassVar[Literal["torch"]] = "torch"
    leaves_checkpoint: ClassVar[bool] = True
    priced: ClassVar[bool] = True  # what it makes depends on the runtime and on the steps that follow

    speedup: float | None = None
    latency_ms: float | None = None
    items: int = 512
    tries: int = 48
    score: str = "obs"

    def __post_init__(self) -> None:
        if (self.speedup is None) == (self.latency_ms is None):
            raise ConfigError("PruneStructured takes either a speedup or a latency_ms")
        if self.speedup is not None and self.speedup <= 1:
            raise ConfigError(f"PruneStructured.speedup is {self.speedup}; it is larger than 1")
        if self.latency_ms is not None and self.latency_ms <= 0:
            raise ConfigError(f"PruneStructured.latency_ms is {self.latency_ms}; it is larger than 0")
        if self.items < MIN_ITEMS:
            raise ConfigError(f"PruneStructured.items is {self.items}; scores need at least {MIN_ITEMS}")
        if self.score not in ("obs", "fisher"):
            raise ConfigError(f"PruneStructured.score is {self.score!r}; it is 'obs' or 'fisher'")
        if self.tries < 0:
            raise ConfigError(f"PruneStructured.tries is {self.tries}; it is 0 or more")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Layers must be known and each its own, and the target must be here to be timed on."""
        family = find_family(metadata.model_type)
        if family is None:
            return f"fmopt does not know where the heads and neurons of {metadata.model_type} are"
        if family.pruning_refusal:
            return f"{metadata.model_type} cannot be pruned: {family.pruning_refusal}"
        return None if target.here else f"{target.name} is not this machine, so its sublayers cannot be timed here"

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """Prune in place. PassError for a latency below the floor, for too few items, or without a timer."""
        from fmopt.models.surgery.pruned_modules import require_cuttable
        from fmopt.passes.calibration.generated_answers import answering
        from fmopt.passes.pruning.latency_table import latency_table
        from fmopt.passes.pruning.norm_merging import merge_norms
        from fmopt.passes.pruning.obs_scores import sublayers

        family = require_cuttable(model)
        if ctx.timer is None:
            raise PassError("prune_structured has no runtime to time sublayers on; use it in a recipe with a runtime")
        parts = sublayers(model.net, family)
        ctx.progress("timing sublayers at several widths")
        table = latency_table(model, family, ctx.timer, ctx.target.width_multiple, ctx.scratch, ctx.progress)
        ctx.progress(f"uncut {table.whole_ms:.2f} ms; the sum of its parts is off by {table.additivity_error:+.1%}")
        wanted = self.wanted_ms(table)
        with TemporaryDirectory() as here:
            scores = _scores(model, parts, self, answering(model, ctx, self.items), ctx.scratch or Path(here))
            pruned = _Pruning(model, family, parts, scores, table, ctx)
            kept = scores.folder.with_name(f"{scores.folder.name}-{_choice_key(table, wanted, self.tries, ctx)}.json")
            # times are never the same twice; what was trained since depends on what was chosen
            if not seals.reusable(kept, ctx.progress):
                seals.seal(write_whole(kept, json.dumps(pruned.to(wanted, self.tries))))
            counts, got = json.loads(kept.read_text())
            pruned.cut(model, counts)
            merge_norms(model.net, family, islice(ctx.calibration(), self.items))
        ctx.progress(f"pruned to {got:.2f} ms (asked {wanted:.2f}): {_listed(parts, counts)}")
        return model.after(f"prune_structured({got:.2f} ms of {table.whole_ms:.2f}: {_listed(parts, counts)})")

    def wanted_ms(self, table: LatencyTable) -> float:
        """The latency asked for; PassError below what is left with the least of every sublayer."""
        wanted = self.latency_ms if self.latency_ms is not None else table.whole_ms / (self.speedup or 1.0)
        if wanted < table.floor_ms:
            left = sum(map(sum, (one.least for one in table.curves)))
            heads = "one head" if left == 1 else f"{left} heads"
            without = f"with {heads} left and no neuron" if left else "without any head or neuron"
            raise PassError(
                f"prune_structured: {wanted:.2f} ms cannot be reached: {without} the network still takes "
                f"{table.floor_ms:.2f} ms of {table.whole_ms:.2f}, a speedup of {table.whole_ms / table.floor_ms:.1f}; ask "
                "for less, or drop layers first"
            )
        return wanted


PASS = PruneStructured


def _choice_key(table: LatencyTable, wanted: float, tries: int, ctx: Context) -> str:
    """Identifies a choice of widths by the scores in whose folder it lies."""
    known = (table.model_dump_json(), round(wanted, 6), tries, ctx.seed, ctx.target.width_multiple)
    return f"widths-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}"


def _scores(model: TorchModel, parts: Sequence[Sublayer], asked: PruneStructured, ctx: Context, folder: Path) -> Scores:
    from fmopt.passes.pruning.fisher_scores import mask_fisher
    from fmopt.passes.pruning.obs_scores import key_of, score
    from fmopt.training.environment import weights_digest

    def stream() -> Iterator[Inputs]:
        return islice(ctx.calibration(), asked.items)

    key, count = key_of(weights_digest(model.net), parts, asked.score, ctx.seed, stream=stream())
    if count < MIN_ITEMS:
        raise PassError(
            f"prune_structured needs at least {MIN_ITEMS} items of real data and has {count}; give a larger calibration split"
        )
    ctx.progress(f"scoring heads and neurons on {count} items")
    return score(
        model.net, parts, stream, folder / f"scores-{key}", memory_cap_bytes=ctx.memory_cap_bytes, progress=ctx.progress,
        importance=(lambda: mask_fisher(model, parts, stream(), ctx.seed)) if asked.score == "fisher" else None,
    )  # fmt: skip


def _corrected(taken: Sequence[tuple[float, float]], wanted: float, base_ms: float) -> float:
    """How many milliseconds to give the sublayers next, by what networks given so many really took in all: between the nearest
    ones on both sides of `wanted`, else in proportion to the last."""
    faster = max((one for one in taken if one[1] <= wanted), key=lambda one: one[1], default=None)
    slower = min((one for one in taken if one[1] > wanted), key=lambda one: one[1], default=None)
    if faster is not None and slower is not None and faster[0] < slower[0]:
        return faster[0] + (wanted - faster[1]) / (slower[1] - faster[1]) * (slower[0] - faster[0])
    room, got = taken[-1]
    return room * max(wanted - base_ms, 0.0) / max(got - base_ms, 1e-6)


@dataclass(frozen=True)
class _Pruning:
    """Everything a choice of widths depends on."""

    model: TorchModel
    family: Family
    parts: Sequence[Sublayer]
    scores: Scores
    table: LatencyTable
    ctx: Context

    def to(self, wanted: float, tries: int) -> tuple[tuple[int, ...], float]:
        """(units kept of every sublayer, milliseconds measured) for a network that takes at most about `wanted`.

        What the table predicts is corrected by what the network chosen really took, and chosen again.
        """
        from fmopt.passes.pruning.width_search import search

        levels = [self._levels(part) for part in self.parts]
        losses = [
            np.array([self.scores.removals[part.output].error(count) for count in row])
            for part, row in zip(self.parts, levels, strict=True)
        ]
        times = [
            np.array([self._ms(part, count) for count in row]) for part, row in zip(self.parts, levels, strict=True)
        ]
        floor = sum(float(row.min()) for row in times)
        room = wanted - self.table.base_ms
        loss_of = self._measured_loss(levels)
        measured: dict[tuple[int, ...], float] = {}  # by the units kept: other room may lead to the same ones
        taken: list[tuple[float, float]] = []
        weights = None
        for number in range(ROUNDS):
            self.ctx.progress("choosing how wide every sublayer stays")
            left = tries if number == 0 else tries // AGAIN
            found = search(
                losses, times, max(room, floor), loss_of, tries=left, seed=self.ctx.seed + number, weights=weights
            )
            assert found is not None  # the least of everything fits
            chosen, weights = found
            counts = tuple(row[level] for row, level in zip(levels, chosen, strict=True))
            if counts not in measured:
                measured[counts] = self._measured_ms(counts)
            got = measured[counts]
            if -UNDER <= got / wanted - 1 <= OVER:
                break
            taken.append((room, got))
            room = _corrected(taken, wanted, self.table.base_ms)
        return min(measured.items(), key=lambda one: abs(one[1] - wanted))

    def cut(self, model: TorchModel, counts: Sequence[int]) -> None:
        """Cut `model`, a network with the weights that were scored, in place, and update what stays."""
        import torch
        from torch import nn

        from fmopt.models.surgery.projections import put_weight
        from fmopt.models.surgery.pruned_modules import prune_heads, prune_neurons

        layers = self.family.layers(model.net)
        for part, count in zip(self.parts, counts, strict=True):
            weight, bias = self.scores.updated(model.net, part, count)
            kept = self.scores.removals[part.output].kept(count)
            if part.kind == "ffn":
                prune_neurons(model.net, layers[part.layer].ffn, kept)
            else:
                prune_heads(model.net, layers[part.layer].attentions[part.kind == "cross"], kept)
            left = model.net.get_submodule(part.output)
            if count:
                put_weight(left, weight)
            if bias is not None:
                left.bias = nn.Parameter(bias.detach().clone())
        assert all(bool(torch.isfinite(value).all()) for value in model.net.parameters())

    def _levels(self, part: Sublayer) -> tuple[int, ...]:
        """How many units may stay: any number of heads; neurons in multiples that kernels like."""
        if part.kind != "ffn":
            return tuple(range(part.least, part.units + 1))
        multiple = self.ctx.target.width_multiple
        step = -(-part.units // (LEVELS * multiple)) * multiple
        return (*range(0, part.units, step), part.units)

    def _ms(self, part: Sublayer, count: int) -> float:
        return self.table.curve(part.kind, part.stack).at(count)

    def _measured_ms(self, counts: Sequence[int]) -> float:
        """Of the network cut so, on the timer; one that was never cut runs beside it, so that a slower machine is no excuse."""
        from fmopt.passes.pruning.latency_table import uncut
        from fmopt.passes.pruning.norm_merging import merge_norms

        assert self.ctx.timer is not None

        def narrow() -> TorchModel:
            made = copy.deepcopy(self.model)
            self.cut(made, counts)
            merge_norms(made.net, self.family, None)
            return made

        ms = self.ctx.timer({"whole": lambda: replace(self.model, net=uncut(self.model)), "pruned": narrow})
        return ms["pruned"] * self.table.whole_ms / ms["whole"]

    def _measured_loss(self, levels: Sequence[Sequence[int]]) -> Callable[[tuple[int, ...]], float]:
        """How far the outputs move on calibration items when these levels stay, columns being masked instead of cut."""
        from fmopt.passes.calibration.output_distance import distance_from_now

        distance = distance_from_now(self.model, self.ctx, JUDGED_ITEMS)
        largest = max(4 * (part.units * part.size) * self.model.metadata.hidden_size for part in self.parts)
        # Tries differ from one another in few sublayers.
        updated = lru_cache(maxsize=max(1, self.ctx.memory_cap_bytes // largest))(
            lambda number, count: self.scores.updated(self.model.net, self.parts[number], count)
        )

        def measured(chosen: tuple[int, ...]) -> float:
            counts = [row[level] for row, level in zip(levels, chosen, strict=True)]
            with _Masked(self, counts, updated):
                return distance()

        return measured


class _Masked:
    """While entered, the network computes what it would after a cut, in its uncut shape."""

    def __init__(
        self, pruning: _Pruning, counts: Sequence[int], updated: Callable[[int, int], tuple[Any, Any]]
    ) -> None:
        self.pruning, self.counts, self.updated = pruning, counts, updated
        self.before: list[tuple[Any, torch.Tensor, torch.Tensor | None]] = []

    def __enter__(self) -> None:
        import torch

        from fmopt.models.surgery.projections import as_kept, projection, weight_of

        net, scores = self.pruning.model.net, self.pruning.scores
        for number, (part, count) in enumerate(zip(self.pruning.parts, self.counts, strict=True)):
            linear = projection(net, part.output)
            self.before.append((linear, linear.weight.data, None if linear.bias is None else linear.bias.data))
            if count == part.units:
                continue
            weight, bias = self.updated(number, count)
            masked = torch.zeros_like(weight_of(linear))
            masked[:, part.columns(scores.removals[part.output].kept(count))] = weight
            linear.weight.data = as_kept(linear, masked)
            if bias is not None:
                linear.bias.data = bias.detach()

    def __exit__(self, *error: object) -> None:
        for linear, weight, bias in self.before:
            linear.weight.data = weight
            if bias is not None:
                linear.bias.data = bias


def _listed(parts: Sequence[Sublayer], counts: Sequence[int]) -> str:
    """Every layer's heads and neurons, "12/512 8/0"; those of a decoder with both kinds of heads, "8+4/512"."""
    layers: dict[tuple[str, int], dict[str, int]] = {}
    for part, count in zip(parts, counts, strict=True):
        layers.setdefault((part.stack, part.layer), {})[part.kind] = count
    words, before = [], ""
    for (stack, _), found in layers.items():
        words += [stack] if stack not in ("", before) else []
        before, heads = stack, str(found.get("attention", 0))
        heads += f"+{found.get('cross', 0)}" if stack == "decoder" else ""
        words.append(f"{heads}/{found.get('ffn', 0)}")
    return " ".join(words)
