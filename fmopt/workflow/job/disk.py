"""What a run takes on disk: whether there is room, and what is dropped: stages on the way when the bundle is written, all of them
by `clean`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fmopt.core import formatting
from fmopt.core.errors import StoreError
from fmopt.core.results import Frozen
from fmopt.core.stages.seals import remove
from fmopt.core.stages.store import MARKER, own_folder
from fmopt.reports.run_status import FOLDER as RUNNING
from fmopt.workflow.search.builder import CHECKPOINT

STAGES = "stages"
SHARED = "shared"  # folder, among a run's stages, of what the nodes of this machine share while it lasts
# Stages that others were made of, and that nothing reads once these are there: graphs on the way to what a runtime opens,
# networks that were only timed, what a teacher said.
ON_THE_WAY = ("graph-", "program-", "timed-", "teacher-")


class Cleaned(Frozen):
    """What `clean` did."""

    folder: str
    freed_bytes: int
    stages: int


def clean(out: str | Path) -> Cleaned:
    """Remove the finished stages of `out` and what a broken-off run left there; bundle, record and report stay.

    StoreError for a folder that fmopt did not make, or that another fmopt works in.
    """
    out = Path(out)
    if not (out / MARKER).is_file():
        raise StoreError(f"{out} was not made by fmopt; nothing was touched")
    with own_folder(out):
        before = disk_bytes(out)
        folders = [path for path in (out / STAGES, out / RUNNING) if path.is_dir()]
        stages = sum(1 for path in _stages(out / STAGES))
        for folder in folders:
            shutil.rmtree(folder)
        return Cleaned(folder=str(out), freed_bytes=before - disk_bytes(out), stages=stages)


def require_room(out: Path, stages: Path, needed_bytes: float) -> None:
    """StoreError when the disk of `out` has not the room that a run will take, less what its stages have already."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free, left = shutil.disk_usage(there).free, needed_bytes - (disk_bytes(stages) if stages.is_dir() else 0)
    if left > free:
        raise StoreError(
            f"about {formatting.size(left)} are needed in {out} and {formatting.size(free)} are free; make room, or choose "
            "another folder with --output"
        )


def drop_on_the_way(stages: Path) -> int:
    """Remove stages that nothing reads any more; bytes that are free again. Those with networks in them stay: they may have been
    trained, and are what pruning goes on from."""
    before = disk_bytes(stages)
    for folder in _stages(stages):
        if folder.name.startswith(ON_THE_WAY) and not any(folder.glob(f"{CHECKPOINT}-*")):
            remove(folder)
    return before - disk_bytes(stages)


def drop_shared(stages: Path) -> None:
    """Remove what nodes of this machine shared: the run has all of it in its own stages."""
    shutil.rmtree(stages / SHARED, ignore_errors=True)


def disk_bytes(folder: Path) -> int:
    """Bytes of all files in a folder; one that has several names counts once."""
    found: dict[tuple[int, int], int] = {}
    for root, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):  # gone meanwhile
                one = (Path(root) / name).lstat()
                found[one.st_dev, one.st_ino] = one.st_size
    return sum(found.values())


def _stages(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*")) if path.is_dir() and not path.is_symlink())
