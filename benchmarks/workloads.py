"""What users get: MiniLM on real texts at their own lengths, one by one, from text to vector, beside its peers.

    .venv/bin/python benchmarks/workloads.py [--samples 200] [--only sst2,banking77,clinc150,agnews,128]

Every quick candidate of fmopt, full precision on every runtime and, where it is installed, sentence-transformers embed the
same texts in turn in one process on one thread: every round is the next text for all of them. Ours is the fastest that
keeps the vectors (mean cosine to full precision). 1 x 128 is the model alone, as other tools time it. Raw samples go to
benchmarks/results/workloads-minilm.json, the table beside it; about 8 minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import compact_results
import numpy as np
import pyarrow.parquet as parquet

from fmopt.core import plugins
from fmopt.core.errors import FmoptError
from fmopt.core.model import Artifact, CheckpointMetadata, Runner
from fmopt.core.progress import Silent
from fmopt.core.results import Latency
from fmopt.core.stages.store import Store
from fmopt.core.workload import Workload
from fmopt.edge.board import interleaved
from fmopt.edge.loading import Model
from fmopt.edge.text import open_preprocessor
from fmopt.evaluation import bootstrap
from fmopt.measurement import host_probe
from fmopt.measurement import latency as measurement_latency
from fmopt.measurement.backends import Work, timed_calls
from fmopt.workflow.deployed import bench_metadata
from fmopt.workflow.job.prepare import length_options
from fmopt.workflow.search.builder import Builder
from fmopt.workflow.search.candidates import BASELINES, quick_candidates, refusal

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[1].parent / "shared" / "data"
TEXTS = {"sst2": "SST-2 sentences", "banking77": "Banking77 questions", "clinc150": "CLINC150 questions",
         "agnews": "AG News"}  # fmt: skip
REFERENCE = "onnxruntime-fp32"
KEEPS = 0.99  # mean cosine to full precision from which vectors are taken for the same
CALIBRATION, POOL, LENGTH = 300, 600, 128


def main() -> None:
    """Build once, time every workload, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=interleaved.MIN_SAMPLES, help="rounds of every workload (200)")
    parser.add_argument("--only", default=",".join([*TEXTS, str(LENGTH)]))
    parser.add_argument("--variants", default="", help="only these recipes beside full precision, joined by commas")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with a folder for each data set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    metadata = bench_metadata("minilm")
    warnings = measurement_latency.quiet_machine()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        texts = texts_of(asked.data / "sst2", "train", CALIBRATION)
        variants = built(metadata, texts, Path(scratch), [name for name in asked.variants.split(",") if name])
        for name in asked.only.split(","):
            if name == str(LENGTH):
                rows.append(stated_shape(metadata, variants, asked))
            else:
                rows.append(own_texts(name, metadata, variants, asked))
            print(line(rows[-1]), flush=True)
    document = {
        "what": "MiniLM on texts at their own lengths, from text to vector, all variants in turn on the same text",
        "command": shlex.join(["python", "benchmarks/workloads.py", *sys.argv[1:]]),
        "host": host_probe.host_fingerprint(), "versions": host_probe.versions(), "threads": asked.threads,
        "seed": asked.seed, "warnings": warnings, "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "keeps": KEEPS, "workloads": rows,
    }  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    compact_results.write(document, asked.out / "workloads-minilm.json")
    (asked.out / "workloads-minilm.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def texts_of(folder: Path, split: str, count: int, seed: int = 0) -> list[str]:
    """A seeded sample of a split's texts."""
    column = parquet.read_table(folder / f"{split}.parquet", columns=["text"])["text"].to_pylist()
    order = np.random.default_rng(seed).permutation(len(column))[:count]
    return [column[index] for index in order]


def built(
    metadata: CheckpointMetadata, texts: Sequence[str], scratch: Path, only: Sequence[str]
) -> dict[str, Artifact]:
    """Every variant that can be built here, or `only` some, by its recipe's name."""
    target = host_probe.load_target("host")
    preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
    builder = Builder(metadata, target, Store(scratch), preprocessor, texts, "workloads", 0, 1 << 30, Silent())
    found = {}
    candidates = [recipe for recipe in quick_candidates(target) if not only or recipe.name in only]
    for recipe in (*BASELINES, *candidates):
        if (reason := refusal(recipe, metadata, target)) is not None:
            print(f"{recipe.name} is left out: {reason}", flush=True)
            continue
        try:
            found[recipe.name] = builder.artifact(recipe)
        except FmoptError as error:
            print(f"{recipe.name} failed: {error}", flush=True)
    return found


def own_texts(
    name: str, metadata: CheckpointMetadata, variants: Mapping[str, Artifact], asked: argparse.Namespace
) -> dict[str, Any]:
    """A data set's test texts one by one; OpenVINO is compiled for lengths of its train texts."""
    pool = texts_of(asked.data / name, "test", POOL, asked.seed)
    preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
    batches = measurement_latency.replayed(preprocessor, pool, 1, asked.seed)
    lengths = measurement_latency.item_sizes(preprocessor, [batch[0] for batch in batches])
    train = texts_of(asked.data / name, "train", 2 * POOL, asked.seed)
    buckets = length_options(Workload(threads=asked.threads), metadata, train, asked.seed)
    work = Work({}, metadata.pipeline, asked.threads, asked.seed, batches=batches, preprocessor=preprocessor)
    runners: dict[str, Runner] = {}
    for variant, artifact in variants.items():
        runners[variant] = opened(artifact, asked.threads)
        if artifact.runtime == "openvino":
            bucketed = replace(artifact, options={**artifact.options, **buckets})
            runners[f"{variant}, in buckets"] = opened(bucketed, asked.threads)
    models = {variant: Model({"pipeline": metadata.pipeline}, preprocessor, one) for variant, one in runners.items()}
    cosines = fidelity({variant: [model.predict(batch)[0] for batch in batches] for variant, model in models.items()})
    calls: dict[str, Sequence[Callable[[], object]]] = {
        variant: timed_calls(work, runner) for variant, runner in runners.items()
    }
    calls |= peers(metadata, batches, asked.threads)
    timed = in_turn(calls, asked)
    for runner in runners.values():
        runner.close()
    shape = {"name": name, "title": TEXTS[name], "tokens": {"median": float(np.median(lengths)), "most": max(lengths)}}
    return {**shape, "buckets": buckets["buckets"], **judged(timed, cosines, asked)}


def stated_shape(
    metadata: CheckpointMetadata, variants: Mapping[str, Artifact], asked: argparse.Namespace
) -> dict[str, Any]:
    """The model alone on rows of exactly `LENGTH` tokens; OpenVINO is compiled for that shape."""
    pool = texts_of(asked.data / "agnews", "test", POOL, asked.seed)
    preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
    inputs = measurement_latency.latency_inputs(preprocessor, pool, 1, LENGTH, asked.seed)
    work = Work({}, metadata.pipeline, asked.threads, asked.seed, inputs=inputs)
    runners = {}
    for variant, artifact in variants.items():
        shape = {"shape": [1, LENGTH]} if artifact.runtime == "openvino" else {}
        runners[variant] = opened(replace(artifact, options={**artifact.options, **shape}), asked.threads)
    # no row is padded, so the mean over tokens is the vector that the model is used for
    outputs = {
        name: [next(iter(one.run(rows).values())).mean(axis=1)[0] for rows in inputs] for name, one in runners.items()
    }
    timed = in_turn({name: timed_calls(work, one) for name, one in runners.items()}, asked)
    for runner in runners.values():
        runner.close()
    shape = {
        "name": str(LENGTH),
        "title": f"1 × {LENGTH}, the model alone",
        "tokens": {"median": LENGTH, "most": LENGTH},
    }
    return {**shape, **judged(timed, fidelity(outputs), asked)}


def opened(artifact: Artifact, threads: int) -> Runner:
    """As it is deployed."""
    runner: Runner = plugins.find("runtimes", artifact.runtime).open(artifact, threads)
    return runner


def peers(
    metadata: CheckpointMetadata, batches: Sequence[Sequence[Any]], threads: int
) -> dict[str, Sequence[Callable[[], object]]]:
    """What others offer for the same model, of what is installed."""
    if find_spec("sentence_transformers") is None:
        return {}
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(str(metadata.folder), device="cpu", local_files_only=True)
    encode = partial(model.encode, show_progress_bar=False, batch_size=1)
    return {"sentence-transformers fp32": [partial(encode, list(batch)) for batch in batches]}


def in_turn(calls: Mapping[str, Sequence[Callable[[], object]]], asked: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of every variant, all on the same text in the same round."""
    for each in calls.values():
        for call in each:
            call()  # so that what is compiled when it first comes is compiled
    return interleaved.time_in_turn(
        {name: interleaved.Replay(each) for name, each in calls.items()},
        min_samples=asked.samples,
        seed=asked.seed,
        clock=interleaved.settled_ms,
        dominated=lambda so_far: interleaved.certainly_slower(so_far, keep=(REFERENCE, "openvino-fp32")),
    )


def fidelity(vectors: Mapping[str, Sequence[np.ndarray]]) -> dict[str, tuple[float, float]]:
    """(mean, least) cosine of every variant's vectors to full precision's."""
    whole = np.stack(vectors[REFERENCE])

    def cosines(found: Sequence[np.ndarray]) -> tuple[float, float]:
        ours = np.stack(found)
        got = (ours * whole).sum(axis=1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(whole, axis=1))
        return float(got.mean()), float(got.min())

    return {name: cosines(found) for name, found in vectors.items()}


def judged(
    timed: Mapping[str, list[float]], cosines: Mapping[str, tuple[float, float]], asked: argparse.Namespace
) -> dict[str, Any]:
    """Figures of every variant, and which one is ours: the fastest that keeps the vectors."""
    latencies = {
        name: Latency(samples_ms=ms, batch=1, length=None, threads=asked.threads) for name, ms in timed.items()
    }
    found = {}
    for name, latency in latencies.items():
        p50, p90, p99 = (float(value) for value in np.percentile(latency.samples_ms, [50, 90, 99]))
        mean, least = cosines.get(name, (None, None))
        found[name] = {
            "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "cosine_mean": mean, "cosine_least": least,
            "speedup": bootstrap.speedup(latencies[REFERENCE], latency, seed=asked.seed).model_dump(),
            "samples_ms": [round(ms, 4) for ms in latency.samples_ms],
        }  # fmt: skip
    kept = [name for name, (mean, _) in cosines.items() if mean >= KEEPS and name not in ("torch-fp32", REFERENCE)]
    ours = min(kept, key=lambda name: found[name]["p50_ms"])
    return {"ours": ours, "variants": found}


def line(row: Mapping[str, Any]) -> str:
    """One workload in a line."""
    ours, reference = row["variants"][row["ours"]], row["variants"][REFERENCE]
    gain = ours["speedup"]
    return (
        f"{row['title']}: {reference['p50_ms']:.2f} -> {ours['p50_ms']:.2f} ms by {row['ours']}, "
        f"{gain['point']:.2f}x ({gain['low']:.2f}-{gain['high']:.2f})"
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All workloads as Markdown: ours against full precision, then every variant."""
    lines = [
        "| workload | tokens, median | ONNX Runtime fp32, ms | fmopt, ms | times as fast | p99 ÷ p50 | variant | cosine |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for row in rows:
        ours, reference = row["variants"][row["ours"]], row["variants"][REFERENCE]
        gain = ours["speedup"]
        lines.append(
            f"| {row['title']} | {row['tokens']['median']:.0f} | {reference['p50_ms']:.2f} | {ours['p50_ms']:.2f} "
            f"| **{gain['point']:.2f}×** ({gain['low']:.2f}–{gain['high']:.2f}) | {ours['p99_ms'] / ours['p50_ms']:.2f} "
            f"| {row['ours']} | {ours['cosine_mean']:.4f} |"
        )
    lines += ["", f"| variant | {' | '.join(row['title'] for row in rows)} |", f"|---|{'---:|' * len(rows)}"]
    names = dict.fromkeys(name for row in rows for name in row["variants"])
    for name in names:
        cells = [cell(row["variants"].get(name)) for row in rows]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(found: Mapping[str, Any] | None) -> str:
    """A variant's median and its factor over the reference."""
    return "–" if found is None else f"{found['p50_ms']:.2f} ms, {found['speedup']['point']:.2f}×"


if __name__ == "__main__":
    main()
