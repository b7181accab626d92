"""Where the parts of GPT-2 are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class Gpt2:
    """GPT-2: h.N, pre-norm, one projection for q, k and v; weights are kept the other way round (Conv1D)."""

    name = "gpt2"
    model_types: tuple[str, ...] = ("gpt2",)
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"h\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table, then the positions."""
        return [name for name, _ in modules_named(net, r"w[tp]e")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = attention_block(net, f"{name}.attn", ("c_attn", "c_attn", "c_attn"), f"{name}.attn.c_proj")
        narrow = f"{name}.mlp.c_proj"
        return Layer(name, attention, FeedForward((f"{name}.mlp.c_fc",), narrow, columns(net, narrow)))


FAMILY = Gpt2()
