"""Where the parts of Phi are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class Phi:
    """Phi: layers.N, attention and FFN side by side, separate q, k, v."""

    name = "phi"
    model_types: tuple[str, ...] = ("phi",)
    uncuttable: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"layers\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table; positions are rotary."""
        return [name for name, _ in modules_named(net, r"embed_tokens")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = f"{name}.self_attn"
        block = attention_block(net, attention, ("q_proj", "k_proj", "v_proj"), f"{attention}.dense")
        narrow = f"{name}.mlp.fc2"
        return Layer(name, block, FeedForward((f"{name}.mlp.fc1",), narrow, columns(net, narrow)))


FAMILY = Phi()
