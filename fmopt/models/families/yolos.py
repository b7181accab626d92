"""Where the parts of YOLOS are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class Yolos:
    """YOLOS: encoder.layer.N, pre-norm, separate q, k, v. The heads that say classes and boxes are left as they are."""

    name = "yolos"
    model_types: tuple[str, ...] = ("yolos",)
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"encoder\.layer\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """None: patches are projected, and their positions are too few to matter."""
        return []

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = attention_block(
            net, f"{name}.attention.attention", ("query", "key", "value"), f"{name}.attention.output.dense"
        )
        narrow = f"{name}.output.dense"
        return Layer(name, attention, FeedForward((f"{name}.intermediate.dense",), narrow, columns(net, narrow)))


FAMILY = Yolos()
