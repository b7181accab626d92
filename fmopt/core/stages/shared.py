"""Finished stages that several folders and machines share: a folder, or an object store behind an fsspec URL (`s3://`).

A stage there is a manifest, `stages/NAME-HASH.json`, that names its files by their sha256, and the files, each once under
`blobs/`, by that sha256. Files come first and the manifest last, each of them whole or not there, so that a stage is there
completely or not at all, however many write at once: the first manifest stays.

Whatever comes from there is hostile until checked: names, sizes and the sha256 of every file, before any of it is used. That
shows damage, not who did it: who can write there can write stages, which is why a folder that others can write is not taken,
and why a bucket wants rights of its own (docs/security.md).
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Protocol, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fmopt.core.errors import ConfigError, StoreError, first_fault
from fmopt.core.model import file_digest
from fmopt.core.stages import seals
from fmopt.edge.errors import EdgeError
from fmopt.edge.files import parsed

T = TypeVar("T")
MARKER = "fmopt-store.json"  # says that a store is ours, and of which form
FORM = '{"fmopt store": 1}'
TIMEOUT_S = 30.0  # without a byte more
MANIFEST_BYTES = 16 << 20  # more is no manifest of ours
MOST_FILES = 100_000
BLOCK = 1 << 20
PART = 8 << 20  # of an upload: so often it tells that it moves
OLD_S = 24 * 3600.0  # after which a file that was never finished belongs to nobody who still writes
_UNFINISHED = ".unfinished-"


class FileEntry(BaseModel):
    """A file of a stage."""

    model_config = ConfigDict(extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, le=1 << 50)]


Manifest = TypeAdapter(dict[str, FileEntry])


class NotFoundError(Exception):
    """There is no object of that name."""


class AlreadyExistsError(Exception):
    """Another writer was first."""


class ObjectStore(Protocol):
    """Named files somewhere; each is whole or not there. Whatever else they raise means that they cannot be used now."""

    def get(self, name: str, place: Path, limit: int, moved: Callable[[], None]) -> None:
        """Copy one to `place`; NotFoundError where there is none. Never more than `limit` bytes and a block."""

    def put(self, file: Path, name: str, *, replace: bool, moved: Callable[[], None]) -> None:
        """Copy a file there; AlreadyExistsError where there is one already and it is not to be replaced."""


class Folder:
    """A folder of this machine, or one that several mount."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if root.is_dir() and not (root / MARKER).exists() and any(root.iterdir()):
            raise StoreError(f"{root} is not empty and no store of fmopt; nothing was touched. Choose another --store")
        for folder in (root, root / "blobs", root / "stages"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            seals.require_own(folder, "choose another folder with --store")
            for left_over in folder.glob(f"{_UNFINISHED}*"):  # of writers that were killed, on whatever machine
                if time.time() - left_over.lstat().st_mtime > OLD_S:
                    left_over.unlink(missing_ok=True)

    def get(self, name: str, place: Path, limit: int, moved: Callable[[], None]) -> None:
        """Copy one, read without following a link."""
        try:
            source = os.open(self.root / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except FileNotFoundError as error:
            raise NotFoundError(name) from error
        with os.fdopen(source, "rb") as stream:
            _copy(stream, place, limit, moved)

    def put(self, file: Path, name: str, *, replace: bool, moved: Callable[[], None]) -> None:
        """Copy under a name that nobody can guess, then link or rename: both are one step, on NFS too."""
        place = self.root / name
        if not replace and place.exists():
            raise AlreadyExistsError(name)
        handle, beside = tempfile.mkstemp(prefix=_UNFINISHED, dir=place.parent)
        os.close(handle)
        try:
            with file.open("rb") as stream:
                _copy(stream, Path(beside), file.stat().st_size, moved)
            os.chmod(beside, 0o644)
            if replace:
                os.replace(beside, place)
            else:
                os.link(beside, place)  # fails where there is one; a rename would not
        except FileExistsError as error:
            raise AlreadyExistsError(name) from error
        finally:
            Path(beside).unlink(missing_ok=True)


class Bucket:
    """Objects behind an fsspec URL: one is there when its upload is complete."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self.fs, root = fsspec.core.url_to_fs(
                url, config_kwargs={"connect_timeout": 5, "read_timeout": TIMEOUT_S, "retries": {"max_attempts": 2}}
            )
        except ImportError as error:
            raise ConfigError(f"--store {url} needs a library that is missing: pip install 'fmopt[cluster]'") from error
        self.root = root.rstrip("/")

    def get(self, name: str, place: Path, limit: int, moved: Callable[[], None]) -> None:
        """Download one that is as large as it should be."""
        try:
            if int(self.fs.info(f"{self.root}/{name}")["size"]) > limit:
                raise StoreError(f"{name} is larger than it was")
            self.fs.get_file(f"{self.root}/{name}", str(place), callback=_callback(moved))
        except FileNotFoundError as error:
            raise NotFoundError(name) from error

    def put(self, file: Path, name: str, *, replace: bool, moved: Callable[[], None]) -> None:
        """Upload one; the store itself sees to it that the first writer wins."""
        if not replace and self.fs.exists(f"{self.root}/{name}"):  # before a large file travels for nothing
            raise AlreadyExistsError(name)
        try:
            mode = "overwrite" if replace else "create"
            self.fs.put_file(str(file), f"{self.root}/{name}", mode=mode, chunksize=PART, callback=_callback(moved))
        except FileExistsError as error:
            raise AlreadyExistsError(name) from error
        self.fs.invalidate_cache()  # what it remembers of its own listings is not what others wrote


def open_objects(url: str) -> ObjectStore:
    """What a `--store` names. ConfigError for what cannot be one."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"--store {url}: a file:// URL has three slashes, file:///mnt/stages")
        return Folder(Path(url2pathname(parts.path) if parts.scheme else url).expanduser().absolute())
    if parts.scheme != "s3":
        raise ConfigError(
            f"--store {url}: a store is a folder, file:///FOLDER or s3://BUCKET/PREFIX, not {parts.scheme}://"
        )
    if parts.username or parts.password:
        raise ConfigError(
            "--store: keys do not belong into a URL; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not parts.netloc:
        raise ConfigError(f"--store {url} names no bucket; it is of the form s3://BUCKET/PREFIX")
    return Bucket(url)


class SharedStages:
    """The stages of one `--store`. `say` is told in one line when it cannot be used any more; then the run goes on without.

    ConfigError or StoreError when it cannot be opened, read and written at the start.
    """

    def __init__(self, url: str, say: Callable[[str], object] = lambda line: None) -> None:
        self.url, self.say = url, say
        self.lost = False
        self._damaged: set[str] = set()  # names of objects to be written anew
        try:
            self.objects = self._in_time(lambda moved: open_objects(url))
            self._in_time(self._greet)
        except (ConfigError, StoreError):
            raise
        except Exception as error:
            raise StoreError(
                f"--store {url} cannot be written ({_words(error)}); choose another, or leave it out"
            ) from error

    def fetch(self, stage: str, key_file: str, key_sha256: str, into: Path) -> bool:
        """Bring the stage called `stage`, whose file `key_file` has that sha256, into the empty folder `into`; False where there
        is none that is whole. What is damaged is said, and written anew when it was made again."""
        return bool(self._used(lambda moved: self._fetch(stage, key_file, key_sha256, into, moved)))

    def publish(self, stage: str, folder: Path) -> bool:
        """Write a sealed folder there as the stage of that name; False where another writer was first, whose stage stays."""
        return self._used(lambda moved: self._publish(stage, folder, moved)) is not False

    def _fetch(self, stage: str, key_file: str, key_sha256: str, into: Path, moved: Callable[[], None]) -> bool:
        name = f"stages/{stage}.json"
        try:
            with tempfile.TemporaryDirectory(dir=into.parent, prefix="unfinished-") as scratch:
                text = Path(scratch) / "manifest"
                self.objects.get(name, text, MANIFEST_BYTES, moved)
                files = read_manifest(text, key_file, key_sha256)
            for path, file in files.items():
                blob, place = f"blobs/{file.sha256}", into / path
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self.objects.get(blob, place, file.bytes, moved)
                    if file_digest(place) != file.sha256:
                        raise StoreError(f"{path} is {seals.CHANGED}")
                except (NotFoundError, StoreError) as error:
                    self._damaged.add(blob)
                    raise StoreError(
                        f"{path} is {seals.GONE}" if isinstance(error, NotFoundError) else str(error)
                    ) from error
        except NotFoundError:
            return False
        except StoreError as error:
            self._damaged.add(name)
            self.say(f"{stage} of {self.url} is made again: {error}")
            return False
        return True

    def _publish(self, stage: str, folder: Path, moved: Callable[[], None]) -> bool:
        files = seals.sealed(folder)
        for path, digest in files.items():
            blob = f"blobs/{digest}"
            try:
                self.objects.put(folder / path, blob, replace=blob in self._damaged, moved=moved)
            except AlreadyExistsError:
                continue  # of the same content
        described = {
            path: {"sha256": digest, "bytes": (folder / path).stat().st_size} for path, digest in files.items()
        }
        name = f"stages/{stage}.json"
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished-") as scratch:
            text = Path(scratch) / "manifest"
            text.write_text(json.dumps(described, indent=1, sort_keys=True), encoding="utf-8")
            try:
                self.objects.put(text, name, replace=name in self._damaged, moved=moved)
            except AlreadyExistsError:
                return False
        return True

    def _greet(self, moved: Callable[[], None]) -> None:
        """See that the store is of our form, and that it can be written."""
        with tempfile.TemporaryDirectory(prefix="fmopt-store-") as scratch:
            there, ours = Path(scratch) / "there", Path(scratch) / "ours"
            ours.write_text(FORM, encoding="utf-8")
            try:
                self.objects.get(MARKER, there, 4096, moved)
            except NotFoundError:
                there = ours
            if there.read_text(encoding="utf-8", errors="replace") != FORM:
                raise StoreError(f"--store {self.url} was not made by this edition of fmopt; choose another")
            self.objects.put(ours, MARKER, replace=True, moved=moved)

    def _used(self, work: Callable[[Callable[[], None]], T]) -> T | None:
        """What `work` gives; None when the store fails, which is said once, and it is asked no more."""
        if self.lost:
            return None
        try:
            return self._in_time(work)
        except Exception as error:
            self.lost = True
            self.say(f"{self.url} is left out from here on ({_words(error)}); the run goes on with its own stages")
            return None

    @staticmethod
    def _in_time(work: Callable[[Callable[[], None]], T]) -> T:
        """What `work` gives; TimeoutError when it has not moved for `TIMEOUT_S`. It runs in a thread of its own, that ends with
        the process: a mount or a socket that hangs does not hold the run."""
        alive = [time.monotonic()]
        box: dict[str, Any] = {}

        def moved() -> None:
            alive[0] = time.monotonic()

        def run() -> None:
            try:
                box["got"] = work(moved)
            except BaseException as error:
                box["error"] = error

        thread = threading.Thread(target=run, daemon=True, name="fmopt-store")
        thread.start()
        while thread.is_alive():
            thread.join(0.5)
            if thread.is_alive() and time.monotonic() - alive[0] > TIMEOUT_S:
                raise TimeoutError(f"no answer for {TIMEOUT_S:.0f} s")
        if "error" in box:
            raise box["error"]
        got: T = box["got"]
        return got


def read_manifest(file: Path, key_file: str, key_sha256: str) -> Mapping[str, FileEntry]:
    """A stage's files by their paths. StoreError for anything but a manifest of the stage with that key."""
    try:
        found = Manifest.validate_python(parsed(file.read_text(encoding="utf-8"), "its manifest"))
    except ValidationError as error:
        raise StoreError(f"its manifest makes no sense ({first_fault(error)})") from error
    except (EdgeError, UnicodeDecodeError) as error:
        raise StoreError(f"its manifest makes no sense ({error})") from error
    if len(found) > MOST_FILES:
        raise StoreError(f"its manifest names {len(found)} files")
    for path in found:
        parts = PurePosixPath(path).parts
        plain = path == "/".join(parts) and all(
            part not in ("..", ".") and "\\" not in part and "\0" not in part for part in parts
        )
        if not plain or not parts or path.startswith("/") or path == seals.FILES:
            raise StoreError(f"its manifest names a file {path!r}")
    if key_file not in found or found[key_file].sha256 != key_sha256:
        raise StoreError("it holds another stage")
    return found


def _copy(stream: Any, place: Path, limit: int, moved: Callable[[], None]) -> None:
    taken = 0
    with place.open("wb") as out:
        while block := stream.read(BLOCK):
            taken += len(block)
            if taken > limit:
                raise StoreError(f"{place.name} is larger than it was")
            out.write(block)
            moved()


def _callback(moved: Callable[[], None]) -> Any:
    """fsspec's way to tell how far a copy is."""
    from fsspec.callbacks import Callback

    return Callback(hooks={"moved": lambda size, value, **rest: moved()})


def _words(error: BaseException) -> str:
    """What a library says of a failure, in a few words."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:160]}" if first else type(error).__name__
