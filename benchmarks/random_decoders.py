"""Decoders of well-known shapes with random weights, for measuring speed and memory: no hub, no download.

    .venv/bin/python benchmarks/random_decoders.py gpt2 OUT        gpt2 (124M), qwen2.5-0.5b (494M), llama-1.1b (1.1B)

Weights are drawn and written one tensor at a time, in shards of Hugging Face format, so that no network ever lies in
memory as a whole. The tokenizer knows bytes alone; the network's vocabulary has its real size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SHARD_BYTES = 500_000_000
END = "<|endoftext|>"
LONGEST = 4096  # positions, so that contexts of 2048 tokens can go on
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES: dict[str, dict[str, Any]] = {
    # Radford et al., 2019; with more positions than its 1024
    "gpt2": {"model_type": "gpt2", "n_positions": LONGEST},
    # the published config.json of Qwen2.5-0.5B
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": LONGEST, "rope_theta": 1_000_000.0,
    },
    # the published config.json of TinyLlama-1.1B
    "llama-1.1b": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False,
        "max_position_embeddings": LONGEST,
    },
}  # fmt: skip


def write_decoder(shape: str, out: Path, dtype: str = "float32", seed: int = 0) -> Path:
    """A checkpoint folder of one of `SHAPES` in `out`, by the seed; the same bytes each time."""
    settings = dict(SHAPES[shape])
    kind = settings.pop("model_type")
    end = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, **settings, **end)
    with torch.device("meta"):
        net = transformers.AutoModelForCausalLM.from_config(config)
    out.mkdir(parents=True, exist_ok=True)
    config.architectures = [type(net).__name__]
    config.save_pretrained(out)
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))  # random texts never end
    write_tokenizer(out)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards(net, DTYPES[dtype], seed), 1):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, out / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    total = sum(parameter.numel() for parameter in net.parameters()) * DTYPES[dtype].itemsize
    reported = {"metadata": {"total_size": total}, "weight_map": index}
    (out / "model.safetensors.index.json").write_text(json.dumps(reported, indent=1))
    return out


def shards(net: torch.nn.Module, dtype: torch.dtype, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Random tensors by name, some hundred MB at once: normal with deviation 0.02, as such networks begin, norms at 1."""
    draw = torch.Generator().manual_seed(seed)
    shard: dict[str, torch.Tensor] = {}
    for name, parameter in net.named_parameters():  # a tied head comes once
        plain = parameter.ndim < 2
        fill = float("norm" in name or ".ln_" in name) if name.endswith("weight") else 0.0
        drawn = torch.full(parameter.shape, fill) if plain else torch.randn(parameter.shape, generator=draw) * 0.02
        shard[name] = drawn.to(dtype)
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard


def write_tokenizer(out: Path) -> None:
    """A tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {END: 0} | {letter: number for number, letter in enumerate(alphabet, 1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens([END])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(out / "tokenizer.json"))
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END)
    metadata = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LONGEST, **names}
    (out / "tokenizer_config.json").write_text(json.dumps(metadata, indent=1))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    write_decoder(asked.shape, asked.out, asked.dtype, asked.seed)


if __name__ == "__main__":
    main()
