"""Where the parts of T5 are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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


class T5:
    """T5, mT5, Flan: encoder.block.N and decoder.block.N, pre-norm, no biases, some with a gated FFN. The first attention of a
    stack makes the bias for positions that all of it use."""

    name = "t5"
    model_types: tuple[str, ...] = ("t5", "mt5")
    pruning_refusal: str | None = None

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The encoder's layers, then the decoder's."""
        stacks: tuple[Stack, ...] = ("encoder", "decoder")
        return [
            self._layer(net, name, stack) for stack in stacks for name, _ in modules_named(net, rf"{stack}\.block\.\d+")
        ]

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """The token tables of both stacks, which share their weights; positions have none."""
        return [name for name, _ in modules_named(net, "embed_tokens")]

    @staticmethod
    def _layer(net: torch.nn.Module, name: str, stack: Stack) -> Layer:
        def block(module: str) -> AttentionBlock:
            return attention_block(net, module, ("q", "k", "v"), f"{module}.o", makes_bias=True)

        decodes = stack == "decoder"
        own = block(f"{name}.layer.0.SelfAttention")
        cross = block(f"{name}.layer.1.EncDecAttention") if decodes else None
        ffn = f"{name}.layer.{1 + decodes}.DenseReluDense"
        gated = hasattr(net.get_submodule(ffn), "wi_0")
        widen = tuple(f"{ffn}.{part}" for part in (("wi_0", "wi_1") if gated else ("wi",)))
        return Layer(name, own, FeedForward(widen, f"{ffn}.wo", columns(net, f"{ffn}.wo")), cross, stack)


FAMILY = T5()
