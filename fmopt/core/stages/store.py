"""Stage results on disk, keyed by content: what was finished is never done twice, what was not never looks finished.

A stage is a folder `NAME-HASH` under `stages/`, HASH being sha256 over everything that the stage depends on. It is made
under a temporary name and renamed into place when whole, so that a kill at any moment loses at most the running stage. It keeps
the sha256 of its files, by which it is checked before it is used again; files of the same content are one file on disk.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fmopt.core.errors import FmoptError, StoreError
from fmopt.core.model import file_digest
from fmopt.core.stages import seals
from fmopt.core.stages.shared import SharedStages

MARKER = ".fmopt"  # says that a folder is ours
LOCK = ".fmopt.lock"
KEY = "key.json"  # of a stage: what it depends on
SHARED_BYTES = 64 << 10  # smaller files are not worth a link
NO_ROOM_BYTES = 64 << 10  # a disk with less is full, whatever a library says
OTHER_FOLDER = "choose another folder with --output"
_UNFINISHED = "unfinished-"
_VALUE = "value.json"


class Store:
    """Finished stages of one output folder; `say` gets one line for each that is made again because it is damaged.

    With `shared`, a stage that is not here is taken from there, and one that was made here is left there too.
    """

    def __init__(
        self, root: Path, say: Callable[[str], object] = lambda line: None, shared: SharedStages | None = None
    ) -> None:
        self.root, self.say, self.shared = root, say, shared
        self.made: list[str] = []  # names of the stages that this run made
        self.fetched: list[str] = []  # and of those that it took from the shared ones
        root.mkdir(parents=True, exist_ok=True, mode=0o755)
        seals.require_own(root, OTHER_FOLDER)
        for pattern in (f"{_UNFINISHED}*", "*.part"):  # of a killed run; the folder's lock says that nobody uses it
            for left_over in root.glob(pattern):
                seals.remove_half(left_over)
        forget_halves(root)
        for path in sorted(root.iterdir()):  # each file is read once, also of stages that this run may not need
            if (path / KEY).is_file() or (path / seals.FILES).is_file():
                seals.reusable(path, say)
        self._by_content: dict[str, Path] | None = None

    def folder(self, name: str, key: Mapping[str, Any], make: Callable[[Path], object]) -> Path:
        """The finished stage `name` for `key`; `make(folder)` fills it if there is none yet, or none that is whole."""
        place = self.place(name, key)
        if self.has(name, key):
            return place
        with disk_errors(place):
            if not self._fetched(place, _key_digest(key)):
                self._make(place, key, make)
        self._known().update({digest: place / path for path, digest in seals.sealed(place).items()})
        return place

    def bring(self, stage: str, key_sha256: str) -> Path:
        """The shared stage of that name, whose `key.json` has that sha256. StoreError where there is none."""
        place = self.root / stage
        if seals.reusable(place, self.say) and file_digest(place / KEY) == key_sha256:
            return place
        with disk_errors(place):
            if not self._fetched(place, key_sha256):
                raise StoreError(f"{stage} is not in the store that all nodes share; run the same command again")
        return place

    def value(self, name: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Like `folder` for a JSON-able value."""

        def write(folder: Path) -> None:
            (folder / _VALUE).write_text(json.dumps(make()))

        return json.loads((self.folder(name, key, write) / _VALUE).read_text())

    def place(self, name: str, key: Mapping[str, Any]) -> Path:
        """Where a stage is once it is finished; its name identifies what it holds."""
        return self.root / f"{name}-{content_key(name, key)[:16]}"

    def has(self, name: str, key: Mapping[str, Any]) -> bool:
        """True when this stage is finished, and as it was then."""
        place = self.place(name, key)
        if not seals.reusable(place, self.say):
            return False
        if (place / KEY).read_text() == _written(key):
            return True
        self.say(f"{place.name} is made again: it holds another stage")
        seals.remove(place)
        return False

    def _make(self, place: Path, key: Mapping[str, Any], make: Callable[[Path], object]) -> None:
        with self._unfinished() as work, disk_errors(work):  # while what was written is there, and the disk as full
            make(work)
            (work / KEY).write_text(_written(key))
            seals.seal(work)
            self.made.append(place.name)
            first = self.shared is None or self.shared.publish(place.name, work)
            # Where another writer was first its stage is taken: two makings may differ in a byte, and all go on from the same.
            if first or not self._fetched(place, _key_digest(key)):
                self._share(work)
                work.rename(place)

    def _fetched(self, place: Path, key_sha256: str) -> bool:
        """Whether the stage was among the shared ones; then it is here now, checked and sealed."""
        if self.shared is None:
            return False
        with self._unfinished() as work:
            if not self.shared.fetch(place.name, KEY, key_sha256, work):
                return False
            seals.seal(work)
            self._share(work)
            work.rename(place)
        self.fetched.append(place.name)
        return True

    @contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A folder to fill, gone when the block ends unless it was renamed."""
        work = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{os.getpid()}-", dir=self.root))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _known(self) -> dict[str, Path]:
        """A file of each content that finished stages say they have."""
        if self._by_content is None:
            self._by_content = {
                digest: folder / path
                for folder in sorted(self.root.iterdir())
                if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith(_UNFINISHED)
                for path, digest in seals.sealed(folder).items()
            }
        return self._by_content

    def _share(self, work: Path) -> None:
        """Large files of a new stage that another stage has too become links to the same bytes."""
        for name, digest in seals.sealed(work).items():
            path, other = work / name, self._known().get(digest)
            if other is None or path.stat().st_size < SHARED_BYTES:
                continue
            try:
                if other.is_symlink() or other.samefile(path) or file_digest(other) != digest:
                    continue
                twin = path.with_name(f"{path.name}.twin")
                os.link(other, twin)
                twin.replace(path)
            except OSError:  # another file system, or one without links: then there are two
                continue


def _written(key: Mapping[str, Any]) -> str:
    return json.dumps(key, indent=1, sort_keys=True, default=str)


def _key_digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(_written(key).encode()).hexdigest()


def content_key(name: str, key: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a key."""
    return hashlib.sha256(json.dumps([name, key], sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk, missing rights and a folder that vanished into one line that says where and what to do, in whatever class
    a library says so."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if is_full(error, where):
            raise StoreError(
                f"the disk of {where.parent} is full; free some space and run the same command again: "
                f"finished stages are kept"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"{where} cannot be written ({error.strerror}); choose another folder with --output"
            ) from error
        lost = error.filename if isinstance(error, FileNotFoundError) else None
        if isinstance(lost, str) and where.parent.absolute() in Path(lost).absolute().parents:
            raise StoreError(
                f"{lost} was removed while fmopt worked with it; run the same command again: "
                "what is missing is made again"
            ) from error
        raise


def is_full(error: BaseException, where: Path) -> bool:
    """Whether an error comes of a full disk: by its number or its words, or by those of what it came from; or because there is no
    room left at `where`, since some libraries say nothing of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(seen).lower() for words in ("no space left on device", "disk quota exceeded")):
            return True
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, FmoptError) and error.__cause__ is None:
        return False  # said by us of something else
    try:
        return shutil.disk_usage(next(one for one in (where, *where.parents) if one.exists())).free < NO_ROOM_BYTES
    except OSError:
        return False


def write_whole(path: Path, text: str) -> Path:
    """Write a text file that is whole or not there, whoever else writes it at the same time. StoreError when it cannot."""
    with disk_errors(path):
        handle, name = tempfile.mkstemp(
            prefix=f".{_UNFINISHED}{path.name}.", dir=path.parent
        )  # exclusive, and no name that can be guessed
        beside = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            beside.chmod(0o666 & ~_umask())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    return path


def forget_halves(folder: Path) -> None:
    """Remove texts that a killed run had not written whole."""
    for left_over in folder.glob(f".{_UNFINISHED}*"):
        seals.remove_half(left_over)


def link_or_copy(file: Path, place: Path) -> None:
    """`place` as a further name of what `file` is or leads to, where the disk has such; else a copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), place)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(file, place)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A new empty folder on the disk of `out`, under a name that nobody can guess, gone when the block ends.

    What a killed run of ours left there is removed first.
    """
    begins = f".fmopt-making-{out.name[:64]}-"
    parent = out.absolute().parent
    with disk_errors(out):
        _make(parent)
        for left_over in parent.glob(f"{glob.escape(begins)}*-*"):
            owner = left_over.name.removeprefix(begins).partition("-")[0]
            if left_over.is_dir() and not left_over.is_symlink() and _is_ours(left_over) and _has_ended(owner):
                shutil.rmtree(left_over, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f"{begins}{os.getpid()}-", dir=parent))
        try:
            inside = work / "made"
            inside.mkdir()  # with the rights of the umask, which mkdtemp does not look at
            yield inside
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _has_ended(process: str) -> bool:
    """Whether no process of that number runs."""
    if not process.isdecimal() or int(process) >= 1 << 31:
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _is_ours(path: Path) -> bool:
    return not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid()


def _make(folder: Path) -> None:
    """A new folder, or StoreError where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)  # whatever the umask, others do not write in it
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
        seals.require_own(out, OTHER_FOLDER)
        for name in (MARKER, LOCK, "stages"):
            if (out / name).is_symlink():
                raise StoreError(
                    f"{out / name} is a link, which fmopt never makes; nothing was touched. {OTHER_FOLDER}"
                )
        (out / MARKER).touch()
    try:
        with FileLock(out / LOCK, blocking=False):
            forget_halves(out)
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
    with disk_errors(out):
        _make(out.parent)
        work = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{os.getpid()}-", dir=out.parent))
        try:
            work.chmod(0o777 & ~_umask())
            yield work
            if out.is_dir():
                out.rmdir()
            work.rename(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
