"""What the files of sentence-transformers say of a checkpoint: how texts are read, how tokens become one vector.

`encode` of that library is the reference: what these files ask for is done as it does it, or refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError
from fmopt.core.model import CheckpointMetadata
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.received import inner_folder
from fmopt.tasks.base import Output, Task

MODULES, SETTINGS, CONFIG = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
# In the order in which several are put side by side.
LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES = tuple(LEGACY_MODES.values())
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Older releases name the settings after the family.
SETTINGS_NAMES = (
    SETTINGS, "sentence_roberta_config.json", "sentence_distilbert_config.json", "sentence_camembert_config.json",
    "sentence_albert_config.json", "sentence_xlm-roberta_config.json", "sentence_xlnet_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class SentenceSettings:
    """How a sentence-transformers folder makes a vector of a text."""

    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    normalize: bool = False
    max_seq_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)  # those that are not empty
    default_prompt: str | None = None  # the name of one
    dimensions: int | None = None  # how many of a vector stay
    similarity: str = "cosine"

    @property
    def prompt(self) -> str:
        """What `encode` puts before every text."""
        return self.prompts.get(self.default_prompt or "", "")


def makes_vectors(files: CheckpointFiles) -> bool:
    """Whether the modules of a folder pool tokens, so that it is for embeddings whatever its network was trained for."""
    return any(_kind(module) == "Pooling" for module in files.read(files.home / MODULES, list) or [])


def settings_for(task: Task, files: CheckpointFiles, *, causal: bool = False) -> SentenceSettings:
    """What the files of sentence-transformers say of how texts are read for a task; as usual for one that they say nothing of."""
    if task.modality != "text":
        return SentenceSettings()
    if task.output is Output.VECTOR:
        return read_sentence_settings(files, causal=causal)
    if task.output in (Output.NUMBER, Output.CLASSES) and is_reranker(files):
        return read_reranker_settings(files)
    return SentenceSettings()


def read_sentence_settings(files: CheckpointFiles, *, causal: bool = False) -> SentenceSettings:
    """Settings of a folder; without its files those that sentence-transformers takes then: the last token's vector of a
    `causal` language model, else the mean. CheckpointError for a module or a setting that fmopt does not do."""
    home = files.home
    modules = files.read(home / MODULES, list)
    found: dict[str, Any] = {} if modules is not None or not causal else {"pooling": ("lasttoken",)}
    network = home
    for module in modules or []:
        kind, place = _kind(module), inner_folder(home, module.get("path", ""))
        if kind == "Pooling":
            found |= _pooling(files, place / "config.json")
        elif kind == "Normalize":
            _refuse_other_outputs(files, place / "config.json")
            found["normalize"] = True
        elif kind == "Transformer":
            network = place
        elif kind == "Dropout":
            continue  # it does nothing outside training
        else:
            raise CheckpointError(
                f"{home / MODULES} has a {kind} module, which fmopt does not run; its vectors would be others"
            )
    return SentenceSettings(**found, **_network_settings(files, network), **_model_settings(files))


def write_sentence_files(metadata: CheckpointMetadata, out: Path) -> None:
    """The files by which sentence-transformers makes the same vectors of what lies in the folder `out`."""
    pipeline = metadata.pipeline
    kinds = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *([("2_Normalize", "Normalize")] if pipeline["normalize"] else []),
    ]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    asked = [pipeline["pooling"]] if isinstance(pipeline["pooling"], str) else pipeline["pooling"]
    modes: dict[str, Any] = {key: mode in asked for key, mode in LEGACY_MODES.items()}
    modes |= {"include_prompt": "prompt_tokens" not in pipeline} | ({"pooling_mode": asked} if len(asked) > 1 else {})
    prompts = pipeline.get("prompts", {})
    default = next((name for name, text in prompts.items() if text == pipeline.get("prefix")), None)
    contents: dict[str, Any] = {
        MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": metadata.hidden_size, **modes},
        SETTINGS: {"max_seq_length": pipeline["max_length"], "do_lower_case": bool(pipeline.get("lower_case"))},
        CONFIG: {
            "prompts": prompts,
            "default_prompt_name": default,
            "similarity_fn_name": pipeline.get("similarity") or "cosine",
            "truncate_dim": pipeline.get("dimensions"),
        },
    }
    (out / "1_Pooling").mkdir(exist_ok=True)
    for name, content in contents.items():
        (out / name).write_text(json.dumps(content, indent=1))


def reranker_activation(files: CheckpointFiles) -> str | None:
    """What CrossEncoder puts on the logits of a folder of its own: "sigmoid", "softmax" or "identity"; None for another
    folder.

    CheckpointError for an activation that fmopt does not do.
    """
    own, config = files.read(files.home / CONFIG) or {}, files.config
    kept = config.get("sentence_transformers")
    named = (kept or {}).get("activation_fn") or config.get("sbert_ce_default_activation_function")
    named = named or (own.get("activation_fn") if own.get("model_type", "CrossEncoder") == "CrossEncoder" else None)
    if named is None:
        return None
    kind = str(named).rpartition(".")[2].lower()
    if kind not in ("sigmoid", "identity", "softmax"):
        raise CheckpointError(
            f"{files.home}: its scores go through {named}, which fmopt does not run; name torch.nn.Sigmoid, torch.nn.Softmax or "
            f"torch.nn.Identity as activation_fn in {CONFIG}"
        )
    return kind


def is_reranker(files: CheckpointFiles) -> bool:
    """Whether CrossEncoder of sentence-transformers wrote a folder, so that it reads texts as its files say."""
    own = files.read(files.home / CONFIG) or {}
    return own.get("model_type") == "CrossEncoder" or reranker_activation(files) is not None


def read_reranker_settings(files: CheckpointFiles) -> SentenceSettings:
    """How CrossEncoder reads pairs: the prompt before the first text, the length, the case."""
    own: dict[str, Any] = next(
        (found for name in SETTINGS_NAMES if (found := files.read(files.home / name)) is not None), {}
    )
    return SentenceSettings(
        max_seq_length=own.get("max_seq_length"),
        lower_case=bool(own.get("do_lower_case")),
        **_model_settings(files),
    )


def _kind(module: Any) -> str:
    return str(module.get("type", "") if isinstance(module, dict) else "").rpartition(".")[2]


def _pooling(files: CheckpointFiles, path: Path) -> dict[str, Any]:
    """The modes of a 1_Pooling/config.json: "pooling_mode_mean_tokens": true, or newer "pooling_mode": "mean"."""
    config = files.read(path)
    if config is None:
        raise CheckpointError(f"{path} is missing; sentence-transformers keeps the pooling there")
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    modes = modes or [mode for key, mode in LEGACY_MODES.items() if config.get(key) is True] or ["mean"]
    unknown = [mode for mode in modes if mode not in MODES]
    unknown += [key for key, on in config.items() if key.startswith("pooling_mode_") and on and key not in LEGACY_MODES]
    if unknown:
        raise CheckpointError(
            f"{path} asks for pooling by {' + '.join(map(str, unknown))}; fmopt pools by {', '.join(MODES)}"
        )
    return {"pooling": tuple(modes), "include_prompt": config.get("include_prompt", True) is not False}


def _refuse_other_outputs(files: CheckpointFiles, path: Path) -> None:
    config = files.read(path) or {}
    for key in ("module_input_name", "module_output_name"):
        if config.get(key, "sentence_embedding") not in (None, "sentence_embedding"):
            raise CheckpointError(f"{path} normalizes {config[key]!r}; fmopt normalizes the vector of a text alone")


def _network_settings(files: CheckpointFiles, network: Path) -> dict[str, Any]:
    """What sentence_bert_config.json says, beside the network or at the top."""
    paths = [folder / name for folder in (network, files.home) for name in SETTINGS_NAMES]
    path = next((one for one in paths if files.read(one) is not None), paths[0])
    config = files.read(path) or {}
    task = config.get("transformer_task", "feature-extraction")
    inputs, output = config.get("modality_config") or {}, config.get("module_output_name") or "token_embeddings"
    if task != "feature-extraction" or output != "token_embeddings":
        raise CheckpointError(
            f"{path} takes {output!r} of a network for {task}; fmopt pools the last layer of a plain network"
        )
    if "message" in inputs:
        raise CheckpointError(f"{path} makes chat messages of texts (modality_config); fmopt reads plain texts")
    asked = [
        key for key in ("processing_kwargs", "query_length", "document_length", "query_expansion") if config.get(key)
    ]
    if asked:
        raise CheckpointError(f"{path} sets {', '.join(asked)}, which fmopt does not do; its vectors would be others")
    return {"max_seq_length": config.get("max_seq_length"), "lower_case": bool(config.get("do_lower_case"))}


def _model_settings(files: CheckpointFiles) -> dict[str, Any]:
    """What config_sentence_transformers.json says."""
    path = files.home / CONFIG
    config = files.read(path) or {}
    prompts = {str(name): str(text) for name, text in (config.get("prompts") or {}).items() if text}
    default = config.get("default_prompt_name")
    if default is not None and default not in (config.get("prompts") or {}):
        raise CheckpointError(
            f"{path}: default_prompt_name is {default!r}, which is not one of its prompts; mend the file"
        )
    similarity = config.get("similarity_fn_name") or "cosine"  # a reranker names none
    if similarity not in SIMILARITIES:
        raise CheckpointError(
            f"{path}: similarity_fn_name is {similarity!r}; fmopt compares by {', '.join(SIMILARITIES)}"
        )
    return {
        "prompts": prompts,
        "default_prompt": default,
        "similarity": similarity,
        "dimensions": config.get("truncate_dim"),
    }
