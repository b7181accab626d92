"""Heads, neurons, sublayers and layers taken out of a network, so that it computes what it did with them masked.

A cut network is an ordinary one of its class with narrower modules; where a whole sublayer is gone, its residual
connection, its LayerNorm and the bias of its output projection stay (`norm_merging` makes less of them). Knows how to cut, not
what is worth cutting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from fmopt.core.errors import PassError
from fmopt.models.families.base import AttentionBlock, Family, FeedForward, Layer, find_family
from fmopt.models.loading import TorchModel
from fmopt.models.surgery.projections import keep_columns, keep_rows, projection, replace_module, weight_of


def remove_norm(net: nn.Module, block: AttentionBlock | FeedForward) -> None:
    """Of an emptied sublayer, in place: its input passes as it is."""
    replace_module(net, block.norm, MergedNorm())
    cast(BiasOnly, net.get_submodule(_last(block))).bias = None


def is_merged(net: nn.Module, block: AttentionBlock | FeedForward) -> bool:
    """Whether its norm was taken on by the one before."""
    return bool(block.norm) and isinstance(net.get_submodule(block.norm), MergedNorm)


def _last(block: AttentionBlock | FeedForward) -> str:
    return block.output if isinstance(block, AttentionBlock) else block.narrow


class BiasOnly(nn.Module):
    """What is left of an output projection that no feature reaches: its bias [out], the same for every token."""

    in_features = 0
    weight = None  # which T5's FFN asks for

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

    def __init__(self, inner: str, output: nn.Module | None, *, hands_on_bias: bool = False) -> None:
        super().__init__()
        self.inner, self.hands_on_bias = inner, hands_on_bias
        if output is not None:
            self.add_module(inner, output)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """(what the output projection makes of nothing, or for one that comes after: anything; no weights); between them the
        bias that it was given, where the next layer waits for it."""
        made = getattr(self, self.inner)(hidden_states) if self.inner else hidden_states
        return (made, kwargs.get("position_bias"), None) if self.hands_on_bias else (made, None)


class MergedNorm(nn.Identity):
    """Stands where a LayerNorm was that the one before it has taken on."""


class OwnBias:
    """What T5's attention is too, once it has lost heads: of the bias for positions [1, heads, n, m], which the first layer
    makes for all, it takes the rows of its own heads, and hands on the whole."""

    def forward(
        self, hidden_states: torch.Tensor, mask: Any = None, key_value_states: Any = None, position_bias: Any = None,
        past_key_values: Any = None, **kwargs: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """As T5's; one that looks at another stack's tokens has no bias, and would take the zeros of another's heads."""
        whole, this = position_bias, cast(Any, self)
        if this.has_relative_attention_bias:
            kv_cache = 0 if past_key_values is None else past_key_values.get_seq_length(this.layer_idx)
            new = hidden_states.shape[1]
            whole = this.compute_bias(new, new + kv_cache, device=hidden_states.device, past_seen_tokens=kv_cache)
        own = None if whole is None or key_value_states is not None else whole[:, list(this.kept_heads)]
        made, _, weights = cast(Any, super()).forward(
            hidden_states, mask=mask, key_value_states=key_value_states, position_bias=own,
            past_key_values=past_key_values, **kwargs,
        )  # fmt: skip
        return made, whole, weights


def require_cuttable(model: TorchModel) -> Family:
    """The family of `model`; PassError when its layers are not known or not its own."""
    if model.family is None:
        raise PassError(f"{model.metadata.model_type} has no known layers to cut; fmopt/families lists those that have")
    if model.family.pruning_refusal:
        raise PassError(f"{model.metadata.model_type} cannot be cut: {model.family.pruning_refusal}")
    return model.family


def prune_layer(
    net: nn.Module, layer: Layer, heads: Sequence[int], neurons: Sequence[int], cross: Sequence[int] = ()
) -> None:
    """Keep of `layer`, in place, only these heads, FFN neurons and, where it has such, heads of the attention to another stack,
    numbered as they are now; none: no such sublayer."""
    prune_heads(net, layer.attention, heads)
    if layer.cross is not None:
        prune_heads(net, layer.cross, cross)
    prune_neurons(net, layer.ffn, neurons)


def prune_heads(net: nn.Module, block: AttentionBlock, kept: Sequence[int]) -> None:
    """Rows of query, key and value and columns of the output projection; nothing kept leaves the output's bias."""
    if len(kept) == block.heads:
        return
    attention: Any = net.get_submodule(block.module)
    if not kept:
        if getattr(attention, "has_relative_attention_bias", False):
            raise PassError(f"{block.module} makes the bias of all layers for positions; one of its heads must stay")
        _remove_attention(net, block)
        return
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


def prune_neurons(net: nn.Module, ffn: FeedForward, kept: Sequence[int]) -> None:
    """Rows of what widens, in both halves of a gated FFN, and columns of what narrows."""
    if len(kept) == ffn.width:
        return
    if not kept:
        for name in ffn.widen:
            replace_module(net, name, nn.Identity())
        replace_module(net, ffn.narrow, BiasOnly(projection(net, ffn.narrow)))
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

    PassError when none would be left, in one of two stacks neither, or when the first one is of its own kind (its position
    tells what it is made of).
    """
    family, net = require_cuttable(model), model.net
    if getattr(net.config, "use_weighted_layer_sum", False):
        raise PassError(f"{model.metadata.source.title} weighs the states of each layer, so none can be dropped")
    layers = family.layers(net)
    dropped = set(numbers)
    stacks: dict[str, list[int]] = {}  # by the module that holds them
    for number, layer in enumerate(layers):
        stacks.setdefault(layer.name.rpartition(".")[0], []).append(number)
    if not dropped <= set(range(len(layers))) or any(dropped >= set(stack) for stack in stacks.values()):
        where = "" if len(stacks) == 1 else " in each stack"
        raise PassError(f"layers {sorted(dropped)} cannot be dropped from {len(layers)}; at least one must stay{where}")
    if getattr(net.config, "scale_attn_by_inverse_layer_idx", False):
        raise PassError(
            f"each layer of {model.metadata.source.title} scales its attention by its number, so none can be dropped"
        )
    if caches(net):
        left = [layer for n, layer in enumerate(layers) if n not in dropped and layer.stack != "encoder"]
        of_each_kind = zip(*([block.heads for block in layer.attentions] for layer in left), strict=True)
        if not all(any(heads) for heads in of_each_kind):
            raise PassError("the layers left would have no attention, which a network that generates cannot do without")
    for home, own in stacks.items():
        if own[0] in dropped and _first_differs(net, home):
            raise PassError(
                f"layer {own[0]} of {model.metadata.model_type} is built unlike the others and cannot be dropped; keep it"
            )
    for home, own in stacks.items():
        kept = [place for place, number in enumerate(own) if number not in dropped]
        if len(kept) < len(own):
            _keep_layers(net, home, layers[own[0]].stack, kept)
    number_caches(net)


def _keep_layers(net: nn.Module, home: str, stack: str, kept: Sequence[int]) -> None:
    """The layers of one stack that stay, and how many the configuration says that there are."""
    layers, config = net.get_submodule(home), cast(Any, net.config)
    assert isinstance(layers, nn.ModuleList)
    replace_module(net, home, nn.ModuleList(layers[number] for number in kept))
    if getattr(config, "layer_types", None):  # ModernBERT, Qwen2: which layers look at everything, which nearby
        config.layer_types = [config.layer_types[number] for number in kept]
    names = [name for name in (f"{stack}_layers", f"num_{stack}_layers") if hasattr(config, name)]
    for name in names or ("num_hidden_layers",):
        setattr(config, name, len(kept))
    if hasattr(config, "num_decoder_layers"):
        # Of T5, whose caches `generate` else makes for as many layers as its encoder has.
        config.decoder_layers = config.num_decoder_layers


def kept_heads(net: nn.Module, block: AttentionBlock) -> tuple[int, ...]:
    """Numbers, in the network as it was trained, of the heads that are left."""
    settings = getattr(net.get_submodule(block.module), "kept_heads", None)
    return tuple(range(block.heads)) if settings is None else tuple(settings)


def caches(net: Any) -> bool:
    """Whether a network generates, so that its attention keeps keys and values for the tokens to come."""
    return bool(net.can_generate())


def least_heads(net: Any, family: Family) -> tuple[tuple[int, ...], ...]:
    """How many heads, or groups of them, must stay in each attention of every layer.

    Of a network that generates, one in the first layer that has any: the first cache tells how long the cache is, and of what
    size; the first one of an encoder's tokens tells how many there are. One in every layer where some look at everything and
    some only nearby, for then a layer's cache is of a kind of its own. One where the bias of all layers for positions is made.
    """
    generates = caches(net)
    mixed = generates and len(set(getattr(net.config, "layer_types", None) or ())) > 1
    found, sized = [], [not generates, not generates]  # whether there is a cache of each kind already
    for layer in family.layers(net):
        attention = net.get_submodule(layer.attention.module)
        least = [mixed or getattr(attention, "has_relative_attention_bias", False), False]
        for kind, block in enumerate(layer.attentions if layer.stack != "encoder" else ()):
            if block.heads and not sized[kind]:
                least[kind] = sized[kind] = True
        found.append(tuple(map(int, least[: len(layer.attentions)])))
    return tuple(found)


def number_caches(net: Any) -> None:
    """Number the attentions of a decoder anew, in place: a layer without one has no keys and values, and the others' follow one
    another without a gap, those to an encoder's tokens by themselves. BART keeps some for a classifier too."""
    family = find_family(str(net.config.model_type))
    if family is None:
        return
    decodes = ("", "decoder") if caches(net) else ("decoder",)
    layers = [layer for layer in family.layers(net) if layer.stack in decodes]
    for blocks in zip(*(layer.attentions for layer in layers), strict=True):
        for number, block in enumerate(block for block in blocks if block.heads):
            net.get_submodule(block.module).layer_idx = number


def _remove_attention(net: nn.Module, block: AttentionBlock) -> None:
    only = BiasOnly(projection(net, block.output))
    inside = block.output.startswith(block.module + ".")
    inner = block.output.removeprefix(block.module + ".") if inside else ""
    if not inside:
        replace_module(net, block.output, only)
    nothing = NoAttention(inner, only if inside else None, hands_on_bias=block.makes_bias)
    replace_module(net, block.module, nothing)
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
    if block.makes_bias and first_cut:
        attention.__class__ = type("CutAttention", (OwnBias, type(attention)), {})
    if block.bias_argument is not None and first_cut:
        argument = block.bias_argument

        def own_rows(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            bias = args[argument][:, list(module.kept_heads)]
            return (*args[:argument], bias, *args[argument + 1 :])

        attention.register_forward_pre_hook(own_rows)


def _first_differs(net: nn.Module, home: str) -> bool:
    """Whether layer 0 has norms or tables that others lack (T5), or the reverse (ModernBERT), or feeds a convolution
    (DeBERTa)."""
    layers = net.get_submodule(home)
    norms = [
        {name for name, module in layer.named_modules() if isinstance(module, nn.LayerNorm | nn.Embedding | MergedNorm)}
        for layer in layers.children()
    ]
    parent = net.get_submodule(home.rpartition(".")[0])
    return any(found != norms[0] for found in norms) or getattr(parent, "conv", None) is not None


def _has(net: nn.Module, name: str) -> bool:
    return any(found == name for found, _ in net.named_modules())
