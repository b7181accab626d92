"""The one place where a run's variants are timed: on this machine here, or on a board (see remote/backend.py).

Everything else asks a clock and does not know where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from fmopt.core import plugins
from fmopt.core.model import Artifact, Runner
from fmopt.core.progress import Progress
from fmopt.core.results import Footprint
from fmopt.edge.board import interleaved
from fmopt.edge.loading import Model, timed_call, timed_inputs
from fmopt.edge.parts import Pipeline, Sample
from fmopt.measurement import host_probe, latency

WARM_SECONDS = 1.0  # at most, for each variant: each of its calls was made once, when it was opened or timed before


@dataclass(frozen=True)
class Work:
    """What is timed: artifacts by name, on the same inputs, in turn."""

    artifacts: Mapping[str, Artifact]
    pipeline: Pipeline
    threads: int
    seed: int
    inputs: Sequence[Mapping[str, np.ndarray]] = ()  # of the model alone, replayed in order
    batches: Sequence[Sequence[Sample]] = ()  # from input to answer, replayed in order; then that is what is timed
    preprocessor: Any = None  # that encodes them
    full_precision: Sequence[str] = ()  # the fastest of them is timed to the end
    samples: int = interleaved.MIN_SAMPLES  # at least, of each that is not slow
    timed_before: Sequence[str] = ()  # variants that were timed with these inputs before: not each call is tried again


@dataclass(frozen=True)
class Timed:
    """Milliseconds by variant, sample i of each from round i; what may have spoilt them; and why some could not run."""

    samples: dict[str, list[float]]
    warnings: list[str]
    failed: dict[str, str]


class TimingBackend(Protocol):
    """Times what was built, where it is to run."""

    @property
    def host(self) -> dict[str, Any]:
        """Where it stands, as `probe.host_fingerprint` says it."""

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries there that results depend on."""

    @property
    def note(self) -> str:
        """A line for the record when that is not this machine; else empty."""

    def offer(self, name: str, work: Callable[[], Work]) -> None:
        """`name` was built: a clock that is elsewhere fetches it and tries it against full precision meanwhile."""

    def in_turn(self, work: Work, progress: Progress) -> Timed:
        """All variants on the same input in the same round: from input to answer, or the model alone."""

    def footprint(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Footprint:
        """Peak memory and load time of a fresh process that serves an artifact."""

    def close(self) -> None:
        """The run is over."""


class HostBackend:
    """This machine."""

    note = ""

    @property
    def host(self) -> dict[str, Any]:
        """This machine's fingerprint."""
        return host_probe.host_fingerprint()

    @property
    def versions(self) -> dict[str, str]:
        """Installed here."""
        return host_probe.versions()

    def offer(self, name: str, work: Callable[[], Work]) -> None:
        """Nothing: timing beside building would spoil it."""

    def in_turn(self, work: Work, progress: Progress) -> Timed:
        """All variants on the same input in the same round: from input to answer, or the model alone."""
        warnings = latency.quiet_machine()
        progress.start(f"timing {len(work.artifacts)} variants in turn", work.samples)
        runners: dict[str, Runner] = {}
        try:
            calls, failed = _tried(runners, work)
            if not calls:
                return Timed({}, warnings, failed)
            samples = interleaved.time_in_turn(
                {name: interleaved.Replay(each) for name, each in calls.items()},
                min_samples=work.samples,
                warm_seconds=WARM_SECONDS,
                clock=interleaved.settled_ms,
                dominated=lambda so_far: interleaved.certainly_slower(
                    so_far, keep=fastest(so_far, work.full_precision)
                ),
                seed=work.seed,
                progress=lambda: progress.step(),
            )
        finally:
            for runner in runners.values():
                runner.close()
        return Timed(samples, warnings, failed)

    def footprint(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Footprint:
        """Of a process here."""
        return latency.footprint(artifact, inputs, threads)

    def close(self) -> None:
        """Nothing is left."""


def fastest(samples: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[str]:
    """Of some names the one that is fastest by the samples so far; none when none has any."""
    there = [name for name in names if samples.get(name)]
    return sorted(there, key=lambda name: float(np.median(samples[name])))[:1]


def timed_calls(work: Work, runner: Runner) -> list[Callable[[], object]]:
    """A call for each input of a workload, as the bundle makes it: from input to answer where raw items are given."""
    if not work.batches:
        return [timed_call(work.pipeline, runner, one) for one in work.inputs]
    model = Model({"pipeline": dict(work.pipeline)}, work.preprocessor, runner)
    return [partial(model.soonest, batch) for batch in work.batches]


def measured(
    pipeline: Pipeline, runner: Runner, inputs: Sequence[Mapping[str, np.ndarray]]
) -> list[Mapping[str, np.ndarray]]:
    """Inputs of one call to look into: `inputs`, or for networks that make tokens one step of decoding after each."""
    return [timed_inputs(pipeline, runner, one) for one in inputs]


def _tried(runners: dict[str, Runner], work: Work) -> tuple[dict[str, list[Callable[[], object]]], dict[str, str]]:
    """(The calls of every variant that could be opened, into `runners`, and make each call once; why others could not: VITS in
    bfloat16 meets negative discriminants, say)."""
    calls: dict[str, list[Callable[[], object]]] = {}
    failed: dict[str, str] = {}
    for name, artifact in work.artifacts.items():
        step = "be opened"
        try:
            runners[name] = _open(artifact, work.threads)
            step = "compute what is timed"
            made = timed_calls(work, runners[name])
            for call in made[:1] if name in work.timed_before else made:
                call()
        except Exception as error:  # runtimes have classes of their own
            first = (str(error).strip().splitlines() or [""])[0]
            failed[name] = f"it cannot {step}: {type(error).__name__}: {first[:160]}"
            continue
        calls[name] = made
    return calls, failed


def _open(artifact: Artifact, threads: int) -> Runner:
    runner: Runner = plugins.find("runtimes", artifact.runtime).open(artifact, threads)
    return runner
