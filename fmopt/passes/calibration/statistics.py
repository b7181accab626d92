"""One streaming pass over calibration items that gathers what every calibrator needs, in memory that does not grow.

Observers sit on the inputs of Linear modules. Linears that read the same tensor (query, key, value) form a group and
share one observer, one scale and one Q/DQ pair.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from fmopt.core.errors import PassError
from fmopt.core.model import Inputs, token_mask
from fmopt.core.stages import seals
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context
from fmopt.passes.calibration.generated_answers import answering
from fmopt.passes.calibration.range_estimators import BINS, Histogram
from fmopt.training.environment import weights_digest

MIN_ITEMS = 8
ROWS = 512  # activation rows kept of every tensor, at most; fewer when memory is short
MIN_ROWS = 32
AVERAGING = 0.01  # weight of a new item in the moving averages, once 100 items have been seen
_PER_CHANNEL = 2 * 4  # float32 minimum and maximum
_VERSION = 3  # of what is saved


@dataclass
class Observer:
    """What is known of one tensor: `features` channels, seen `items` times."""

    names: tuple[str, ...]  # the Linears that read it, in the order of the network
    low: np.ndarray  # float32 [features], smallest value of each channel
    high: np.ndarray
    mean_low: float  # moving average over items of the smallest value
    mean_high: float
    histogram: Histogram
    rows: np.ndarray  # float32 [rows, features], a uniform sample of all rows seen
    items: int = 0

    @property
    def features(self) -> int:
        """Channels of the tensor."""
        return len(self.low)

    @property
    def absmax(self) -> np.ndarray:
        """Largest magnitude of each channel, float32 [features]."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def nbytes(self) -> int:
        """Memory held, without the names."""
        return self.low.nbytes + self.high.nbytes + self.rows.nbytes + self.histogram.counts.nbytes


@dataclass(frozen=True)
class Statistics:
    """Every observer of one network, and how many items were seen."""

    observers: tuple[Observer, ...]
    items: int

    @property
    def digest(self) -> str:
        """Identifies the data they were taken on."""
        total = hashlib.sha256()
        for observer in self.observers:
            total.update(observer.low.tobytes() + observer.high.tobytes() + observer.histogram.counts.tobytes())
            total.update(np.ascontiguousarray(observer.rows).tobytes())
        return total.hexdigest()

    @property
    def nbytes(self) -> int:
        """Memory held by all observers; constant in the number of items."""
        return sum(observer.nbytes for observer in self.observers)

    def group_of(self, name: str) -> Observer | None:
        """The observer of the tensor that Linear `name` reads; None when the network never called it."""
        return next((observer for observer in self.observers if name in observer.names), None)


def statistics(model: TorchModel, ctx: Context) -> Statistics:
    """Statistics of `model` on the calibration items, taken once and shared by candidates through `ctx.scratch`; of one that
    answers, while it gives the answers that it gives by itself."""
    ctx = answering(model, ctx)
    # Not by what was done to the network: the same passes on other data, or for longer, leave other weights.
    known = (_VERSION, weights_digest(model.net), ctx.seed, ctx.memory_cap_bytes)
    digest = hashlib.sha256(repr(known).encode())
    count = 0
    for item in ctx.calibration():
        count += 1
        for name in sorted(item):
            digest.update(np.ascontiguousarray(item[name]).tobytes())
    _require_items(count)
    path = ctx.scratch / f"statistics-{digest.hexdigest()[:16]}.safetensors" if ctx.scratch else None
    if path is not None and seals.reusable(path, ctx.progress):
        return load(path)
    ctx.progress(f"calibrating on {count} items")
    found = collect(model.net, ctx.calibration(), memory_cap_bytes=ctx.memory_cap_bytes, seed=ctx.seed)
    if path is not None:
        save(found, path)
    return found


def collect(net: nn.Module, stream: Iterable[Inputs], *, memory_cap_bytes: int = 1 << 30, seed: int = 0) -> Statistics:
    """Run every item of `stream` through `net` once and gather statistics of the inputs of all its Linears.

    PassError for fewer than 8 items, for activations that are not finite, and when the cap cannot hold the least.
    """
    items = iter(stream)
    first = next(items, None)
    if first is None:
        raise _too_few(0)
    groups = _groups(net, first)
    rows = _rows_within(groups, net, memory_cap_bytes)
    recorders = [_Recorder(names, rows, seed + index) for index, names in enumerate(groups)]
    count = 0
    with _hooked(net, recorders):
        for item in _chain(first, items):
            count += 1
            mask = token_mask(item)
            for recorder in recorders:
                recorder.begin(mask)
            _run(net, item)
            for recorder in recorders:
                recorder.finish()
    _require_items(count)
    return Statistics(tuple(recorder.observer() for recorder in recorders), count)


def save(found: Statistics, path: Path) -> None:
    """Write to a safetensors file, whole or not at all."""
    tensors: dict[str, np.ndarray] = {}
    metadata = []
    for index, observer in enumerate(found.observers):
        tensors |= {f"{index}.low": observer.low, f"{index}.high": observer.high, f"{index}.rows": observer.rows,
                    f"{index}.counts": observer.histogram.counts}  # fmt: skip
        metadata.append({"names": observer.names, "mean_low": observer.mean_low, "mean_high": observer.mean_high,
                      "limit": observer.histogram.limit, "items": observer.items})  # fmt: skip
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(tensors, part, metadata={"facts": json.dumps(metadata), "items": str(found.items)})
    os.replace(part, path)
    seals.seal(path)


def load(path: Path) -> Statistics:
    """Read what `save` wrote."""
    observers = []
    with safe_open(path, framework="numpy") as stored:
        metadata = stored.metadata()
        for index, fact in enumerate(json.loads(metadata["facts"])):
            part = {name: stored.get_tensor(f"{index}.{name}") for name in ("low", "high", "rows", "counts")}
            histogram = Histogram(part["counts"], fact["limit"])
            observers.append(Observer(tuple(fact["names"]), part["low"], part["high"], fact["mean_low"],
                                      fact["mean_high"], histogram, part["rows"], fact["items"]))  # fmt: skip
    return Statistics(tuple(observers), int(metadata["items"]))


class _Recorder:
    """Fills one observer from the tensors of a group, item by item."""

    def __init__(self, names: tuple[str, ...], rows: int, seed: int) -> None:
        self.names = names
        self.rows = rows
        self.items = 0
        self.mean = np.zeros(2)
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.limit = 0.0
        self.low: torch.Tensor | None = None
        self.high: torch.Tensor | None = None
        self.sample: torch.Tensor | None = None
        self.keys = torch.empty(0)
        self.generator = torch.Generator().manual_seed(seed)

    def begin(self, mask: np.ndarray | None) -> None:
        self.mask = None if mask is None else torch.from_numpy(mask)
        self.extremes = [float("inf"), float("-inf")]

    def see(self, tensor: torch.Tensor) -> None:
        """One call of the group's first Linear; padding tokens do not count."""
        tensor = tensor.detach().float()
        mask = self.mask
        inside = mask is not None and tensor.ndim == 3 and tensor.shape[:2] == mask.shape
        values = tensor[mask] if inside else tensor.reshape(-1, tensor.shape[-1])
        low, high = values.amin(0), values.amax(0)
        smallest, largest = float(low.min()), float(high.max())
        if not np.isfinite(smallest) or not np.isfinite(largest):
            raise PassError(f"calibration: the input of {self.names[0]} is not finite; the model overflows in fp32")
        self.extremes = [min(self.extremes[0], smallest), max(self.extremes[1], largest)]
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self._count(values, max(-smallest, largest))
        self._keep(values)

    def _count(self, values: torch.Tensor, reach: float) -> None:
        if self.limit == 0.0:
            self.limit = max(reach, 1e-6)
        while reach > self.limit:  # twice the range: neighbours merge into the middle half
            merged = self.counts.view(-1, 2).sum(1)
            self.counts = nn.functional.pad(merged, (BINS // 4, BINS // 4))
            self.limit *= 2
        self.counts += torch.histc(values, BINS, -self.limit, self.limit)

    def _keep(self, values: torch.Tensor) -> None:
        """A uniform sample of all rows: each draws a number, the largest stay; a new one takes the place of one that goes."""
        if self.sample is None:
            self.sample = values.new_empty(self.rows, values.shape[-1])
            self.keys = torch.full((self.rows,), -1.0)  # of places that are still empty
        keys = torch.rand(len(values), generator=self.generator)
        best = torch.topk(torch.cat([self.keys, keys]), self.rows).indices
        new = best[best >= self.rows] - self.rows
        stays = torch.zeros(self.rows, dtype=torch.bool)
        stays[best[best < self.rows]] = True
        places = (~stays).nonzero()[:, 0]
        self.sample[places], self.keys[places] = values[new], keys[new]

    def finish(self) -> None:
        if self.extremes[0] > self.extremes[1]:
            return  # not called for this item
        self.items += 1
        self.mean += (np.asarray(self.extremes) - self.mean) * max(AVERAGING, 1 / self.items)

    def observer(self) -> Observer:
        assert self.low is not None
        assert self.high is not None
        assert self.sample is not None
        histogram = Histogram(self.counts.numpy(), self.limit)
        return Observer(self.names, self.low.numpy(), self.high.numpy(), float(self.mean[0]), float(self.mean[1]),
                        histogram, self.sample[self.keys >= 0].numpy(), self.items)  # fmt: skip


class _hooked:  # noqa: N801  a context manager
    """Hooks that show each recorder the inputs of its group's first Linear."""

    def __init__(self, net: nn.Module, recorders: Sequence[_Recorder]) -> None:
        self.net, self.recorders = net, recorders

    def __enter__(self) -> None:
        self.handles = [
            self.net.get_submodule(recorder.names[0]).register_forward_pre_hook(
                lambda module, args, recorder=recorder: recorder.see(args[0])
            )
            for recorder in self.recorders
        ]

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def _groups(net: nn.Module, item: Inputs) -> list[tuple[str, ...]]:
    """Names of the Linears that `item` reaches, grouped by the very tensors they read, in the order of first use."""
    seen: dict[str, list[int]] = {}
    alive: list[torch.Tensor] = []  # keeps ids unique while we look

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            alive.append(args[0])
            seen.setdefault(name, []).append(id(args[0]))

        return hook

    linears = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(look(name)) for name, module in linears]
    try:
        _run(net, item)
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, tensors in seen.items():
        groups.setdefault(tuple(tensors), []).append(name)
    return [tuple(names) for names in groups.values()]


def _rows_within(groups: Sequence[tuple[str, ...]], net: nn.Module, cap: int) -> int:
    """How many sample rows fit under the cap; concatenating a sample needs the room of one more at a time."""
    features = [int(net.get_submodule(names[0]).in_features) for names in groups]  # type: ignore[arg-type]
    fixed = sum(width * _PER_CHANNEL + BINS * 8 for width in features)
    room = (cap - fixed) // (4 * (sum(features) + max(features, default=1)))
    if room < MIN_ROWS:
        need = fixed + MIN_ROWS * 4 * (sum(features) + max(features, default=1))
        raise PassError(f"calibration needs {need / 1e6:.0f} MB for {len(groups)} tensors and the cap is "
                        f"{cap / 1e6:.0f} MB; raise --max-calibration-memory")  # fmt: skip
    return int(min(ROWS, room))


def _run(net: nn.Module, item: Inputs) -> None:
    with torch.inference_mode():
        net(**{name: torch.from_numpy(np.asarray(value)) for name, value in item.items()})


def _chain(first: Any, rest: Iterator[Inputs]) -> Iterator[Inputs]:
    yield first
    yield from rest


def _require_items(count: int) -> None:
    if count < MIN_ITEMS:
        raise _too_few(count)


def _too_few(count: int) -> PassError:
    return PassError(
        f"calibration needs at least {MIN_ITEMS} items of real data and has {count}; give a larger calibration split"
    )
