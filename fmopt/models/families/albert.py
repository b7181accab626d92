"""Where the parts of ALBERT are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class Albert:
    """ALBERT: one layer (or one per group) used again and again, so it is listed once."""

    name = "albert"
    model_types: tuple[str, ...] = ("albert",)
    pruning_refusal: str | None = "its layers share one set of weights: what one loses, all lose"

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [
            self._layer(net, name) for name, _ in modules_named(net, r"albert_layer_groups\.\d+\.albert_layers\.\d+")
        ]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table, then the positions."""
        return [name for name, _ in modules_named(net, r"embeddings\.(?:word|position)_embeddings")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = attention_block(net, f"{name}.attention", ("query", "key", "value"), f"{name}.attention.dense")
        narrow = f"{name}.ffn_output"
        return Layer(name, attention, FeedForward((f"{name}.ffn",), narrow, columns(net, narrow)))


FAMILY = Albert()
