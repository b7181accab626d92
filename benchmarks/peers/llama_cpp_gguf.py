"""A Hugging Face folder of GPT-2 or of a Llama-shaped decoder as GGUF for llama.cpp, every matrix in Q4_0.

    ~/.cache/fmopt-peers/llama_cpp/env/bin/python benchmarks/peers/llama_cpp_gguf.py FOLDER OUT.gguf

llama.cpp's own tool would keep the head in Q6_K, which reads more bytes for every token: here nothing is left out, so that
what is compared with fmopt's INT4 has its head in 4 bits too. There is no vocabulary: tokens go in and out as numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants

DTYPES = {"F32": np.float32, "F16": np.float16}
# names of Hugging Face -> of GGUF, inside a layer and outside
GPT2 = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}  # fmt: skip
GPT2_TOP = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
LLAMA = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
LLAMA_TOP = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def main() -> None:
    """The command line."""
    folder, out = map(Path, sys.argv[1:3])
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, {"gpt2": "gpt2", "qwen2": "qwen2"}[config["model_type"]])
    describe(writer, config)
    gpt2 = config["model_type"] == "gpt2"
    for name, array in tensors(folder):
        reported, kind = renamed(name, gpt2)
        if gpt2 and kind == "weight" and reported.startswith("blk.") and array.ndim == 2:
            array = array.T  # Conv1D keeps [in, out]
        array = np.ascontiguousarray(array, dtype=np.float32)
        if array.ndim == 2 and reported != "position_embd":
            packed = quants.quantize(array, GGMLQuantizationType.Q4_0)
            writer.add_tensor(f"{reported}.{kind}", packed, raw_dtype=GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(f"{reported}.{kind}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: gguf.GGUFWriter, config: dict) -> None:
    """The sizes of the network."""

    def reported(*names: str) -> int:
        return next(config[name] for name in names if config.get(name) is not None)

    width = reported("hidden_size", "n_embd")
    heads = reported("num_attention_heads", "n_head")
    writer.add_context_length(reported("max_position_embeddings", "n_positions"))
    writer.add_embedding_length(width)
    writer.add_block_count(reported("num_hidden_layers", "n_layer"))
    writer.add_feed_forward_length(config.get("intermediate_size") or config.get("n_inner") or 4 * width)
    writer.add_head_count(heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("no_vocab")
    if config["model_type"] == "gpt2":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    rope = config.get("rope_parameters") or {}
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or rope["rope_theta"])


def renamed(name: str, gpt2: bool) -> tuple[str, str]:
    """A tensor's name in GGUF, and whether it is a weight or a bias."""
    path, _, kind = name.removeprefix("transformer.").removeprefix("model.").rpartition(".")
    inside, top = (GPT2, GPT2_TOP) if gpt2 else (LLAMA, LLAMA_TOP)
    if path in top:
        return top[path], kind
    _, number, rest = path.split(".", 2)
    return f"blk.{number}.{inside[rest]}", kind


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the folder's safetensors, mapped from disk: a length, a header in JSON, then bytes."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        for name, metadata in header.items():
            if name != "__metadata__":
                begin = 8 + length + metadata["data_offsets"][0]
                dtype = np.dtype(DTYPES[metadata["dtype"]])
                yield name, np.memmap(path, dtype, "r", begin, tuple(metadata["shape"]))


if __name__ == "__main__":
    main()
