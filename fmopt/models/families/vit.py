"""Where the parts of ViT and the networks built like it are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class Vit:
    """ViT, DeiT, DINOv2, AST: layers.N, pre-norm, separate q, k, v; DINOv2's largest has a gated FFN."""

    name = "vit"
    model_types: tuple[str, ...] = ("vit", "deit", "dinov2", "audio-spectrogram-transformer")
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"layers?\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """None: patches are projected, and their positions are too few to matter."""
        return []

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = f"{name}.attention"
        block = attention_block(net, attention, ("q_proj", "k_proj", "v_proj"), f"{attention}.o_proj")
        gated = hasattr(net.get_submodule(f"{name}.mlp"), "gate_proj")
        widen, narrow = (("gate_proj", "up_proj"), "down_proj") if gated else (("fc1",), "fc2")
        inside = f"{name}.mlp.{narrow}"
        return Layer(
            name, block, FeedForward(tuple(f"{name}.mlp.{part}" for part in widen), inside, columns(net, inside))
        )


FAMILY = Vit()
