"""What a run wrote down of its own files, so that it believes them later: their sha256, and that nobody else could write them.

A seal shows damage (a bad disk, a file exchanged or cut), not who did it: whoever can write a file can write its seal too.
That is why a folder that others can write is not taken at all.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from fmopt.core.errors import StoreError
from fmopt.core.model import file_digest
from fmopt.edge.host import writable_by_others

FILES = "files.json"  # in a sealed folder
SEAL = ".sha256"  # after the name of a sealed file
CHANGED, GONE, UNKNOWN = "changed", "missing", "not one of its files"


def seal(path: Path) -> None:
    """Write down the sha256 of a finished file beside it, of all files of a finished folder in it."""
    if path.is_dir():
        found = {name: file_digest(path / name) for name in _files(path)}
        (path / FILES).write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
    else:
        _seal_of(path).write_text(file_digest(path), encoding="utf-8")


def sealed(folder: Path) -> dict[str, str]:
    """sha256 of every file of a sealed folder by its path in it; empty for a folder without a seal that can be read."""
    try:
        found = json.loads((folder / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    fits = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if fits else {}


def damage(path: Path) -> str:
    """How a file or folder differs from what was sealed, in a few words; empty when it does not."""
    if path.is_symlink():
        return "it is a link"
    if path.is_dir() and (reason := writable_by_others(path)):  # of a file, its folder says who could exchange it
        return reason
    if path.is_file():
        seal_file = _seal_of(path)
        try:
            fits = not seal_file.is_symlink() and seal_file.read_text(encoding="utf-8") == file_digest(path)
        except (OSError, UnicodeDecodeError):
            return "nothing is written down of it"
        return "" if fits else CHANGED
    known = sealed(path)
    if not known:
        return "nothing is written down of its files"
    try:
        there = _files(path)
    except StoreError as error:
        return str(error)
    for name in sorted({*known, *there}):
        if name not in there:
            return f"{name} is {GONE}"
        if name not in known:
            return f"{name} is {UNKNOWN}"
        if file_digest(path / name) != known[name]:
            return f"{name} is {CHANGED}"
    return ""


def reusable(path: Path, say: Callable[[str], object]) -> bool:
    """Whether a file or folder is there as it was sealed. What is damaged is removed, and said in one line."""
    if not path.exists() and not path.is_symlink():
        return False
    what = damage(path)
    if not what:
        return True
    say(f"{path.name} is made again: {what}")
    remove(path)
    return False


def remove(path: Path) -> None:
    """Remove a file with its seal, or a folder; never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        # under another name first: a kill in between leaves nothing that looks finished
        gone = path.with_name(f"unfinished-{os.getpid()}-{path.name}")
        path.rename(gone)
        remove_half(gone)
    else:
        path.unlink(missing_ok=True)
        _seal_of(path).unlink(missing_ok=True)


def remove_half(path: Path) -> None:
    """Remove what nobody takes for finished; never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def require_own(folder: Path, way_out: str) -> None:
    """StoreError for a folder that is a link, or that other users can write: what lies in it may be anybody's."""
    if folder.is_symlink():
        raise StoreError(f"{folder} is a link; {way_out}")
    reason = writable_by_others(folder)
    if reason:
        raise StoreError(f"{folder} is not taken: {reason}, and so what lies in it; {way_out}")


def _seal_of(path: Path) -> Path:
    return path.with_name(path.name + SEAL)


def _files(folder: Path) -> set[str]:
    """Paths of all files in a folder but its seal; StoreError for anything else than plain files and folders."""
    found: set[str] = set()
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            mode = path.lstat().st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise StoreError(f"{path.relative_to(folder)} is no plain file")
        found |= {(Path(root) / name).relative_to(folder).as_posix() for name in files}
    return found - {FILES}
