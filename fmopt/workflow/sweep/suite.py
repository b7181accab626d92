"""`fmopt sweep`: every cell of a plan, one after the other, with a page in the end; a finished trial is not done twice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from fmopt.core.errors import BundleError, ClusterError, ConfigError, FmoptError, StoreError
from fmopt.core.progress import Progress, Silent
from fmopt.core.stages.store import own_folder
from fmopt.evaluation import gate
from fmopt.measurement import host_probe
from fmopt.workflow.job.disk import drop_on_the_way
from fmopt.workflow.job.prepare import prepare
from fmopt.workflow.sweep.page import write_sweep
from fmopt.workflow.sweep.plan import Place, SweepPlan, places, read_plan, request_of, same_search
from fmopt.workflow.sweep.record import FILE, Cell, Failure, Sweep

OTHERS = ("record.json", "fmopt.json", "benchmark.json")  # what other commands leave in a folder
FAILED = 2  # exit code of a cell that came to nothing
ENDS_ALL = (StoreError, ClusterError)  # no fault of a cell: the next one would meet it too


def sweep(
    plan: str | Path | SweepPlan,
    *,
    out: str | Path = "fmopt-sweep",
    command: str = "",
    progress: Progress | None = None,
) -> Sweep:
    """Search every cell of a plan further than `optimize` does; the same call again goes on.

    Arguments:
        plan: a TOML file of models, targets and data, or a `SweepPlan`.
        out: the folder of the page, of a bundle for each cell, and of the trials that are resumed.
        command: how the results say that they were asked for.
        progress: gets a line for each trial.

    Returns the `Sweep`, which is in `out`/sweep.json too. Raises ConfigError, CheckpointError, DataError or PlanError before any
    work where a cell cannot be as it is asked for; StoreError for a folder that is not for this plan. A cell that breaks later is
    among `failures`, and the others are done.
    """
    require_optuna()
    out, progress = Path(out), progress or Silent()
    asked = plan if isinstance(plan, SweepPlan) else read_plan(Path(plan))
    cells = places(asked)
    require_own_plan(out, asked)
    check(asked, cells, out, progress)
    with own_folder(out):
        found = Sweep(
            fmopt=host_probe.versions()["fmopt"],
            command=command,
            plan=asked,
            places=cells,
            cells=finished_before(out, cells),
            host=host_probe.host_fingerprint(),
            versions=host_probe.versions(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        found.save(out)
        for number, place in enumerate(cells, 1):
            progress.say(f"cell {number} of {len(cells)}: {place.name}")
            found = with_cell(found, place, out, progress)
            write_sweep(found, out)  # what is done is there to read, whatever comes
        drop_on_the_way(out / "stages")
    return found


def with_cell(found: Sweep, place: Place, out: Path, progress: Progress) -> Sweep:
    """The sweep with one more cell done, or failed with its reason."""
    from fmopt.workflow.sweep.cell import sweep_cell  # Optuna: only for those who sweep

    try:
        job = prepare(request_of(found.plan, place, out, found.command))
        cell = sweep_cell(job, found.plan, place, out, progress)
    except ENDS_ALL:
        raise
    except FmoptError as error:
        progress.say(f"{place.name} failed: {error}")
        return found.model_copy(update={"failures": [*found.failures, Failure(place=place, reason=str(error))]})
    others = [one for one in found.cells if one.place != place]
    return found.model_copy(update={"cells": sorted([*others, cell], key=lambda one: found.places.index(one.place))})


def finished_before(out: Path, cells: Sequence[Place]) -> list[Cell]:
    """Cells that an earlier call finished: shown until they are looked at again, which takes seconds."""
    return [one for one in Sweep.load(out).cells if one.place in cells] if (out / FILE).is_file() else []


def check(plan: SweepPlan, cells: Sequence[Place], out: Path, progress: Progress) -> None:
    """Look every cell up before any work, so that the last one's wrong name is not said after hours of the first."""
    for place in cells:
        progress.start(f"looking {place.name} up", 1)
        try:
            job = prepare(request_of(plan, place, out, ""))
        except FmoptError as error:
            raise type(error)(f"{place.name}: {error}") from error
        with closing(job.executor), closing(job.clock):
            progress.step()
    progress.stop()


def require_optuna() -> None:
    """ConfigError, with the way out, where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise ConfigError("fmopt sweep searches by Optuna, which is not installed: pip install 'fmopt[sweep]'")


def require_own_plan(out: Path, plan: SweepPlan) -> None:
    """ConfigError for a folder that holds something else, or the sweep of another plan."""
    if any((out / name).exists() for name in OTHERS):
        raise ConfigError(f"{out} holds what another command of fmopt made; choose another --output")
    if not (out / FILE).is_file():
        return
    try:
        before = Sweep.load(out)
    except BundleError as error:
        raise StoreError(str(error)) from error
    if not same_search(before.plan, plan):
        raise ConfigError(f"{out} holds the sweep of another plan; choose another --output, or remove it")


def exit_code(found: Sweep) -> int:
    """The worst of all cells: one that came to nothing, a gate that failed, one not measured, one undecided."""
    accept = found.plan.budget.accept_undecided
    codes = {gate.exit_code(cell.verdict, accept_undecided=accept) for cell in found.cells}
    codes |= {FAILED} if found.failures else set()
    return next((code for code in (FAILED, 1, 4, 3) if code in codes), 0)
