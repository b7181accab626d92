"""Where the parts of BERT and the networks built like it are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named, norm_of_embeddings

if TYPE_CHECKING:
    import torch


class Bert:
    """BERT, RoBERTa, XLM-RoBERTa, ELECTRA: encoder.layer.N, post-norm, separate q, k, v."""

    name = "bert"
    model_types: tuple[str, ...] = ("bert", "roberta", "xlm-roberta", "electra", "camembert")
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        names = [name for name, _ in modules_named(net, r"encoder\.layer\.\d+")]
        return [self._layer(net, name, norm_of_embeddings(net) if name == names[0] else "") for name in names]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table, then the positions."""
        return [name for name, _ in modules_named(net, r"embeddings\.(?:word|position)_embeddings")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str, before: str) -> Layer:
        attention = attention_block(
            net, f"{name}.attention.self", ("query", "key", "value"), f"{name}.attention.output.dense",
            norm=f"{name}.attention.output.LayerNorm",
        )  # fmt: skip
        narrow = f"{name}.output.dense"
        ffn = FeedForward((f"{name}.intermediate.dense",), narrow, columns(net, narrow), f"{name}.output.LayerNorm")
        return Layer(name, attention, ffn, before=before)


FAMILY = Bert()
