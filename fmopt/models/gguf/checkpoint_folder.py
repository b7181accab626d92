"""A checkpoint folder made of a GGUF file: its network in float32, its configuration, its tokenizer."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError, reading
from fmopt.edge.errors import shorten
from fmopt.edge.files import printable
from fmopt.models.gguf.header import GgufHeader, read_header
from fmopt.models.gguf.layout import ROPE_THETA, Dimensions, dimensions_of
from fmopt.models.gguf.tokenizer import end_ids, token_id, tokenizer_of
from fmopt.models.loading import quiet
from fmopt.models.networks import known_transformers


def write_checkpoint(path: Path, out: Path) -> None:
    """Write the network and tokenizer of a GGUF file into the folder `out`, in Hugging Face format and float32.

    The file's header is checked before any library reads it. CheckpointError for a file that cannot be used: see `read_header`,
    `dimensions_of` and `tokenizer_of`.
    """
    header = read_header(path)
    dimensions = dimensions_of(header)
    tokenizer = tokenizer_of(header, dimensions.vocabulary)
    network = read_network(header, dimensions)
    with quiet(known_transformers().utils.logging):
        network.save_pretrained(out)
        tokenizer.save_pretrained(out)


def read_network(header: GgufHeader, dimensions: Dimensions) -> Any:
    """The network of a GGUF file in float32, read by transformers: quantized weights are what they stand for."""
    import torch

    transformers = known_transformers()
    config = network_config(header, dimensions)
    # Alone in a folder: transformers takes what else lies beside a file, and one of its name in the working directory first.
    with tempfile.TemporaryDirectory() as scratch, reading(header.path, CheckpointError, "get the file again"):
        alone = Path(scratch) / "model.gguf"
        alone.symlink_to(header.path.resolve())
        with quiet(transformers.utils.logging), contextlib.redirect_stderr(io.StringIO()):  # a bar of tqdm's own
            read, found = transformers.AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=str(alone), config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
    lost = sorted({*map(str, found["missing_keys"]), *map(str, found["mismatched_keys"])})
    if lost:
        raise CheckpointError(
            f"{header.path}: transformers does not find {lost[0]} in it; give the checkpoint's folder instead"
        )
    # A network that knows where it came from cannot be saved.
    made = type(read)._from_config(network_config(header, dimensions), dtype=torch.float32)
    made.load_state_dict(read.state_dict())
    made.generation_config = transformers.GenerationConfig(**_ids(header))
    return made.eval()


def network_config(header: GgufHeader, dimensions: Dimensions) -> Any:
    """The configuration of a GGUF file's network, as transformers has it. CheckpointError for one that makes no sense."""
    kind = dimensions.architecture
    context, epsilon, theta = (
        _above_0(header, f"{kind}.{name}", default)
        for name, default in (
            ("context_length", None),
            ("attention.layer_norm_rms_epsilon", None),
            ("rope.freq_base", ROPE_THETA),
        )
    )
    return known_transformers().AutoConfig.for_model(
        kind, vocab_size=dimensions.vocabulary, hidden_size=dimensions.hidden, intermediate_size=dimensions.feed_forward,
        num_hidden_layers=dimensions.layers, num_attention_heads=dimensions.heads, num_key_value_heads=dimensions.kv_heads,
        head_dim=dimensions.head_size, max_position_embeddings=int(context), rms_norm_eps=epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": theta}, tie_word_embeddings=dimensions.tied, **_ids(header),
    )  # fmt: skip


def _above_0(header: GgufHeader, key: str, default: float | None) -> float:
    """A number of the metadata as it was written: 1e-05, where a file has 9.999999747378752e-06 in single precision."""
    found = header.metadata.get(key, default)
    if type(found) not in (int, float) or not 0 < found < float("inf"):
        raise CheckpointError(
            f"{header.path}: its {key} is {shorten(printable(found))}; it is above 0. Get the file again"
        )
    return float(f"{found:.7g}") if type(found) is float else float(found)


def _ids(header: GgufHeader) -> dict[str, Any]:
    ends = end_ids(header)
    return {
        "bos_token_id": token_id(header, "bos"), "pad_token_id": token_id(header, "padding"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }  # fmt: skip
