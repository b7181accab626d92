"""Where the parts of BART and the networks built like it are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmopt.models.families.base import (
    AttentionBlock,
    FeedForward,
    Layer,
    Stack,
    attention_block,
    columns,
    modules_named,
)

if TYPE_CHECKING:
    import torch


class Bart:
    """BART, mBART, M2M100, Marian, Pegasus, Whisper: encoder.layers.N and decoder.layers.N, heads of each counted by itself."""

    name = "bart"
    model_types: tuple[str, ...] = ("bart", "m2m_100", "marian", "mbart", "pegasus", "whisper")
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The encoder's layers, then the decoder's."""
        stacks: tuple[Stack, ...] = ("encoder", "decoder")
        return [
            self._layer(net, name, stack)
            for stack in stacks
            for name, _ in modules_named(net, rf"{stack}\.layers\.\d+")
        ]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token tables, then the positions."""
        return [name for part in ("tokens", "positions") for name, _ in modules_named(net, f"embed_{part}")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str, stack: Stack) -> Layer:
        config: Any = net.config
        size = config.d_model // getattr(config, f"{stack}_attention_heads")

        def block(module: str) -> AttentionBlock:
            return attention_block(net, module, ("q_proj", "k_proj", "v_proj"), f"{module}.out_proj", head_dim=size)

        cross = block(f"{name}.encoder_attn") if stack == "decoder" else None
        narrow = f"{name}.fc2"
        ffn = FeedForward((f"{name}.fc1",), narrow, columns(net, narrow))
        return Layer(name, block(f"{name}.self_attn"), ffn, cross, stack)


FAMILY = Bart()
