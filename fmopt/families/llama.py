"""Where the parts of Llama and the networks built like it are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmopt.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


class Llama:
    """Llama, Qwen2, Qwen3, Mistral, Gemma: layers.N, pre-norm, rotary positions, a gated FFN, and heads of keys and values
    that several query heads share."""

    name = "llama"
    model_types: tuple[str, ...] = ("llama", "qwen2", "qwen3", "mistral", "gemma")
    uncuttable: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"layers\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table; positions are rotary."""
        return [name for name, _ in modules_named(net, r"embed_tokens")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str) -> Layer:
        attention = f"{name}.self_attn"
        block = attention_block(net, attention, ("q_proj", "k_proj", "v_proj"), f"{attention}.o_proj")
        narrow = f"{name}.mlp.down_proj"
        widen = tuple(f"{name}.mlp.{part}" for part in ("gate_proj", "up_proj"))
        return Layer(name, block, FeedForward(widen, narrow, columns(net, narrow)))


FAMILY = Llama()
