"""A LoRA adapter merged into the weights that it was trained on: one plain checkpoint, with nothing to add up at run time.

The arithmetic is peft's own (LoRA, Hu et al., 2021; also its variants, such as DoRA and rank-stabilized scaling).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError, reading
from fmopt.core.model import TOKENIZER
from fmopt.core.stages.store import whole_folder
from fmopt.models.checkpoint_files import read_json
from fmopt.models.loading import quiet
from fmopt.models.preprocessors.tokenizer import copy_encoders
from fmopt.models.received import look_through, read_config
from fmopt.models.sentence_transformers import CONFIG as CONFIG_FILE
from fmopt.models.sentence_transformers import MODULES, SETTINGS_NAMES
from fmopt.models.source import resolve
from fmopt.models.structure import STRUCTURE
from fmopt.models.weights import read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor in an adapter
# peft's names of what an adapter was trained for; without one the plain encoder is meant.
CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    None: "AutoModel",
}
COUNTED = ("SEQ_CLS", "TOKEN_CLS")  # heads with one row per label
HEADS = {"classifier", "score"}  # what peft trains and saves whole beside the adapter, by name


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def merge(adapter: str | Path, out: str | Path, *, base: str | None = None) -> Path:
    """Write to `out` the base model with `adapter` merged into its weights, as a checkpoint in Hugging Face format.

    The label names are the base's where the count fits.

    Arguments:
        adapter: a folder that peft's save_pretrained wrote.
        out: the folder of the checkpoint.
        base: the base model, where it is another than the adapter names: a folder, an entry of `models/` or a hub name.

    Returns `out`. Raises CheckpointError for a folder that is no adapter, one without safetensors, one of a kind that cannot be
    merged (prompt tuning), or one that does not fit the base; StoreError for an `out` that is not empty.

    >>> fmopt.merge(adapter, out / "merged").name
    'merged'
    """
    import transformers

    folder, out = Path(adapter).expanduser(), Path(out)
    config = _read_config(folder)
    named = base or config.get("base_model_name_or_path")
    if not named:
        raise CheckpointError(f"{folder / CONFIG} names no base model; say which with --base")
    source = resolve(str(named)).folder
    look_through(source)
    if (source / STRUCTURE).is_file():
        raise CheckpointError(f"{source} is pruned; merge the adapter into the model it was trained on, then prune")
    with whole_folder(out) as work:
        with quiet(transformers.utils.logging), reading(folder, CheckpointError, "train the adapter again"):
            _merged(folder, source, config).save_pretrained(work)
        _copy_beside((folder, source), work)
    return out


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; give the one that peft's save_pretrained wrote")
    if not is_adapter(folder):
        raise CheckpointError(f"{folder} has no {CONFIG}, so it is no PEFT adapter; give the folder that holds it")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}; save the adapter with safe_serialization=True")
    look_through(folder)
    config = read_config(folder / CONFIG)
    if config.get("task_type") not in CLASSES:
        known = ", ".join(sorted(name for name in CLASSES if name))
        raise CheckpointError(f"{folder / CONFIG}: task_type {config['task_type']!r} is not one of {known}")
    return config


def _merged(folder: Path, source: Path, config: dict[str, Any]) -> Any:
    """The base network with the adapter in its weights, in full precision."""
    import peft
    import torch
    import transformers
    from safetensors import SafetensorError

    kind = config.get("task_type")
    try:
        options = _head_options(folder, source, kind)
        net, found = getattr(transformers, CLASSES[kind]).from_pretrained(
            source, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            ignore_mismatched_sizes=bool(options), output_loading_info=True, **options,
        )  # fmt: skip
        _require_whole(folder, source, kind, found["missing_keys"])
        adapted = peft.PeftModel.from_pretrained(net, str(folder))
    except (ValueError, RuntimeError, KeyError, OSError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{folder} does not fit {source} ({first}); name the model it was trained on with --base"
        ) from error
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise CheckpointError(
            f"{folder} is a {config.get('peft_type')} adapter, which cannot be merged into weights; fmopt merges LoRA"
        )
    return adapted.merge_and_unload(safe_merge=True)


def _require_whole(folder: Path, source: Path, kind: str | None, missing: Iterable[str]) -> None:
    """CheckpointError when neither base nor adapter has some weights: they would be random."""
    brought = {name.removeprefix(PREFIX) for name in read_header(folder / WEIGHTS)}
    # nothing reads the pooler of a plain encoder
    needed = (name for name in missing if not (CLASSES[kind] == "AutoModel" and name.startswith("pooler.")))
    lost = sorted(set(needed) - brought)
    if lost:
        raise CheckpointError(
            f"neither {folder} nor {source} has weights for {', '.join(lost[:3])}; train the adapter with modules_to_save "
            f"for {lost[0].split('.')[0]!r} too, or name a base that has them with --base"
        )


def _head_options(folder: Path, source: Path, kind: str | None) -> dict[str, Any]:
    """How many labels the head has that the adapter brings along; nothing where that is the base's own count."""
    import transformers

    if kind not in COUNTED:
        return {}
    tensors = read_header(folder / WEIGHTS).items()
    rows = [tensor.shape[0] for name, tensor in tensors if name.endswith("weight") and HEADS & set(name.split("."))]
    known = transformers.AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    # A classification head may have an inner projection; the one with the labels comes last and is the narrowest.
    return {"num_labels": min(rows)} if rows and min(rows) != known.num_labels else {}


def _copy_beside(places: tuple[Path, ...], out: Path) -> None:
    """The adapter's own tokenizer where it has one, else the base's; likewise what sentence-transformers reads."""
    copy_encoders(next((one for one in places if (one / TOKENIZER).is_file()), places[-1]), out)
    place = next((one for one in places if (one / MODULES).is_file()), places[-1])
    modules = read_json(place / MODULES, list) or []
    inside = [
        f"{module.get('path')}/config.json" for module in modules if isinstance(module, dict) and module.get("path")
    ]
    for name in (MODULES, CONFIG_FILE, *SETTINGS_NAMES, *inside):
        if (place / name).is_file() and (out / name).resolve().is_relative_to(out.resolve()):
            (out / name).parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(place / name, out / name)
