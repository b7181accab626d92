"""What knows the samples and answers of a task: the parts of a bundle, found by their names.

Words used in this folder. A *sample* is what the user has: a text, a pair of texts, a list of words or of items, or the bytes of
an image or audio file. A *prediction* is what is judged (a vector, logits, an answer); `present` makes it readable. A
*pipeline* is a dict of JSON values; a part adds its own:
    task         what it is for: one of PARTS, or a task of another package
    part         the module that knows it, where that is not the one of the task in PARTS
    max_length   tokens; longer texts are cut, or read in windows where the task allows
    inputs       names the network takes: input_ids, attention_mask, token_type_ids
    outputs      ["last_hidden_state"], ["logits"] or ["start_logits", "end_logits"]
    padding      {"id", "type_id", "token", "side"}
    pooling, normalize (embedding); labels, multi_label (classification); stride (windows: tokens shared by neighbours);
    no_answer (question answering: True when the model may answer "nothing"); add_prefix_space (byte-level tokenizers);
    mask {"id", "token"} (fill-mask); pooling "none": the graph gives vectors of texts
and, where a checkpoint asks for it:
    prefix (of every text), prompts (by name, for the user to choose from); truncation_side; split_special_tokens
    prompt_tokens (left out of pooling), dimensions (of a vector that stay), similarity; activation ("sigmoid" or "none": what
    scores are made by);
    no_padding (True: padding changes answers, so that texts are answered one by one);
    kept_eos_token_id (ids that end an answer and stay in it); speculation ("auto", "lookup" or "off"; see lookup.py)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError, last_line, shorten

Sample = str | tuple[str, str] | list[str] | bytes
Pipeline = Mapping[str, Any]

BACKGROUND = ("background", "bg", "void", "unlabeled", "unlabelled", "ignore", "nothing", "none")  # names of class 0

# Tasks -> the module beside this one that knows their samples and answers. Such a part imports numpy and its siblings, raises
# EdgeError, or ValueError with one line, for a sample it cannot read, and has
#     postprocess(pipeline, outputs, batch, samples)          one prediction per sample
#     present(pipeline, prediction, sample, preprocessor)     a prediction as JSON for people
# and may have
#     Preprocessor(folder, pipeline)   encode(samples, length=None) -> an object with inputs, mask (or None) and owner, as
#                                      Batch; else `Preprocessor`, for texts, of which a part may say
#     windows(preprocessor, sample, limit)   how it reads a sample in pieces, as encodings of the tokenizer
#     align(batch, rows, padded)       what else a batch holds of each token
#     PAIRS                            True where every sample is a pair of texts
#     read_sample(text) -> sample      what an argument of `run.py predict` means; else the text itself
#     run(pipeline, runner, batch, most)   when one pass through the graph is not enough; else `run_rows`
#     timed(runner, inputs) -> inputs  of the call whose latency matters; else the inputs themselves
#     work(runner, inputs)             what a latency is taken of, when it is more than one call
#     answer(model, samples, **options)    what people read, where it is not the judged prediction made readable
#     stream(model, sample, **options)     the same of one sample, in pieces as they come
#     soonest(model, samples)          the first piece of every answer, for its latency; else the predictions
#     add_arguments(parser), options_of(arguments)   options on the command line
#     distance(pipeline) -> (name, function of what was written and what was got), by which golden predictions are compared; else
#     difference(written, got)         the same for every pipeline; else `relative_change`
#     NEEDS                            names of further parts that one of another package works by
PARTS: dict[str, str] = {
    "sentence-embedding": "embedding",
    "text-classification": "classification",
    "text-regression": "regression",
    "token-classification": "tagging",
    "question-answering": "question_answering",
    "fill-mask": "fill_mask",
    "image-classification": "image",
    "zero-shot-image-classification": "image",
    "audio-classification": "audio",
    "automatic-speech-recognition": "audio",
    "text-generation": "generation",
    "image-segmentation": "segmentation",
    "image-feature-extraction": "image_features",
    "translation": "seq2seq",
    "summarization": "seq2seq",
    "sequential-recommendation": "recommendation",
    "text-to-audio": "speech",
    "object-detection": "detection",
}
# A pipeline may name one of these and nothing else: a manifest comes from anywhere.
NAMES = frozenset({*PARTS.values(), "whisper"})
# Parts of other packages have names that begin so. None lies in this folder: a bundle carries its own, which run.py loads with
# the rest; fmopt makes the part of a task that is installed known under this name when it looks the task up.
EXTENSION = "extension_"
NEEDS = {
    "detection": ("image",),
    "image_features": ("image",),
    "segmentation": ("image",),
    "generation": ("decoding", "kv_cache", "lookup"),
    "seq2seq": ("generation",),
    "whisper": ("audio", "seq2seq"),
}  # parts that work by others: bundles carry those too
COMMON = (
    "__init__",
    "bench",
    "command",
    "errors",
    "files",
    "host",
    "loading",
    "manifest",
    "parts",
    "runners",
    "text",
    "tokenizer_file",
)  # what every bundle carries
LARGEST_NUMBER = 1 << 24  # that a pipeline may name: of tokens, of pixels along an edge, of samples a second
KINDS: dict[str, type | tuple[type, ...]] = {
    "task": str, "max_length": int, "inputs": list, "outputs": list, "labels": list, "multi_label": bool, "padding": dict,
    "modality": str, "axes": dict, "stride": int, "no_answer": bool, "prefix": str, "add_prefix_space": bool, "mask": dict,
    "pooling": (str, list), "normalize": bool, "image": dict, "audio": dict, "ctc": dict, "speech": dict,
    "threshold": (int, float), "activation": str, "no_padding": bool, "speculation": str,
}  # fmt: skip  # of what a pipeline says
NEVER_EMPTY = ("task", "inputs", "outputs", "max_length", "padding")
NAMED = ("inputs", "outputs", "labels")  # lists of texts
OWN_RUNTIMES = ("tensorrt", "executorch")  # runtimes with a module of their own in this folder


# Batches: enough rows that what a call costs beside its arithmetic is shared, few enough that activations stay in a core's cache.
TOKENS = 256
PADDING = 0.1  # at most this share of a batch is padding


def check_pipeline(pipeline: Mapping[str, Any]) -> None:
    """EdgeError for a pipeline that is not of the form above: a key of another kind, a number beyond all sense."""
    for key in ("task", "inputs", "outputs"):
        if key not in pipeline:
            raise EdgeError(f"the pipeline does not say {key!r}")
    for key, kind in KINDS.items():
        value = pipeline.get(key)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not fits and (value is not None or (key in pipeline and key in NEVER_EMPTY)):
            raise EdgeError(f"the pipeline says {shorten(value)} for {key!r}")
        if key in NAMED and not all(isinstance(name, str) for name in value or ()):
            raise EdgeError(f"the pipeline says {shorten(value)} for {key!r}; these are texts")
    if (name := part_name(pipeline)) is not None:
        _require_known(name)
    todo: list[Any] = [{key: value for key, value in pipeline.items() if key != "labels"}]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping | list):
            todo += value.values() if isinstance(value, Mapping) else value
        elif isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
            raise EdgeError(f"the pipeline says {shorten(value)}, a number beyond all sense")
    if int(pipeline.get("max_length", 1)) < 1:
        raise EdgeError(f"the pipeline's max_length is {pipeline['max_length']}")


def part_of(pipeline: Pipeline) -> Any:
    """The module for a pipeline; None for a task that has none."""
    name = part_name(pipeline)
    return None if name is None else load_part(name)


def part_name(pipeline: Pipeline) -> str | None:
    """The part that a pipeline names, else that of its task."""
    named = pipeline.get("part")
    return PARTS.get(pipeline["task"]) if named is None else str(named).removeprefix("edge_")  # as it was called once


def load_part(name: str) -> Any:
    """A part by its name. EdgeError for one that is not known here, or that a bundle lacks."""
    _require_known(name)
    extension = name not in NAMES
    try:
        return import_module(f"{__package__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.{name}":
            raise
        if extension:
            raise EdgeError(
                f"the part {name!r} comes with another package, which is not installed here; install it, or run the bundle by "
                "its own run.py"
            ) from error
        raise EdgeError(f"{name}.py is missing beside {Path(__file__).name}; copy the whole bundle") from error


def _require_known(name: str) -> None:
    if name not in NAMES and not (name.startswith(EXTENSION) and name.isidentifier()):
        raise EdgeError(f"the pipeline names the part {shorten(name)!r}; there are {', '.join(sorted(NAMES))}")


def module_files(pipeline: Pipeline, runtime: str) -> list[Path]:
    """The files that a bundle needs for its task and runtime: of this folder, and the part of another package."""
    part = part_name(pipeline)
    names = [*COMMON, *((runtime,) if runtime in OWN_RUNTIMES else ())]
    own = [] if part is None or part in NAMES else [load_part(part)]
    names += [part] if part in NAMES else [name for module in own for name in getattr(module, "NEEDS", ())]
    for name in names:
        names += [other for other in NEEDS.get(name, ()) if other not in names]
    return [*(Path(__file__).with_name(f"{name}.py") for name in names), *(Path(module.__file__) for module in own)]


def like_lengths(lengths: Sequence[int], tokens: int = TOKENS, padding: float = PADDING) -> list[list[int]]:
    """Indices in batches: of like length, and at most so many tokens with their padding. What is longer is alone."""
    batches: list[list[int]] = []
    used = 0  # tokens of the last batch that are no padding
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        length = lengths[index]
        padded = (len(batches[-1]) + 1) * length if batches else 0
        if batches and padded <= tokens and padded - used - length <= padding * padded:
            batches[-1].append(index)
            used += length
        else:
            batches.append([index])
            used = length
    return batches


def distance_of(pipeline: Pipeline) -> tuple[str, Callable[[Any, Any], float]]:
    """What two predictions of one item are compared by, 0 for equal ones: its name, and the function. NaN is infinitely far."""
    part = part_of(pipeline)
    if hasattr(part, "distance"):
        name, distance = part.distance(pipeline)
    else:
        name, distance = ("difference", part.difference) if hasattr(part, "difference") else CHANGE

    def finite(written: Any, got: Any) -> float:
        found = float(distance(written, got))
        return found if found == found else float("inf")

    return name, finite


def _arrays(written: Any, got: Any) -> tuple[np.ndarray, np.ndarray]:
    before, now = (np.asarray(one, dtype=np.float64) for one in (written, got))
    return (before, now) if before.shape == now.shape else (np.array([1.0]), np.array([np.nan]))


def cosine_distance(written: Any, got: Any) -> float:
    """1 minus the cosine of two vectors; NaN when they are not of one size."""
    before, now = _arrays(written, got)
    lengths = float(np.linalg.norm(before)) * float(np.linalg.norm(now))
    return 1 - float(before.ravel() @ now.ravel()) / max(lengths, 1e-12)


def relative_change(written: Any, got: Any) -> float:
    """The length of what changed against that of what was; of logits, what shifts all of a row alike left out, for no
    probability depends on it. NaN when the two are not of one size."""
    before, now = _arrays(written, got)
    if before.ndim and before.shape[-1] > 1:
        before, now = (one - one.mean(axis=-1, keepdims=True) for one in (before, now))
    return float(np.linalg.norm(before - now)) / max(float(np.linalg.norm(before)), 1e-3) if before.size else 0.0


def moved_probability(written: Any, got: Any) -> float:
    """Of log-probabilities: half the sum of all changes of a row (total variation), the largest of any row."""
    before, now = _arrays(written, got)
    return float(np.abs(np.exp(before) - np.exp(now)).sum(axis=-1).max(initial=0.0) / 2)


CHANGE = ("relative change", relative_change)
# What `clean_up_tokenization` of transformers writes closer together, in this order.
CLOSER = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def closer(text: str) -> str:
    """A text without the blanks before its marks."""
    for apart in CLOSER:
        text = text.replace(apart, apart.strip())
    return text


@contextmanager
def explained(where: object = "") -> Iterator[None]:
    """A part's ValueError as an EdgeError; and whatever else a library raises over what was received, as one that names it.

    The tokenizers library panics where others raise: by a BaseException of that name.
    """
    try:
        yield
    except (EdgeError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except ValueError as error:
        raise EdgeError(str(error) if not where else f"{where}: {last_line(error)}") from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = last_line(error)
        said = reason if reason == type(error).__name__ else f"{type(error).__name__}: {reason}"
        raise EdgeError(f"{where or 'it'} cannot be used: {said}") from error


def present_classes(pipeline: Pipeline, logits: np.ndarray) -> dict[str, Any]:
    """The scores of classes for people, as transformers' pipelines make them: {"label", "score", "scores"}, with "labels" above
    one half where several may hold."""
    several = bool(pipeline.get("multi_label"))
    values = np.asarray(logits, dtype=np.float64)
    how = pipeline.get("activation") or ("sigmoid" if several or pipeline.get("independent") else "softmax")
    if how == "sigmoid":
        values = 1 / (1 + np.exp(-values))
    elif how == "softmax":
        values = np.exp(values - np.logaddexp.reduce(values))
    labels = list(pipeline.get("labels") or [f"LABEL_{index}" for index in range(len(values))])
    above = [label for label, share in zip(labels, values, strict=True) if share >= 0.5]
    return present_scores(labels, values.tolist()) | ({"labels": above} if several else {})


def present_scores(labels: Sequence[str], shares: Iterable[float]) -> dict[str, Any]:
    """{"label", "score", "scores"} of one share for each class; of the largest its own label.

    Where classes share a name (ImageNet has two cranes) their scores are distinguished by the number of the class.
    """
    values = [float(share) for share in shares]
    best = max(range(len(values)), key=lambda number: values[number])
    named = zip(distinct(labels), values, strict=True)
    return {"label": str(labels[best]), "score": values[best], "scores": dict(named)}


def distinct(labels: Sequence[str]) -> list[str]:
    """The labels, those that several classes have with the number of the class: "crane (class 134)"."""
    counts = Counter(labels)
    return [label if counts[label] == 1 else f"{label} (class {number})" for number, label in enumerate(labels)]


def begins_with_background(labels: Sequence[str]) -> bool:
    """Whether class 0 is called something of no interest; of street scenes it is "road", and of interest as any other."""
    return bool(labels) and labels[0].strip("_ ").lower() in BACKGROUND
