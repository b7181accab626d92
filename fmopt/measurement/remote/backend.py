"""A clock that stands on a board: variants are built and judged for accuracy here, and timed there.

What is built is copied at once and tried there beside full precision, while the next is built here; what the board cannot
run is known before the timing that counts, in which all variants take turns in one process there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import BoardError, ConfigError, FmoptError, UnmeasuredError
from fmopt.core.model import Artifact, CheckpointMetadata, model_files
from fmopt.core.progress import Progress, Silent
from fmopt.core.results import Footprint
from fmopt.core.target import Target, read_target
from fmopt.edge import loading
from fmopt.edge import manifest as edge_manifest
from fmopt.edge import parts as edge_parts
from fmopt.exporters.bundles.bundle_readme import readers
from fmopt.exporters.bundles.bundle_writer import ENCODERS
from fmopt.measurement.backends import Timed, Work
from fmopt.measurement.remote.answers import Times, last_of
from fmopt.measurement.remote.device_probe import RUNTIMES, fingerprint, probe_board
from fmopt.measurement.remote.python_env import ensure_python, imports, versions
from fmopt.measurement.remote.ssh import Board, job_name, open_board

FOLDER = "timer"
TRIED_SAMPLES, TRIED_SECONDS = 40, 5.0  # of the first try of a variant, while the next is built


@dataclass
class BoardBackend:
    """Times on one board. Its files are in the board's own folder, each artifact once, by its content."""

    board: Board
    python: str  # a Python there that imports the runtimes
    host: dict[str, Any]
    versions: dict[str, str]
    metadata: CheckpointMetadata
    clean: bool = False
    held: Mapping[str, str] = field(default_factory=dict)  # digest → file, from `FOLDER`, of what was sent before
    tries: dict[str, Future[Timed]] = field(default_factory=dict)
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @property
    def note(self) -> str:
        """What a record says of it."""
        runtimes = " and ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"latencies, memory and load times are those of a board reached over ssh ({self.host['cpu']}, "
            f"{self.host['arch']}), with {runtimes}; graphs were built and judged for accuracy on another machine"
        )

    def offer(self, name: str, work: Callable[[], Work]) -> None:
        """Copy it and try it there, behind what is built meanwhile."""
        asked = work()
        quiet = replace(self.board, progress=Silent())
        self.tries[name] = self.worker.submit(self._timed, quiet, asked, TRIED_SAMPLES, TRIED_SECONDS)

    def in_turn(self, work: Work, progress: Progress) -> Timed:
        """All variants on the same input in the same round; those that failed their first try there are not timed again."""
        failed: dict[str, str] = {}
        for name in work.artifacts:
            if name not in self.tries:
                continue
            progress.start(f"waiting for {name} on {self.board.address.host}", 1)
            tried = self.tries.pop(name).result()
            failed |= {one: why for one, why in tried.failed.items() if one == name}
            progress.say(tried_words(name, tried))
        left = {name: one for name, one in work.artifacts.items() if name not in failed}
        progress.start(f"timing {len(left)} variants in turn on {self.board.address.host}", 1)
        got = self._timed(replace(self.board, progress=progress), replace(work, artifacts=left), work.samples, None)
        progress.step()
        return replace(
            got, failed=got.failed | {name: f"on {self.board.address}: {why}" for name, why in failed.items()}
        )

    def footprint(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Footprint:
        """Of a process there that only serves it."""
        with tempfile.TemporaryDirectory(prefix="fmopt-board-") as scratch:
            files = self._programs() | artifact_files(artifact) | input_files([inputs], Path(scratch))
            self.board.send(files)
        request = {**opened_by(artifact), "threads": threads, "inputs": next(name for name in files if ".npz" in name)}
        request["inputs"] = request["inputs"].removeprefix(f"{FOLDER}/")
        argv = [self.python, "-m", "edge.board.footprint", json.dumps(request)]
        try:
            out, _ = self.board.job(job_name("serve", request), argv, cwd=FOLDER)
        except BoardError as error:
            raise UnmeasuredError(f"{artifact.path} could not be served: {error}") from error
        return last_of(out, Footprint, self.board.address)

    def close(self) -> None:
        """Nothing more is tried; with `clean`, nothing is left there."""
        self.worker.shutdown(wait=True, cancel_futures=True)  # what runs there would write into what is removed
        if self.clean:
            self.board.clean()

    def _timed(self, board: Board, work: Work, samples: int, seconds: float | None) -> Timed:
        """One program there."""
        with tempfile.TemporaryDirectory(prefix="fmopt-board-") as scratch:
            files = self._programs() | input_files(work.inputs, Path(scratch))
            inputs = [name.removeprefix(f"{FOLDER}/") for name in files if name.endswith(".npz")]
            if work.batches:
                files |= {f"{FOLDER}/{path.name}": path for path in self._encoders()}
            for artifact in work.artifacts.values():
                files |= {} if artifact.digest in self.held else artifact_files(artifact)
            request = {
                "variants": {name: self._opened_by(artifact) for name, artifact in work.artifacts.items()},
                "pipeline": dict(work.pipeline),
                "inputs": inputs,
                "batches": [[loading.sample_to_json(sample) for sample in batch] for batch in work.batches],
                "reader": ".",
                "threads": work.threads,
                "seed": work.seed,
                "full_precision": list(work.full_precision),
                "min_samples": samples,
                "max_seconds": seconds,
            }
            name = job_name("time", request)
            asked = Path(scratch) / f"{name}.json"
            asked.write_text(json.dumps(request), encoding="utf-8")
            board.send({**files, f"{FOLDER}/{asked.name}": asked})
        out, _ = board.job(name, [self.python, "-m", "edge.board.timer", f"{name}.json"], cwd=FOLDER)
        board.ask("remove", name=f"{FOLDER}/{name}.json")
        times = last_of(out, Times, board.address)
        return Timed(samples=times.samples, warnings=times.warnings, failed=times.failed)

    def _opened_by(self, artifact: Artifact) -> dict[str, Any]:
        """How a runner there opens it; one that was sent before from where it is."""
        there = opened_by(artifact)
        return {**there, "path": self.held.get(artifact.digest, there["path"])}

    def _programs(self) -> dict[str, Path]:
        """What runs there: a copy of fmopt/edge, without what this task does not need."""
        package = Path(edge_parts.__file__).parent
        board = [package / "board" / f"{name}.py" for name in ("__init__", "interleaved", "timer", "footprint")]
        files = [*edge_parts.module_files(self.metadata.pipeline, "onnxruntime"), *board]
        return {f"{FOLDER}/edge/{path.relative_to(package).as_posix()}": path for path in files}

    def _encoders(self) -> list[Path]:
        return [path for name in ENCODERS if (path := self.metadata.folder / name).is_file()]


def tried_words(name: str, tried: Timed) -> str:
    """What a first try came to."""
    if name in tried.failed:
        return f"{name} does not run there: {tried.failed[name]}"
    medians = {one: float(np.median(ms)) for one, ms in tried.samples.items()}
    against = "".join(f", {one} {ms:.2f} ms" for one, ms in medians.items() if one != name)
    return f"{name} runs there: {medians[name]:.2f} ms{against}"


def opened_by(artifact: Artifact) -> dict[str, Any]:
    """How a runner there opens it, from the timer's folder."""
    return {
        "runtime": artifact.runtime,
        "path": f"artifacts/{artifact.digest[:16]}/{artifact.path.name}",
        "options": dict(artifact.options),
    }


def artifact_files(artifact: Artifact) -> dict[str, Path]:
    """Its files by their names there."""
    return {f"{FOLDER}/artifacts/{artifact.digest[:16]}/{path.name}": path for path in model_files(artifact.path)}


def input_files(inputs: Sequence[Mapping[str, np.ndarray]], scratch: Path) -> dict[str, Path]:
    """Inputs, written here, by their names there; the same inputs have the same name."""
    found = {}
    for number, arrays in enumerate(inputs):
        path = scratch / f"{number}.npz"
        np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
        found[f"{FOLDER}/inputs/{edge_manifest.sha256_file(path)[:16]}.npz"] = path
    return found


def board_target(
    url: str, name: str, metadata: CheckpointMetadata, *, clean: bool = False, progress: Progress | None = None
) -> tuple[Target, BoardBackend]:
    """The board as a target, probed where `name` is "host", and its clock.

    ConfigError for a target whose instruction set the board lacks; BoardError for a board that cannot be used.
    """
    board, place = open_board(url, progress)
    wanted = dict.fromkeys(("numpy", *RUNTIMES, *readers(metadata)))
    try:
        python = ensure_python(board, place, wanted)
    except FmoptError:  # ONNX Runtime alone, where there are no wheels of both
        python = ensure_python(board, place, {name: None for name in wanted if name != "openvino"})
    host = fingerprint(board.ask("describe"))
    if name == "host":
        target = probe_board(board, place)
    else:
        target = read_target(name)
        refuse_target(target, board, host)
        target = target.model_copy(update={"present": True, "over_ssh": True})
    known = [runtime for runtime in target.runtimes if runtime in RUNTIMES and imports(board, python, {runtime: None})]
    target = target.model_copy(update={"runtimes": tuple(known)})
    return target, BoardBackend(board, python, host, versions(board, python, known), metadata, clean)


def refuse_target(target: Target, board: Board, host: Mapping[str, Any]) -> None:
    """ConfigError when what is planned for a target would not run on the board."""
    lacks = sorted(set(target.isa) - set(host["isa"]))
    if target.arch != host["arch"]:
        raise ConfigError(
            f"{board.address} is {host['arch']} ({host['cpu']}) and target {target.name} is {target.arch}; leave --target "
            "out to probe the board"
        )
    if lacks and host["isa"]:
        raise ConfigError(
            f"{board.address} ({host['cpu']}) lacks {', '.join(lacks)}, which target {target.name} has; leave --target out "
            "to probe the board"
        )
