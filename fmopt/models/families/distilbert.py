"""Where the parts of DistilBERT are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named, norm_of_embeddings

if TYPE_CHECKING:
    import torch


class DistilBert:
    """DistilBERT: transformer.layer.N, post-norm, separate q, k, v."""

    name = "distilbert"
    model_types: tuple[str, ...] = ("distilbert",)
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        names = [name for name, _ in modules_named(net, r"transformer\.layer\.\d+")]
        return [self._layer(net, name, norm_of_embeddings(net) if name == names[0] else "") for name in names]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table, then the positions."""
        return [name for name, _ in modules_named(net, r"embeddings\.(?:word|position)_embeddings")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str, before: str) -> Layer:
        attention = attention_block(
            net,
            f"{name}.attention",
            ("q_lin", "k_lin", "v_lin"),
            f"{name}.attention.out_lin",
            norm=f"{name}.sa_layer_norm",
        )
        narrow = f"{name}.ffn.lin2"
        ffn = FeedForward((f"{name}.ffn.lin1",), narrow, columns(net, narrow), f"{name}.output_layer_norm")
        return Layer(name, attention, ffn, before=before)


FAMILY = DistilBert()
