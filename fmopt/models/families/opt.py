"""Where the parts of OPT are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class Opt:
    """OPT: decoder.layers.N, pre-norm or post-norm, separate q, k, v; the FFN lies in the layer itself."""

    name = "opt"
    model_types: tuple[str, ...] = ("opt",)
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"layers\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table, then the positions."""
        return [name for name, _ in modules_named(net, r"embed_(?:tokens|positions)")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = f"{name}.self_attn"
        block = attention_block(net, attention, ("q_proj", "k_proj", "v_proj"), f"{attention}.out_proj")
        narrow = f"{name}.fc2"
        return Layer(name, block, FeedForward((f"{name}.fc1",), narrow, columns(net, narrow)))


FAMILY = Opt()
