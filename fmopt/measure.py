"""Latency of variants in turn, peak memory and load time in a fresh process, and whether the machine is quiet."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fmopt.edge import Preprocessor
from fmopt.errors import DataError, UnmeasuredError
from fmopt.model import Artifact, takes_length
from fmopt.results import Footprint
from fmopt.tasks.base import Raw

MIN_SAMPLES = 200
MIN_SECONDS = 10.0  # a variant so slow that it runs this long before MIN_SAMPLES has enough…
FEWEST = 20  # …from this many samples on
STOP_CHECK = 20  # rounds between two looks at which variants are hopeless
WARM_WINDOW = 5  # rounds whose medians are compared
WARM_AGREE = 0.03  # two windows agree within this share: warm
WARM_SECONDS = 5.0  # at most, for each variant
DISTINCT_INPUTS = 8  # inputs of one length that are replayed in turn
REPLAYED_ITEMS = 64  # items of the data replayed at their own lengths
SERVE_TIMEOUT_S = 600


def time_in_turn(
    variants: Mapping[str, Callable[[], object]],
    *,
    min_samples: int = MIN_SAMPLES,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float | None = None,
    warm_seconds: float | None = None,
    hopeless: Callable[[Mapping[str, list[float]]], set[str]] | None = None,
    on_drop: Callable[[str], object] = lambda name: None,
    progress: Callable[[], object] = lambda: None,
    seed: int = 0,
    clock: Callable[[Callable[[], Any]], float] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of every call, variant by variant; sample i of each was taken in round i, in randomised order.

    All variants warm up together, round by round, until the median of each is stable or each ran for `warm_seconds`
    (None: WARM_SECONDS; 0 for what was warmed up before). Then every round calls each
    once, until each has `min_samples`, or `min_seconds` of its own time when it is slow, or until `max_seconds` of all.
    `hopeless` (see `certainly_slower`) is asked now and then which names need no further samples: those keep what they
    have and are told to `on_drop`. The garbage collector is off meanwhile. `progress` is called once a round. `clock` calls
    a variant and says its milliseconds, where this process' own clock would see more than the call (a browser's).
    """
    clock = clock or _call_ms
    order = random.Random(seed)  # its own, so that it does not hang on how long warming up took
    samples: dict[str, list[float]] = {name: [] for name in variants}
    active = list(variants)
    with without_collector():
        _warm_up(variants, random.Random(seed), WARM_SECONDS if warm_seconds is None else warm_seconds, clock)
        begun = time.monotonic()
        rounds = 0
        while not all(_enough(samples[name], min_samples, min_seconds) for name in active):
            if max_seconds is not None and rounds and time.monotonic() - begun > max_seconds:
                break
            for name in order.sample(active, len(active)):
                samples[name].append(clock(variants[name]))
            rounds += 1
            progress()
            if hopeless is not None and rounds % STOP_CHECK == 0:
                for name in hopeless({name: samples[name] for name in active}) & set(active):
                    active.remove(name)
                    on_drop(name)
    return samples


def certainly_slower(
    samples: Mapping[str, Sequence[float]], *, keep: Sequence[str] = (), margin: float = 1.1
) -> set[str]:
    """Names that cannot become the fastest any more: 99 % sure to take `margin` times as long as the best.

    By the order statistics of the median, which assume nothing about the distribution (David and Nagaraja, Order
    Statistics, 2003, chapter 7). Names in `keep` (what a speedup is claimed against) are never among them.
    """
    bounds = {name: _median_bounds(np.asarray(ms)) for name, ms in samples.items() if len(ms) >= FEWEST}
    if not bounds:
        return set()
    best = min(high for _, high in bounds.values())
    return {name for name, (low, _) in bounds.items() if low > margin * best and name not in keep}


def latency_inputs(
    preprocessor: Preprocessor, raws: Sequence[Raw], batch: int, length: int | None, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Inputs to time with, each array [batch, tokens] for texts (windows of a long text add rows at its own length).

    With `length`, every row is filled with exactly that many tokens of real text, joined from several items, so that
    nothing is padding. With None, or for items that are not made of tokens, a seeded sample of the items as they are, in
    an order that is the same every time. DataError when the texts hold no tokens to fill with.
    """
    if not raws:
        raise DataError("there is nothing to time with")
    if length is None or not takes_length(preprocessor.pipeline):
        chosen = random.Random(seed).choices(range(len(raws)), k=max(batch, REPLAYED_ITEMS // batch * batch))
        groups = [chosen[i : i + batch] for i in range(0, len(chosen), batch)]
        return [dict(preprocessor.encode([raws[i] for i in group]).inputs) for group in groups]
    order = list(range(len(raws)))
    random.Random(seed).shuffle(order)
    starts = [order[i * len(order) // (DISTINCT_INPUTS * batch) :] + order for i in range(DISTINCT_INPUTS * batch)]
    rows = [_filled(preprocessor, [raws[i] for i in start], length) for start in starts]
    names = rows[0].keys()
    return [
        {name: np.concatenate([row[name] for row in rows[i : i + batch]]) for name in names}
        for i in range(0, len(rows), batch)
    ]


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


def spin_ms() -> float:
    """Milliseconds of a fixed piece of pure arithmetic, about 2 ms: longer now than before means a slower clock."""
    begun = time.perf_counter_ns()
    total = 0
    for number in range(40_000):
        total += number * number
    return (time.perf_counter_ns() - begun) / 1e6


def _call_ms(call: Callable[[], object]) -> float:
    begun = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begun) / 1e6


@contextmanager
def without_collector() -> Iterator[None]:
    """The garbage collector off, so that its pauses are not in a measurement."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _enough(ms: Sequence[float], min_samples: int, min_seconds: float) -> bool:
    return len(ms) >= min_samples or (len(ms) >= min(FEWEST, min_samples) and sum(ms) >= 1e3 * min_seconds)


def _warm_up(
    variants: Mapping[str, Callable[[], object]],
    order: random.Random,
    seconds: float,
    clock: Callable[[Callable[[], Any]], float],
) -> None:
    """Rounds of all variants until each has had two windows in a row that agree. All get equally many calls, so that
    variants that replay a sequence of inputs stay in step."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    cold = set(variants)
    while cold:
        for name in order.sample(list(variants), len(variants)):
            times[name].append(clock(variants[name]))
        cold = {name for name in cold if not _warm(times[name], seconds)}


def _warm(ms: Sequence[float], seconds: float) -> bool:
    if sum(ms) > 1e3 * seconds:
        return len(ms) >= 2
    if len(ms) < 2 * WARM_WINDOW:
        return False
    before = np.median(ms[-2 * WARM_WINDOW : -WARM_WINDOW])
    return bool(abs(np.median(ms[-WARM_WINDOW:]) - before) <= WARM_AGREE * before)


def _median_bounds(ms: np.ndarray) -> tuple[float, float]:
    """Order statistics that enclose the median with 99 % on either side (normal approximation to the binomial)."""
    ordered = np.sort(ms)
    n = len(ordered)
    reach = 2.33 * np.sqrt(n) / 2
    return float(ordered[max(0, int(n / 2 - reach))]), float(ordered[min(n - 1, int(np.ceil(n / 2 + reach)))])


def _filled(preprocessor: Preprocessor, raws: Sequence[Raw], length: int) -> dict[str, np.ndarray]:
    """One row of exactly `length` tokens: the first raw with as many of the following ones as it takes."""
    joined, used = raws[0], 1
    while used <= 4 * length + 4:
        encoded = preprocessor.encode([joined], length=length)
        if encoded.mask[0].all():
            return {name: array[:1] for name, array in encoded.inputs.items()}
        for number in range(used, 2 * used):  # twice as many each time: few encodings even when texts are short
            joined = _join(joined, raws[number % len(raws)])
        used *= 2
    raise DataError(f"the texts do not fill {length} tokens however many are joined; are they empty?")


def _join(first: Raw, second: Raw) -> Raw:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first} {second}"
    if isinstance(first, tuple) and isinstance(second, tuple):
        # Questions stay as they are: what a pair is cut and filled in is its second part.
        return (first[0], f"{first[1]} {second[1]}")
    return [*first, *second]


def _serve_in_fresh_process(request: Mapping[str, Any]) -> dict[str, float]:
    package = Path(__file__).parent
    # -P: the script's own folder is not a place to import from; its file names would hide other packages
    command = [sys.executable, "-P", str(package / "serve_once.py"), json.dumps(request)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), *_python_path()])}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=SERVE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnmeasuredError(f"serving {request['path']} took over {SERVE_TIMEOUT_S} s in a fresh process") from error
    if done.returncode:
        words = done.stderr.strip().splitlines()
        said = words[-1].removeprefix("edge.EdgeError: ") if words else f"it ended with code {done.returncode}"
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


def drift_warning(before_ms: float, after_ms: float) -> str:
    """A line when the same arithmetic (`spin_ms`) takes over 5 % longer or shorter than before; empty otherwise."""
    change = after_ms / before_ms - 1
    if abs(change) <= 0.05:
        return ""
    changed = f"{abs(change):.0%} {'more' if change > 0 else 'less'}".replace("%", " %")
    return f"the clock drifts: the same arithmetic took {changed} time after a moment; let it settle (heat, boost)"
