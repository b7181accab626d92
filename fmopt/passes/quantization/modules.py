"""Quantized layers as torch modules: they compute what the deployed graph will compute, and export to Q/DQ nodes.

Integers: activations uint8 with a zero point or int8 without; weights int8 per output channel, symmetric, at most
7 bits wide where the CPU adds u8 × s8 products in 16 bits and would saturate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers torch.ops.quantized_decomposed

_CLIPPING = torch.linspace(1.0, 0.7, 16)
CACHED_NUMBERS = 2**15  # weights that are tried together: they stay in a core's cache, and need no second thread


@dataclass(frozen=True)
class Grid:
    """How a tensor's values become integers: round(x / scale) + zero, within [low, high]."""

    scale: float
    zero: int
    low: int
    high: int

    @staticmethod
    def over(low: float, high: float, *, unsigned: bool) -> Grid:
        """The grid that spans [low, high] ∋ 0; int8 uses a symmetric range and no zero point."""
        if not unsigned:
            return Grid(float(np.float32(max(-low, high) / 127)), 0, -127, 127)
        scale = float(np.float32((high - low) / 255))
        return Grid(scale, int(np.clip(round(-low / scale), 0, 255)), 0, 255)

    @property
    def dtype(self) -> torch.dtype:
        """uint8 or int8."""
        return torch.uint8 if self.low == 0 else torch.int8

    def round_trip(self, x: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize: one QuantizeLinear and one DequantizeLinear in the exported graph."""
        metadata = (self.scale, self.zero, 0 if self.low == 0 else -128, 255 if self.low == 0 else 127, self.dtype)
        integers = torch.ops.quantized_decomposed.quantize_per_tensor(x, *metadata)
        return torch.ops.quantized_decomposed.dequantize_per_tensor(integers, *metadata)


def weight_integers(
    weight: torch.Tensor, bits: int, importance: torch.Tensor | None = None, *, clip: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 weights [out, in] of `bits` bits and their scales [out].

    Each row's range is the one, among a few clipped ones, with the least squared error; `importance` [in] weighs the
    columns by the mean square of what they multiply. Without `clip` it is the whole one.
    """
    top = 2 ** (bits - 1) - 1
    scales = weight.abs().amax(1).clamp_min(1e-8) / top
    if clip:
        weighed = torch.ones(weight.shape[1]) if importance is None else importance
        rows = max(1, CACHED_NUMBERS // weight.shape[1])
        parts = [
            _clipped(part, reach, top, weighed)
            for part, reach in zip(weight.split(rows), scales.split(rows), strict=True)
        ]
        scales = torch.cat(parts)
    return torch.clamp(torch.round(weight / scales[:, None]), -top, top).to(torch.int8), scales


def _clipped(weight: torch.Tensor, reach: torch.Tensor, top: int, importance: torch.Tensor) -> torch.Tensor:
    """The share of `reach` [out] that rounds weights [out, in] best, times it."""
    best, scales = torch.full_like(reach, float("inf")), reach
    for share in _CLIPPING:
        scale = reach * share
        rounded = (weight / scale[:, None]).round_().clamp_(-top, top).mul_(scale[:, None])
        loss = rounded.sub_(weight).square_() @ importance
        scales, best = torch.where(loss < best, scale, scales), torch.minimum(loss, best)
    return scales


class QuantizedLinear(nn.Module):
    """A Linear on integers: x → (× smoothing) → Q/DQ → × DQ(int8 weight) + bias.

    The weight is stored transposed, [in, out], so that no Transpose stands between its DequantizeLinear and the MatMul.
    """

    weight: torch.Tensor  # int8 [in, out]
    scales: torch.Tensor  # float32 [out]
    zeros: torch.Tensor  # int8 [out], all 0
    smoothing: torch.Tensor | None  # float32 [in]
    bias: torch.Tensor | None  # float32 [out]

    def __init__(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None,
        grid: Grid,
        smoothing: torch.Tensor | None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight.t().contiguous())
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int8))
        self.register_buffer("smoothing", smoothing)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] → [..., out]."""
        if self.smoothing is not None:
            x = x * self.smoothing
        x = self.grid.round_trip(x)
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.weight, self.scales, self.zeros, 1, -128, 127, torch.int8
        )
        y = torch.matmul(x, weight)
        return y if self.bias is None else y + self.bias


class QuantizedEmbedding(nn.Module):
    """A lookup table with int8 rows, one scale a row: the rows asked for are gathered first and then dequantized."""

    weight: torch.Tensor  # int8 [rows, dim]
    scales: torch.Tensor  # float32 [rows]

    def __init__(self, weight: torch.Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        integers, scales = weight_integers(weight.detach(), 8)
        self.register_buffer("weight", integers)
        self.register_buffer("scales", scales)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[...] → [..., dim]."""
        rows = nn.functional.embedding(ids, self.weight).float()
        return rows * nn.functional.embedding(ids, self.scales[:, None])
