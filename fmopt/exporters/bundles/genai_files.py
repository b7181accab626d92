"""What the generation libraries of ONNX Runtime and OpenVINO want beside a graph: settings, and tokenizers as graphs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmopt.core.errors import BundleError, ConfigError, explained
from fmopt.edge.kv_cache import CACHE_PREFIX, PRESENT

TOKENIZERS = "openvino_tokenizers"


def genai_config(
    inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]], pipeline: Mapping[str, Any], *,
    filename: str, hidden_size: int, threads: int | None,
) -> dict[str, Any]:  # fmt: skip
    """genai_config.json of ONNX Runtime GenAI for a graph with these shapes by name of its inputs and outputs.

    Answers are the likeliest tokens, as the bundle's are by default. BundleError for a graph whose past is none of attention.
    """
    keys = {name: shape for name, shape in inputs.items() if name.startswith(CACHE_PREFIX) and name.endswith(".key")}
    plain = {"input_ids", "attention_mask", "position_ids"}
    strange = sorted(name for name in inputs if name not in plain and not name.startswith(CACHE_PREFIX))
    if not keys or strange or any(shape[2] > 0 for shape in keys.values()):
        what = f"an input {strange[0]}" if strange else "no past of keys and values that grows"
        raise BundleError(f"ONNX Runtime GenAI cannot run this graph: it has {what}")
    heads, size = next(iter(keys.values()))[1::2]
    ends, most = list(pipeline["eos_token_id"]), int(pipeline["max_length"])
    named = {name: name for name in sorted(plain & set(inputs))}
    named |= {f"past_{part}_names": f"{CACHE_PREFIX}%d.{part}" for part in ("key", "value")}
    present = {f"present_{part}_names": f"{PRESENT}%d.{part}" for part in ("key", "value")}
    options = {"log_id": "onnxruntime-genai", "provider_options": []} | (
        {"intra_op_num_threads": threads} if threads else {}
    )
    decoder = {
        "session_options": options, "filename": filename, "head_size": size, "hidden_size": hidden_size,
        "num_attention_heads": heads, "num_key_value_heads": heads, "num_hidden_layers": len(keys),
        "inputs": named, "outputs": {"logits": "logits", **present},
    }  # fmt: skip
    first = ends[0] if ends else 0
    return {
        "model": {
            "type": "decoder", "bos_token_id": first, "eos_token_id": ends or first, "pad_token_id": first,
            "context_length": most, "vocab_size": outputs["logits"][-1], "decoder": decoder,
        },
        "search": {
            "do_sample": False, "num_beams": 1, "num_return_sequences": 1, "max_length": most, "min_length": 0,
            "past_present_share_buffer": False, "repetition_penalty": 1.0, "length_penalty": 1.0, "temperature": 1.0,
            "top_k": 1, "top_p": 1.0, "early_stopping": True,
        },
    }  # fmt: skip


def put_openvino_tokenizer(checkpoint: Path, out: Path) -> None:
    """Write the tokenizer in `checkpoint` as openvino_tokenizer.xml and openvino_detokenizer.xml into `out`.

    ConfigError where openvino-tokenizers is not installed, BundleError for a tokenizer that it does not know.
    """
    if importlib.util.find_spec(TOKENIZERS) is None:
        raise ConfigError(
            "OpenVINO GenAI wants the tokenizer as a graph: pip install 'fmopt[openvino-genai]' makes one"
        )
    import openvino
    from transformers import AutoTokenizer

    with explained("OpenVINO's tokenizers cannot take this one", BundleError):
        from openvino_tokenizers import convert_tokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        made = convert_tokenizer(tokenizer, with_detokenizer=True)
        for name, graph in zip(("openvino_tokenizer.xml", "openvino_detokenizer.xml"), made, strict=True):
            openvino.save_model(graph, out / name, compress_to_fp16=False)
