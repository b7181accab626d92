"""Where the parts of ModernBERT are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class ModernBert:
    """ModernBERT: pre-norm, one projection for q, k and v, a gated FFN widened by one module, rotary positions."""

    name = "modernbert"
    model_types: tuple[str, ...] = ("modernbert",)
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"layers\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table; positions are rotary."""
        return [name for name, _ in modules_named(net, r"embeddings\.tok_embeddings")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        narrow = f"{name}.mlp.Wo"
        attention = attention_block(net, f"{name}.attn", ("Wqkv", "Wqkv", "Wqkv"), f"{name}.attn.Wo")
        return Layer(name, attention, FeedForward((f"{name}.mlp.Wi",), narrow, columns(net, narrow)))


FAMILY = ModernBert()
