"""A bundle's own benchmark on a board: copied there, run there by its run.py, its samples fetched into a record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmopt.core import formatting
from fmopt.core.errors import BoardError, BundleError, ConfigError
from fmopt.core.progress import Progress, Silent
from fmopt.core.results import Latency
from fmopt.core.stages.store import own_folder
from fmopt.edge import loading, runners
from fmopt.edge import manifest as edge_manifest
from fmopt.exporters.bundles import bundle as bundles
from fmopt.exporters.bundles import bundle_readme
from fmopt.measurement import host_probe
from fmopt.measurement.remote.device_probe import fingerprint
from fmopt.measurement.remote.python_env import ensure_python
from fmopt.measurement.remote.ssh import Board, job_name, open_board
from fmopt.workflow.benchmark.matrix import places
from fmopt.workflow.benchmark.page import write_benchmark
from fmopt.workflow.benchmark.record import Benchmark, Cell, Place, SingleStream, Variant
from fmopt.workflow.benchmark.suite import check_matrix, lengths


def benchmark_on(
    url: str,
    bundle: str | Path,
    *,
    out: str | Path,
    batch: Sequence[int] = (1,),
    length: Sequence[int] = (128,),
    threads: Sequence[int] = (1,),
    clean: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> tuple[Benchmark, list[tuple[str, Latency]]]:
    """The record, with the board's identity, and latencies from input to answer too; the record and its page are in `out`.

    Every shape is run.py's own benchmark there. A cut line loses nothing: the run goes on, and its result is fetched when
    the line is back or the same command runs again. With `clean`, nothing is left on the board. ConfigError, BundleError
    or BoardError, in one line, for what cannot be.
    """
    bundle, out, progress = Path(bundle), Path(out), progress or Silent()
    if any((out / name).exists() for name in ("record.json", "fmopt.json")):
        raise ConfigError(f"{out} holds what `fmopt optimize` or `export` made; choose another --output")
    manifest = runnable_alone(bundle)
    metadata = bundles.bundle_metadata(bundle)
    check_matrix([str(bundle)], {str(bundle): metadata}, length)
    asked = places(("single-stream",), batch, lengths([metadata.pipeline], length), threads)
    board, place = open_board(url, progress)
    given = board.ask("describe")
    refuse_isa(board, bundle, manifest, fingerprint(given)["isa"])
    python = ensure_python(board, place, packages(manifest, bundle_readme.readers(metadata)))
    there = f"bundles/{manifest['digest'][:16]}"
    names = [*manifest["files"], edge_manifest.MANIFEST]
    board.send({f"{there}/{name}": bundle / name for name in names})
    artifact = bundles.bundle_artifact(bundle)
    variant = Variant(
        name=str(bundle), runtime=artifact.runtime, precision=bundles.bundle_precision(bundle),
        size_bytes=artifact.size_bytes, digest=artifact.digest,
    )  # fmt: skip
    found = Benchmark(
        fmopt=host_probe.versions()["fmopt"], command=command, variants=[variant], places=asked, cells=[],
        host=fingerprint(given), versions={}, seed=0, date=datetime.now(UTC).isoformat(timespec="seconds"),
        stopped="it was interrupted",
    )  # fmt: skip
    rows: list[tuple[str, Latency]] = []
    with own_folder(out):
        for one in asked:
            got, warnings = bench_there(board, python, there, one)
            rows += latencies(variant.name, one, got)
            cell = Cell(
                place=one,
                measured=SingleStream(samples_ms={variant.name: got["model"]["samples_ms"]}),
                warnings=warnings,
            )
            found = found.model_copy(update={"cells": [*found.cells, cell], "versions": dict([got["runtime"]])})
            found.save(out)  # what is measured is there to read, whatever comes
        found = found.model_copy(update={"stopped": ""})
        write_benchmark(found, out)
    if clean:
        board.clean()
    return found, rows


def runnable_alone(bundle: Path) -> dict[str, Any]:
    """A bundle's manifest; BundleError for one that run.py alone does not run."""
    if not bundles.is_bundle(bundle):
        raise BundleError(
            f"{bundle} is not a bundle: only what `fmopt optimize` or `export` wrote can run --on a board"
        )
    manifest = bundles.checked(bundle)
    if manifest["runtime"] not in runners.RUNNERS:
        raise BundleError(
            f"{bundle} is for {manifest['runtime']}; on a board runs what run.py opens: {', '.join(runners.RUNNERS)}"
        )
    return manifest


def refuse_isa(board: Board, bundle: Path, manifest: Mapping[str, Any], isa: Sequence[str]) -> None:
    """BoardError when the board's CPU lacks what the graph was judged with; where the system does not say, it may try."""
    warnings = loading.isa_warnings(manifest, isa) if isa else []
    if warnings:
        raise BoardError(f"{bundle} does not fit {board.address}: {warnings[0]}")


def packages(manifest: Mapping[str, Any], readers: Sequence[str]) -> dict[str, str | None]:
    """What run.py imports, in the versions that the bundle was judged with."""
    names = ("numpy", manifest["runtime"], *readers)
    return {name: manifest["versions"].get(name) for name in names}


def bench_there(board: Board, python: str, there: str, place: Place) -> tuple[dict[str, Any], list[str]]:
    """run.py's own benchmark of one shape, and what it warned of."""
    words = ["--batch", str(place.batch), "--threads", str(place.threads)]
    words += ["--length", str(place.length)] if place.length else []
    board.progress.start(f"{board.address.host}: batch {place.batch} × {formatting.tokens(place.length)}", 1)
    name = job_name("bench", there, words)
    out, err = board.job(name, [python, "run.py", "bench", "--json", *words], cwd=there)
    board.progress.step()
    warnings = [line.removeprefix("warning: ") for line in err.splitlines() if line.startswith("warning: ")]
    return dict(json.loads(out.strip().splitlines()[-1])), warnings


def latencies(name: str, place: Place, got: Mapping[str, Any]) -> list[tuple[str, Latency]]:
    """The model alone, then from input to answer."""
    model = Latency(
        samples_ms=got["model"]["samples_ms"], batch=place.batch, length=place.length, threads=got["threads"]
    )
    whole = model.model_copy(update={"samples_ms": got["end_to_end"]["samples_ms"], "length": None, "end_to_end": True})
    return [(name, model), (name, whole)]
