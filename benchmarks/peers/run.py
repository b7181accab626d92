"""Compare what the peers made, and fmopt's bundles, on this machine: one table, and raw samples as JSON.

    .venv/bin/python benchmarks/peers/run.py --fmopt OUT [--threads 1] [--batch 1] [--length 128]

Everything is opened in this one process by fmopt's own runtimes, so all get the same threads, texts and conditions.
Rounds are interleaved (each variant once a round, in random order). Accuracy is at batch 1, without padding: cosine of
sentence vectors to PyTorch fp32, and Spearman on STS-B's test pairs. Run build.py first.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import contenders
import numpy as np
import pyarrow.parquet as parquet
import table
from build import STSB, artifacts_folder, minilm
from contenders import Contender
from scipy.stats import spearmanr

from fmopt import checkpoint, edge, measure
from fmopt.edge import Preprocessor
from fmopt.model import CheckpointFacts, ModelSource

RESULTS = Path(__file__).resolve().parents[1] / "results"
PACKAGES = ("fmopt", "torch", "transformers", "onnxruntime", "openvino", "numpy", "tokenizers")


def main() -> int:
    """The command line; 1 when nothing could be timed."""
    asked = arguments()
    facts = checkpoint.inspect(ModelSource(str(asked.model), asked.model, asked.title), "sentence-embedding")
    preprocessor = Preprocessor(checkpoint.tokenizer_file(facts), facts.pipeline)
    pairs = test_pairs(asked.pairs)
    rows = contenders.peers(asked.artifacts, asked.model, asked.threads, edge.isa_features())
    rows += [contenders.bundle(folder, asked.threads) for folder in asked.fmopt]
    texts = [text for pair in pairs for text in pair[:2]]
    inputs = measure.latency_inputs(preprocessor, texts, asked.batch, asked.length, asked.seed)
    warnings = [f"before: {line}" for line in measure.quiet_machine()]
    # Timing comes first: torch.compile specialises for the shapes it sees first.
    time_all(rows, inputs, asked)
    warnings += [f"after: {line}" for line in measure.quiet_machine()]
    write(report(rows, asked, warnings, facts), asked.results)  # scoring takes minutes; what is timed is kept
    score_all(rows, contenders.reference(asked.model, asked.threads), pairs, preprocessor, facts)
    document = report(rows, asked, warnings, facts)
    print(write(document, asked.results))
    return int(not any(row.samples_ms for row in rows))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Time and score what the peers made, and fmopt's bundles.")
    parser.add_argument("--artifacts", type=Path, default=artifacts_folder(), help="what build.py wrote")
    parser.add_argument("--model", type=Path, default=minilm(), help="checkpoint folder (MiniLM from its package)")
    parser.add_argument("--title", default="all-MiniLM-L6-v2", help="what the table calls the model")
    parser.add_argument("--fmopt", type=Path, nargs="*", default=[], help="folders that `fmopt optimize` wrote")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128, help="real tokens in every row")
    parser.add_argument("--samples", type=int, default=measure.MIN_SAMPLES, help="of each variant")
    parser.add_argument("--seconds", type=float, default=measure.MIN_SECONDS, help="of each variant, if slow")
    parser.add_argument("--pairs", type=int, default=None, help="score only so many of the STS-B test pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def test_pairs(most: int | None) -> list[tuple[str, str, float]]:
    """STS-B's test pairs with their scores 0…5."""
    file = STSB / "test.parquet"
    if not file.is_file():
        raise SystemExit(f"{file} is missing: accuracy is measured on STS-B's test pairs; put the data there")
    rows = parquet.read_table(file).to_pylist()[:most]
    return [(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]


def time_all(rows: Sequence[Contender], inputs: Sequence[Mapping[str, np.ndarray]], asked: argparse.Namespace) -> None:
    """Sample all that run, in turn; one that fails on the first call gets its error instead."""
    calls: dict[str, Callable[[], object]] = {}
    for row in rows:
        if row.runner is None:
            continue
        try:
            row.hidden(inputs[0])
        except Exception as error:  # a failure is a row of the table
            row.error, row.runner = f"does not run: {type(error).__name__}: {' '.join(str(error).split())[:300]}", None
            continue
        # each replays the same inputs in the same order
        replay = cycle(inputs)
        calls[row.name] = lambda runner=row.runner, replay=replay: runner.run(next(replay))
    samples = measure.time_in_turn(calls, min_samples=asked.samples, min_seconds=asked.seconds, seed=asked.seed)
    for row in rows:
        row.samples_ms = [round(ms, 5) for ms in samples.get(row.name, [])]


def score_all(
    rows: Sequence[Contender],
    reference: Contender,
    pairs: Sequence[tuple[str, str, float]],
    preprocessor: Preprocessor,
    facts: CheckpointFacts,
) -> None:
    """Fidelity to PyTorch fp32 and Spearman of each contender, from vectors at batch 1."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair[:2]))
    labels = np.asarray([pair[2] for pair in pairs])
    first, second = (np.asarray([texts.index(pair[side]) for pair in pairs]) for side in (0, 1))
    exact = embed(reference, texts, preprocessor, facts)
    for row in [reference, *rows]:
        if row.runner is None:
            continue
        vectors = exact if row is reference else embed(row, texts, preprocessor, facts)
        fidelity = (vectors * exact).sum(axis=1)
        alike = (vectors[first] * vectors[second]).sum(axis=1)
        row.accuracy = {
            "cosine_mean": float(fidelity.mean()),
            "cosine_min": float(fidelity.min()),
            "stsb_spearman": float(spearmanr(alike, labels).statistic),
            "pair_similarities": [round(float(value), 6) for value in alike],
        }
        base = reference.accuracy["stsb_spearman"]
        row.accuracy["stsb_points_from_fp32"] = 100 * (row.accuracy["stsb_spearman"] - base)
        print(f"{row.name}: cosine {row.accuracy['cosine_mean']:.4f}", file=sys.stderr)


def embed(row: Contender, texts: Sequence[str], preprocessor: Preprocessor, facts: CheckpointFacts) -> np.ndarray:
    """Normalised sentence vectors float32 [texts, width], one text at a time as it would be served."""
    how = facts.pipeline.get("pooling", "mean")
    batches = (preprocessor.encode([text]) for text in texts)
    return np.concatenate([edge.pool(row.hidden(batch.inputs), batch.mask, how, True) for batch in batches])


def report(
    rows: Sequence[Contender], asked: argparse.Namespace, warnings: list[str], facts: CheckpointFacts
) -> dict[str, Any]:
    """Everything a table reads, with raw samples."""
    return {
        "what": "peers side by side",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(),
        "model": {"title": facts.source.title, "digest": facts.digest, "parameters": facts.parameters},
        "threads": asked.threads,
        "batch": asked.batch,
        "length": asked.length,
        "seed": asked.seed,
        "pairs": asked.pairs or "all",
        "host": edge.host_fingerprint(),
        "versions": {name: edge.package_version(name) for name in PACKAGES},
        "warnings": warnings,
        "rows": [
            {"name": row.name, "error": row.error, "size_bytes": row.size_bytes, "full_precision": row.full_precision,
             "made": row.meta, "accuracy": row.accuracy, "samples_ms": row.samples_ms}
            for row in rows
        ],
    }  # fmt: skip


def command() -> str:
    """This command without this machine's folders."""
    home, here = str(Path.home()), os.getcwd()
    words = shlex.join([".venv/bin/python", *sys.argv])
    return words.replace(here + "/", "").replace(home, "~")


def write(document: dict[str, Any], folder: Path) -> str:
    """peers-<date>-….json with everything, peers.md with the table; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = f"b{document['batch']}-l{document['length']}-t{document['threads']}"
    path = folder / f"peers-{document['date'][:10]}-{shape}.json"
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")
    page = table.markdown(document, path.name)
    (folder / "peers.md").write_text(page, encoding="utf-8")
    return page


if __name__ == "__main__":
    raise SystemExit(main())
