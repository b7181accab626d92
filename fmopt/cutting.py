"""Heads, neurons, sublayers and layers taken out of a network, so that it computes what it did with them masked.

A cut network is an ordinary one of its class with narrower modules; where a whole sublayer is gone, its residual
connection, its LayerNorm and the bias of its output projection stay. Knows how to cut, not what is worth cutting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fmopt.errors import PassError
from fmopt.families.base import AttentionBlock, Family, FeedForward, Layer, find_family
from fmopt.model import TorchModel
from fmopt.projections import keep_columns, keep_rows, projection, weight_of
from fmopt.quantize_linears import replace_module


class OnlyBias(nn.Module):
    """What is left of an output projection that no feature reaches: its bias [out], the same for every token."""

    in_features = 0

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.out_features = len(weight_of(linear))
        self.bias = linear.bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Broadcasts against the residual [B, n, out]; the features are not looked at."""
        return features.new_zeros(()) if self.bias is None else self.bias


class NoAttention(nn.Module):
    """Stands where an attention without heads was; a projection that lay inside it keeps its name."""

    kept_heads: tuple[int, ...] = ()

    def __init__(self, inner: str, output: nn.Module | None) -> None:
        super().__init__()
        self.inner = inner
        if output is not None:
            self.add_module(inner, output)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """(what the output projection makes of nothing, or for one that comes after: anything; no weights)."""
        return (getattr(self, self.inner)(hidden_states) if self.inner else hidden_states), None


def require_cuttable(model: TorchModel) -> Family:
    """The family of `model`; PassError when its layers are not known or not its own."""
    if model.family is None:
        raise PassError(f"{model.facts.model_type} has no known layers to cut; fmopt/families lists those that have")
    if model.family.uncuttable:
        raise PassError(f"{model.facts.model_type} cannot be cut: {model.family.uncuttable}")
    return model.family


def cut_layer(net: nn.Module, layer: Layer, heads: Sequence[int], neurons: Sequence[int]) -> None:
    """Keep of `layer`, in place, only these heads and FFN neurons, numbered as they are now; none: no such sublayer."""
    cut_heads(net, layer.attention, heads)
    cut_neurons(net, layer.ffn, neurons)


def cut_heads(net: nn.Module, block: AttentionBlock, kept: Sequence[int]) -> None:
    """Rows of query, key and value and columns of the output projection; nothing kept leaves the output's bias."""
    if len(kept) == block.heads:
        return
    if not kept:
        _remove_attention(net, block)
        return
    attention: Any = net.get_submodule(block.module)
    columns = [head * block.width + feature for head in kept for feature in range(block.width)]
    shared = [head * block.head_dim + feature for head in kept for feature in range(block.head_dim)]
    present = [name for name in block.positions if _has(net, name)]
    if block.fused and block.interleaved:
        size = 3 * block.head_dim
        keep_rows(projection(net, block.query), [head * size + row for head in kept for row in range(size)])
    elif block.fused:
        width = block.heads * block.head_dim
        keep_rows(projection(net, block.query), [part * width + row for part in range(3) for row in shared])
    else:
        for name in (block.query, *present):
            keep_rows(projection(net, name), columns)
        for name in dict.fromkeys((block.key, block.value)):
            keep_rows(projection(net, name), shared)
    keep_columns(projection(net, block.output), columns)
    _tell_heads(attention, block, kept)


def cut_neurons(net: nn.Module, ffn: FeedForward, kept: Sequence[int]) -> None:
    """Rows of what widens, in both halves of a gated FFN, and columns of what narrows."""
    if len(kept) == ffn.width:
        return
    if not kept:
        for name in ffn.widen:
            replace_module(net, name, nn.Identity())
        replace_module(net, ffn.narrow, OnlyBias(projection(net, ffn.narrow)))
        # ModernBERT's FFN would be given random weights on reloading, and has none any more to give them to.
        net.get_submodule(ffn.narrow.rpartition(".")[0])._is_hf_initialized = True  # type: ignore[assignment]
        return
    for name in ffn.widen:
        linear = projection(net, name)
        halves = len(weight_of(linear)) // ffn.width
        keep_rows(linear, [half * ffn.width + neuron for half in range(halves) for neuron in kept])
    keep_columns(projection(net, ffn.narrow), list(kept))


def drop_layers(model: TorchModel, numbers: Sequence[int]) -> None:
    """Take whole layers out, in place: the next one reads what the dropped one would have read.

    PassError when none would be left, or when the first one is of its own kind (its position tells what it is made of).
    """
    family, net = require_cuttable(model), model.net
    names = [layer.name for layer in family.layers(net)]
    dropped = set(numbers)
    if not dropped <= set(range(len(names))) or len(dropped) == len(names):
        raise PassError(f"layers {sorted(dropped)} cannot be dropped from {len(names)}; at least one must stay")
    if getattr(net.config, "scale_attn_by_inverse_layer_idx", False):
        raise PassError(
            f"each layer of {model.facts.source.title} scales its attention by its number, so none can be dropped"
        )
    if not any(layer.attention.heads for n, layer in enumerate(family.layers(net)) if n not in dropped) and caches(net):
        raise PassError("the layers left would have no attention, which a network that generates cannot do without")
    home = names[0].rpartition(".")[0]
    if 0 in dropped and _first_differs(net, home):
        raise PassError(
            f"layer 0 of {model.facts.model_type} is built unlike the others and cannot be dropped; keep it"
        )
    kept = [number for number in range(len(names)) if number not in dropped]
    layers = net.get_submodule(home)
    assert isinstance(layers, nn.ModuleList)
    replace_module(net, home, nn.ModuleList(layers[number] for number in kept))
    config: Any = net.config
    if getattr(config, "layer_types", None):  # ModernBERT, Qwen2: which layers look at everything, which nearby
        config.layer_types = [config.layer_types[number] for number in kept]
    config.num_hidden_layers = len(kept)
    number_caches(net)


def kept_heads(net: nn.Module, block: AttentionBlock) -> tuple[int, ...]:
    """Numbers, in the network as it was trained, of the heads that are left."""
    told = getattr(net.get_submodule(block.module), "kept_heads", None)
    return tuple(range(block.heads)) if told is None else tuple(told)


def caches(net: Any) -> bool:
    """Whether a network generates, so that its attention keeps keys and values for the tokens to come."""
    return bool(net.can_generate())


def least_heads(net: Any, family: Family) -> tuple[int, ...]:
    """How many heads, or groups of them, must stay in every layer.

    Of a network that generates, one in the first layer: the first cache tells how long the past is, and of what size. One in
    every layer where some look at everything and some only nearby, for then a layer's cache is of a kind of its own.
    """
    layers = family.layers(net)
    if not caches(net):
        return (0,) * len(layers)
    mixed = len(set(getattr(net.config, "layer_types", None) or ())) > 1
    return (1, *(int(mixed) for _ in layers[1:]))


def number_caches(net: Any) -> None:
    """Number the attentions of a network that generates anew, in place: a layer without one has no keys and values, and the
    others' follow one another without a gap."""
    family = find_family(str(net.config.model_type))
    if family is None or not caches(net):
        return
    attentions = (net.get_submodule(layer.attention.module) for layer in family.layers(net) if layer.attention.heads)
    for number, attention in enumerate(attentions):
        attention.layer_idx = number


def _remove_attention(net: nn.Module, block: AttentionBlock) -> None:
    only = OnlyBias(projection(net, block.output))
    inside = block.output.startswith(block.module + ".")
    inner = block.output.removeprefix(block.module + ".") if inside else ""
    if not inside:
        replace_module(net, block.output, only)
    replace_module(net, block.module, NoAttention(inner, only if inside else None))
    number_caches(net)


def _tell_heads(attention: Any, block: AttentionBlock, kept: Sequence[int]) -> None:
    """The attention's own numbers, where it has them, and which rows of a bias shared by all layers are its own."""
    first_cut = not hasattr(attention, "kept_heads")
    before = range(block.heads) if first_cut else attention.kept_heads
    attention.kept_heads = tuple(before[head] for head in kept)
    for name, value in (("num_attention_heads", len(kept)), ("n_heads", len(kept)), ("num_heads", len(kept)),
                        ("all_head_size", len(kept) * block.width), ("split_size", len(kept) * block.width)):  # fmt: skip
        if hasattr(attention, name):
            setattr(attention, name, value)
    if block.bias_argument is not None and first_cut:
        argument = block.bias_argument

        def own_rows(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            bias = args[argument][:, list(module.kept_heads)]
            return (*args[:argument], bias, *args[argument + 1 :])

        attention.register_forward_pre_hook(own_rows)


def _first_differs(net: nn.Module, home: str) -> bool:
    """Whether layer 0 has norms that others lack, or the reverse (ModernBERT), or feeds a convolution (DeBERTa)."""
    layers = net.get_submodule(home)
    norms = [
        {name for name, module in layer.named_modules() if isinstance(module, nn.LayerNorm)}
        for layer in layers.children()
    ]
    parent = net.get_submodule(home.rpartition(".")[0])
    return any(found != norms[0] for found in norms) or getattr(parent, "conv", None) is not None


def _has(net: nn.Module, name: str) -> bool:
    return any(found == name for found, _ in net.named_modules())
