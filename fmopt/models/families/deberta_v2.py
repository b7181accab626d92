"""Where the parts of DeBERTa-v2 and v3 are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class DebertaV2:
    """DeBERTa-v2/v3: BERT's layers with disentangled attention to relative positions."""

    name = "deberta-v2"
    model_types: tuple[str, ...] = ("deberta-v2",)
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"encoder\.layer\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table, then the positions where the network has absolute ones (v3 has not)."""
        return [name for name, _ in modules_named(net, r"embeddings\.(?:word|position)_embeddings")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = attention_block(
            net,
            f"{name}.attention.self",
            ("query_proj", "key_proj", "value_proj"),
            f"{name}.attention.output.dense",
            positions=tuple(f"{name}.attention.self.{part}" for part in ("pos_key_proj", "pos_query_proj")),
        )
        narrow = f"{name}.output.dense"
        return Layer(name, attention, FeedForward((f"{name}.intermediate.dense",), narrow, columns(net, narrow)))


FAMILY = DebertaV2()
