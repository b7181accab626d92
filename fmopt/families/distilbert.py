"""Where the parts of DistilBERT are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class DistilBert:
    """DistilBERT: transformer.layer.N, post-norm, separate q, k, v."""

    name = "distilbert"
    model_types: tuple[str, ...] = ("distilbert",)
    uncuttable: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"transformer\.layer\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table, then the positions."""
        return [name for name, _ in modules_named(net, r"embeddings\.(?:word|position)_embeddings")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = attention_block(net, f"{name}.attention", ("q_lin", "k_lin", "v_lin"), f"{name}.attention.out_lin")
        narrow = f"{name}.ffn.lin2"
        return Layer(name, attention, FeedForward((f"{name}.ffn.lin1",), narrow, columns(net, narrow)))


FAMILY = DistilBert()
