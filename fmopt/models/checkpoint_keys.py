"""Which keys of a checkpoint's files fmopt honours or may leave alone; the others are named to the user.

Nothing that a file says about an input or an answer is dropped without a word. tokenizer_config.json is read by transformers
itself (see `own_tokenizer`), config.json by its configuration class; the lists hold what these, or fmopt, act upon, and what
concerns neither inputs nor answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.sentence_transformers import CONFIG, LEGACY_MODES, MODULES, SETTINGS, SETTINGS_NAMES, SentenceSettings
from fmopt.tasks.base import Output, Task

TOKENIZER_CONFIG, POOLING = "tokenizer_config.json", "1_Pooling/config.json"
TOKENS = (
    "additional_special_tokens", "bos_token", "cls_token", "eos_token", "extra_special_tokens", "mask_token", "pad_token",
    "sep_token", "unk_token",
)  # fmt: skip
KNOWN: Mapping[str, frozenset[str]] = {
    TOKENIZER_CONFIG: frozenset(
        {
            *TOKENS, "tokenizer_class", "model_max_length", "padding_side", "truncation_side", "model_input_names",
            "added_tokens_decoder", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space",
            "add_bos_token", "add_eos_token", "split_special_tokens", "legacy", "trim_offsets", "split_by_punct",
            "keep_accents", "remove_space", "sp_model_kwargs", "unk_id", "pad_token_type_id", "pad_token_type_ids",
            "normalization", "do_basic_tokenize", "never_split", "do_subword_tokenize", "subword_tokenizer_type",
            "word_tokenizer_type", "fix_mistral_regex", "add_dummy_prefix_space", "extra_ids", "vocab_type",
            # of translation and speech: languages and marks, which the pipelines of these tasks read
            "src_lang", "tgt_lang", "source_lang", "target_lang", "language", "task", "predict_timestamps", "separate_vocabs",
            "language_codes", "word_delimiter_token", "replace_word_delimiter_char", "is_uroman", "phonemize",
            "normalize", "add_blank", "lang", "pad", "unk",
            # of how tokens become texts again
            "clean_up_tokenization_spaces", "spaces_between_special_tokens", "errors", "use_default_system_prompt",
            # of calls that transformers leaves to whoever calls; kept by its own save
            "max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "truncation", "padding",
            "return_token_type_ids", "return_attention_mask",
            # of files and bookkeeping
            "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "backend", "is_local",
            "local_files_only", "processor_class", "feature_extractor_type", "use_fast", "auto_map", "chat_template",
            "response_schema", "from_slow", "device_map", "torch_dtype", "dtype", "revision", "do_normalize",
            "model_specific_special_tokens", "image_token", "audio_token", "video_token", "boi_token", "eoi_token",
            "boa_token", "eoa_token", "tokenize_special_tokens", "full_tokenizer_file",
        }
    ),
    CONFIG: frozenset(
        {
            "__version__", "model_type", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim",
            "activation_fn", "keep_in_fp32_modules",
        }
    ),
    SETTINGS: frozenset(
        {
            "max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name",
            "processing_kwargs", "unpad_inputs", "query_length", "document_length", "query_expansion",
        }
    ),
    POOLING: frozenset(
        {*LEGACY_MODES, "pooling_mode", "word_embedding_dimension", "embedding_dimension", "include_prompt"}
    ),
    MODULES: frozenset({"idx", "name", "path", "type"}),
    # Read by fmopt, by sentence-transformers, or about the file itself; a configuration class may not know them.
    "config.json": frozenset(
        {
            "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "model_type",
            "id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "no_answer", "prefix",
            "sentence_transformers", "sbert_ce_default_activation_function", "finetuning_task", "quantization_config",
            "gradient_checkpointing", "tokenizer_class", "custom_pipelines", "_commit_hash", "attn_implementation",
            "_attn_implementation_autoset", "language", "name", "summary_type", "summary_use_proj", "summary_activation",
            "summary_first_dropout", "summary_proj_to_labels", "output_past", "use_cache", "position_embedding_type",
            "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
            "directionality", "is_composition", "unsloth_version", "model_max_length", "pad_token_id", "eos_token_id",
            "bos_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "unk_token_id", "decoder_start_token_id",
            "initializer_range", "initializer_factor", "init_std", "forced_bos_token_id", "forced_eos_token_id", "structure",
        }
    ),
}  # fmt: skip
# What an older or other library keeps in config.json of how answers are generated; generation_config.json decides.
GENERATION = (
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "forced_decoder_ids", "force_bos_token_to_be_generated",
)  # fmt: skip


def notes(
    task: Task,
    pipeline: Mapping[str, Any],
    sentence: SentenceSettings,
    written: Mapping[str, Any],
    activation: str | None,
) -> list[str]:
    """What a user should know of how a checkpoint's texts and answers are taken, a line each."""
    found = []
    if written.get("auto_map"):
        found.append(
            f"config.json names code of its own (auto_map); it is not run: transformers has {written['model_type']} by itself"
        )
    if sentence.prompt:
        found.append(f"the prompt {sentence.prompt!r} is put before every text, as encode() does (default_prompt_name)")
    elif sentence.prompts:
        shown = ", ".join(f"{name} ({text!r})" for name, text in sentence.prompts.items())
        found.append(
            f"it has the prompts {shown} and no default: as encode() does, the bundle puts none before a text; put the one you "
            "want there yourself"
        )
    if sentence.similarity != "cosine":
        found.append(f"vectors are compared by {sentence.similarity} (similarity_fn_name), and judged by it")
    reads_text = task.modality == "text"
    if reads_text and task.output is Output.NUMBER and pipeline.get("activation"):
        found.append(
            "its output goes through a sigmoid (activation), as in CrossEncoder.predict and transformers' pipeline"
        )
    if reads_text and task.output is Output.CLASSES and activation not in (None, "softmax"):
        found.append(
            "CrossEncoder.predict gives logits, or what its activation makes of them; the bundle gives shares of the labels"
        )
    return found


def unread(files: CheckpointFiles, config: Any) -> list[str]:
    """A line for each file of a checkpoint that has keys which nobody acts upon, naming them; `config` is the configuration as
    transformers reads it."""
    folder, home = files.folder, files.home
    places = {TOKENIZER_CONFIG: folder, CONFIG: home, POOLING: home} | dict.fromkeys(SETTINGS_NAMES, home)
    found = {}
    for name, place in places.items():
        known = KNOWN[SETTINGS if name in SETTINGS_NAMES else name]
        found[place / name] = sorted(set(files.read(place / name) or {}) - known)
    modules = files.read(home / MODULES, list) or []
    found[home / MODULES] = sorted({key for one in modules if isinstance(one, dict) for key, value in one.items()
                                    if value and key not in KNOWN[MODULES]})  # fmt: skip
    found[folder / "config.json"] = _not_of_class(files.config, config)
    return [
        f"{path.name} says {_listed(keys)}, which fmopt does not know and leaves alone; check that no answer depends on it"
        for path, keys in found.items()
        if keys
    ]


def _not_of_class(content: Mapping[str, Any], config: Any) -> list[str]:
    """Keys of a config.json that the code of its network in transformers nowhere mentions: a configuration class takes any."""
    import inspect

    from transformers import configuration_utils

    places = {
        Path(inspect.getfile(kind)) for kind in type(config).__mro__ if kind.__module__.startswith("transformers")
    }
    homes = {place.parent for place in places if place.name.startswith("configuration_")}
    files = [*(file for home in homes if home.name != "transformers" for file in home.glob("*.py"))]
    code = [file.read_text("utf8") for file in (*files, Path(configuration_utils.__file__))]
    words = {word for text in code for word in re.findall(r"\w+", text)}
    known = KNOWN["config.json"] | set(GENERATION) | words
    return sorted(key for key, value in content.items() if key not in known and value is not None)


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, keys))
