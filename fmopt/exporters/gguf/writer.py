"""A Llama-shaped network as a GGUF file: its weights in the precision that was asked for, its settings and its tokenizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata, continues_texts
from fmopt.exporters.gguf.vocabulary import read_vocabulary
from fmopt.models.gguf.layout import ARCHITECTURES, INTERLEAVED, OUTPUT, Dimensions, interleaved
from fmopt.models.loading import TorchModel

FILE = "model.gguf"
PRECISIONS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}  # -> GGMLQuantizationType
FILE_TYPES = {
    "fp32": "ALL_F32",
    "fp16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "int8": "MOSTLY_Q8_0",
    "int4": "MOSTLY_Q4_0",
}


def refusal(metadata: CheckpointMetadata) -> str | None:
    """Why a checkpoint cannot become a GGUF file; None where its files say nothing against it."""
    if importlib.util.find_spec("gguf") is None:
        return "the package gguf is not installed: pip install 'fmopt[gguf]'"
    if metadata.model_type not in ARCHITECTURES or not continues_texts(metadata.pipeline):
        return (
            f"GGUF files are made of decoders of the types {', '.join(ARCHITECTURES)}, and this is {metadata.model_type} for "
            f"{metadata.task}; use --format onnx or openvino"
        )
    return None


def export_gguf(model: TorchModel, out: Path, precision: str) -> Path:
    """Write `model` into the folder `out` as model.gguf; returns its path.

    Matrices are stored as F32, F16, BF16, Q8_0 or Q4_0 for `precision` fp32, fp16, bf16, int8 or int4. Vectors stay F32, a matrix
    whose rows are no multiple of 32 becomes F16 instead of blocks, and with int4 the matrix that makes the logits is Q8_0.
    ConfigError for a network or tokenizer that the format has no place for, PassError for weights that are no numbers in it.
    """
    from gguf import GGUFWriter

    dimensions, metadata = dimensions_of_network(model), model.metadata
    vocabulary = read_vocabulary(metadata, dimensions.vocabulary)
    path = out / FILE
    writer = GGUFWriter(path, dimensions.architecture)
    _add_settings(writer, model, dimensions, precision)
    vocabulary.write(writer)
    tensors = list(_tensors(dimensions, precision))
    for tensor in tensors:
        shape, size = tensor.stored()
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), size, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    weights = model.net.state_dict()
    try:
        for tensor in tensors:  # one at a time: a network of billions is not in memory twice
            writer.write_tensor_data(tensor.data(weights[tensor.source], dimensions))
    finally:
        writer.close()
    return path


@dataclass(frozen=True)
class _Tensor:
    """One tensor of a file that is being written."""

    name: str
    source: str  # its name in the network
    shape: tuple[int, ...]
    kind: Any  # GGMLQuantizationType

    def stored(self) -> tuple[tuple[int, ...], int]:
        """Its shape in bytes, and how many bytes it takes."""
        from gguf.quants import quant_shape_to_byte_shape

        shape = quant_shape_to_byte_shape(self.shape, self.kind)
        return shape, int(np.prod(shape))

    def data(self, weight: Any, dimensions: Dimensions) -> np.ndarray:
        """Its bytes; PassError where a weight is no number in this format."""
        from gguf.quants import quantize

        values = weight.detach().float().cpu().numpy()
        part = self.name.split(".")[2] if self.name.startswith("blk.") else ""
        heads = {"attn_q": dimensions.heads, "attn_k": dimensions.kv_heads}.get(part)
        if heads is not None and dimensions.architecture in INTERLEAVED:
            values = interleaved(values, heads)
        largest = float(np.abs(values).max(initial=0.0))
        if not largest < (np.inf if self.kind.name in ("F32", "BF16") else float(np.finfo(np.float16).max)):
            raise PassError(
                f"{self.source} holds {largest:g}, which {self.kind.name} cannot hold; use --precision fp32"
            )
        return np.ascontiguousarray(quantize(np.ascontiguousarray(values), self.kind)).view(np.uint8)


def _tensors(dimensions: Dimensions, precision: str) -> Iterator[_Tensor]:
    from gguf import GGMLQuantizationType

    logits = "token_embd.weight" if dimensions.tied else OUTPUT
    for name, (source, shape) in dimensions.tensors().items():
        kind = PRECISIONS[precision] if len(shape) > 1 else "F32"
        if kind == "Q4_0" and name == logits:
            kind = "Q8_0"  # llama.cpp keeps it wider too: every token depends on it
        if kind.startswith("Q") and shape[-1] % 32:
            kind = "F16"
        yield _Tensor(name, source, shape, GGMLQuantizationType[kind])


def dimensions_of_network(model: TorchModel) -> Dimensions:
    """The sizes of a network; ConfigError for one with settings or tensors that a GGUF file of its kind has no place for."""
    config: Any = model.net.config
    weights = model.net.state_dict()
    _require_plain(config)
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    tied = weights[head].data_ptr() == weights[table].data_ptr()
    found = Dimensions(
        ARCHITECTURES[config.model_type], config.num_hidden_layers, config.hidden_size, config.intermediate_size,
        config.num_attention_heads, config.num_key_value_heads, _head_size(config), weights[table].shape[0], tied,
    )  # fmt: skip
    expected = dict(found.tensors().values())
    others = [name for name in weights if name not in expected and not (tied and name == head)]
    if others:
        raise ConfigError(
            f"the network has {others[0]}, for which a GGUF file of {found.architecture} has no place; use --format onnx"
        )
    for name, shape in expected.items():
        got = tuple(weights[name].shape) if name in weights else None
        if got != shape:
            raise ConfigError(
                f"{name} is {'missing' if got is None else list(got)} where a GGUF file has {list(shape)}: all layers are of one "
                "width there; export a network that was not pruned, or use --format onnx"
            )
    return found


def _require_plain(config: Any) -> None:
    """ConfigError for a setting that would be lost."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1) != 1:
        raise ConfigError(
            f"its positions are scaled (rope_type {rope.get('rope_type')!r}), which is not written into GGUF files yet; use "
            "--format onnx or openvino"
        )
    if config.hidden_act != "silu":
        raise ConfigError(
            f"its hidden_act is {config.hidden_act!r}, and GGUF files of its kind mean silu; use --format onnx"
        )


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_settings(writer: Any, model: TorchModel, dimensions: Dimensions, precision: str) -> None:
    """Everything but weights and tokenizer."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    config: Any = model.net.config
    source = model.metadata.source
    # A window that attention slides over texts is not in the format: within the window there is no difference.
    context = min(
        config.max_position_embeddings, getattr(config, "sliding_window", None) or config.max_position_embeddings
    )
    writer.add_name(source.title)
    if source.licence:
        writer.add_license(source.licence)
    writer.add_context_length(context)
    writer.add_embedding_length(dimensions.hidden)
    writer.add_block_count(dimensions.layers)
    writer.add_feed_forward_length(dimensions.feed_forward)
    writer.add_head_count(dimensions.heads)
    writer.add_head_count_kv(dimensions.kv_heads)
    writer.add_key_length(dimensions.head_size)
    writer.add_value_length(dimensions.head_size)
    writer.add_rope_dimension_count(dimensions.head_size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_vocab_size(dimensions.vocabulary)
    writer.add_file_type(LlamaFileType[FILE_TYPES[precision]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
