"""Networks of an encoder and a decoder on the PyTorch side: what their pipeline says, how they are traced, how they run.

One graph has both, in two parts that share nothing but weights (an embedding is stored once). The first takes a whole text and
gives the keys and values that the decoder's cross-attention reads, made once; the second takes new tokens with the cache of its
own attention and those. Which ports are which is documented in edge/seq2seq.py; names are optimum's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmopt.core.errors import CheckpointError
from fmopt.core.model import TOKENIZER, Runner
from fmopt.edge.kv_cache import CACHE_PREFIX, PRESENT, cache_of
from fmopt.edge.seq2seq import NEW, SOURCE_MASK
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.preprocessors.generation import (
    FILE,
    cleans_up,
    ends_of,
    length_of,
    read_generation,
    rules_of,
    search_of,
    tell_left_out,
    words_among,
)

if TYPE_CHECKING:
    import onnx_ir as ir

LONGEST = 200  # tokens of an answer, where the checkpoint names no number
# Sizes of the traced examples: different in both parts, and none that a network has by itself.
ROWS, TOKENS = 2, 7
NEW_ROWS, NEW_TOKENS, CACHED_TOKENS, SOURCE_TOKENS = 3, 4, 5, 6
PARITY_TOKENS = 6  # made up, of an answer that is compared


def is_encoder_decoder(net: Any) -> bool:
    """Whether a network is one of an encoder and a decoder that gives words."""
    return bool(getattr(net.config, "is_encoder_decoder", False)) and net.get_output_embeddings() is not None


# ------------------------------------------------------------------------------------------------ its pipeline


def answer_pipeline(files: CheckpointFiles, config: Any) -> dict[str, Any]:
    """What a pipeline says of how answers are made, as `generate` reads it: of generation_config.json, else of config.json,
    which older checkpoints keep this in. CheckpointError when an answer has no beginning."""
    own = {name: value for name, value in {**config.to_dict(), **files.config}.items() if value is not None}
    folder, settings = files.folder, read_generation(files, config)
    first = settings.get("decoder_start_token_id", own.get("decoder_start_token_id", own.get("bos_token_id")))
    if first is None:
        raise CheckpointError(
            f"{folder}: its configuration names no decoder_start_token_id; add the one it was trained with"
        )
    speech = config.model_type == "whisper"
    tell_left_out(files, settings, speech=speech)
    start, whisper = (
        speech_start(folder, int(first), settings, {"vocab_size": config.vocab_size, **own})
        if speech
        else ([int(first)], {})
    )
    positions = [getattr(config, name, None) for name in ("max_position_embeddings", "max_target_positions")]
    most = min((int(number) for number in positions if number and number > 0), default=None)
    # The positions of an answer, those of its start among them; Whisper's own limit counts without its start.
    total = length_of(settings, "max_length")
    ends = ends_of(folder, settings, config.vocab_size)
    longest = min((n for n in (total and total + (len(start) if speech else 0), most) if n), default=LONGEST)
    return {
        "decoder_start_token_ids": start,
        "eos_token_id": ends,
        **words_among(files, ends, config),
        "max_new_tokens": length_of(settings, "max_new_tokens") or max(1, longest - len(start)),
        **({"max_target_positions": most} if most else {}),
        "prefix": str(own.get("prefix") or ""),
        **({"clean_up_tokenization_spaces": True} if cleans_up(files) else {}),
        **search_of(folder, settings),
        **rules_of(folder, settings, config.vocab_size),
        **whisper,
    }


def speech_start(
    folder: Path, first: int, settings: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[list[int], dict[str, Any]]:
    """The ids that Whisper's answers begin with, as transformers has them, and what a pipeline says of its languages and
    times. Where no language is named, the second id is one of those among which it is found for each sound."""
    start, language, task = [first], settings.get("language"), settings.get("task")
    languages, tasks, quiet = _speech_ids(folder, settings)
    forced = settings.get("forced_decoder_ids", own.get("forced_decoder_ids")) or []
    if language is None and task is None and forced and forced[0][0] == 1:
        start += [number for _, number in forced]
    names = _language_names()
    code = str(language).lower().strip("<|>") if language is not None else None
    code = names.get(code, code) if code is not None else None
    if code is not None and code not in languages:
        raise CheckpointError(
            f"{folder / FILE}: the language {language!r} is not in its lang_to_id; correct one of them"
        )
    found = code is None and bool(languages) and (len(start) == 1 or start[1] is None)
    if code is not None or found:
        standing = languages.get("en", next(iter(languages.values())))
        start = [start[0], standing if code is None else languages[code], *start[2:]]
    if task is not None or (code is not None and not set(start) & set(tasks.values())):
        asked = task or "transcribe"
        if tasks and asked not in tasks:
            raise CheckpointError(f"{folder / FILE}: the task {task!r} is not in its task_to_id; correct one of them")
        start += [tasks[asked]] if tasks else []
    start = [int(number) for number in start if number is not None]
    start += [quiet] if quiet is not None and start[-1] != quiet else []
    known = {"max_initial_timestamp_index": settings.get("max_initial_timestamp_index"), "task": task, "language": code,
             "return_timestamps": settings.get("return_timestamps") or None, "no_timestamps_token_id": quiet,
             "timestamp_begin": _first_timestamp(folder, quiet, int(own["vocab_size"])),
             "lang_to_id": languages or None, "task_to_id": tasks or None,
             "language_names": {name: code for name, code in names.items() if code in languages} or None}  # fmt: skip
    whisper = {name: value for name, value in known.items() if value is not None}
    return start, {"whisper": whisper, **({"language_ids": sorted(languages.values())} if found else {})}


def _speech_ids(folder: Path, settings: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int], int | None]:
    """Ids of languages by their codes, of tasks by their names, and of what says that no times are given."""
    try:
        several = settings.get("is_multilingual") is not False
        languages = settings.get("lang_to_id") or {} if several else {}
        tasks, quiet = settings.get("task_to_id") or {} if several else {}, settings.get("no_timestamps_token_id")
        return (
            {str(name).strip("<|>"): int(number) for name, number in languages.items()},
            {str(name): int(number) for name, number in tasks.items()},
            None if quiet is None else int(quiet),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / FILE}: lang_to_id or task_to_id has no ids by names ({error})") from error


def _first_timestamp(folder: Path, quiet: int | None, words: int) -> int | None:
    """The id of the first timestamp, which comes after the one that says "none"; None where that is a word, or nothing."""
    from tokenizers import Tokenizer

    if quiet is None or quiet + 1 >= words:
        return None
    named = Tokenizer.from_file(str(folder / TOKENIZER)).id_to_token(quiet + 1)
    return quiet + 1 if named in (None, "<|0.00|>") else None


def _language_names() -> dict[str, str]:
    """Codes of languages by their names in English."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return dict(TO_LANGUAGE_CODE)


# ------------------------------------------------------------------------------------------------ its two parts


@dataclass(frozen=True)
class EncoderDecoder:
    """A network as the two parts of the graph, with the graph's own inputs and outputs as tensors."""

    net: Any

    def encode(self, **inputs: Any) -> dict[str, Any]:
        """Keys and values of the cross-attention, by the names of the graph's outputs."""
        return _tensors(self.first_caches(**inputs).cross_attention_cache, "encoder")

    def first_caches(self, **inputs: Any) -> Any:
        """The caches of all attentions after the first token of an answer."""
        import torch
        from transformers import DynamicCache, EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        hidden = self.net.get_encoder()(**inputs)[0]
        caches = EncoderDecoderCache(DynamicCache(), DynamicCache())
        # The decoder makes them of the encoder's result alone: a token that stands for any.
        new = torch.zeros((hidden.shape[0], 1), dtype=torch.long, device=hidden.device)
        mask = {"attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
        self._forward(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            decoder_input_ids=new,
            past_key_values=caches,
            **mask,
        )
        return caches

    def decode(self, **inputs: Any) -> dict[str, Any]:
        """Logits of new tokens, and the cache of the next call."""
        from transformers import EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        caches = EncoderDecoderCache(_cache(inputs, "decoder"), _cache(inputs, "encoder"))
        caches.is_updated = dict.fromkeys(range(len(caches.cross_attention_cache.layers)), True)
        keys = inputs[f"{CACHE_PREFIX}0.encoder.key"]
        # Only its shape is read, for its keys and values are there.
        hidden = keys.new_zeros(keys.shape[0], keys.shape[2], self.net.config.hidden_size)
        mask = {"attention_mask": inputs[SOURCE_MASK]} if SOURCE_MASK in inputs else {}
        out = self._forward(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden), decoder_input_ids=inputs[NEW],
            past_key_values=caches, **mask,
        )  # fmt: skip
        return {"logits": out.logits, **_tensors(caches.self_attention_cache, "decoder")}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the graph's half that takes `inputs` gives: float32 arrays."""
        import torch

        kind, device = self.net.dtype, next(self.net.parameters()).device
        given = {name: torch.from_numpy(np.asarray(value)).to(device) for name, value in inputs.items()}
        given = {name: value.to(kind) if value.is_floating_point() else value for name, value in given.items()}
        with torch.inference_mode():
            found = self.decode(**given) if NEW in given else self.encode(**given)
        return {name: value.float().cpu().numpy() for name, value in found.items()}

    def _forward(self, **inputs: Any) -> Any:
        return type(self.net).forward(self.net, **inputs, use_cache=True)


def _cache(inputs: Mapping[str, Any], side: str) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    layers = sum(name.startswith(CACHE_PREFIX) and name.endswith(f"{side}.key") for name in inputs)
    for number in range(layers):
        cache.update(*(inputs[f"{CACHE_PREFIX}{number}.{side}.{kind}"] for kind in ("key", "value")), number)
    return cache


def _tensors(cache: Any, side: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, layer in enumerate(cache.layers):
        found |= {f"{PRESENT}{number}.{side}.key": layer.keys, f"{PRESENT}{number}.{side}.value": layer.values}
    return found


# ------------------------------------------------------------------------------------------------ its trace


@contextmanager
def both_halves(net: Any, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """While entered, the network's forward is that of both parts at once; yields the tensors to trace it by and the axes of
    each that vary. Ports are called as Python allows: `named` finds their names."""
    import torch

    parts, dynamic = EncoderDecoder(net), torch.export.Dim.DYNAMIC
    inputs = _tracing_inputs(parts, names)

    def forward(**given: Any) -> dict[str, Any]:
        settings = {named(name): value for name, value in given.items()}
        first = parts.encode(**{name: settings[name] for name in names})
        second = parts.decode(**{name: value for name, value in settings.items() if name not in names})
        return {_identifier(name): value for name, value in {**first, **second}.items()}

    vary = {4: (0, 2), 3: (0,), 2: (0, 1)}  # by how many axes a tensor has: audio has the same length throughout
    varying = {name: dict.fromkeys(vary[value.dim()], dynamic) for name, value in inputs.items()}
    net.forward = forward
    try:
        yield (
            {_identifier(name): value for name, value in inputs.items()},
            {_identifier(name): axes for name, axes in varying.items()},
        )
    finally:
        del net.forward


def _tracing_inputs(parts: EncoderDecoder, names: Sequence[str]) -> dict[str, Any]:
    import torch

    ids = torch.arange(NEW_ROWS * max(TOKENS, NEW_TOKENS)).reshape(NEW_ROWS, -1) % 50
    mask = torch.ones(NEW_ROWS, TOKENS, dtype=torch.long)
    mask[0, 5:] = 0
    texts = {"input_ids": ids[:, :TOKENS], "attention_mask": mask}
    if "input_features" in names:
        config = parts.net.config
        texts["input_features"] = torch.zeros(NEW_ROWS, config.num_mel_bins, 2 * config.max_source_positions)
    whole = {name: texts[name] for name in names}
    shorter = {name: value if value.dim() == 3 else value[:, :SOURCE_TOKENS] for name, value in whole.items()}
    with torch.inference_mode():
        caches = parts.first_caches(**shorter)
    cross, own = (
        {CACHE_PREFIX + name.removeprefix(PRESENT): value for name, value in _tensors(cache, side).items()}
        for cache, side in ((caches.cross_attention_cache, "encoder"), (caches.self_attention_cache, "decoder"))
    )
    own = {
        name: value.new_zeros(NEW_ROWS, value.shape[1], CACHED_TOKENS, value.shape[3]) for name, value in own.items()
    }
    masks = {SOURCE_MASK: shorter["attention_mask"]} if "attention_mask" in names else {}
    return {
        **{name: value[:ROWS].clone() for name, value in whole.items()},
        NEW: ids[:, :NEW_TOKENS].clone(), **{name: value.clone() for name, value in masks.items()},
        **own, **{name: value.clone() for name, value in cross.items()},
    }  # fmt: skip


def _identifier(name: str) -> str:
    return name.replace(".", "__")


def named(name: str) -> str:
    """The name of a port, of that it was traced by."""
    return name.replace("__", ".")


def name_ports(graph: ir.Graph) -> None:
    """Ports by optimum's names, in place."""
    for value in (*graph.inputs, *graph.outputs):
        value.name = named(str(value.name))


def port_axes(graph: ir.Graph) -> dict[str, tuple[str | int, ...]]:
    """Axes of every input of a graph with named ports; those of the second half have names of their own."""
    axes: dict[str, tuple[str | int, ...]] = {}
    for value in graph.inputs:
        name, sizes = str(value.name), [str(axis) for axis in value.shape or ()]
        if name.startswith(CACHE_PREFIX):
            length = "source" if ".encoder." in name else "past"
            axes[name] = ("rows", int(sizes[1]), length, int(sizes[3]))
        elif name in (NEW, SOURCE_MASK):
            axes[name] = ("rows", "new" if name == NEW else "source")
        else:
            axes[name] = ("batch", "tokens") if len(sizes) == 2 else ("batch", *map(int, sizes[1:]))
    return axes


# ------------------------------------------------------------------------------------------------ its proof


@dataclass(frozen=True)
class AsEncoderDecoder:
    """A runner of two parts that gives the logits of a whole answer, `decoder_input_ids` beside the text, as a network in
    PyTorch does: its second part by the cache that the first left."""

    runner: Runner

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Logits of whole answers."""
        source = {name: value for name, value in inputs.items() if name != NEW}
        known = cache_of(self.runner.run(source))
        if "attention_mask" in source:
            known[SOURCE_MASK] = source["attention_mask"]
        half = inputs[NEW].shape[1] // 2
        first = self.runner.run({NEW: inputs[NEW][:, :half], **known})
        second = self.runner.run({NEW: inputs[NEW][:, half:], **known, **cache_of(first)})
        return {"logits": np.concatenate([first["logits"], second["logits"]], axis=1)}

    def close(self) -> None:
        """Give back memory and threads."""
        self.runner.close()


def with_answer(inputs: Mapping[str, np.ndarray], start: Sequence[int], words: int) -> dict[str, np.ndarray]:
    """Inputs of whole texts, each with an answer of `PARITY_TOKENS` ids below `words`, to compare logits by."""
    rows = len(next(iter(inputs.values())))
    made = np.resize(np.arange(3, 3 + 7 * PARITY_TOKENS, 7) % words, (rows, PARITY_TOKENS))
    return {**inputs, NEW: np.concatenate([np.tile(np.array(start), (rows, 1)), made], axis=1).astype(np.int64)}


def for_both_halves(net: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs of whole texts with their answers, and what the graph's second half reads of its first: that of `net`."""
    source = {name: value for name, value in inputs.items() if name != NEW}
    masks = {SOURCE_MASK: source["attention_mask"]} if "attention_mask" in source else {}
    return {**inputs, **masks, **cache_of(EncoderDecoder(net).run(source))}
