"""Where the parts of GPT-NeoX are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class GptNeoX:
    """GPT-NeoX, Pythia: layers.N, attention and FFN side by side, one projection that makes q, k and v head by head."""

    name = "gpt_neox"
    model_types: tuple[str, ...] = ("gpt_neox",)
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"layers\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table; positions are rotary."""
        return [name for name, _ in modules_named(net, r"embed_in")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = f"{name}.attention"
        names = ("query_key_value",) * 3
        block = attention_block(net, attention, names, f"{attention}.dense", interleaved=True)
        narrow = f"{name}.mlp.dense_4h_to_h"
        return Layer(name, block, FeedForward((f"{name}.mlp.dense_h_to_4h",), narrow, columns(net, narrow)))


FAMILY = GptNeoX()
