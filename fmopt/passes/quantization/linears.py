"""Replace the Linears of a network by quantized ones, from statistics: ranges, smoothing, weights, bias correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from fmopt.models.loading import TorchModel
from fmopt.models.surgery.projections import replace_module
from fmopt.passes.calibration.range_estimators import Calibrator, Histogram, Spread, find_range
from fmopt.passes.calibration.statistics import Observer, Statistics
from fmopt.passes.quantization.modules import Grid, QuantizedEmbedding, QuantizedLinear, weight_integers

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SEARCHED_CHANNELS = 128  # of each Linear's outputs, about, that every alpha is tried on

# Smoothing costs one elementwise product; only a smaller share of the error than this is worth it. On MiniLM 0.95 gave
# cosine 0.9978 with all 24 tensors smoothed, 0.5 the same with 19, 0.3 still 0.9969 with 9.
WORTHWHILE = 0.5


@dataclass(frozen=True)
class Scheme:
    """How to quantize: calibrator, smoothing, the integers of activations and the bits of weights."""

    calibrator: Calibrator
    smooth: float | Literal["search"] | None
    unsigned: bool
    weight_bits: int


@dataclass(frozen=True)
class _Plan:
    """What was decided for the tensor of one group."""

    grid: Grid
    smoothing: torch.Tensor | None  # multiplies the activations, [in]
    weights: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # int8 [out, in] and scales [out] of each Linear


def quantize_linears(
    model: TorchModel, found: Statistics, scheme: Scheme, keep_float: Sequence[str] = ()
) -> tuple[str, ...]:
    """Replace in place; returns the names that were. Linears never called and those in `keep_float` stay."""
    made = {
        name: module for group in quantized_linears(model, found, scheme, keep_float) for name, module in group.items()
    }
    for name, module in made.items():
        replace_module(model.net, name, module)
    return tuple(made)


def quantized_linears(
    model: TorchModel, found: Statistics, scheme: Scheme, keep_float: Sequence[str] = ()
) -> list[dict[str, QuantizedLinear]]:
    """What `quantize_linears` would put in, by name, one dict for every group that reads one tensor."""
    groups = []
    for observer in found.observers:
        names = tuple(name for name in observer.names if quantizable(model, name) and not _kept(name, keep_float))
        if not names:
            continue
        linears = [model.net.get_submodule(name) for name in names]
        plan = _plan(observer, [linear for linear in linears if isinstance(linear, nn.Linear)], scheme)
        group: dict[str, QuantizedLinear] = {}
        for name, linear, (weight, scales) in zip(names, linears, plan.weights, strict=True):
            assert isinstance(linear, nn.Linear)
            replaced = QuantizedLinear(weight, scales, None, plan.grid, plan.smoothing)
            replaced.bias = _corrected_bias(linear, replaced, observer)
            group[name] = replaced
        groups.append(group)
    return groups


def fold_value_smoothing(model: TorchModel) -> tuple[str, ...]:
    """Move the smoothing of attention outputs into the value projections, exactly; returns the names relieved.

    Attention mixes tokens, never channels, so a factor on a channel of its result is one on a row of the value weight.
    """
    done: list[str] = []
    layers = model.family.layers(model.net) if model.family else ()
    for block in (block for layer in layers for block in layer.attentions):
        if not block.heads:
            continue
        output, value = model.net.get_submodule(block.output), model.net.get_submodule(block.value)
        if block.fused or block.queries > 1 or not isinstance(output, QuantizedLinear) or output.smoothing is None:
            continue
        _scale_rows(value, output.smoothing)
        output.smoothing = None
        done.append(block.output)
    return tuple(done)


def _scale_rows(module: nn.Module, factor: torch.Tensor) -> None:
    """Multiply a projection's results, channel by channel."""
    with torch.no_grad():
        if isinstance(module, QuantizedLinear):
            module.scales = module.scales * factor
        else:
            assert isinstance(module, nn.Linear)
            module.weight.mul_(factor[:, None])
        if module.bias is not None:
            module.bias.data = module.bias.data * factor


def quantize_embeddings(model: TorchModel) -> tuple[str, ...]:
    """The family's lookup tables as int8 rows, in place; returns their names. Tables that do more than look up (BART scales what
    it finds, and counts positions its own way) stay as they are."""
    if model.family is not None:
        names = tuple(model.family.embeddings(model.net))
    else:
        names = tuple(name for name, module in model.net.named_modules() if isinstance(module, nn.Embedding))
    plain = {name: table for name in names if type(table := model.net.get_submodule(name)) is nn.Embedding}
    for name, table in plain.items():
        replace_module(model.net, name, QuantizedEmbedding(table.weight, table.padding_idx))
    return tuple(plain)


def quantizable(model: TorchModel, name: str) -> bool:
    """A Linear of a layer; heads are small and decide, so they stay in float. Without a known family: any wide one."""
    module = model.net.get_submodule(name)
    if not isinstance(module, nn.Linear):
        return False
    if model.family is None:
        return min(module.in_features, module.out_features) >= 32
    return any(name.startswith(layer.name + ".") for layer in model.family.layers(model.net))


def _kept(name: str, keep_float: Sequence[str]) -> bool:
    return any(name == kept or name.startswith(kept + ".") for kept in keep_float)


def _plan(observer: Observer, linears: Sequence[nn.Linear], scheme: Scheme) -> _Plan:
    """Decided on a sample of output channels, whose mean error tells the alphas apart as well as that of all; done on all."""
    weights = [linear.weight.detach() for linear in linears]
    if scheme.smooth is None:
        return _rounded(observer, weights, scheme, None)
    if scheme.smooth != "search":
        return _rounded(observer, weights, scheme, smoothing_scale(observer, linears, float(scheme.smooth)))
    sample = [weight[:: -(-len(weight) // SEARCHED_CHANNELS)] for weight in weights]
    wanted = [torch.from_numpy(observer.rows) @ weight.t() for weight in sample]

    def error(divide: torch.Tensor | None) -> float:
        return _error(observer, _rounded(observer, sample, scheme, divide, clip=False), wanted)

    tried = [smoothing_scale(observer, linears, alpha) for alpha in ALPHAS]
    errors = list(map(error, tried))
    best = int(np.argmin(errors))
    return _rounded(observer, weights, scheme, tried[best] if errors[best] < WORTHWHILE * error(None) else None)


def smoothing_scale(observer: Observer, linears: Sequence[nn.Linear], alpha: float) -> torch.Tensor:
    """What to divide each channel by: max|x|^α / max|w|^(1-α) (SmoothQuant, Xiao et al. 2023), median 1."""
    activations = torch.from_numpy(observer.absmax).clamp_min(1e-5)
    weights = torch.stack([linear.weight.detach().abs().amax(0) for linear in linears]).amax(0).clamp_min(1e-5)
    scale = activations**alpha / weights ** (1 - alpha)
    return (scale / scale.median()).clamp(1e-3, 1e3)


def _rounded(
    observer: Observer,
    weights: Sequence[torch.Tensor],
    scheme: Scheme,
    divide: torch.Tensor | None,
    *,
    clip: bool = True,
) -> _Plan:
    """Ranges and integers of weights [out, in] that read one tensor, with its channels divided by `divide` [in]."""
    rows = torch.from_numpy(observer.rows)
    levels = 256 if scheme.unsigned else 255
    low, high = find_range(spread(observer, divide), scheme.calibrator, symmetric=not scheme.unsigned, levels=levels)
    importance = ((rows if divide is None else rows / divide) ** 2).mean(0)
    integers = [
        weight_integers(weight if divide is None else weight * divide, scheme.weight_bits, importance, clip=clip)
        for weight in weights
    ]
    grid = Grid.over(low, high, unsigned=scheme.unsigned)
    return _Plan(grid, None if divide is None else 1 / divide, tuple(integers))


def _error(observer: Observer, plan: _Plan, wanted: Sequence[torch.Tensor]) -> float:
    """Mean squared error of the outputs on the sample rows, as a share of the variance of those `wanted`, without its mean, which
    goes into the bias."""
    rows = torch.from_numpy(observer.rows)
    rounded = plan.grid.round_trip(rows if plan.smoothing is None else rows * plan.smoothing)
    total = 0.0
    for (integers, scales), outputs in zip(plan.weights, wanted, strict=True):
        gap = rounded @ (integers * scales[:, None]).t() - outputs
        gap -= gap.mean(0)
        total += float((gap**2).mean()) / max(float(outputs.var()), 1e-12)
    return total


def spread(observer: Observer, divide: torch.Tensor | None = None) -> Spread:
    """What a calibrator looks at. With smoothing, extremes are exact and the histogram is that of the sample rows."""
    low, high = float(observer.low.min()), float(observer.high.max())
    if divide is None:
        return Spread(low, high, observer.mean_low, observer.mean_high, lambda: observer.histogram)
    by = divide.numpy()
    smooth_low, smooth_high = float((observer.low / by).min()), float((observer.high / by).max())
    return Spread(
        smooth_low,
        smooth_high,
        smooth_low * (observer.mean_low / low if low else 1.0),
        smooth_high * (observer.mean_high / high if high else 1.0),
        lambda: Histogram.of(observer.rows / by),
    )


def _corrected_bias(linear: nn.Linear, replaced: QuantizedLinear, observer: Observer) -> torch.Tensor:
    """The bias, plus what rounding takes from the mean output (Nagel et al. 2019, bias correction)."""
    rows = torch.from_numpy(observer.rows)
    with torch.no_grad():
        lost = (nn.functional.linear(rows, linear.weight) - replaced(rows)).mean(0)
        return lost if linear.bias is None else linear.bias.detach() + lost
