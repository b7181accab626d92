"""What an ONNX graph is, with the files that lie beside it: its task, its pipeline, what it takes and gives.

There is no network: whatever needs one says so. Configuration, tokenizer and labels come from where the graph lies, else from
what the user names; the rest is read off the graph itself and found by one try.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fmopt.core.errors import CheckpointError, reading
from fmopt.core.model import TOKENIZER, CheckpointMetadata, ModelSource, ReceivedGraph, file_digest
from fmopt.models.checkpoint_files import CONFIG, CheckpointFiles
from fmopt.models.checkpoint_keys import notes, unread
from fmopt.models.graphs.layouts import home_of
from fmopt.models.graphs.ports import GIVE_THE_NETWORK, VECTOR, map_inputs, map_outputs
from fmopt.models.graphs.summary import GraphSummary, read_summary
from fmopt.models.graphs.trial import Trial, tried
from fmopt.models.heads import Head, is_regression, shown_by, task_in, task_of
from fmopt.models.networks import known_transformers
from fmopt.models.pipeline import number_activation, pipeline_of
from fmopt.models.preprocessors.served import with_own_tokenizer
from fmopt.models.preprocessors.tokenizer import FILES, convert_tokenizer, has_slow_tokenizer
from fmopt.models.received import read_json, require_plain, require_possible
from fmopt.models.sentence_transformers import makes_vectors, reranker_activation, settings_for
from fmopt.models.source import cache_folder, made_once, place_in_cache
from fmopt.tasks.base import Output, Task, find_task

LABELS = "labels.json"  # names of classes in the order of their ids, beside a graph
MODEL_TYPE = "onnx"  # of a graph whose configuration names none
DEFAULT_LENGTH = 512
PADDING = ("[PAD]", "<pad>")  # what tokenizers call it
SENTENCE = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "config_sentence_transformers.json")


def inspect_graph(source: ModelSource, task: str | None = None, max_length: int | None = None) -> CheckpointMetadata:
    """What an ONNX graph is; the graph is tried in a process of its own first, once. CheckpointError where it cannot be used.

    `task` overrides what the files show; without config.json it must be given.
    """
    assert source.graph is not None
    summary = read_summary(source.graph, home_of(source.graph))
    inputs = map_inputs(summary)
    if source.dequantize and summary.quantization != "Q/DQ pairs":
        said = summary.quantization or f"none ({summary.precision})"
        raise CheckpointError(
            f"--dequantize folds Q/DQ pairs, and the quantization of {source.graph} is {said}; leave it out"
        )
    with reading(source.folder, CheckpointError, "get the files again"):
        return _inspected(source, summary, inputs, task, max_length)


def _inspected(
    source: ModelSource, summary: GraphSummary, inputs: dict[str, str], task: str | None, max_length: int | None
) -> CheckpointMetadata:
    home = CheckpointFiles.of(source.folder)
    home.look_through()
    written = _configuration(home)
    require_possible(source.folder / CONFIG, written, summary.shapes)
    kind = find_task(task or _task_shown(source, written, home))
    outputs = map_outputs(summary, kind)
    files = CheckpointFiles(_gathered(source, written), source.folder)
    config = _read_configuration(files.folder, written, summary, inputs)
    sentence = settings_for(kind, files)
    files = files.copied_to(with_own_tokenizer(files.folder, config, files.folder, lower_case=sentence.lower_case))
    pipeline = pipeline_of(kind, files, sentence, config, max_length)
    found = _tried(summary, inputs, int(pipeline["max_length"]), int(config.vocab_size))
    if found.longest < min(int(pipeline["max_length"]), DEFAULT_LENGTH):
        pipeline = pipeline_of(kind, files, sentence, config, found.longest)
    activation = reranker_activation(files)
    pipeline |= number_activation(kind, written, activation, source.folder) if written else {}
    pipeline |= _by_graph(inputs, outputs)
    classes = found.shapes[outputs["logits"]][-1] if kind.has_classes else 0
    pipeline |= _labels(kind, written, classes, source)
    said = (*notes(kind, pipeline, sentence, written, activation), *unread(files, config))
    graph = ReceivedGraph(
        summary.path,
        inputs,
        outputs,
        summary.precision,
        frozenset(summary.operators),
        int(config.vocab_size),
        classes,
        source.dequantize,
    )
    if not graph.is_full_precision or graph.dequantize:
        said = (*said, f"it came as an ONNX graph: {origin_of(graph)}")
    for note in said:
        warnings.warn(f"{source.title}: {note}", stacklevel=4)
    return CheckpointMetadata(
        source=replace(source, folder=files.folder), model_type=str(written.get("model_type") or MODEL_TYPE),
        architecture=str((written.get("architectures") or [""])[0]), task=kind.name, pipeline=pipeline,
        hidden_size=_width(config, summary), layers=_layers(config, summary), parameters=summary.parameters,
        weight_bytes=summary.weight_bytes, digest=_digest(summary, files, source), config=written,
        origin=files.folder, notes=said, graph=graph,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ configuration and task


def _configuration(files: CheckpointFiles) -> dict[str, Any]:
    """config.json as it is written, labels.json taken in where it names none; empty where there is neither."""
    config, place = dict(files.config), files.folder / LABELS
    if config.get("is_encoder_decoder"):
        raise CheckpointError(
            f"{place.with_name(CONFIG)} is that of an encoder and a decoder; as ONNX fmopt takes encoders: {GIVE_THE_NETWORK}"
        )
    if place.is_file() and not config.get("id2label"):
        names = read_json(place, list)
        config |= {
            "id2label": {str(i): str(name) for i, name in enumerate(names)},
            "label2id": {str(name): i for i, name in enumerate(names)},
        }
    return config


def _task_shown(source: ModelSource, written: Mapping[str, Any], files: CheckpointFiles) -> str:
    """The task that config.json or the files of sentence-transformers show; CheckpointError where nothing does."""
    if source.task:
        return source.task
    if not written.get("architectures") and not makes_vectors(files):
        raise CheckpointError(
            f"nothing beside {source.graph} says what it is for (config.json with architectures); give --task"
        )
    head = Head(
        str((written.get("architectures") or [""])[0]), frozenset(), is_regression(written),
        len(written.get("id2label") or {}), task_in(written),
    )  # fmt: skip
    shown = shown_by(head)
    other = next(
        (one for one in shown if one.modality != "text" or one.output in (Output.NEXT_WORDS, Output.ANSWER_WORDS)), None
    )
    if other is not None:
        raise CheckpointError(
            f"{source.asked} is for {other.name} by its config.json; as ONNX fmopt takes encoders of texts: {GIVE_THE_NETWORK}"
        )
    return task_of(head, source, files)


def _read_configuration(
    folder: Path, written: Mapping[str, Any], summary: GraphSummary, inputs: Mapping[str, str]
) -> Any:
    """The configuration as transformers reads it; of a graph without one, or of a family that transformers does not know, what
    the graph itself says."""
    transformers = known_transformers()
    if written.get("model_type") in transformers.CONFIG_MAPPING:
        try:
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers validates with whatever exception it likes
            raise CheckpointError(f"{folder / CONFIG} cannot be used: {' '.join(str(error).split())[:200]}") from error
    if summary.table is None and not written.get("vocab_size"):
        raise CheckpointError(
            f"{summary.path} looks input_ids up in no table, so that nobody knows how many words it has; give its config.json"
        )
    rows = {} if summary.table is None else {"vocab_size": summary.table[0]}
    types = {"type_vocab_size": 2 if "token_type_ids" in inputs else 0}
    known = {name: value for name, value in written.items() if name not in ("model_type", "auto_map")}
    return transformers.PreTrainedConfig(**{**rows, **types, "pad_token_id": 0, **known})


def _labels(kind: Task, written: Mapping[str, Any], classes: int, source: ModelSource) -> dict[str, Any]:
    """Names of classes, where the files say them; none where the data is to say them. CheckpointError where they are others than
    the graph's outputs."""
    if not kind.has_classes:
        return {}
    named = written.get("id2label")
    if not named:
        return {"labels": []}
    if len(named) != classes:
        raise CheckpointError(
            f"{source.folder} names {len(named)} labels, and {source.graph} gives {classes} classes; give the files that belong "
            "to it"
        )
    return {"labels": [str(named[number]) for number in sorted(named, key=int)]}


def _width(config: Any, summary: GraphSummary) -> int:
    found = next(
        (getattr(config, name, None) for name in ("hidden_size", "d_model", "dim") if getattr(config, name, None)), None
    )
    return int(found or (summary.table[1] if summary.table else 1))


def _layers(config: Any, summary: GraphSummary) -> int:
    """By the configuration, else as many as there are attentions."""
    return int(
        getattr(config, "num_hidden_layers", None)
        or summary.operators.get("Softmax")
        or summary.operators.get("Attention")
        or 1
    )


# ------------------------------------------------------------------------------------------------ pipeline


def _by_graph(inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
    """What the graph says of its pipeline: what it takes and gives, and whether padding is masked."""
    found: dict[str, Any] = {"inputs": list(inputs), "outputs": list(outputs)}
    if "attention_mask" not in inputs:
        found["no_padding"] = True
    if VECTOR in outputs:  # pooled, and normalized where it is, in the graph
        found |= {"pooling": "none", "normalize": False}
    return found


def origin_of(graph: ReceivedGraph) -> str:
    """What a reader of numbers should know of where a graph stands that came without a network."""
    if graph.dequantize:
        return "its Q/DQ pairs were folded into weights in fp32, which keep what rounding left of them"
    if graph.is_full_precision:
        return "what needs the network was not tried"
    held = "accuracy and speed are held to the graph as it was received"
    return f"in {graph.precision}, and no full-precision network was there; {held}"


def _tried(summary: GraphSummary, inputs: Mapping[str, str], longest: int, words: int) -> Trial:
    """What came of trying the graph, now or once before by the same runtime: the files' digests name it."""
    kinds = {own: f"{known} {summary.inputs[own].kind}" for known, own in inputs.items()}
    runtime = version("onnxruntime")
    asked = [runtime, *(file_digest(path) for path in summary.files), sorted(kinds.items()), longest, words]
    place = cache_folder() / "tried-graphs" / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]

    def make(out: Path) -> None:
        found = tried(summary.path, kinds, summary.weight_bytes, longest, words)
        (out / "trial.json").write_text(json.dumps({"shapes": dict(found.shapes), "longest": found.longest}))

    read = json.loads((made_once(place, make) / "trial.json").read_text())
    return Trial({name: tuple(shape) for name, shape in read["shapes"].items()}, int(read["longest"]))


# ------------------------------------------------------------------------------------------------ files


def _gathered(source: ModelSource, written: Mapping[str, Any]) -> Path:
    """The folder with config.json and the tokenizer's files: the graph's own where it has both, else one in the cache."""
    place = _tokenizer_folder(source)
    if (
        place == source.folder
        and (place / TOKENIZER).is_file()
        and written == CheckpointFiles.of(place).config
        and written
    ):
        return place
    content = json.dumps(dict(written), indent=1)
    found = {name: place / name for name in FILES if (place / name).is_file()}
    for path in found.values():
        require_plain(path, place)
    stamps = [(name, file_digest(path)) for name, path in found.items()]
    known = repr((content, stamps))

    def make(out: Path) -> None:
        for name, path in found.items():
            shutil.copyfile(path, out / name)
        (out / CONFIG).write_text(content)
        if TOKENIZER not in found:
            convert_tokenizer(out, out)
        if "tokenizer_config.json" not in found and not written.get("model_type"):
            (out / "tokenizer_config.json").write_text(json.dumps(_plain_settings(out / TOKENIZER)))

    return made_once(place_in_cache("received-graphs", source.title, known), make)


def _plain_settings(path: Path) -> dict[str, Any]:
    """The tokenizer_config.json by which transformers reads a tokenizer.json as it is, cut and padded as that says."""
    written = read_json(path, dict)
    cut, padding = (written.get(name) or {} for name in ("truncation", "padding"))
    tokens = [str(one.get("content")) for one in written.get("added_tokens") or () if isinstance(one, dict)]
    pad = padding.get("pad_token") or next((token for token in tokens if token in PADDING), None)
    limit = {"model_max_length": int(cut["max_length"])} if isinstance(cut.get("max_length"), int) else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **limit, **({"pad_token": pad} if pad else {})}


def _tokenizer_folder(source: ModelSource) -> Path:
    """Where the tokenizer lies: CheckpointError where it is nowhere."""
    given = source.tokenizer
    place = source.folder if given is None else given if given.is_dir() else given.parent
    if given is not None and not given.exists():
        raise CheckpointError(
            f"there is no tokenizer {given}; --tokenizer takes a folder with tokenizer.json, or that file"
        )
    if not (place / TOKENIZER).is_file() and not has_slow_tokenizer(place):
        way_out = "name its folder with --tokenizer" if given is None else f"put {TOKENIZER} there"
        raise CheckpointError(f"there is no tokenizer in {place} (no {TOKENIZER}, no vocabulary); {way_out}")
    if given is not None and given != source.folder:
        CheckpointFiles.of(place).look_through()
    return place


def _digest(summary: GraphSummary, files: CheckpointFiles, source: ModelSource) -> str:
    """sha256 over what decides what is computed: the graph with its weights, what encodes texts, how vectors are made."""
    names = (CONFIG, TOKENIZER, "tokenizer_config.json")
    paths = [*summary.files, *(files.folder / name for name in names), *(files.home / name for name in SENTENCE)]
    total = hashlib.sha256(f"dequantize={source.dequantize}\n".encode())
    for path in paths:
        if path.is_file():
            total.update(f"{path.name}:{file_digest(path)}\n".encode())
    return total.hexdigest()
