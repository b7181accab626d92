"""Networks that generate, on the PyTorch side: what their pipeline says, and how they are traced with a cache.

The graph is described in edge/generation.py. Its ports have the names that optimum gives them, so that a bundle opens in
`optimum.onnxruntime.ORTModelForCausalLM` too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fmopt.core.errors import CheckpointError
from fmopt.core.model import Runner
from fmopt.edge.generation import in_two_steps
from fmopt.edge.kv_cache import CACHE_PREFIX, PRESENT
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.preprocessors.generation import (
    cleans_up,
    ends_of,
    length_of,
    read_generation,
    rules_of,
    search_of,
    speculation_of,
    tell_left_out,
    words_among,
)

if TYPE_CHECKING:
    import onnx_ir as ir

PORT = re.compile(
    r"(input|output)\.past_key_values\.layers\.(\d+)\.(key|value)s"
)  # as transformers' exporter names them
TRACED_CACHED, TRACED_TOKENS = 5, 4  # different, and no size that a network has by itself


def generation_pipeline(files: CheckpointFiles, config: Any) -> dict[str, Any]:
    """What a pipeline says of a network that generates: its inputs, and how it goes on with a text.

    CheckpointError when transformers has no such network for this configuration.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(
            f"{files.folder}: transformers has no network of type {config.model_type!r} that generates text"
        )
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    takes = inspect.signature(kind.forward).parameters
    positions = ["position_ids"] if "position_ids" in takes else []
    folder, settings = files.folder, read_generation(files, config)
    tell_left_out(files, settings)
    new, total = length_of(settings, "max_new_tokens"), length_of(settings, "max_length")
    ends = ends_of(folder, settings, config.vocab_size)
    return {
        "inputs": ["input_ids", "attention_mask", *positions],
        "axes": {"attention_mask": ["batch", "total"]},  # of tokens taken in now and before
        "eos_token_id": ends,
        **words_among(files, ends, config),
        **({"max_new_tokens": new} if new else {"max_total_tokens": total} if total else {}),
        **({"clean_up_tokenization_spaces": True} if cleans_up(files) else {}),
        **search_of(folder, settings),
        **speculation_of(folder, settings),
        **rules_of(folder, settings, config.vocab_size),
    }


def tracing_inputs(net: Any, names: list[str]) -> dict[str, Any]:
    """Tensors to trace a network by: two rows that go on from a cache, one of them padded; the axes of all vary."""
    import torch
    from transformers import DynamicCache

    rows, total = 2, TRACED_CACHED + TRACED_TOKENS
    mask = torch.ones(rows, total, dtype=torch.long)
    mask[0, :2] = 0
    whole = {"input_ids": torch.arange(rows * total).reshape(rows, total) % 50, "attention_mask": mask,
             "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}  # fmt: skip
    before = {name: whole[name][:, :TRACED_CACHED] for name in names}
    cache = (
        DynamicCache()
    )  # a plain one: that of a sliding window forgets, by lengths that a trace would take for constants
    with torch.inference_mode():
        net(**before, past_key_values=cache, use_cache=True)
    new = {name: whole[name] if name == "attention_mask" else whole[name][:, TRACED_CACHED:] for name in names}
    return {**new, "past_key_values": cache, "use_cache": True}


def name_ports(graph: ir.Graph) -> None:
    """Ports of the cache by optimum's names, in place."""
    for value in (*graph.inputs, *graph.outputs):
        found = PORT.fullmatch(str(value.name))
        if found:
            side, layer, kind = found.groups()
            value.name = f"{CACHE_PREFIX if side == 'input' else PRESENT}{layer}.{kind}"


def port_axes(graph: ir.Graph) -> dict[str, tuple[str | int, ...]]:
    """Axes of every input of a graph with named ports; heads and their size are numbers, so that a runner can make an empty
    cache of them. The state of a recurrent network has the same size always."""
    axes: dict[str, tuple[str | int, ...]] = {}
    for value in graph.inputs:
        name = str(value.name)
        if name.startswith(CACHE_PREFIX):
            _, heads, tokens, size = (str(axis) for axis in value.shape or ())
            axes[name] = ("batch", int(heads), int(tokens) if tokens.isdecimal() else "past", int(size))
        else:
            axes[name] = ("batch", "total" if name == "attention_mask" else "tokens")
    return axes


@dataclass(frozen=True)
class TwoSteps:
    """A runner that takes the second half of every text by the cache that the first half left: what generation relies on."""

    runner: Runner

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Logits of whole texts."""
        return in_two_steps(self.runner, inputs)

    def close(self) -> None:
        """Give back memory and threads."""
        self.runner.close()


def cache_tensors(cache: Any) -> dict[str, np.ndarray]:
    """Keys and values of a transformers cache as float32 arrays, by the names of the graph's outputs; none of None,
    or of the cache of an encoder and a decoder. The last layers of one stay empty where attentions were pruned away."""
    found = {}
    for number, layer in enumerate(
        layer for layer in getattr(cache, "layers", ()) if getattr(layer, "is_initialized", True)
    ):
        found[f"{PRESENT}{number}.key"] = layer.keys.float().cpu().numpy()
        found[f"{PRESENT}{number}.value"] = layer.values.float().cpu().numpy()
    return found


def cache_of(inputs: Mapping[str, Any], dtype: Any) -> Any:
    """A transformers cache of the cache in `inputs`; None when they hold none."""
    import torch
    from transformers import DynamicCache

    layers = sum(name.startswith(CACHE_PREFIX) for name in inputs) // 2
    if not layers:
        return None
    cache = DynamicCache()
    for number in range(layers):
        key, value = (torch.as_tensor(inputs[f"{CACHE_PREFIX}{number}.{kind}"]).to(dtype) for kind in ("key", "value"))
        cache.update(key, value, number)
    return cache
