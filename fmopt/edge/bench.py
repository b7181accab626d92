"""How fast a bundle is on this machine: `python run.py bench`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError
from .host import host_fingerprint, package_version, peak_memory_mb
from .loading import judged_threads, load, read_golden, timed_call
from .parts import Sample, part_of


def bench(
    folder: Path, *, batch: int = 1, length: int | None = None, threads: int | None = None, seconds: float = 10.0
) -> dict[str, Any]:
    """Latencies in ms of the golden texts, `batch` at once, cut or repeated to `length` tokens when given.

    "model" is the graph alone, for text generation one more token; "end_to_end" starts with the text and ends with the
    prediction, or the first token, at the texts' own lengths. Each is sampled for `seconds` or 200 times, whichever is
    more, and at most 5,000 times.
    """
    started = time.perf_counter()
    model = load(folder, threads)
    load_ms = (time.perf_counter() - started) * 1e3
    samples = read_golden(folder)[0]
    if not samples:
        raise EdgeError(f"{folder} carries no inputs to run; make it with --golden synthetic, or a file of inputs")
    samples = [samples[index % len(samples)] for index in range(batch)]
    encoded = model.preprocessor.encode(
        [_repeated(sample, length) for sample in samples] if length else samples, length
    )
    inputs = {name: array[:batch] for name, array in encoded.inputs.items()}
    part = part_of(model.pipeline)
    return {
        "model": _sampled(timed_call(model.pipeline, model.runner, inputs), seconds),
        "end_to_end": _sampled(lambda: model.soonest(samples), seconds),
        # whether "model" is one step of several, and "end_to_end" ends with the first
        "steps": hasattr(part, "timed") and not hasattr(part, "work"),
        "batch": batch,
        "tokens": int(encoded.mask.shape[1]) if "max_length" in model.pipeline else None,  # what has none has no tokens
        "threads": threads or judged_threads(model.metadata),
        "load_ms": load_ms,
        "peak_memory_mb": peak_memory_mb(),
        "host": host_fingerprint(),
        "runtime": [model.metadata["runtime"], package_version(model.metadata["runtime"])],
    }


def _repeated(sample: Sample, length: int) -> Sample:
    """The sample with its (last) text repeated until it has at least `length` tokens, one for each word."""
    if isinstance(sample, bytes):
        return sample
    if isinstance(sample, list):
        return (sample or ["word"]) * (length // max(len(sample), 1) + 1)
    text = sample if isinstance(sample, str) else sample[1]
    many = " ".join([text or "word"] * (length // max(len(text.split()), 1) + 1))
    return many if isinstance(sample, str) else (sample[0], many)


def _sampled(call: Callable[[], object], seconds: float) -> dict[str, Any]:
    for _ in range(5):
        call()
    samples: list[float] = []
    began = time.perf_counter()
    while len(samples) < 200 or (time.perf_counter() - began < seconds and len(samples) < 5000):
        start = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - start) / 1e6)
    p50, p90, p99 = (float(value) for value in np.percentile(samples, [50, 90, 99]))
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "samples_ms": samples}
