"""Where the parts of wav2vec 2.0 and the networks built like it are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class Wav2Vec2:
    """wav2vec 2.0 and HuBERT, post-norm or pre-norm: convolutions over samples, then encoder.layers.N with separate q, k, v.

    The convolutions stay as they are: how many frames they make is what CTC counts with.
    """

    name = "wav2vec2"
    model_types: tuple[str, ...] = ("wav2vec2", "hubert")
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"encoder\.layers\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """None: samples are convolved, and positions too."""
        return []

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = f"{name}.attention"
        block = attention_block(net, attention, ("q_proj", "k_proj", "v_proj"), f"{attention}.out_proj")
        narrow = f"{name}.feed_forward.output_dense"
        ffn = FeedForward((f"{name}.feed_forward.intermediate_dense",), narrow, columns(net, narrow))
        return Layer(name, block, ffn)


FAMILY = Wav2Vec2()
