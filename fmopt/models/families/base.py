"""What a family is: where the layers, attention and FFN of an architecture are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from fmopt.core import plugins

if TYPE_CHECKING:
    import torch

Stack = Literal["", "encoder", "decoder"]
Kind = Literal["attention", "cross", "ffn"]  # "cross": a decoder's attention to what the encoder made


@dataclass(frozen=True)
class AttentionBlock:
    """Dotted names of one attention: projections and how many heads.

    With its heads pruned away (`heads` 0) the network has no query, key and value any more. Where `queries` query heads
    share one head of keys and values, `heads` counts the latter: such a group comes and goes as one.
    """

    query: str
    key: str
    value: str
    output: str
    heads: int
    head_dim: int
    queries: int = 1
    fused: bool = False  # True: query == key == value, one projection makes all three
    interleaved: bool = False  # of a fused one: the rows of each head's query, key and value lie together
    module: str = ""  # turns hidden states into (result, weights); `output` may lie inside or come after
    positions: tuple[str, ...] = ()  # further projections with one block of rows per head
    bias_argument: int | None = None  # which argument of `module` is a bias [B, heads, n, n] shared by all layers
    makes_bias: bool = False  # of T5: it makes a bias of all its first heads, or takes one, and hands it on to the next
    norm: str = (
        ""  # the LayerNorm of the sum of input and output, which all that follows reads; none in pre-norm layers
    )

    @property
    def width(self) -> int:
        """Features of `output`'s input that one head, or one group, makes."""
        return self.head_dim * self.queries


@dataclass(frozen=True)
class FeedForward:
    """Dotted names of one FFN: what widens and what narrows again.

    A gated FFN widens twice: by two modules, or by one whose output is both halves. `width` is what `narrow` takes.
    """

    widen: tuple[str, ...]
    narrow: str
    width: int
    norm: str = ""  # as an attention's


@dataclass(frozen=True)
class Layer:
    """One Transformer layer: `name` is the module whose output (the first of a tuple, in MPNet) is the hidden state.

    `stack`: which of two it is in, "encoder" or "decoder"; "" where there is one. `cross`: a decoder's attention to what the
    encoder made. `before`: of the first layer, the LayerNorm that makes what it reads, where that is so.
    """

    name: str
    attention: AttentionBlock
    ffn: FeedForward
    cross: AttentionBlock | None = None
    stack: Stack = ""
    before: str = ""

    @property
    def attentions(self) -> tuple[AttentionBlock, ...]:
        """Its attention to its own tokens, then the one to another stack's."""
        return (self.attention,) if self.cross is None else (self.attention, self.cross)

    @property
    def sublayers(self) -> tuple[tuple[Kind, AttentionBlock | FeedForward], ...]:
        """All of them by kind, in the order in which they come."""
        kinds: tuple[Kind, ...] = ("attention", "cross")
        return (*zip(kinds, self.attentions, strict=False), ("ffn", self.ffn))


class Family(Protocol):
    """Knows where the parts of an architecture are, by the checkpoint's `model_type`."""

    name: str
    model_types: tuple[str, ...]
    pruning_refusal: str | None  # why its layers cannot be cut one by one; None when they can

    def layers(self, net: torch.nn.Module) -> Sequence[Layer]:
        """The layers in order, an encoder's before its decoder's. A module shared by all layers (ALBERT) is listed once."""

    def embeddings(self, net: torch.nn.Module) -> Sequence[str]:
        """Dotted names of the token embedding and, where there is one, other large lookup tables."""


def find_family(model_type: str) -> Family | None:
    """The family that knows `model_type`; None when no file of `families/` does."""
    families = (plugins.find("families", name) for name in plugins.names("families"))
    return next((family for family in families if model_type in family.model_types), None)


def parts(layer: Layer) -> tuple[str, ...]:
    """Dotted names of a layer's linear modules, each once: query, key, value and output of its attentions, then the FFN's."""
    attentions = (name for one in layer.attentions for name in (one.query, one.key, one.value, one.output))
    return tuple(dict.fromkeys((*attentions, *layer.ffn.widen, layer.ffn.narrow)))


def modules_named(net: torch.nn.Module, pattern: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """Modules whose dotted name ends in `pattern`, a regular expression, whatever head the network wears."""
    ending = re.compile(rf"(?:.*\.)?{pattern}")
    return ((name, module) for name, module in net.named_modules() if ending.fullmatch(name))


def norm_of_embeddings(net: torch.nn.Module) -> str:
    """The LayerNorm whose output the first layer reads; empty where a projection lies between (ELECTRA's small ones)."""
    if any(True for _ in modules_named(net, "embeddings_project")):
        return ""
    return next((name for name, _ in modules_named(net, r"embeddings\.LayerNorm")), "")


def columns(net: torch.nn.Module, name: str) -> int:
    """How many features the linear module `name` takes."""
    module = net.get_submodule(name)
    return int(module.nx if hasattr(module, "nx") else module.in_features)  # type: ignore[arg-type]  # nx: GPT-2's Conv1D


def attention_block(
    net: torch.nn.Module, module: str, names: tuple[str, str, str], output: str, *,
    positions: tuple[str, ...] = (), bias_argument: int | None = None, interleaved: bool = False, head_dim: int = 0,
    makes_bias: bool = False, norm: str = "",
) -> AttentionBlock:  # fmt: skip
    """The block of `module` with projections `names` (query, key, value) inside it.

    Heads are counted from the width, which pruning may have changed. `head_dim`: where the configuration has several.
    """
    head_dim, config = head_dim or size_of_head(net), net.config
    query, key, value = (f"{module}.{name}" for name in names)
    shared = getattr(config, "num_key_value_heads", None)
    queries = config.num_attention_heads // shared if shared else 1  # type: ignore[union-attr,operator]
    return AttentionBlock(
        query, key, value, output, heads=columns(net, output) // (head_dim * queries), head_dim=head_dim,
        queries=queries, fused=query == key, interleaved=interleaved, module=module, positions=positions,
        bias_argument=bias_argument, makes_bias=makes_bias, norm=norm,
    )  # fmt: skip


def size_of_head(net: torch.nn.Module) -> int:
    """Features of one attention head, by the configuration; pruning heads leaves it as it is."""
    config = net.config
    stated = getattr(config, "head_dim", None) or getattr(config, "attention_head_size", None)
    return int(stated or config.hidden_size // config.num_attention_heads)  # type: ignore[union-attr,operator,arg-type]
