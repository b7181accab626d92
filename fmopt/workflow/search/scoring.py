"""What variants predict for the items of a split, in blocks that are kept, so that no more is predicted than a decision needs.

A candidate is asked for a first block. Where the rest takes long, it is asked for twice as many items each time, until what it
loses is certain enough, and never twice for the same item.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from fmopt.core import plugins
from fmopt.core.errors import explained
from fmopt.core.model import Runner, generates, reads_texts_at_once
from fmopt.evaluation.predictions import load_predictions, predict, save_predictions
from fmopt.measurement import host_probe
from fmopt.workflow.search.builder import tool_versions
from fmopt.workflow.search.executor import Predict
from fmopt.workflow.search.run import Run

TOGETHER = 16  # texts of like length that full precision predicts at once
FIRST = 64  # items of the first block
AT_LEAST_S = 2.0  # of predicting beyond the first block, though a time limit is over
PREDICTIONS = "predictions"
UNKNOWN_S = 1.0  # for an item whose block was predicted by a run that ended before it said how long it took


class Predictor:
    """What a variant predicts for the first items of a split, as deployed; threads do not change results, so all cores are used:
    one for each of several calls at once where the runtime computes them so, which for short texts takes less time than all
    for one call.

    Full precision answers alike whatever shares its batch, so there texts of like length go together, which takes less time.
    In mixed batches of `batch`, or padded to `length` tokens, where these are given. To be closed: what it opened stays open
    from one block to the next.
    """

    def __init__(self, run: Run, name: str, split: str, *, batch: int | None = None, length: int | None = None) -> None:
        self.run, self.name, self.split, self.batch, self.length = run, name, split, batch, length
        self.items = run.items(split)
        self.allows_subsets = run.job.task.allows_subsets(self.items)
        self.found: list[Any] = []
        self.seconds_per_item = 0.0  # of the last block, as it was predicted
        full = name in {recipe.name for recipe in run.job.plan.baselines if recipe.precision == "fp32"}
        self.pipeline = dict(run.job.metadata.pipeline)
        together = full and reads_texts_at_once(self.pipeline) and not self.pipeline.get("no_padding")
        self.usual = max(run.job.request.workload.batch, TOGETHER if together else 1)
        runtime = plugins.find("runtimes", run.recipes[name].runtime)
        # Of texts that go on, several at once would need the memory of as many caches.
        self.callers = (
            host_probe.cores() if getattr(runtime, "calls_at_once", False) and not generates(self.pipeline) else 1
        )
        self._runner: Runner | None = None
        self._seconds: dict[tuple[int, int], float] = {}  # of the blocks that were predicted here

    def upto(self, count: int) -> list[Any]:
        """Of the first `count` items. PassError when the variant cannot be opened, or cannot compute an item."""
        store = self.run.store
        missing = [block for block in blocks(count) if not store.has(PREDICTIONS, self._key(*block))]
        if missing and self.name not in self.run.of_networks:
            asked = Predict(self.run.recipes[self.name], self.split, count, self.batch, self.length)
            self.run.executor.finish(asked)
        if left := sum(end - first for first, end in missing if not store.has(PREDICTIONS, self._key(first, end))):
            self.run.progress.start(self._title(), left)  # once for all of its blocks
        for first, end in blocks(count):
            if end <= len(self.found):
                continue
            folder = store.folder(PREDICTIONS, self._key(first, end), partial(self._make, first, end))
            self.found[first:] = load_predictions(folder / PREDICTIONS)
            # Apart from the predictions, whose bytes do not depend on the clock.
            took = store.value("seconds", self._key(first, end), partial(self._seconds.get, (first, end)))
            self.seconds_per_item = UNKNOWN_S if took is None else took / (end - first)
        return self.found[:count]

    def close(self) -> None:
        """Close what was opened."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _title(self) -> str:
        how = (
            f" in batches of {self.batch}" if self.batch else f" padded to {self.length} tokens" if self.length else ""
        )
        return f"{self.split}: {self.name}{how}"

    def _key(self, first: int, end: int) -> dict[str, Any]:
        run = self.run
        another = {"mixed batch": self.batch, "padded to": self.length}
        return {
            "artifact": run.artifacts[self.name].digest,
            "model": run.job.metadata.digest,  # with its tokenizer
            "data": run.job.data.digest,
            "split": self.split,
            "order": run.job.request.seed,
            "block": (first, min(end, len(self.items))),
            "pipeline": self.pipeline,
            "batch": self.usual,
            **(another if self.batch or self.length else {}),
            **{name: run.executor.host[name] for name in ("arch", "isa")},  # kernels of others round differently
            **tool_versions(),
        }

    def _make(self, first: int, end: int, folder: Path) -> None:
        run, batch, length = self.run, self.batch, self.length
        begun = time.monotonic()
        with explained(f"it cannot answer the items of {self.split}"):
            if self._runner is None:
                self._runner = run.open(self.name, host_probe.cores() // self.callers)
                begun = time.monotonic()
            got = predict(
                self._runner,
                run.builder.preprocessor,
                self.pipeline,
                self.items[first:end],
                batch=batch or (1 if length else self.usual),
                mixed=batch is not None,
                length=length,
                callers=self.callers,
                progress=run.progress.step,
            )
        save_predictions(folder / PREDICTIONS, got)
        self._seconds[first, end] = time.monotonic() - begun


def blocks(count: int) -> Iterator[tuple[int, int]]:
    """(First item, one after the last) of the blocks that hold the first `count` items: FIRST, as many again, then twice as many
    each; the last ends at `count`."""
    first, end = 0, FIRST
    while first < count:
        yield first, min(end, count)
        first, end = end, end + (FIRST if end == FIRST else 2 * FIRST)


def looks(
    predictors: Sequence[Predictor], total: int, patience: float, seconds: float = math.inf
) -> Iterator[tuple[int, bool]]:
    """(After how many items to look whether it is certain, whether it is the last look).

    After the first block, then after twice as many each time, until what is left takes at most `patience` seconds; last after
    `total`, or what fits into `seconds`. Where items are not judged in parts, only after all. The first block is predicted here,
    to know how long the rest takes.
    """
    if not all(one.allows_subsets for one in predictors):
        yield total, True
        return
    count = min(FIRST, total)
    for one in predictors:
        one.upto(count)
    pace = max(sum(one.seconds_per_item for one in predictors), 1e-9)
    if (fits := count + max(seconds, AT_LEAST_S) / pace) < total:
        total = [end for _, end in blocks(total) if end <= fits][-1]  # of whole blocks: others need them too
    while count < total and (total - count) * sum(one.seconds_per_item for one in predictors) > patience:
        yield count, False
        count *= 2
    yield total, True


def predictions(
    run: Run, name: str, split: str, *, most: int | None = None, batch: int | None = None, length: int | None = None
) -> list[Any]:
    """What a variant predicts for the first `most` items of a split, or for all; see `Predictor`."""
    with closing(Predictor(run, name, split, batch=batch, length=length)) as found:
        return found.upto(len(found.items[:most]))
