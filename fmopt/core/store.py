"""Stage results on disk, keyed by content: what was finished is never done twice, what was not never looks finished.

A stage is a folder `NAME-HASH` under `stages/`, HASH being sha256 over everything that the stage depends on. It is made
under a temporary name and renamed into place when whole, so that a kill at any moment loses at most the running stage.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fmopt.core.errors import StoreError

MARKER = ".fmopt"  # says that a folder is ours
LOCK = ".fmopt.lock"
_UNFINISHED = "unfinished-"
_VALUE = "value.json"


class Store:
    """Finished stages of one output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        for left_over in root.glob(_UNFINISHED + "*"):  # of a killed run; the folder's lock says that nobody uses it
            shutil.rmtree(left_over, ignore_errors=True)

    def folder(self, name: str, key: Mapping[str, Any], make: Callable[[Path], object]) -> Path:
        """The finished stage `name` for `key`; `make(folder)` fills it if there is none yet."""
        digest = content_key(name, key)
        place = self.root / f"{name}-{digest[:16]}"
        if place.is_dir():
            return place
        work = self.root / f"{_UNFINISHED}{os.getpid()}-{place.name}"
        shutil.rmtree(work, ignore_errors=True)
        with disk_errors(work):
            work.mkdir()
            try:
                make(work)
                (work / "key.json").write_text(json.dumps(key, indent=1, sort_keys=True, default=str))
                work.rename(place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        return place

    def value(self, name: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Like `folder` for a JSON-able value."""

        def write(folder: Path) -> None:
            (folder / _VALUE).write_text(json.dumps(make()))

        return json.loads((self.folder(name, key, write) / _VALUE).read_text())

    def has(self, name: str, key: Mapping[str, Any]) -> bool:
        """True when this stage is finished."""
        return (self.root / f"{name}-{content_key(name, key)[:16]}").is_dir()


def content_key(name: str, key: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a key."""
    return hashlib.sha256(json.dumps([name, key], sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk or missing rights into one line that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"the disk of {where.parent} is full; free some space and run the same command again: "
                f"finished stages are kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"{where} cannot be written ({error.strerror}); choose another folder with --output"
            ) from error
        raise


def write_whole(path: Path, text: str) -> Path:
    """Write a text file that is whole or not there, whoever else writes it at the same time. StoreError when it cannot."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    return path


def _make(folder: Path) -> None:
    """A new folder, or StoreError where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
        raise StoreError(f"{folder} cannot be made ({error.strerror}); choose another folder with --output") from error


@contextmanager
def own_folder(out: Path, *, fresh: bool = False) -> Iterator[None]:
    """Hold `out` as ours alone while working in it.

    An empty or new folder becomes ours; one with other people's files is refused; `fresh` forgets our finished stages.
    """
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; choose a folder with --output")
    if out.is_dir() and not (out / MARKER).exists() and any(out.iterdir()):
        raise StoreError(f"{out} is not empty and was not made by fmopt; nothing was touched. Choose another --output")
    with disk_errors(out / MARKER):
        _make(out)
        (out / MARKER).touch()
    try:
        with FileLock(out / LOCK, blocking=False):
            if fresh:
                shutil.rmtree(out / "stages", ignore_errors=True)
            yield
    except Timeout as error:
        raise StoreError(f"another fmopt works in {out}; wait for it, or choose another --output") from error


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` when the block ends well, so that `out` is whole or not there.

    StoreError when `out` holds files already: nobody's work is overwritten.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"{out} is there already and not empty; choose another --output")
    work = out.with_name(f"{_UNFINISHED}{os.getpid()}-{out.name}")
    with disk_errors(out):
        shutil.rmtree(work, ignore_errors=True)
        _make(work)
        try:
            yield work
            if out.is_dir():
                out.rmdir()
            work.rename(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
