"""A Linear that rounds as its INT8 twin will, and learns how: weights, and the step sizes of both its grids.

Learned step size quantization (Esser et al. 2020): rounding passes gradients through, clamping cuts them, and the
gradient of a step is scaled by 1/√(values × levels) so that it moves as slowly as the weights.
"""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fmopt.models.surgery.projections import replace_module
from fmopt.passes.quantization.modules import Grid, QuantizedLinear

SMALLEST = 1e-8  # a step can be learned down to nothing and must not divide by it


class FakeQuantizedLinear(nn.Module):
    """What a `QuantizedLinear` computes, in floating point and with gradients.

    `weight` [out, in] is what it was rounded from, before smoothing: from the integers alone every value would lie on
    its grid, where the steps get no gradient.
    """

    smoothing: torch.Tensor | None  # float32 [in]

    def __init__(self, quantized: QuantizedLinear, weight: torch.Tensor, weight_bits: int) -> None:
        super().__init__()
        self.in_features, self.out_features = quantized.in_features, quantized.out_features
        self.grid, self.top = quantized.grid, 2 ** (weight_bits - 1) - 1
        weight = weight.detach() if quantized.smoothing is None else weight.detach() / quantized.smoothing
        self.weight = nn.Parameter(weight.clone())  # [out, in]
        self.scales = nn.Parameter(quantized.scales.detach().clone())  # [out]
        self.step = nn.Parameter(torch.tensor(quantized.grid.scale))
        self.bias = None if quantized.bias is None else nn.Parameter(quantized.bias.detach().clone())
        # Query, key and value share one; a save of the training takes no tensor twice.
        self.register_buffer("smoothing", None if quantized.smoothing is None else quantized.smoothing.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] → [..., out]."""
        with torch.autocast(x.device.type, enabled=False):  # integers up to 255 do not fit into bfloat16
            x = x.float() if self.smoothing is None else x.float() * self.smoothing
            grid = self.grid
            x = _rounded(x, self.step, grid.low - grid.zero, grid.high - grid.zero, x.shape[-1])
            weight = _rounded(self.weight, self.scales[:, None], -self.top, self.top, self.in_features)
        return nn.functional.linear(x, weight, self.bias)

    def frozen(self) -> QuantizedLinear:
        """The integers that were learned."""
        with torch.no_grad():
            scales = self.scales.abs().clamp_min(SMALLEST)
            integers = torch.clamp(torch.round(self.weight / scales[:, None]), -self.top, self.top).to(torch.int8)
            step = float(self.step.abs().clamp_min(SMALLEST))
        grid = Grid(step, self.grid.zero, self.grid.low, self.grid.high)
        bias = None if self.bias is None else self.bias.detach()
        return QuantizedLinear(integers, scales, bias, grid, self.smoothing)


def _rounded(x: torch.Tensor, step: torch.Tensor, low: int, high: int, values: int) -> torch.Tensor:
    """`x` on the grid of `step` within [low, high] steps; `values` share one step's gradient."""
    slow = (values * high) ** -0.5 if high > 0 else 1.0
    step = step.abs().clamp_min(SMALLEST)
    step = step * slow + (step * (1 - slow)).detach()
    steps = torch.clamp(x / step, low, high)
    return (steps + (torch.round(steps) - steps).detach()) * step


def save_rounding(net: nn.Module, path: Path) -> None:
    """Write what makes the fake-quantized Linears of `net` different from plain ones; no file where it has none."""
    fakes = {name: part for name, part in net.named_modules() if isinstance(part, FakeQuantizedLinear)}
    if fakes:
        tensors = {f"{name}.{key}": tensor for name, fake in fakes.items() for key, tensor in fake.state_dict().items()}
        metadata = {name: json.dumps([fake.top, *astuple(fake.grid)]) for name, fake in fakes.items()}
        save_file(tensors, path, metadata=metadata)


def load_rounding(net: nn.Module, path: Path) -> None:
    """Put in place of plain Linears of `net` what `save_rounding` wrote; nothing where it wrote nothing."""
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        metadata = {name: json.loads(text) for name, text in stored.metadata().items()}
    for name, (top, *grid) in metadata.items():
        state = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        integers = torch.zeros(state["weight"].shape, dtype=torch.int8)
        quantized = QuantizedLinear(integers, state["scales"], state.get("bias"), Grid(*grid), state.get("smoothing"))
        fake = FakeQuantizedLinear(quantized, state["weight"], top.bit_length() + 1)
        fake.load_state_dict(state)
        replace_module(net, name, fake)
