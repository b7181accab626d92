"""How Llama and the networks built like it lie in a GGUF file: names, shapes and settings, for reading and for writing.

llama.cpp turns neighbouring features of a head where transformers turns the two halves of it, so that Llama's rows of queries and
keys are in another order there (`interleaved`); of Qwen both have the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmopt.core.errors import CheckpointError
from fmopt.edge.errors import shorten
from fmopt.edge.files import printable
from fmopt.models.gguf.header import GgufHeader

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # by model_type
INTERLEAVED = ("llama",)  # architectures with rotary positions of neighbouring features
ROPE_THETA = 10000.0  # where a file does not say it
OUTPUT = "output.weight"
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip  # in GGUF -> in transformers
# Keys of an architecture that a network here is made by; any other says something that would be lost.
READ = (
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length",
    "rope.dimension_count", "rope.freq_base", "vocab_size",
)  # fmt: skip
# With these values a key says what holds without it.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",), "rope.scaling.factor": (0.0, 1.0), "attention.causal": (True,), "expert_count": (0,),
    "expert_used_count": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class Dimensions:
    """The sizes of one network."""

    architecture: str  # as llama.cpp calls it
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int  # rows of the token table
    tied: bool  # the token table also makes the logits

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Every tensor by its name in a GGUF file: its name in transformers, and its shape."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (self.hidden,), "attn_q": (queries, self.hidden), "attn_k": (keys, self.hidden),
            "attn_v": (keys, self.hidden), "attn_output": (self.hidden, queries), "ffn_norm": (self.hidden,),
            "ffn_gate": (self.feed_forward, self.hidden), "ffn_up": (self.feed_forward, self.hidden),
            "ffn_down": (self.hidden, self.feed_forward),
        }  # fmt: skip
        if self.architecture == "qwen3":
            shapes |= {"attn_q_norm": (self.head_size,), "attn_k_norm": (self.head_size,)}
        table: tuple[int, ...] = (self.vocabulary, self.hidden)
        row: tuple[int, ...] = (self.hidden,)
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, shape in {
            "token_embd": table,
            "output_norm": row,
            **({} if self.tied else {"output": table}),
        }.items():
            found[f"{name}.weight"] = (f"{TOP[name]}.weight", shape)
        for layer in range(self.layers):
            for name, shape in shapes.items():
                ours, theirs = f"blk.{layer}.{name}", f"model.layers.{layer}.{IN_LAYER[name]}"
                found[f"{ours}.weight"] = (f"{theirs}.weight", shape)
                if self.architecture == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                    found[f"{ours}.bias"] = (f"{theirs}.bias", shape[:1])
        return found


def dimensions_of(header: GgufHeader) -> Dimensions:
    """The sizes that a GGUF file says, which its tensors have.

    CheckpointError for an architecture that is unknown here, for a setting that would be lost, and for tensors that are missing,
    of other sizes, or more than such a network has.
    """
    path, architecture = header.path, header.architecture
    known = sorted(set(ARCHITECTURES.values()))
    if architecture not in known:
        raise CheckpointError(
            f"{path} holds a network of architecture {shorten(printable(architecture))!r}; of GGUF files {', '.join(known)} are "
            "read: give the checkpoint's folder in Hugging Face format instead"
        )
    _refuse_unread(header)
    layers, hidden, feed_forward, heads = (
        _at_least_one(header, name)
        for name in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
    )
    kv_heads = header.number(f"{architecture}.attention.head_count_kv", heads) or 0
    head_size = header.number(f"{architecture}.attention.key_length", hidden // heads) or 0
    values = header.number(f"{architecture}.attention.value_length", head_size)
    turned = header.number(f"{architecture}.rope.dimension_count", head_size)
    if not kv_heads or heads % kv_heads or head_size < 2 or values != head_size or turned != head_size:
        raise CheckpointError(
            f"{path}: {heads} heads of size {head_size}, {kv_heads} of keys and values of size {values}, {turned} features with "
            "positions: such a network is not read; give the checkpoint's folder in Hugging Face format instead"
        )
    table = header.tensors.get("token_embd.weight")
    rows = table.shape[0] if table is not None else 1
    found = Dimensions(
        architecture, layers, hidden, feed_forward, heads, kv_heads, head_size, rows, OUTPUT not in header.tensors
    )
    if layers > len(header.tensors):  # before so many names are made
        raise CheckpointError(
            f"{path} says that it has {layers:,} layers, and has {len(header.tensors):,} tensors; get it again"
        )
    _require_tensors(header, found)
    return found


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys [heads × size, inputs] as llama.cpp has them: the two halves of a head's rows in turn."""
    size = weight.shape[0] // heads
    return weight.reshape(heads, 2, size // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _at_least_one(header: GgufHeader, name: str) -> int:
    found = header.number(f"{header.architecture}.{name}")
    if not found:
        raise CheckpointError(f"{header.path}: its {header.architecture}.{name} is {found}; get the file again")
    return found


def _refuse_unread(header: GgufHeader) -> None:
    """CheckpointError for a setting of the network that would be lost."""
    for key, value in header.metadata.items():
        name = key.removeprefix(f"{header.architecture}.")
        if name != key and name not in READ and value not in NEUTRAL.get(name, ()):
            raise CheckpointError(
                f"{header.path} says {shorten(printable(key))} {shorten(printable(value))}, and nothing here reads that; give "
                "the checkpoint's folder in Hugging Face format instead"
            )


def _require_tensors(header: GgufHeader, dimensions: Dimensions) -> None:
    """CheckpointError unless the file's tensors are those of a network of these sizes."""
    expected = {name: shape for name, (_, shape) in dimensions.tensors().items()}
    for name, shape in expected.items():
        if name not in header.tensors:
            raise CheckpointError(f"{header.path} lacks the tensor {name}; get the file again")
        if header.tensors[name].shape != shape:
            raise CheckpointError(
                f"{header.path} holds {name} of {list(header.tensors[name].shape)}, and by its own metadata it has "
                f"{list(shape)}; get the file again"
            )
    more: Mapping[str, Any] = {name: None for name in header.tensors if name not in expected}
    if more:
        first = shorten(printable(next(iter(more))))
        raise CheckpointError(
            f"{header.path} holds {first}, which no {header.architecture} that is read here has (scaled positions, biases and "
            "experts are not read); give the checkpoint's folder in Hugging Face format instead"
        )
