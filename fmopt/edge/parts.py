"""What knows the samples and answers of a task: the parts of a bundle, found by their names; and how errors are said.

Words used in this folder. A *raw* is what the user has: a text, a pair of texts, a list of words or of items, or the bytes of
an image or audio file. A *prediction* is what is judged (a vector, logits, an answer); `present` makes it readable. A
*pipeline* is a dict of JSON values; a part adds its own:
    task         sentence-embedding, text-classification, text-regression, token-classification, question-answering
                 fill-mask, text-generation, translation, summarization or text-to-audio
    max_length   tokens; longer texts are cut, or read in windows where the task allows
    inputs       names the network takes: input_ids, attention_mask, token_type_ids
    outputs      ["last_hidden_state"], ["logits"] or ["start_logits", "end_logits"]
    padding      {"id", "type_id", "token", "side"}
    pooling, normalize (embedding); labels, multi_label (classification); stride (windows: tokens shared by neighbours);
    no_answer (question answering: True when the model may answer "nothing"); add_prefix_space (byte-level tokenizers);
    mask {"id", "token"} (fill-mask)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

Sample = str | tuple[str, str] | list[str] | bytes
Pipeline = Mapping[str, Any]

# Tasks whose samples or answers are not plain text -> the module beside this one that knows them. Such a part imports numpy and
# its siblings, raises ValueError with one line for a sample it cannot read, and has
#     postprocess, present             as the functions of that name in text.py
# and may have
#     Preprocessor(folder, pipeline)   encode(samples, length=None) -> an object with inputs, mask (or None) and owner, as
#                                      Batch; else `Preprocessor`, for texts
#     read_raw(text) -> raw            what an argument of `run.py predict` means; else the text itself
#     run(pipeline, runner, batch, most)   when one pass through the graph is not enough; else `run_rows`
#     timed(runner, inputs) -> inputs  of the call whose latency matters; else the inputs themselves
#     work(runner, inputs)             what a latency is taken of, when it is more than one call
#     answer(model, samples, **wishes)    what people read, where it is not the judged prediction made readable
#     stream(model, raw, **wishes)     the same of one sample, in pieces as they come
#     soonest(model, samples)             the first piece of every answer, for its latency; else the predictions
#     add_arguments(parser), wishes_of(arguments)   wishes on the command line
#     difference(written, got)         of a golden prediction; else `difference`
PARTS: dict[str, str] = {
    "image-classification": "image",
    "zero-shot-image-classification": "image",
    "audio-classification": "audio",
    "automatic-speech-recognition": "audio",
    "text-generation": "generation",
    "image-segmentation": "image",
    "image-feature-extraction": "image",
    "translation": "seq2seq",
    "summarization": "seq2seq",
    "sequential-recommendation": "recommendation",
    "text-to-audio": "speech",
    "object-detection": "image",
}
# A pipeline may name one of these and nothing else: a manifest comes from anywhere.
NAMES = frozenset({*PARTS.values(), "whisper"})
NEEDS = {
    "seq2seq": ("generation",),
    "whisper": ("audio", "seq2seq"),
}  # parts that work by others: bundles carry those too
COMMON = ("__init__", "bench", "command", "host", "loading", "parts", "runners", "text")  # what every bundle carries
OWN_RUNTIMES = ("tensorrt", "executorch")  # runtimes with a module of their own in this folder


class EdgeError(Exception):
    """Something that can be explained in one line: what, where, and the way out."""


def part_of(pipeline: Pipeline) -> Any:
    """The module for a pipeline whose samples or answers are not plain text, None for others."""
    name = part_name(pipeline)
    return None if name is None else load_part(name)


def part_name(pipeline: Pipeline) -> str | None:
    """The part that a pipeline names, else that of its task."""
    named = pipeline.get("part")
    return PARTS.get(pipeline["task"]) if named is None else str(named).removeprefix("edge_")  # as it was called once


def load_part(name: str) -> Any:
    """A part by its name. EdgeError for a name that is none of ours, or a bundle that lacks it."""
    if name not in NAMES:
        raise EdgeError(f"the pipeline names the part {name!r}; there are {', '.join(sorted(NAMES))}")
    try:
        return import_module(f"{__package__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.{name}":
            raise
        raise EdgeError(f"{name}.py is missing beside {Path(__file__).name}; copy the whole bundle") from error


def module_files(pipeline: Pipeline, runtime: str) -> list[Path]:
    """The files of this folder that a bundle needs for its task and runtime."""
    part = part_name(pipeline)
    names = [*COMMON, *((part,) if part else ()), *((runtime,) if runtime in OWN_RUNTIMES else ())]
    for name in names:
        names += [other for other in NEEDS.get(name, ()) if other not in names]
    return [Path(__file__).with_name(f"{name}.py") for name in names]


@contextmanager
def explained() -> Iterator[None]:
    """A part's ValueError as an EdgeError."""
    try:
        yield
    except ValueError as error:
        raise EdgeError(str(error)) from error


def need(module: str, package: str) -> Any:
    """A module that may not be installed; EdgeError names the package that has it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise EdgeError(f"{package} is not installed here; pip install {package}") from error


def last_line(error: BaseException) -> str:
    """The telling line of a library's error: the last, without addresses of its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[-1] if lines else type(error).__name__, 300)


def shorten(value: Any, most: int = 60) -> str:
    """A value as text of at most so many characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"
