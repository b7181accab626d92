"""What a checkpoint is, from its files alone: where it lies, its task, its pipeline; and its network when asked for.

Reads Hugging Face folders (config.json, tokenizer files, safetensors) and the extra files of sentence-transformers
(modules.json, 1_Pooling/config.json). Whatever cannot be used is a CheckpointError that says so before any work starts.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmopt.core import plugins
from fmopt.core.errors import CheckpointError, reading
from fmopt.core.model import TOKENIZER, CheckpointMetadata, ModelSource, file_digest
from fmopt.edge.recommendation import CATALOGUE
from fmopt.models.adapters import is_adapter
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.checkpoint_keys import notes, unread
from fmopt.models.graphs.metadata import inspect_graph
from fmopt.models.graphs.ports import GIVE_THE_NETWORK
from fmopt.models.heads import Head, is_regression, refuse_misfit, task_in, task_of
from fmopt.models.loading import TorchModel
from fmopt.models.networks import known_transformers
from fmopt.models.pipeline import number_activation, pipeline_of
from fmopt.models.preprocessors.audio import VOCABULARY
from fmopt.models.preprocessors.image import PROCESSOR
from fmopt.models.preprocessors.served import with_own_tokenizer
from fmopt.models.preprocessors.tokenizer import (
    convert_tokenizer,
    has_slow_tokenizer,
)
from fmopt.models.received import inner_folder, require_possible
from fmopt.models.sentence_transformers import (
    reranker_activation,
    settings_for,
)
from fmopt.models.source import cache_folder, known_models, made_once, resolve
from fmopt.models.structure import STRUCTURE, load_layer_metadata, read_structure
from fmopt.models.weights import PICKLES, convert_pickle, has_pickle, link_files, read_weights
from fmopt.tasks.base import Output, find_task

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# ------------------------------------------------------------------------------------------------ what it is


def inspect(
    source: ModelSource, task: str | None = None, *, allow_pickle: bool = False, max_length: int | None = None,
    fresh_head: bool = False,
) -> CheckpointMetadata:  # fmt: skip
    """What a checkpoint is, from its files; no weight is loaded.

    `task` overrides what the files show. With `allow_pickle`, pickled weights are read with weights_only and converted
    into a cache folder, which `metadata.folder` then is; the same goes for a tokenizer without tokenizer.json.
    `fresh_head` is for training: the task's head need not be there yet and the labels are not the checkpoint's.
    CheckpointError or ConfigError (unknown task) when the checkpoint cannot be used.
    """
    if source.graph is not None:
        if fresh_head:
            raise CheckpointError(
                f"{source.asked} is an ONNX graph, and training needs the network; {GIVE_THE_NETWORK}"
            )
        return inspect_graph(source, task, max_length)
    with reading(source.folder, CheckpointError, "get the checkpoint again"):
        return _inspected(source, task, allow_pickle, max_length, fresh_head)


def _inspected(
    source: ModelSource, task: str | None, allow_pickle: bool, max_length: int | None, fresh_head: bool
) -> CheckpointMetadata:
    home = source.folder
    files = _network_files(home)
    files.look_through()
    network, written = files.folder, _require_plain_network(files)
    files = files.copied_to(_prepared(files.folder, allow_pickle))
    source = replace(source, folder=files.folder)
    weights = read_weights(files.folder)
    require_possible(files.folder / "config.json", written, weights.shapes)
    read_structure(files.folder)  # a record that cannot be read is refused before any work
    config = _auto_config(files.folder, written)
    architecture = str((written.get("architectures") or [""])[0])
    head = Head(
        architecture, frozenset(weights.shapes), is_regression(written), len(config.id2label or {}), task_in(written)
    )  # fmt: skip
    kind = find_task(task or task_of(head, source, files))
    if task and not fresh_head:
        refuse_misfit(kind, head, source)
    width, depth = _width_and_depth(config, files.folder / "config.json")
    causal = architecture.endswith("ForCausalLM") and getattr(config, "is_causal", True) is not False
    sentence = settings_for(kind, files, causal=causal)
    if kind.modality == "text" and kind.output is not Output.AUDIO:
        files = files.copied_to(with_own_tokenizer(files.folder, config, network, lower_case=sentence.lower_case))
        source = replace(source, folder=files.folder)
    pipeline = pipeline_of(kind, files, sentence, config, max_length)
    activation = reranker_activation(files)
    pipeline |= number_activation(kind, written, activation, home)
    if fresh_head:
        pipeline["labels"] = []
        if kind.output is Output.CLASSES:
            pipeline.pop("activation", None)  # of the head that goes
    said = (*notes(kind, pipeline, sentence, written, activation), *unread(files, config))
    for note in said:
        warnings.warn(f"{home.name}: {note}", stacklevel=2)
    return CheckpointMetadata(
        source=source, model_type=config.model_type, architecture=architecture, task=kind.name, pipeline=pipeline,
        hidden_size=width, layers=depth, parameters=weights.parameters,
        weight_bytes=weights.size_bytes, digest=_digest(files.folder, home, weights.files), config=written,
        origin=home, notes=said,
    )  # fmt: skip


def load(metadata: CheckpointMetadata, dtype: str = "fp32") -> TorchModel:
    """The network of a checkpoint with its metadata, in eval mode; CheckpointError when its files do not make one."""
    require_network(metadata)
    with reading(metadata.folder, CheckpointError, "get the checkpoint again"):
        return load_layer_metadata(metadata, dtype)


def require_network(metadata: CheckpointMetadata) -> None:
    """CheckpointError for a model that came as an ONNX graph."""
    if metadata.graph is not None:
        raise CheckpointError(f"{metadata.source.title} came as an ONNX graph, without a network; {GIVE_THE_NETWORK}")


def tokenizer_file(metadata: CheckpointMetadata) -> Path:
    """The tokenizer.json of a checkpoint."""
    return metadata.folder / TOKENIZER


def _network_files(folder: Path) -> CheckpointFiles:
    """The files of a folder whose config.json lies in it, or in the sub-folder that older sentence-transformers used."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}{plugins.did_you_mean(folder.name, known_models())}")
    if (folder / "config.json").is_file():
        return CheckpointFiles.of(folder)
    files = CheckpointFiles.of(folder)
    for module in files.read(folder / "modules.json", list) or []:
        inside = inner_folder(folder, module.get("path", ""))
        if str(module.get("type", "")).endswith("Transformer") and (inside / "config.json").is_file():
            return files.inside(inside)
    if is_adapter(folder):
        raise CheckpointError(f"{folder} is a PEFT adapter; make it a checkpoint first: fmopt merge {folder} -o OUT")
    if file := next(iter(sorted(folder.glob("*.gguf"))), None):
        raise CheckpointError(f"{folder} has no config.json, but {file.name}; name that file itself: {file}")
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise CheckpointError(
        f"{folder} has no config.json (it holds {held}); give a Hugging Face folder, as save_pretrained writes it"
    )


def _require_plain_network(files: CheckpointFiles) -> dict[str, Any]:
    """config.json, when it describes a network in full precision and says of which type."""
    path, config = files.folder / "config.json", files.config
    if config.get("quantization_config"):
        given = config["quantization_config"]
        method = given.get("quant_method", "some method") if isinstance(given, dict) else "some method"
        raise CheckpointError(f"{path}: the weights are already quantized ({method}); start from full precision")
    if not config.get("model_type"):
        raise CheckpointError(f'{path} names no model_type; add the one the checkpoint was trained as, e.g. "bert"')
    return config


def _auto_config(folder: Path, written: Mapping[str, Any]) -> Any:
    """The configuration with all of its family's defaults."""
    transformers = known_transformers()
    model_type = written["model_type"]
    if model_type not in transformers.CONFIG_MAPPING and written.get("auto_map"):
        raise CheckpointError(
            f"{folder / 'config.json'} wants to run code of its own (auto_map), and transformers {transformers.__version__} "
            f"does not have {model_type!r} by itself; fmopt runs no code from a checkpoint: pick another model"
        )
    if model_type not in transformers.CONFIG_MAPPING:
        near = plugins.did_you_mean(str(model_type), list(transformers.CONFIG_MAPPING.keys()))
        near = near if "did you mean" in near else "; a newer transformers may"
        raise CheckpointError(f"{folder / 'config.json'}: transformers does not know model_type {model_type!r}{near}")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers validates with whatever exception it likes
        first = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {first}") from error
    return config


def _width_and_depth(config: Any, path: Path) -> tuple[int, int]:
    """Features of a layer (of the widest, where they differ) and how many layers there are, by the families' own names."""
    inner = (getattr(config, name, None) for name in ("vision_config", "text_config"))
    for part in (config, *(one for one in inner if one is not None)):
        widths = [getattr(part, name, None) for name in ("hidden_size", "d_model", "hidden_dim")]
        widest = max(getattr(part, "hidden_sizes", None) or [0])
        stacks = [getattr(part, name, None) or 0 for name in ("encoder_layers", "decoder_layers")]
        if getattr(part, "num_decoder_layers", None):  # T5
            stacks = [getattr(part, "num_layers", 0), part.num_decoder_layers]
        both = sum(stacks) if all(stacks) and getattr(part, "is_encoder_decoder", False) else 0
        # Networks in stages call their stages layers, and their layers depths.
        sizes = getattr(part, "block_sizes", None)  # Funnel, whose class has no setter and no getter of the usual name
        one = sum(sizes) if sizes else getattr(part, "num_hidden_layers", None)
        depths = [sum(getattr(part, "depths", None) or ()), both, one, sum(stacks)]
        width, depth = next((w for w in (*widths, widest) if w), None), next((d for d in depths if d), None)
        if width and depth:
            return int(width), int(depth)
    raise CheckpointError(f"{path} does not say how wide and deep the network is (hidden_size, num_hidden_layers)")


# ------------------------------------------------------------------------------------------------ its files


def _prepared(folder: Path, allow_pickle: bool) -> Path:
    """`folder`, or a cached copy of it whose pickled weights or slow tokenizer were converted."""
    unpickle = allow_pickle and has_pickle(folder) and not any(folder.glob("model*.safetensors*"))
    retokenize = not (folder / TOKENIZER).is_file() and has_slow_tokenizer(folder)
    if not (unpickle or retokenize):
        return folder
    stamps = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
    key = hashlib.sha256(repr((stamps, unpickle)).encode()).hexdigest()[:16]
    place = cache_folder() / "converted" / f"{folder.name}-{key}"

    def make(out: Path) -> None:
        link_files(folder, out, skip=frozenset(PICKLES) if unpickle else frozenset())
        if unpickle:
            convert_pickle(folder, out)
        if retokenize:
            convert_tokenizer(folder, out)

    made_once(place, make)
    what = " and ".join([*(["pickled weights"] if unpickle else []), *(["tokenizer"] if retokenize else [])])
    log.warning("%s: %s converted; using %s", folder, what, place)
    return place


def _digest(folder: Path, home: Path, weights: tuple[Path, ...]) -> str:
    """sha256 over the files that decide what the checkpoint computes."""
    names: tuple[str, ...] = ("config.json", STRUCTURE, TOKENIZER, "tokenizer_config.json", PROCESSOR, CATALOGUE)
    names += () if (folder / TOKENIZER).is_file() else (VOCABULARY,)
    sentence = (
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
    )
    paths = [*(folder / name for name in names), *(home / name for name in sentence), *weights]
    total = hashlib.sha256()
    for path in paths:
        if path.is_file():
            total.update(f"{path.name}:{file_digest(path)}\n".encode())
    return total.hexdigest()


def load_model(model: str | Path, *, task: str | None = None) -> torch.nn.Module:
    """The network of a checkpoint, pruned or not: a transformers model in eval mode, to train further or to save.

    `model` is a checkpoint's folder, a known name or a hub name; `task` says what it is for, where its files do not show it.
    Raises CheckpointError for a checkpoint that cannot be used.

    >>> type(fmopt.load_model(checkpoint)).__name__
    'BertForSequenceClassification'

    `fmopt.models.structure.save_checkpoint` writes one that was pruned; its own `save_pretrained` leaves structure.json out.
    """
    return load(inspect(resolve(str(model)), task)).net
