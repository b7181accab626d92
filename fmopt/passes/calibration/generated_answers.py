"""What a network of an encoder and a decoder answers by itself: to be looked at while it does, and for a student to learn."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import PassError
from fmopt.core.model import Inputs, makes_answers
from fmopt.core.stages.store import write_whole
from fmopt.edge.generation import usual
from fmopt.edge.seq2seq import NEW, with_starts
from fmopt.models.loading import TorchModel
from fmopt.models.wrappers.seq2seq import EncoderDecoder
from fmopt.passes.base import Context
from fmopt.training.examples import Example

SEEN_TOKENS = 64  # of an answer, at most, when a network is looked at
REPORT_SECONDS = 20.0  # seconds between two lines of progress
TOGETHER = 32  # texts that are answered at once
_VERSION = 2  # of what is kept

Ids = list[int]


def answering(model: TorchModel, ctx: Context, count: int | None = None) -> Context:
    """The context with the first `count` calibration items (None: all), to each the answer that `model` gives now (greedily, of
    at most `SEEN_TOKENS`), as the `decoder_input_ids` that make it again; the context as it is for networks that give none."""
    from fmopt.training.environment import weights_digest

    pipeline: dict[str, Any] = dict(model.metadata.pipeline)
    if not makes_answers(pipeline):
        return ctx
    config = usual(pipeline, beams=1, max_new_tokens=min(pipeline["max_new_tokens"], SEEN_TOKENS))
    parts = EncoderDecoder(model.net.eval())

    def answered(missing: Sequence[int]) -> Iterator[tuple[int, Ids]]:
        wanted = set(missing)
        for number, item in enumerate(islice(ctx.calibration(), count)):  # audio is too large to be held all at once
            if number in wanted:
                ((start, made),) = with_starts(pipeline, parts, item, config)
                yield number, [*start, *made]

    key, items = _key(weights_digest(model.net), pipeline, islice(ctx.calibration(), count))
    given = _Kept(ctx, key, "the network's own answers").all(items, answered)

    def stream() -> Iterator[Inputs]:
        for item, ids in zip(ctx.calibration(), given, strict=False):
            yield {**item, NEW: np.array([ids], dtype=np.int64)}

    return replace(ctx, calibration=stream)


def answered_by(teacher: TorchModel, examples: Sequence[Example], ctx: Context) -> list[Example]:
    """The examples, those of texts that have no labels with what `teacher` answers (sequence-level distillation, Kim and Rush,
    2016; greedily). PassError at the deadline; what is answered until then is kept."""
    from fmopt.training.collation import Collator

    lacking = [number for number, example in enumerate(examples) if "labels" not in example]
    asked = [examples[number] for number in lacking]
    pipeline: dict[str, Any] = dict(teacher.metadata.pipeline)
    collate, config = Collator(pipeline["padding"]), usual(pipeline, beams=1)
    parts = EncoderDecoder(teacher.net.eval())

    def made(missing: Sequence[int]) -> Iterator[tuple[int, Ids]]:
        order = sorted(missing, key=lambda number: len(asked[number]["input_ids"]))
        for group in (order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)):
            batch = {name: value.numpy() for name, value in collate([asked[number] for number in group]).items()}
            for number, (start, ids) in zip(group, with_starts(pipeline, parts, batch, config), strict=True):
                ended = pipeline["eos_token_id"][:1] if len(ids) < config.max_new_tokens else []
                yield number, [*start[1:], *ids, *ended]  # as those of an answer in the data

    key, count = _key(teacher.metadata.digest, pipeline, asked)
    given = _Kept(ctx, key, "the teacher's answers to texts without any").all(count, made)
    found = list(examples)
    for number, ids in zip(lacking, given, strict=True):
        found[number] = {**found[number], "labels": np.array(ids, dtype=np.int64)}
    return found


def _key(network: str, pipeline: dict[str, Any], items: Iterable[Inputs]) -> tuple[str, int]:
    """(what identifies a network's answers to some items, how many these are)."""
    digest, count = hashlib.sha256(repr((_VERSION, SEEN_TOKENS, network, pipeline)).encode()), 0
    for item in items:
        count += 1
        for name in sorted(item):
            digest.update(np.ascontiguousarray(item[name]).tobytes())
    return digest.hexdigest()[:16], count


class _Kept:
    """Answers, a line each in a file that a killed run goes on with."""

    def __init__(self, ctx: Context, key: str, title: str) -> None:
        self.ctx, self.title = ctx, title
        self.path = ctx.scratch / f"answers-{key}.jsonl" if ctx.scratch else None

    def all(self, count: int, made: Callable[[Sequence[int]], Iterator[tuple[int, Ids]]]) -> list[Ids]:
        """Those numbered 0 to `count` - 1, in order; `made` gives those that are asked of it, in any order."""
        found = self._read(self.path) if self.path is not None else {}
        missing = [number for number in range(count) if number not in found]
        given = time.monotonic()
        for number, ids in made(missing):
            found[number] = ids
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(_line(number, ids))
            now = time.monotonic()
            if self.ctx.deadline is not None and now > self.ctx.deadline:
                done = f"{len(found)} of {count} of {self.title}"
                raise PassError(f"the time limit was reached after {done}; the same command goes on from there")
            if now - given > REPORT_SECONDS:
                given = now
                self.ctx.progress(f"taking down {self.title}: {len(found)} of {count}")
        return [found[number] for number in range(count)]

    @staticmethod
    def _read(path: Path) -> dict[int, Ids]:
        """Those of whole lines; a line that a kill cut, or that is damaged, is taken out of the file."""
        lines = path.read_text(errors="replace").splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if _is_whole(line)]
        if len(whole) < len(lines):
            write_whole(path, "".join(whole))
        return {number: ids for _, number, ids in map(json.loads, whole)}


def _line(number: int, ids: Ids) -> str:
    """An answer as it is kept, after a checksum of it."""
    return json.dumps([_checksum(number, ids), number, ids]) + "\n"


def _is_whole(line: str) -> bool:
    try:
        checksum, number, ids = json.loads(line)
        return line == _line(number, ids) and checksum == _checksum(number, ids)
    except (ValueError, TypeError):
        return False


def _checksum(number: int, ids: Ids) -> int:
    return zlib.crc32(json.dumps([number, ids]).encode())
