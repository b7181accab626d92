"""Compare what the peers made, and fmopt's bundles, on this machine: raw samples and per-item scores as JSON.

    .venv/bin/python benchmarks/peers/run.py SUBJECT --fmopt OUT [--threads 1] [--batch 1] [--length 128] [--items N]

Everything is opened in this one process by fmopt's own runtimes, so all get the same threads, texts and conditions.
Rounds are interleaved (each variant once a round, in random order). Then each is scored as it would serve: batch 1,
without padding, by the task's own metric on the test split, beside PyTorch fp32 on the same items. Run build.py first.

The result is written after timing and after every variant's scores: what a cut run has measured is kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import contenders
import numpy as np
import subjects
import table
from build import artifacts_folder
from comparison import ONNX_RUNTIME_FP32, read
from contenders import Contender
from subjects import Subject

from fmopt.core import formatting
from fmopt.core.results import Scores
from fmopt.edge import host
from fmopt.edge.board import interleaved
from fmopt.edge.text import Preprocessor
from fmopt.evaluation.predictions import predict
from fmopt.evaluation.record import value_of
from fmopt.measurement import latency
from fmopt.models import checkpoint
from fmopt.tasks.base import Item

RESULTS = Path(__file__).resolve().parents[1] / "results"
PACKAGES = ("fmopt", "torch", "transformers", "onnxruntime", "openvino", "numpy", "tokenizers")
SLOW = 3.0  # a variant that certainly takes so many times the fastest's time needs no further rounds


def main() -> int:
    """The command line; 1 when nothing could be timed."""
    asked = arguments()
    subject = subjects.find(asked.subject)
    metadata = subject.metadata
    preprocessor = Preprocessor(checkpoint.tokenizer_file(metadata), metadata.pipeline)
    items = subject.judged(asked.items)
    folder = asked.artifacts or artifacts_folder(subject.name)
    rows = contenders.peers(folder, metadata, asked.threads, host.isa_features())
    rows += [contenders.bundle(bundle, metadata, asked.threads) for bundle in asked.fmopt]
    texts = [item.sample for item in items]
    inputs = latency.latency_inputs(preprocessor, texts, asked.batch, asked.length, asked.seed)
    warnings = [f"before: {line}" for line in latency.quiet_machine()]
    # Timing comes first: torch.compile specialises for the shapes it sees first.
    time_all(rows, inputs, asked)
    warnings += [f"after: {line}" for line in latency.quiet_machine()]
    reference = contenders.reference(metadata, asked.threads)
    document = report(rows, reference, asked, warnings, subject, len(items))
    path = write(document, asked.results)
    print(f"timed: {path}; scoring goes on, and needs no quiet machine", file=sys.stderr)
    for _ in score_all(rows, reference, items, preprocessor, subject):
        document |= judged(rows, reference)
        write(document, asked.results)
    print(table.markdown(read(path)))
    return int(not any(row.samples_ms for row in rows))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Time and score what the peers made, and fmopt's bundles.")
    parser.add_argument("subject", choices=subjects.TITLES, help="which checkpoint, with which data")
    parser.add_argument("--artifacts", type=Path, help="what build.py wrote (where it writes by default)")
    parser.add_argument("--fmopt", type=Path, nargs="*", default=[], help="folders that `fmopt optimize` wrote")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128, help="real tokens in every row")
    parser.add_argument("--samples", type=int, default=interleaved.MIN_SAMPLES, help="of each variant")
    parser.add_argument("--seconds", type=float, default=interleaved.MIN_SECONDS, help="of each variant, if slow")
    parser.add_argument("--items", type=int, help="score on so many rows of the test split, drawn with a seed (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def time_all(rows: Sequence[Contender], inputs: Sequence[Mapping[str, np.ndarray]], asked: argparse.Namespace) -> None:
    """Sample all that run, in turn; one that fails on the first call gets its error instead."""
    calls: dict[str, Callable[[], object]] = {}
    for row in rows:
        if row.runner is None:
            continue
        try:
            row.run(inputs[0])
        except Exception as error:  # every peer fails in its own way
            row.fail("does not run", error)
            row.runner = None
            continue
        # each replays the same inputs in the same order
        replay = cycle(inputs)
        calls[row.name] = lambda runner=row.runner, replay=replay: runner.run(next(replay))
    full = {row.name for row in rows if row.full_precision}

    def dominated(samples: Mapping[str, list[float]]) -> set[str]:
        # what speedups are against is sampled to the end
        fastest = min(full & set(samples), key=lambda name: np.median(samples[name]), default="")
        return interleaved.certainly_slower(samples, keep=(fastest, ONNX_RUNTIME_FP32), margin=SLOW)

    samples = interleaved.time_in_turn(
        calls, min_samples=asked.samples, min_seconds=asked.seconds, dominated=dominated, seed=asked.seed
    )
    for row in rows:
        row.samples_ms = [round(ms, 5) for ms in samples.get(row.name, [])]


def score_all(
    rows: Sequence[Contender], reference: Contender, items: Sequence[Item], preprocessor: Preprocessor, subject: Subject
) -> Iterator[Contender]:
    """Score each contender by the task's metrics, and yield it; the reference comes first."""
    metadata = subject.metadata
    exact = predict(reference, preprocessor, metadata.pipeline, items)
    reference.scores = subject.task.scores(exact, items, exact, metadata)
    yield reference
    for row in rows:
        if row.runner is None:
            continue
        try:
            predictions = predict(row, preprocessor, metadata.pipeline, items)
            row.scores = subject.task.scores(predictions, items, exact, metadata)
        except Exception as error:  # wrong shapes, no numbers: a failure is a row of the table
            row.fail("is timed but cannot be scored", error)
        print(f"{row.name}: {row.error or formatting.score(value_of(primary(row)))}", file=sys.stderr)
        yield row


def report(
    rows: Sequence[Contender], reference: Contender, asked: argparse.Namespace, warnings: list[str], subject: Subject,
    items: int,
) -> dict[str, Any]:  # fmt: skip
    """Everything a table reads, with raw samples."""
    metadata = subject.metadata
    return {
        "what": "peers side by side",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": published(shlex.join([".venv/bin/python", *sys.argv])),
        "subject": subject.name,
        "task": subject.task.name,
        "model": {"title": subject.title, "digest": metadata.digest, "parameters": metadata.parameters},
        "threads": asked.threads,
        "batch": asked.batch,
        "length": asked.length,
        "seed": asked.seed,
        "items": {"scored": items, "of": len(subject.judged(None))},
        "host": host.host_fingerprint(),
        "versions": {name: host.package_version(name) for name in PACKAGES},
        "warnings": warnings,
    } | judged(rows, reference)


def judged(rows: Sequence[Contender], reference: Contender) -> dict[str, Any]:
    """The part of a report that grows while variants are scored."""
    return {
        "reference": {"name": reference.name, **scores_of(reference)},
        "rows": [
            {"name": row.name, "error": row.error and published(row.error), "size_bytes": row.size_bytes,
             "full_precision": row.full_precision, "made": row.meta, **scores_of(row), "samples_ms": row.samples_ms}
            for row in rows
        ],
    }  # fmt: skip


def scores_of(row: Contender) -> dict[str, Any]:
    """The primary metric item by item, and the values of the others."""
    if not row.scores:
        return {"scores": None, "others": {}}
    main = primary(row)
    values = [[round(value, 6) for value in item] for item in main.values]
    others = {scores.name: value_of(scores) for scores in row.scores if scores is not main}
    return {"scores": main.model_copy(update={"values": values}).model_dump(), "others": others}


def primary(row: Contender) -> Scores:
    """The metric it is judged by."""
    return next(scores for scores in row.scores if scores.primary)


def published(text: str) -> str:
    """A text without this machine's folders."""
    return text.replace(os.getcwd() + "/", "").replace(str(Path.home()), "~")


def write(document: dict[str, Any], folder: Path) -> Path:
    """peers-<subject>-<date>-….json with everything; its path. An older file of that name is replaced at once."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = f"b{document['batch']}-l{document['length']}-t{document['threads']}"
    path = folder / f"peers-{document['subject']}-{document['date'][:10]}-{shape}.json"
    beside = path.with_suffix(".unfinished")
    beside.write_text(json.dumps(document, allow_nan=True) + "\n", encoding="utf-8")
    beside.replace(path)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
