"""What knows the raws and answers of a task: the parts of a bundle, found by their names; and how errors are said."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

Raw = str | tuple[str, str] | list[str] | bytes


Pipeline = Mapping[str, Any]


# Tasks whose raws or answers are not plain text -> the file beside this one that knows them. Such a part imports numpy and
# nothing of fmopt, raises ValueError with one line for a raw it cannot read, and has
#     postprocess, present             as the functions of that name here
# and may have
#     Preprocessor(folder, pipeline)   encode(raws, length=None) -> an object with inputs, mask (or None) and owner, as
#                                      Batch; else `Preprocessor`, for texts
#     read_raw(text) -> raw            what an argument of `run.py predict` means; else the text itself
#     run(pipeline, runner, batch, most)   when one pass through the graph is not enough; else `run_rows`
#     timed(runner, inputs) -> inputs  of the call whose latency matters; else the inputs themselves
#     work(runner, inputs)             what a latency is taken of, when it is more than one call
#     answer(model, raws, **wishes)    what people read, where it is not the judged prediction made readable
#     stream(model, raw, **wishes)     the same of one raw, in pieces as they come
#     soonest(model, raws)             the first piece of every answer, for its latency; else the predictions
#     add_arguments(parser), wishes_of(arguments)   wishes on the command line
#     difference(written, got)         of a golden prediction; else `difference`
PARTS: dict[str, str] = {
    "image-classification": "edge_image",
    "zero-shot-image-classification": "edge_image",
    "audio-classification": "edge_audio",
    "automatic-speech-recognition": "edge_audio",
    "text-generation": "edge_generation",
    "image-segmentation": "edge_image",
    "image-feature-extraction": "edge_image",
    "translation": "edge_seq2seq",
    "summarization": "edge_seq2seq",
    "sequential-recommendation": "edge_recommendation",
    "text-to-audio": "edge_speech",
    "object-detection": "edge_image",
}


# Parts that work by another: they find it under the name it has for them, and bundles carry it too.
BY_OTHERS = {
    "edge_seq2seq": {"generation": "edge_generation"},
    "edge_whisper": {"audio": "edge_audio", "seq2seq": "edge_seq2seq"},
}


class EdgeError(Exception):
    """Something that can be explained in one line: what, where, and the way out."""


def part_of(pipeline: Pipeline) -> Any:
    """The module for a pipeline whose raws or answers are not plain text, None for others."""
    name = part_name(pipeline)
    return None if name is None else load_part(name)


def part_name(pipeline: Pipeline) -> str | None:
    """The part that a pipeline names, else that of its task."""
    return pipeline.get("part") or PARTS.get(pipeline["task"])


@cache
def load_part(name: str) -> Any:
    if __package__:
        return import_module(f"{__package__}.{name}")
    path = Path(__file__).with_name(f"{name}.py")  # run.py of a bundle
    if not path.is_file():
        raise EdgeError(f"{path} is missing; copy the whole bundle")
    loader = SourceFileLoader(f"{name}@{path.parent}", str(path))
    module = ModuleType(loader.name)
    sys.modules[loader.name] = module  # dataclasses look their module up
    for called, other in BY_OTHERS.get(name, {}).items():
        setattr(module, called, load_part(other))
    loader.exec_module(module)
    return module


def part_files(pipeline: Pipeline) -> list[Path]:
    """The files of a pipeline's part and those it works by, which lie beside this one, also in a bundle."""
    names = [name for name in (part_name(pipeline),) if name is not None]
    for name in names:
        names += [other for other in BY_OTHERS.get(name, {}).values() if other not in names]
    return [Path(__file__).with_name(f"{name}.py") for name in names]


@contextmanager
def explained() -> Iterator[None]:
    """A part's ValueError as an EdgeError."""
    try:
        yield
    except ValueError as error:
        raise EdgeError(str(error)) from error


def need(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise EdgeError(f"{package} is not installed here; pip install {package}") from error


def last_line(error: BaseException) -> str:
    """The telling line of a library's error: the last, without addresses of its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[-1] if lines else type(error).__name__, 300)


def shorten(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"
