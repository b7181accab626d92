"""Where the parts of BERT and the networks built like it are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class Bert:
    """BERT, RoBERTa, XLM-RoBERTa, ELECTRA: encoder.layer.N, post-norm, separate q, k, v."""

    name = "bert"
    model_types: tuple[str, ...] = ("bert", "roberta", "xlm-roberta", "electra", "camembert")
    uncuttable: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"encoder\.layer\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table, then the positions."""
        return [name for name, _ in modules_named(net, r"embeddings\.(?:word|position)_embeddings")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = attention_block(
            net, f"{name}.attention.self", ("query", "key", "value"), f"{name}.attention.output.dense"
        )
        narrow = f"{name}.output.dense"
        return Layer(name, attention, FeedForward((f"{name}.intermediate.dense",), narrow, columns(net, narrow)))


FAMILY = Bert()
