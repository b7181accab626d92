"""Where the parts of Llama and the networks built like it are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Llama:
    """Llama, Qwen2, Qwen3, Mistral, Gemma: layers.N, pre-norm, rotary positions, a gated FFN, and heads of keys and values
    that several query heads share; and what is named like it but for `after` (attention), `widen` and `narrow` (FFN)."""

    name: str = "llama"
    model_types: tuple[str, ...] = ("llama", "qwen2", "qwen3", "mistral", "gemma")
    after: str = "o_proj"
    widen: tuple[str, ...] = ("gate_proj", "up_proj")
    narrow: str = "down_proj"
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order."""
        return [self._layer(net, name) for name, _ in modules_named(net, r"layers\.\d+")]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token table; positions are rotary."""
        return [name for name, _ in modules_named(net, r"embed_tokens")]

    def _layer(self, net: torch.nn.Module, name: str) -> Layer:
        attention = f"{name}.self_attn"
        block = attention_block(net, attention, ("q_proj", "k_proj", "v_proj"), f"{attention}.{self.after}")
        narrow = f"{name}.mlp.{self.narrow}"
        widen = tuple(f"{name}.mlp.{part}" for part in self.widen)
        return Layer(name, block, FeedForward(widen, narrow, columns(net, narrow)))


FAMILY = Llama()
