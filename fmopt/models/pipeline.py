"""What a checkpoint's files say of the way from a sample to its answer, as the one dict that edge/ works by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.preprocessors.audio import read_audio_processor, read_spelling
from fmopt.models.preprocessors.catalog import read_items
from fmopt.models.preprocessors.image import read_image_processor
from fmopt.models.preprocessors.speech import speech_pipeline
from fmopt.models.preprocessors.tokenizer import prompt_tokens, read_tokenizer
from fmopt.models.sentence_transformers import SentenceSettings
from fmopt.models.wrappers.decoder import generation_pipeline
from fmopt.models.wrappers.seq2seq import answer_pipeline
from fmopt.tasks.base import Output, Task

# Position ids start after the padding id in these, so that many rows of the table serve no token.
POSITIONS_AFTER_PADDING = (
    "roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "longformer", "data2vec-text", "xmod", "ibert",
    "roberta-prelayernorm", "lilt", "luke", "mluke", "esm", "layoutlmv3", "markuplm", "altclip_text_model", "clap_text_model",
)  # fmt: skip
POOLS_LAST_POSITION = ("xlnet",)  # heads look at the last place of a row, so that padding goes before a text
# Padding leaks into the tokens beside it in these, masked or not: they mix tokens by Fourier transforms, by convolutions, or by
# means over blocks. Their texts are answered one by one, without padding.
PADDING_LEAKS = ("fnet", "convbert", "mobilebert", "funnel", "nystromformer", "canine", "yoso")
INPUTS = {
    "image": read_image_processor,
    "audio": read_audio_processor,
    "item": read_items,
}  # what a pipeline says of samples that are not texts, by what they are


def pipeline_of(
    task: Task, files: CheckpointFiles, sentence: SentenceSettings, config: Any, max_length: int | None
) -> dict[str, Any]:
    """The dict that edge/ works by: see edge/parts.py. `config` is the configuration as transformers reads it."""
    written = files.config
    pipeline: dict[str, Any] = {
        "task": task.name,
        "outputs": list(task.outputs),
        "labels": [],
        "multi_label": written.get("problem_type") == "multi_label_classification",
    }
    if task.edge_part is not None:
        pipeline["part"] = task.edge_part.stem
    if task.output is Output.AUDIO:
        pipeline |= speech_pipeline(files, config)
    elif task.modality == "text":
        pipeline |= _text_pipeline(task, files, sentence, config, max_length)
    else:
        inputs = INPUTS[task.modality](files, getattr(config, "vision_config", config))
        pipeline |= {"modality": task.modality, **inputs}
    if task.output is Output.LETTERS and config.is_encoder_decoder:
        read_tokenizer(files, config)  # which spells; refused here when it does not fit
        pipeline |= {"part": "whisper", "padding": {"id": int(config.pad_token_id or 0)}}
        pipeline |= answer_pipeline(files, config)
    elif task.output is Output.LETTERS:
        pipeline["ctc"] = read_spelling(files, config)
    pipeline |= task.pipeline_entries(files.folder, config)
    # What knows labels by their words (CLIP) has none of its own: transformers' two are not meant.
    if task.has_classes and not (task.classes_from_data and "id2label" not in written):
        pipeline["labels"] = [str(config.id2label[number]) for number in sorted(config.id2label)]
        if activation := activation_of(task, written, len(pipeline["labels"])):
            pipeline["activation"] = activation
    return pipeline


def _text_pipeline(
    task: Task, files: CheckpointFiles, sentence: SentenceSettings, config: Any, max_length: int | None
) -> dict[str, Any]:
    """What a pipeline says of texts."""
    folder = files.folder
    limit = _position_limit(config)
    tokenizer = read_tokenizer(files, config)
    settings = (sentence.max_seq_length or tokenizer.model_max_length, limit)  # the former replaces the tokenizer's own
    longest = min((n for n in settings if n), default=512)
    if max_length is not None and limit is not None and max_length > limit:
        raise CheckpointError(f"{max_length} tokens are too many for {folder}: its position table ends at {limit}")
    length = max_length or longest
    if length <= tokenizer.added:
        raise CheckpointError(
            f"{folder}: a length of {length} tokens leaves no room for a text, as the tokenizer adds {tokenizer.added}; "
            "mend model_max_length in tokenizer_config.json, or max_seq_length"
        )
    # A text has the positions that it has alone, where they are counted from the left of a row.
    side = tokenizer.side if config.model_type in POOLS_LAST_POSITION else "right"
    pipeline: dict[str, Any] = {
        "max_length": length,
        "inputs": ["input_ids", "attention_mask", *(["token_type_ids"] if tokenizer.type_ids else [])],
        "padding": {"id": tokenizer.pad_id, "type_id": 0, "token": tokenizer.pad_token, "side": side},
        # Byte-level tokenizers see words apart from their text, so each word brings its own space.
        "add_prefix_space": tokenizer.byte_level and (tokenizer.add_prefix_space or task.output is Output.TAGS),
    }
    asked = {"truncation_side": tokenizer.truncation_side, "split_special_tokens": tokenizer.split_special_tokens}
    pipeline |= {name: value for name, value in asked.items() if value}
    if config.model_type in PADDING_LEAKS:
        pipeline["no_padding"] = True
    if sentence.prompt and task.output is not Output.VECTOR:
        pipeline["prefix"] = sentence.prompt
    if task.output is Output.VECTOR:
        pipeline |= _vector_pipeline(files, sentence)
    elif task.output is Output.MASKED_WORDS:
        if tokenizer.mask is None:
            raise CheckpointError(f"{folder}: its tokenizer has no mask token, so --task {task.name} does not fit it")
        pipeline["mask"] = dict(zip(("id", "token"), tokenizer.mask, strict=True))
    elif task.output is Output.NEXT_WORDS:
        pipeline |= generation_pipeline(files, config)
    elif task.output is Output.ANSWER_WORDS:
        pipeline |= answer_pipeline(files, config)
    elif task.output is Output.SPAN:
        # SQuAD's 128 shared tokens (BERT, 2018), less where windows are short.
        pipeline |= {"stride": min(128, length // 4), "no_answer": bool(files.config.get("no_answer", False))}
    return pipeline


def _vector_pipeline(files: CheckpointFiles, sentence: SentenceSettings) -> dict[str, Any]:
    """What a pipeline says of how a vector is made of tokens; what is as usual is left out."""
    pooling = sentence.pooling[0] if len(sentence.pooling) == 1 else list(sentence.pooling)
    found = {
        "prefix": sentence.prompt, "prompts": dict(sentence.prompts), "lower_case": sentence.lower_case,
        "prompt_tokens": 0 if sentence.include_prompt else prompt_tokens(files.folder, sentence.prompt),
        "dimensions": sentence.dimensions, "similarity": "" if sentence.similarity == "cosine" else sentence.similarity,
    }  # fmt: skip
    return {"pooling": pooling, "normalize": sentence.normalize} | {key: value for key, value in found.items() if value}


def _position_limit(config: Any) -> int | None:
    """Tokens that the position table has rows for; None when the configuration names no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    first = (config.pad_token_id or 0) + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0
    return int(positions - first)


def activation_of(task: Task, config: Mapping[str, Any], classes: int) -> str | None:
    """What transformers' pipeline of a task puts on the logits of classes where it is not as usual: "none" for a head that was
    trained to give numbers, "sigmoid" for the one class of an image; else None."""
    if not task.has_classes or task.output is not Output.CLASSES:
        return None
    if config.get("problem_type") == "regression":
        return "none"
    return "sigmoid" if task.modality == "image" and classes == 1 else None


def number_activation(task: Task, written: Mapping[str, Any], activation: str | None, home: object) -> dict[str, str]:
    """What a pipeline says of the one number of a sequence head: that it goes through a sigmoid, by the `activation` of
    CrossEncoder's files or, without, by transformers' rule; else nothing. CheckpointError for a softmax."""
    if task.output is not Output.NUMBER:
        return {}
    if activation == "softmax":
        raise CheckpointError(
            f"{home}: its one score goes through a softmax, which makes 1 of every number; name another"
        )
    share = activation == "sigmoid" or (activation is None and not written.get("problem_type"))
    return {"activation": "sigmoid"} if share else {}
