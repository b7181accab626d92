"""Bundles on several boards at once: timed in turn on each, judged on each, and one verdict for all of them."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmopt.core import escaping
from fmopt.core.errors import BoardError, ConfigError, FmoptError
from fmopt.core.model import Artifact, CheckpointMetadata
from fmopt.core.progress import Progress, Silent
from fmopt.core.stages.store import Store, disk_errors, own_folder
from fmopt.edge import loading
from fmopt.edge import manifest as edge_manifest
from fmopt.edge.text import open_preprocessor
from fmopt.exporters.bundles import bundle as bundles
from fmopt.exporters.bundles import bundle_readme
from fmopt.measurement import host_probe, latency
from fmopt.measurement.backends import Work
from fmopt.measurement.remote.at_once import Ended, NamedProgress, at_once
from fmopt.measurement.remote.backend import BoardBackend
from fmopt.measurement.remote.device_probe import fingerprint
from fmopt.measurement.remote.inventory import Member, fleet_of
from fmopt.measurement.remote.python_env import ensure_python, versions
from fmopt.measurement.remote.ssh import Board, NotReachedError
from fmopt.reports.html import write_text
from fmopt.workflow.benchmark.fleet_record import BoardResult, FleetBenchmark
from fmopt.workflow.benchmark.matrix import places
from fmopt.workflow.benchmark.page import write_benchmark
from fmopt.workflow.benchmark.record import Benchmark, Cell, Place, SingleStream, Variant
from fmopt.workflow.benchmark.remote import packages, runnable_alone
from fmopt.workflow.benchmark.suite import check_matrix, lengths
from fmopt.workflow.deployed import bench_samples
from fmopt.workflow.search.builder import tool_versions

PATIENCE_S = 120.0  # with a line that was cut, before the board counts as lost and is tried again later
PAUSE_S = 60.0  # before it is, doubled each time: half an hour in all
EDITION = 1  # raised when a cell means something else


def benchmark_fleet(
    boards: Sequence[str],
    models: Sequence[str | Path],
    *,
    out: str | Path,
    batch: Sequence[int] = (1,),
    length: Sequence[int] = (128,),
    threads: Sequence[int] = (1,),
    min_speedup: float | None = None,
    max_latency_ms: float | None = None,
    seed: int = 0,
    clean: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> FleetBenchmark:
    """Bundles on all boards at once, one at a time on each; `boards` are addresses, or one inventory.

    Of several bundles the first is the reference, beside which the others are timed in turn on the same board; they are held to
    `min_speedup` over it (1 if left out), and all to `max_latency_ms`, the median. The record, and each board's own under
    `boards/`, are in `out`; the same call again does what is missing. ConfigError, BundleError or BoardError, in one line, for
    what cannot be, before any work; a board that does not answer is tried again, and is in the record as lost.
    """
    out, progress = Path(out), progress or Silent()
    if any((out / name).exists() for name in ("record.json", "fmopt.json")):
        raise ConfigError(f"{out} holds what `fmopt optimize` or `export` made; choose another --output")
    entrants = _entrants([Path(model) for model in models])
    if len(entrants) == 1 and min_speedup is not None:
        raise ConfigError("--min-speedup is over a reference; name its bundle first")
    if len(entrants) > 1 and min_speedup is None and max_latency_ms is None:
        min_speedup = 1.0
    check_matrix([one.variant.name for one in entrants], {one.variant.name: one.metadata for one in entrants}, length)
    asked = places(("single-stream",), batch, lengths([one.metadata.pipeline for one in entrants], length), threads)
    with tempfile.TemporaryDirectory(prefix="fmopt-fleet-") as keys:
        fleet = fleet_of(boards, Path(keys))
        with own_folder(out), disk_errors(out / "stages"):
            bench = _FleetBench(entrants, asked, seed, clean, Store(out / "stages", progress.say), progress)
            bench.greet(fleet.members)
            progress.start(
                f"timing {len(entrants)} bundles on {len(fleet.members)} boards", len(asked) * len(fleet.members)
            )
            ended = at_once({one.name: bench.work(one) for one in fleet.members}, bench.say, pause_s=PAUSE_S)
            progress.stop()
            found = FleetBenchmark(
                fmopt=host_probe.versions()["fmopt"], command=command, variants=[one.variant for one in entrants],
                places=asked, require=fleet.require, min_speedup=min_speedup, max_latency_ms=max_latency_ms,
                boards=[_result(one, ended[one.name]) for one in fleet.members], seed=seed,
                date=datetime.now(UTC).isoformat(timespec="seconds"),
            ).judged()  # fmt: skip
            _write(found, out)
    return found


@dataclass(frozen=True)
class _Entrant:
    """A bundle that takes part."""

    folder: Path
    manifest: Mapping[str, Any]
    metadata: CheckpointMetadata
    artifact: Artifact
    variant: Variant

    @property
    def there(self) -> str:
        """Its folder within the board's own."""
        return f"bundles/{self.manifest['digest'][:16]}"


def _entrants(folders: Sequence[Path]) -> list[_Entrant]:
    """Bundles of one model: the same inputs must mean the same to each."""
    made = []
    for folder in folders:
        manifest, artifact = runnable_alone(folder), bundles.bundle_artifact(folder)
        variant = Variant(
            name=str(folder), runtime=artifact.runtime, precision=bundles.bundle_precision(folder),
            size_bytes=artifact.size_bytes, digest=artifact.digest,
        )  # fmt: skip
        made.append(_Entrant(folder, manifest, bundles.bundle_metadata(folder), artifact, variant))
    for one in made[1:]:
        if dict(one.metadata.pipeline) != dict(made[0].metadata.pipeline):
            raise ConfigError(
                f"{one.folder} takes other inputs than {made[0].folder}; on several boards bundles of one model are timed in turn"
            )
    return made


@dataclass
class _FleetBench:
    """What all boards share."""

    entrants: Sequence[_Entrant]
    asked: Sequence[Place]
    seed: int
    clean: bool
    store: Store
    progress: Progress
    lock: threading.Lock = field(default_factory=threading.Lock)  # of the store and the progress

    def say(self, text: str) -> None:
        """A line, from any board's thread."""
        with self.lock:
            self.progress.say(escaping.one_line(text))

    def greet(self, members: Sequence[Member]) -> None:
        """BoardError before any work for a board that cannot be used as it is listed: another host key, no key let in, no Python.
        One that does not answer may do so later."""
        asked = {one.name: self._board(one).greet for one in members if not self._finished(one)}
        for name, one in at_once(asked, self.say, pause_s=0, tries=1).items():
            if one.state == "refused":
                raise BoardError(f"board {name}: {one.reason}; mend it, or leave it out")

    def work(self, member: Member) -> Callable[[], dict[str, Any]]:
        """All of one board, found finished or done now."""

        def whole() -> dict[str, Any]:
            if not self._finished(member):
                got = self._measure(member)
                with self.lock:
                    self.store.value("board", self._key(member), lambda: got)
            if self.clean:
                self._clean(member)
            with self.lock:
                found: dict[str, Any] = self.store.value("board", self._key(member), dict)
            return found

        return whole

    def _board(self, member: Member) -> Board:
        return Board(member.address, NamedProgress(member.name, self.progress, self.lock), PATIENCE_S)

    def _finished(self, member: Member) -> bool:
        with self.lock:
            return self.store.has("board", self._key(member))

    def _key(self, member: Member) -> dict[str, Any]:
        return {
            "edition": EDITION,
            "address": str(member.address),
            "variants": [one.variant.model_dump() for one in self.entrants],
            "manifests": [one.manifest["digest"] for one in self.entrants],
            "seed": self.seed,
            "places": [place.model_dump() for place in self.asked],
            **tool_versions(),
        }

    def _measure(self, member: Member) -> dict[str, Any]:
        """One board: what fits goes there, answers its golden items, and is timed in turn."""
        board = self._board(member)
        place = board.greet()
        host = fingerprint(board.ask("describe"))
        refused = {one.variant.name: why for one in self.entrants if (why := _lacks(one, host))}
        for name, reason in refused.items():
            board.progress.say(f"{name} is not tried there: {reason}")
        there = [one for one in self.entrants if one.variant.name not in refused]
        if not there:
            raise BoardError(f"no bundle fits {member.address}: {next(iter(refused.values()))}")
        needs: dict[str, str | None] = {}
        for one in there:
            needs |= packages(one.manifest, bundle_readme.readers(one.metadata))
        python = ensure_python(board, place, needs)
        for one in there:
            names = [*one.manifest["files"], edge_manifest.MANIFEST]
            board.send({f"{one.there}/{name}": one.folder / name for name in names})
        differs = {
            one.variant.name: _differs(board, python, one)
            for one in there
            if edge_manifest.GOLDEN in one.manifest["files"]
        }
        clock = BoardBackend(
            board, python, host, versions(board, python, sorted({one.artifact.runtime for one in there})),
            self.entrants[0].metadata,
            held={one.artifact.digest: f"../{one.there}/{one.manifest['model_file']}" for one in there},
        )  # fmt: skip
        cells = []
        for asked in self.asked:
            cell, failed = self._cell(member, clock, there, asked)
            cells.append(cell)
            refused |= failed
        clock.close()
        return BoardResult(
            name=member.name, address=str(member.address), state="measured", host=host, versions=clock.versions,
            refused=refused, differs=differs, cells=cells,
        ).model_dump(mode="json")  # fmt: skip

    def _cell(
        self, member: Member, clock: BoardBackend, there: Sequence[_Entrant], place: Place
    ) -> tuple[Cell, dict[str, str]]:
        """One shape on one board, found finished or timed now; and variants that do not run at it, with their reasons."""
        key = {**self._key(member), "places": place.model_dump(), "host": clock.host, "there": clock.versions}
        key["timed"] = [one.variant.name for one in there]
        with self.lock:
            finished = self.store.has("cell", key)
        got: dict[str, Any] = {} if finished else self._timed(clock, there, place)
        with self.lock:
            got = self.store.value("cell", key, lambda: got)
            self.progress.step()
        return Cell.model_validate(got["cell"]), got["failed"]

    def _timed(self, clock: BoardBackend, there: Sequence[_Entrant], place: Place) -> dict[str, Any]:
        first = self.entrants[0]
        preprocessor = open_preprocessor(first.folder, dict(first.metadata.pipeline))
        inputs = latency.latency_inputs(
            preprocessor, bench_samples(first.metadata), batch=place.batch, length=place.length, seed=self.seed
        )
        work = Work(
            artifacts={one.variant.name: one.artifact for one in there},
            pipeline=first.metadata.pipeline,
            threads=place.threads,
            seed=self.seed,
            inputs=inputs,
            full_precision=[first.variant.name],  # the reference is timed to the end
        )
        timed = clock.in_turn(work, clock.board.progress)
        # A board may say anything: of what was asked for, times that are times.
        samples = {name: ms for name in work.artifacts if (ms := timed.samples.get(name)) and min(ms) > 0}
        failed = {
            name: timed.failed.get(name, "the board told no times") for name in work.artifacts if name not in samples
        }
        cell = Cell(place=place, measured=SingleStream(samples_ms=samples), warnings=timed.warnings)
        return {"cell": cell.model_dump(mode="json"), "failed": failed}

    def _clean(self, member: Member) -> None:
        """Remove what is left on a board that has nothing more to do; one that fails at that has its results all the same."""
        try:
            board = self._board(member)
            board.greet()
            board.clean()
        except FmoptError as error:
            self.say(f"{member.name} was not cleaned: {error}")


def _lacks(one: _Entrant, host: Mapping[str, Any]) -> str:
    """What of a CPU's features a bundle was judged with a board lacks; empty where it fits, or does not say."""
    warnings = loading.isa_warnings(one.manifest, host["isa"]) if host["isa"] else []
    return str(warnings[0]) if warnings else ""


def _differs(board: Board, python: str, one: _Entrant) -> str:
    """What its own run.py finds wrong with a bundle there, in one line; empty when it answers as it was judged."""
    try:
        board.job(f"verify-{one.manifest['digest'][:16]}", [python, "run.py", "verify"], cwd=one.there)
    except NotReachedError:
        raise
    except BoardError as error:
        return str(error)
    return ""


def _result(member: Member, ended: Ended[dict[str, Any]]) -> BoardResult:
    """What became of a board, under the name that it has in this run."""
    if ended.value is not None:
        return BoardResult.model_validate({**ended.value, "name": member.name})
    return BoardResult(name=member.name, address=str(member.address), state=ended.state, reason=ended.reason)


def _write(found: FleetBenchmark, out: Path) -> None:
    """The fleet's record and page, and each board's own."""
    found.save(out)
    write_text("fleet.md.j2", {"found": found}, out / "fleet.md")
    for board in found.boards:
        timed = [one for one in found.variants if board.timed_everywhere(one.name)]
        if not timed:
            continue
        folder = out / "boards" / board.name
        folder.mkdir(parents=True, exist_ok=True)
        write_benchmark(
            Benchmark(
                fmopt=found.fmopt, command=found.command, variants=timed, places=found.places, cells=board.cells,
                host=board.host, versions=board.versions, seed=found.seed, date=found.date,
            ),
            folder,
        )  # fmt: skip
