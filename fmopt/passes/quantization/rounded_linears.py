"""Linears whose weights another tool rounded: they keep its integers, compute with them and export as one operator each.

Integers that went through floats and were looked for again would be others now and then; here they go into the graph as they
are, as ONNX Runtime's MatMulNBits, which OpenVINO reads too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fmopt.core.errors import PassError
from fmopt.models.surgery.projections import replace_module, weight_of
from fmopt.passes.quantization.blockwise import packed_numbers

STORED = {2: 2, 3: 4, 4: 4, 8: 8}  # bits that integers take in a graph: ONNX Runtime has no kernel for 3 on a CPU
NUMBERED = re.compile(r"\.\d+\.")  # in the name of a module of a layer; a head has none, and stays for quantize_weights


@dataclass(frozen=True)
class Rounded:
    """Weights [out, in] as integers, a scale for every block of a row: weight = (integer - zero) · scale."""

    integers: torch.Tensor  # uint8 [out, in], from 0 on
    scales: torch.Tensor  # float32 [out, in / block]; a negative one swaps the two ends of the range
    zeros: torch.Tensor | None  # uint8 [out, in / block]; None: the middle, 2^(bits - 1)
    bits: int

    @property
    def block(self) -> int:
        """How many weights of a row share a scale."""
        return self.integers.shape[1] // self.scales.shape[1]

    def weight(self) -> torch.Tensor:
        """float32 [out, in]."""
        numbers = self.integers.view(len(self.scales), -1, self.block).float()
        zeros = 2.0 ** (self.bits - 1) if self.zeros is None else self.zeros[..., None].float()
        return ((numbers - zeros) * self.scales[..., None]).flatten(1)

    def stored(self) -> Rounded:
        """The same weights by integers of as many bits as a graph keeps: the middle is another one."""
        kept = STORED[self.bits]
        moved = 0 if self.zeros is not None else (1 << (kept - 1)) - (1 << (self.bits - 1))
        return Rounded(self.integers + moved, self.scales, self.zeros, kept)


class RoundedLinear(nn.Module):
    """A Linear on integers, [..., in] → [..., out]."""

    packed: torch.Tensor  # uint8 [out, blocks, block · bits / 8]
    scales: torch.Tensor  # float32 [out, blocks]
    zeros: torch.Tensor | None  # uint8 [out, blocks · bits / 8, rounded up]
    bias: torch.Tensor | None  # float32 [out]
    weight: torch.Tensor  # float32 [out, in]: the integers times their scales, for what runs in PyTorch

    def __init__(self, rounded: Rounded, bias: torch.Tensor | None) -> None:
        super().__init__()
        kept = rounded.stored()
        self.out_features, self.in_features = kept.integers.shape
        self.bits, self.block = kept.bits, kept.block
        blocks = kept.integers.view(self.out_features, -1, self.block)
        self.register_buffer("packed", torch.from_numpy(packed_numbers(blocks.numpy(), self.bits)))
        self.register_buffer("scales", kept.scales.contiguous())
        zeros = None if kept.zeros is None else torch.from_numpy(packed_numbers(kept.zeros.numpy(), self.bits))
        self.register_buffer("zeros", zeros)
        self.register_buffer("weight", kept.weight())
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In PyTorch a product with the weights that the integers stand for; in a graph the operator that reads integers."""
        if not torch.onnx.is_in_onnx_export() and not torch.compiler.is_exporting():
            return nn.functional.linear(x, self.weight, self.bias)
        inputs = [x, self.packed, self.scales] + ([] if self.zeros is None else [self.zeros])
        attributes: dict[str, Any] = {
            "K": self.in_features,
            "N": self.out_features,
            "bits": self.bits,
            "block_size": self.block,
        }
        y = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits", inputs, attributes, dtype=x.dtype, shape=[*x.shape[:-1], self.out_features],
            version=1,
        )  # fmt: skip
        return y if self.bias is None else y + self.bias


def layer_linears(net: nn.Module) -> dict[str, Any]:
    """The linear modules of a network's layers by name; heads are none of them."""
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and NUMBERED.search(f"{name}.")
    }


def require_blocks(tool: str, linears: Mapping[str, Any], block: int) -> None:
    """PassError when there is no layer to round, or one whose rows are no whole number of blocks."""
    if not linears:
        raise PassError(f"{tool} found no Linear in a numbered layer of this network")
    odd = [name for name, module in linears.items() if weight_of(module).shape[1] % block]
    if odd:
        raise PassError(
            f"{tool}: rows of {listed(odd)} are no whole number of blocks of {block} weights; take a smaller block"
        )


def put_rounded(tool: str, net: nn.Module, rounded: Mapping[str, Rounded]) -> None:
    """Rounded weights in place of all Linears of the layers. PassError when the tool left one out: it would not say so."""
    linears = layer_linears(net)
    left = [name for name in linears if name not in rounded]
    if left:
        raise PassError(
            f"{tool} left {len(left)} of {len(linears)} layers as they were ({listed(left)}); use quantize_weights here"
        )
    for name, module in linears.items():
        replace_module(net, name, RoundedLinear(rounded[name], None if module.bias is None else module.bias.detach()))


def listed(names: Sequence[str]) -> str:
    """The first few names, for a message of one line."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
