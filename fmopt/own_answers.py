"""What a network of an encoder and a decoder answers by itself: to be looked at while it does, and for a student to learn."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.edge_seq2seq import NEW, answers, usual
from fmopt.examples import Example
from fmopt.model import TorchModel
from fmopt.passes.base import Context, Inputs
from fmopt.seq2seq import Halves, makes_answers

SEEN_TOKENS = 64  # of an answer, at most, when a network is looked at
TOLD = 128  # answers between two lines of progress
TOGETHER = 32  # texts that are answered at once


def answering(model: TorchModel, ctx: Context, count: int | None = None) -> Context:
    """The context with the first `count` calibration items (None: all), to each the answer that `model` gives now (greedily, of
    at most `SEEN_TOKENS`), as the `decoder_input_ids` that make it again; the context as it is for networks that give none."""
    from fmopt.training import weights_digest

    pipeline = model.facts.pipeline
    if not makes_answers(pipeline):
        return ctx
    digest = hashlib.sha256(repr((weights_digest(model.net), dict(pipeline))).encode())
    for item in islice(ctx.calibration(), count):
        for name in sorted(item):
            digest.update(np.ascontiguousarray(item[name]).tobytes())
    given = _kept(
        ctx.scratch, digest.hexdigest(), lambda: _heard(model, islice(ctx.calibration(), count), ctx.progress)
    )

    def stream() -> Iterator[Inputs]:
        for item, ids in zip(ctx.calibration(), given, strict=False):
            yield {**item, NEW: np.array([ids], dtype=np.int64)}

    return replace(ctx, calibration=stream)


def answered_by(
    teacher: TorchModel, examples: Sequence[Example], scratch: Path | None, progress: Callable[[str], None]
) -> list[Example]:
    """The examples, those of texts that have no labels with what `teacher` answers (sequence-level distillation, Kim and Rush,
    2016; greedily). Answers are kept in `scratch`."""
    lacking = [number for number, example in enumerate(examples) if "labels" not in example]
    digest = hashlib.sha256(teacher.facts.digest.encode())
    for number in lacking:
        digest.update(examples[number]["input_ids"].tobytes())
    asked = [examples[number] for number in lacking]
    given = _kept(scratch, digest.hexdigest(), lambda: _answers(teacher, asked, progress)) if asked else []
    found = list(examples)
    for number, ids in zip(lacking, given, strict=True):
        found[number] = {**found[number], "labels": np.array(ids, dtype=np.int64)}
    return found


def _kept(folder: Path | None, key: str, make: Callable[[], list[list[int]]]) -> list[list[int]]:
    """What `make` makes, or made before."""
    path = folder / f"answers-{key[:16]}.json" if folder else None
    if path is not None and path.is_file():
        found: list[list[int]] = json.loads(path.read_text())
        return found
    given = make()
    if path is not None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(given))
        part.replace(path)
    return given


def _heard(model: TorchModel, items: Iterable[Inputs], progress: Callable[[str], None]) -> list[list[int]]:
    """Ids of the network's answer to each item, what it begins with among them."""
    pipeline: dict[str, Any] = dict(model.facts.pipeline)
    wish = usual(pipeline, beams=1, max_new_tokens=min(pipeline["max_new_tokens"], SEEN_TOKENS))
    halves, given = Halves(model.net.eval()), []
    for number, item in enumerate(items):
        if number % TOLD == 0:
            progress(f"taking down the network's own answers, from item {number + 1}")
        given.append([*pipeline["start"], *answers(pipeline, halves, item, wish)[0]])
    return given


def _answers(teacher: TorchModel, examples: Sequence[Example], progress: Callable[[str], None]) -> list[list[int]]:
    """Ids of what is to be learned, as those of an answer in the data: without the first of all, with the one that ends it."""
    from fmopt.training import Collator

    pipeline: dict[str, Any] = dict(teacher.facts.pipeline)
    collate, halves, wish = Collator(pipeline["padding"]), Halves(teacher.net.eval()), usual(pipeline, beams=1)
    order = sorted(range(len(examples)), key=lambda number: len(examples[number]["input_ids"]))
    found: dict[int, list[int]] = {}
    for start in range(0, len(order), TOGETHER):
        if start % (TOLD * TOGETHER) == 0:
            progress(f"the teacher answers texts without labels, {start} of {len(order)} done")
        group = order[start : start + TOGETHER]
        batch = {name: value.numpy() for name, value in collate([examples[number] for number in group]).items()}
        for number, ids in zip(group, answers(pipeline, halves, batch, wish), strict=True):
            ended = pipeline["stop_ids"][:1] if len(ids) < wish.max_new_tokens else []
            found[number] = [*pipeline["start"][1:], *ids, *ended]
    return [found[number] for number in range(len(examples))]
