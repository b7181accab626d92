"""Latency of variants in turn, peak memory and load time in a fresh process, and whether the machine is quiet."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fmopt.core.errors import DataError, UnmeasuredError
from fmopt.core.model import Artifact, continues_texts, takes_length
from fmopt.core.plugins import ROOT
from fmopt.core.results import Footprint
from fmopt.edge.board.interleaved import (
    drift_warning,
    spin_ms,
)
from fmopt.edge.parts import OWN_RUNTIMES, Sample
from fmopt.edge.runners import RUNNERS
from fmopt.edge.text import Preprocessor

DISTINCT_INPUTS = 8  # inputs of one length that are replayed in turn
GOLDEN = (5**0.5 - 1) / 2
REPLAYED_CALLS, FEWEST_CALLS = 100, 8  # calls on items of the data, replayed at their own lengths
CONTEXTS = 10  # whose next token is timed: every variant reads each of them before, and keeps what it remembers of it
SERVE_TIMEOUT_S = 600


def latency_inputs(
    preprocessor: Preprocessor, samples: Sequence[Sample], batch: int, length: int | None, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Inputs to time with, each array [batch, tokens] for texts (windows of a long text add rows at its own length).

    With `length`, every row is filled with exactly that many tokens of real text, joined from several items, so that
    nothing is padding. With None, or for items that are not made of tokens, the items of `replayed`. DataError when the
    texts hold no tokens to fill with.
    """
    if not samples:
        raise DataError("there is nothing to time with")
    if length is None or not takes_length(preprocessor.pipeline):
        return [dict(preprocessor.encode(group).inputs) for group in replayed(preprocessor, samples, batch, seed)]
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    starts = [order[i * len(order) // (DISTINCT_INPUTS * batch) :] + order for i in range(DISTINCT_INPUTS * batch)]
    rows = [_filled(preprocessor, [samples[i] for i in start], length) for start in starts]
    names = rows[0].keys()
    return [
        {name: np.concatenate([row[name] for row in rows[i : i + batch]]) for name in names}
        for i in range(0, len(rows), batch)
    ]


def replayed(preprocessor: Preprocessor, samples: Sequence[Sample], batch: int, seed: int = 0) -> list[list[Sample]]:
    """The items that a workload is timed on, `batch` a call, in an order that is the same every time.

    A sample stratified by length: the items sorted by it are cut into as many strata as are wanted and one of each is drawn, so
    that the mixture of lengths is the data's own, and not luck. With fewer items than that all are replayed, some twice.
    DataError when every item is empty.
    """
    if all(isinstance(sample, str) and not sample.strip() for sample in samples):
        raise DataError(
            "every item is empty, so that there is nothing to time or judge; which column is it? (--columns)"
        )
    draw = random.Random(seed)
    most = CONTEXTS if continues_texts(preprocessor.pipeline) else REPLAYED_CALLS
    count = min(max(most // batch, FEWEST_CALLS), most) * batch
    sizes = item_sizes(preprocessor, samples)
    ordered = sorted(range(len(samples)), key=lambda index: (sizes[index], index))
    edges = [round(number * len(ordered) / count) for number in range(count + 1)]
    chosen = [ordered[draw.randrange(low, high) if high > low else low - (low == len(ordered))]
              for low, high in pairwise(edges)]  # fmt: skip
    # In an order of which every beginning has all lengths too, for variants that are stopped early (a Kronecker sequence).
    start = draw.random()
    chosen = [
        index for _, index in sorted(((start + number * GOLDEN) % 1, index) for number, index in enumerate(chosen))
    ]
    return [[samples[index] for index in chosen[start : start + batch]] for start in range(0, count, batch)]


def item_sizes(preprocessor: Preprocessor, samples: Sequence[Sample]) -> list[int]:
    """How long every item is: tokens of texts, windows added up; bytes or entries of what is not made of tokens."""
    if not takes_length(preprocessor.pipeline):
        return [len(sample) for sample in samples]
    return [int(preprocessor.encode([sample]).mask.sum()) for sample in samples]


def footprint(artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int = 1) -> Footprint:
    """Peak memory (MB of 10⁶ bytes) of a whole fresh process that serves `artifact`, and how long opening it took.

    The process holds Python, numpy and the runtime, and runs `inputs` a few times; only runtime "torch" loads torch.
    Load time is from the first import of the runtime until the model is open, with the files in the page cache.
    UnmeasuredError with the process's last words when it fails.
    """
    with tempfile.TemporaryDirectory(prefix="fmopt-serve-") as scratch:
        np.savez(Path(scratch) / "inputs.npz", **{name: np.asarray(array) for name, array in inputs.items()})  # type: ignore[arg-type]
        request = {
            "runtime": artifact.runtime,
            "path": str(artifact.path.resolve()),
            "options": dict(artifact.options),
            "threads": threads,
            "inputs": str(Path(scratch) / "inputs.npz"),
        }
        return Footprint(**_serve_in_fresh_process(request))


def quiet_machine(seconds: float = 0.5) -> list[str]:
    """What could spoil a measurement here and now, one line each with what to do; empty when nothing was found."""
    found = [_other_work(seconds), _stolen(seconds), *_governor(), _drift(seconds)]
    return [line for line in found if line]


def _filled(preprocessor: Preprocessor, samples: Sequence[Sample], length: int) -> dict[str, np.ndarray]:
    """One row of exactly `length` tokens: the first sample with as many of the following ones as it takes."""
    joined, used = samples[0], 1
    while used <= 4 * length + 4:
        encoded = preprocessor.encode([joined], length=length)
        if encoded.mask[0].all():
            return {name: array[:1] for name, array in encoded.inputs.items()}
        for number in range(used, 2 * used):  # twice as many each time: few encodings even when texts are short
            joined = _join(joined, samples[number % len(samples)])
        used *= 2
    raise DataError(f"the texts do not fill {length} tokens however many are joined; are they empty?")


def _join(first: Sample, second: Sample) -> Sample:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first} {second}"
    if isinstance(first, tuple) and isinstance(second, tuple):
        # Questions stay as they are: what a pair is cut and filled in is its second part.
        return (first[0], f"{first[1]} {second[1]}")
    return [*first, *second]


def _serve_in_fresh_process(request: Mapping[str, Any]) -> dict[str, float]:
    alone = request["runtime"] in (*RUNNERS, *OWN_RUNTIMES)
    module = "fmopt.edge.board.footprint" if alone else "fmopt.measurement.runtime_process"
    # -P: the working directory is not a place to import from; its file names would hide other packages
    command = [sys.executable, "-P", "-m", module, json.dumps(request)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT.parent), *_python_path()])}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=SERVE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnmeasuredError(f"serving {request['path']} took over {SERVE_TIMEOUT_S} s in a fresh process") from error
    if done.returncode:
        words = done.stderr.strip().splitlines()
        said = (
            words[-1].removeprefix("fmopt.edge.errors.EdgeError: ")
            if words
            else f"it ended with code {done.returncode}"
        )
        raise UnmeasuredError(f"a fresh process could not serve {request['path']}: {said}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def _other_work(seconds: float) -> str:
    """What everyone but this process uses, while this process sleeps."""
    before, own = psutil.cpu_times(), time.process_time()
    begun = time.monotonic()
    time.sleep(seconds)
    after, passed = psutil.cpu_times(), time.monotonic() - begun
    kinds = [name for name in ("user", "system", "nice", "irq") if hasattr(after, name)]
    busy = sum(getattr(after, name) - getattr(before, name) for name in kinds)
    cores = max(0.0, busy - (time.process_time() - own)) / passed
    if cores < 0.1:
        return ""
    return (
        f"other processes keep {cores:.1f} of {psutil.cpu_count() or 1} cores busy; latencies are too long and vary: "
        "stop them and run again"
    )


def _stolen(seconds: float) -> str:
    """Time that the hypervisor gave to others while we were spinning."""
    before = psutil.cpu_times()
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        spin_ms()
    after = psutil.cpu_times()
    share = (getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)) / (time.monotonic() - begun)
    return (
        ""
        if share < 0.02
        else f"the hypervisor takes {share:.0%} of a core away (steal time); use a dedicated machine for final figures"
    )


def _governor() -> list[str]:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        governor = path.read_text().strip()
    except OSError:
        return []
    if governor in ("performance", "schedutil"):
        return []
    return [f"the CPU governor is {governor!r}, which lowers the clock at will; set it to performance"]


def _drift(seconds: float) -> str:
    """Whether the same arithmetic keeps its time."""
    spins: list[float] = []
    begun = time.monotonic()
    while time.monotonic() - begun < seconds or len(spins) < 6:
        spins.append(spin_ms())
    third = len(spins) // 3
    early, late = float(np.median(spins[:third])), float(np.median(spins[-third:]))
    return drift_warning(early, late)
