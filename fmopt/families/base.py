"""What a family is: where the layers, attention and FFN of an architecture are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AttentionBlock:
    """Dotted names of one self-attention: projections and how many heads."""

    query: str
    key: str
    value: str
    output: str
    heads: int
    head_dim: int
    fused: bool = False                # True: query == key == value, one projection makes all three


@dataclass(frozen=True)
class FeedForward:
    """Dotted names of one FFN: what widens and what narrows again. Gated FFNs have two that widen."""

    widen: tuple[str, ...]
    narrow: str
    width: int


@dataclass(frozen=True)
class Layer:
    """One Transformer layer, in order."""

    name: str                          # dotted name of the module whose output is the layer's output
    attention: AttentionBlock
    ffn: FeedForward


class Family(Protocol):
    """Knows where the parts of an architecture are, by the checkpoint's `model_type`."""

    name: str
    model_types: tuple[str, ...]

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order. A module shared by all layers (ALBERT) is listed once."""

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """Dotted names of the token embedding and, where there is one, other large lookup tables."""
