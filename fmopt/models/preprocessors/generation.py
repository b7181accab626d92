"""How a checkpoint generates: its generation_config.json, read as `generate` of transformers reads it.

Every key is one of three: honoured (in the pipeline, under its own name), without a meaning for what is answered, or reported to
the user as left out, with the reason; so is one that nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.core.model import TOKENIZER
from fmopt.edge.decoding import NAMES as RULES
from fmopt.edge.generation import SPECULATION
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.preprocessors.left_out import tell

FILE = "generation_config.json"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
LENGTHS = ("max_length", "max_new_tokens")
SEARCH = ("num_beams", "length_penalty", "early_stopping")
STARTS = ("decoder_start_token_id", "eos_token_id")
# Of Whisper, which has them beside those of `generate`.
SPEECH = (
    "lang_to_id", "task_to_id", "language", "task", "no_timestamps_token_id", "max_initial_timestamp_index",
    "return_timestamps", "is_multilingual", "forced_decoder_ids",
)  # fmt: skip
OURS = "speculation"  # the one key that fmopt alone reads: see edge/lookup.py
HONOURED = frozenset((*RULES, *LENGTHS, *SEARCH, *STARTS, OURS))
# What says how, not what: memory, caches, what else is given back; what only other ways to call `generate` read.
IRRELEVANT = frozenset((
    "_from_model_config", "transformers_version", "_commit_hash", "pad_token_id", "bos_token_id", "use_cache", "use_mtp",
    "cache_implementation", "cache_config", "max_cache_len", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "return_dict_in_generate", "compile_config", "disable_compile", "low_memory", "prefill_chunk_size",
    "continuous_batching_config", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
    "assistant_ensemble_weight", "speculation_type", "prompt_lookup_num_tokens", "max_matching_ngram_size",
    "alignment_heads", "median_filter_width", "prev_sot_token_id",
))  # fmt: skip
# With these values a key says what holds without it.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (1,), "num_beam_groups": (1,), "guidance_scale": (1, 1.0), "diversity_penalty": (0, 0.0),
    "penalty_alpha": (0, 0.0), "token_healing": (False,), "do_sample": (False,),
}  # fmt: skip
REASONS = {
    "num_return_sequences": "one answer is given to each sample",
    "max_time": "an answer takes the time that its tokens take; limit them with --max-new-tokens",
    "stop_strings": "name them with --stop, which ends an answer before them",
}
NOT_DONE = "a bundle does not do this"


def read_generation(files: CheckpointFiles, config: Any) -> dict[str, Any]:
    """The settings of a checkpoint as `generate` reads them: of generation_config.json, else of its config.json, which older
    checkpoints keep them in; None is left out. CheckpointError for a file or value that is broken."""
    found = _without_nulls(files, FILE)
    if found is None:
        known = HONOURED | set(SPEECH) | set(REASONS) | set(NEUTRAL) | set(SAMPLING)
        own = {**config.to_dict(), **files.config}
        found = {name: value for name, value in own.items() if name in known and value is not None}
        if own.get("force_bos_token_to_be_generated"):
            found["forced_bos_token_id"] = own.get("bos_token_id")
    return found


def rules_of(folder: Path, settings: Mapping[str, Any], words: int) -> dict[str, Any]:
    """What a pipeline says of how tokens are chosen: see edge/decoding.py. `words`: how many ids there are."""
    found = {name: settings[name] for name in RULES if settings.get(name) not in (None, False, [], 0)}
    path = folder / FILE
    if settings.get("min_new_tokens") is not None:  # which decides, also when it is 0
        found.pop("min_length", None)
    for name in ("repetition_penalty", "encoder_repetition_penalty"):
        if name in found and not (_number(found[name]) and found[name] > 0):
            raise CheckpointError(f"{path}: {name} is {found[name]!r}; it is a number above 0")
        if found.get(name) == 1:
            del found[name]
    for name in ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"):
        if name in found and (not _number(found[name]) or found[name] != int(found[name]) or found[name] < 0):
            raise CheckpointError(f"{path}: {name} is {found[name]!r}; it is a whole number of tokens")
        found |= {name: int(found[name])} if name in found else {}
    for name in ("suppress_tokens", "begin_suppress_tokens"):  # ids that no token has suppress none
        if name in found:
            found[name] = sorted({one for one in _ids(found[name], name, path) if 0 <= one < words})
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        # Marian and BART keep an id, some a list; 0 is an id as others are.
        if settings.get(name) is not None:
            ids = _known(_ids(settings[name], name, path), name, path, words)
            found[name] = ids[0] if name == "forced_bos_token_id" else ids
    if "bad_words_ids" in found:
        bad = found["bad_words_ids"]
        if not isinstance(bad, list) or not all(isinstance(ids, list) and ids for ids in bad):
            raise CheckpointError(f"{path}: bad_words_ids is {bad!r:.80}; it is a list of lists of ids")
        found["bad_words_ids"] = [_known(_ids(ids, "bad_words_ids", path), "bad_words_ids", path, words) for ids in bad]
    if "sequence_bias" in found:
        try:
            biased = [(list(ids), float(bias)) for ids, bias in found["sequence_bias"]]
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: sequence_bias is no list of [ids, number]: {error}") from error
        found["sequence_bias"] = [
            [_known(_ids(ids, "sequence_bias", path), "sequence_bias", path, words), bias]
            for ids, bias in biased
            if ids
        ]
    if "exponential_decay_length_penalty" in found:
        decay = found["exponential_decay_length_penalty"]
        if not isinstance(decay, Sequence) or len(decay) != 2 or not all(map(_number, decay)):
            raise CheckpointError(f"{path}: exponential_decay_length_penalty is {decay!r:.80}; it is [begin, factor]")
        found["exponential_decay_length_penalty"] = [int(decay[0]), float(decay[1])]
    return {name: value for name, value in found.items() if value not in ([], 0) or name == "forced_bos_token_id"}


def search_of(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a pipeline says of beams, where it is another thing than one beam."""
    early = settings.get("early_stopping")
    if early not in (None, False, True, "never"):
        raise CheckpointError(f'{folder / FILE}: early_stopping is {early!r}; it is true, false or "never"')
    penalty, beams = settings.get("length_penalty"), settings.get("num_beams")
    for name, value in (("length_penalty", penalty), ("num_beams", beams)):
        if value is not None and not _number(value):
            raise CheckpointError(f"{folder / FILE}: {name} is {value!r}; it is a number")
    found: dict[str, Any] = {"num_beams": int(beams)} if beams and beams > 1 else {}
    found |= {} if penalty is None or penalty == 1 else {"length_penalty": float(penalty)}
    return found | ({"early_stopping": early} if early else {})


def speculation_of(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a pipeline says of tokens that are proposed ahead, where the checkpoint says it."""
    value = settings.get(OURS)
    if value not in (None, *SPECULATION):
        raise CheckpointError(f"{folder / FILE}: {OURS} is {value!r:.80}; it is {', '.join(SPECULATION)}")
    return {} if value is None else {OURS: value}


def ends_of(folder: Path, settings: Mapping[str, Any], words: int) -> list[int]:
    """The ids that end a text, those that the network can make."""
    value = settings.get("eos_token_id")
    return [] if value is None else [one for one in _ids(value, "eos_token_id", folder / FILE) if 0 <= one < words]


def words_among(files: CheckpointFiles, ends: Sequence[int], config: Any) -> dict[str, list[int]]:
    """Of the ids that end a text those that are plain words, which `generate` leaves in the answer; nothing where there is
    none."""
    tokenizer = _without_nulls(files, TOKENIZER) or {}
    special = {token["id"] for token in tokenizer.get("added_tokens", ()) if token.get("special")}
    if not special:  # what the network itself takes for one
        own = [getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")]
        special = {one for ids in own for one in (ids if isinstance(ids, list) else [ids])}
    found = [one for one in ends if one not in special]
    return {"kept_eos_token_id": found} if found else {}


def length_of(settings: Mapping[str, Any], name: str) -> int | None:
    """A number of tokens that the settings name under `name`."""
    value = settings.get(name)
    return int(value) if value and _number(value) else None


def cleans_up(files: CheckpointFiles) -> bool:
    """Whether blanks before marks are taken out of what the tokenizer spells, as transformers does it: never for BPE."""
    settings, tokenizer = (_without_nulls(files, name) or {} for name in ("tokenizer_config.json", TOKENIZER))
    return settings.get("clean_up_tokenization_spaces") is True and tokenizer.get("model", {}).get("type") != "BPE"


def left_out(settings: Mapping[str, Any], honoured: frozenset[str]) -> dict[str, str]:
    """What the settings say that is not done, with the reason."""
    sampling = {}
    if settings.get("do_sample") is True:
        asked = {name: settings[name] for name in SAMPLING if settings.get(name) is not None}
        asked = {"temperature": 1.0} | asked
        flags = " ".join(
            f"--{name.replace('_', '-')} {asked[name]}" for name in ("temperature", "top_k", "top_p") if name in asked
        )
        values = ", ".join(f"{name} {value}" for name, value in asked.items())
        sampling = {"do_sample": f"a bundle takes the likeliest token ({values}: ask for it with {flags})"}
    known = honoured | IRRELEVANT | {"do_sample", *SAMPLING}
    others = {
        name: REASONS.get(name, NOT_DONE)
        for name, value in settings.items()
        if name not in known and value not in (None, [], {}, *NEUTRAL.get(name, ()))
    }
    return sampling | others


def tell_left_out(files: CheckpointFiles, settings: Mapping[str, Any], *, speech: bool = False) -> None:
    """Warn of every setting that is not done, once for each checkpoint; also of those that its config.json has for tasks by
    their names, which `generate` does not read either."""
    honoured = HONOURED | (frozenset(SPEECH) if speech else frozenset())
    for name, reason in left_out(settings, honoured).items():
        tell(str(files.folder / FILE), name, reason)
    tasks = files.config.get("task_specific_params")
    for task, own in tasks.items() if isinstance(tasks, Mapping) else ():
        if isinstance(own, Mapping) and own:
            said = ", ".join(f"{name} {value!r}" for name, value in own.items())
            tell(
                str(files.folder / "config.json"),
                f"task_specific_params of {task}",
                f"as `generate` leaves it out ({said})",
            )


def _without_nulls(files: CheckpointFiles, name: str) -> dict[str, Any] | None:
    """A JSON object without what is null; None when there is no such file."""
    found = files.read(files.folder / name)
    return None if found is None else {key: value for key, value in found.items() if value is not None}


def _ids(value: Any, name: str, path: Path) -> list[int]:
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise CheckpointError(f"{path}: {name} is {value!r:.80}; it is an id or a list of ids")
    return ids


def _known(ids: list[int], name: str, path: Path, words: int) -> list[int]:
    for one in ids:
        if not 0 <= one < words:
            raise CheckpointError(f"{path}: {name} names the id {one}, and the network has {words}; correct the file")
    return ids


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
