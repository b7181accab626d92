"""Files of a folder that came from somewhere: whatever is received is opened here, and nowhere else.

A name leads to a plain file inside its folder: no absolute path, no `..`, no link at any level, no device, FIFO or socket. What
is read whole has a limit, JSON one of its depth too, and a listed file has the hash that its list gives. What a library reads
by itself, and cannot be trusted with, is tried in a process of its own first, with limits of time and memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from .errors import EdgeError, last_line, need, shorten
from .host import cache_folder

LARGEST_JSON = 64 << 20  # bytes
LARGEST_FILE = 512 << 20  # of what a user gives to a model
DEEPEST_JSON = 100  # levels
LONGEST_NAME, MOST_LEVELS = 255, 8
SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_FIELDS = 1 << 22  # of a graph's messages, weights left out: each takes a hundred times its bytes once it is read
_UNUSUAL = re.compile(r"[\x00-\x1f\x7f-\x9f\\:*?\"<>|\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_LINK = getattr(os, "O_NOFOLLOW", 0)
_FILE = os.O_RDONLY | _LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | _LINK | getattr(os, "O_DIRECTORY", 0)


# -------------------------------------------------------------------------------- names → open files


def is_plain_name(name: object) -> bool:
    """Whether a name that was received is that of a file inside a folder: `model.onnx`, `edge/text.py`."""
    if not isinstance(name, str) or _UNUSUAL.search(name):
        return False
    levels = name.split("/")
    plain = all(level not in ("", ".", "..") and len(os.fsencode(level)) <= LONGEST_NAME for level in levels)
    return plain and len(levels) <= MOST_LEVELS


def open_inside(folder: Path, name: str) -> BinaryIO:
    """A plain file of `folder`, opened for reading; EdgeError, which begins with the name, for anything else."""
    if not is_plain_name(name):
        raise EdgeError(f"{shorten(printable(name))} is not the name of a file inside the folder")
    try:
        descriptor = _opened(Path(folder), name.split("/"))
    except FileNotFoundError as error:
        raise EdgeError(f"{name} is missing") from error
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
            raise EdgeError(f"{name} cannot be read: {error.strerror}") from error
        blob = _blob(Path(folder), name)
        if blob is None:
            raise EdgeError(f"{name} is a link, or lies behind one, and links are not followed") from error
        descriptor = os.open(blob, _FILE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise EdgeError(f"{name} is no plain file")
    return os.fdopen(descriptor, "rb")


def _blob(folder: Path, name: str) -> Path | None:
    """What a link leads to in the cache of a model hub, whose snapshots are made of links to its own blobs; None for others."""
    home = folder.resolve()
    real = (home / name).resolve()
    return real if home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs" else None


def _opened(folder: Path, levels: Sequence[str]) -> int:
    """A descriptor of the last level; every level above is opened by itself, so that none is a link."""
    if os.open not in os.supports_dir_fd:
        path = folder.joinpath(*levels)
        if path.resolve() != folder.resolve().joinpath(*levels):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.open(path, _FILE)
    at = os.open(folder, _FOLDER & ~_LINK)  # the folder itself is the user's word
    try:
        for level in levels[:-1]:
            deeper = os.open(level, _FOLDER, dir_fd=at)
            os.close(at)
            at = deeper
        return os.open(levels[-1], _FILE, dir_fd=at)
    finally:
        os.close(at)


def read_inside(folder: Path, name: str, most: int = LARGEST_JSON) -> bytes:
    """All of a plain file of `folder`, which has at most `most` bytes. EdgeError otherwise."""
    with open_inside(folder, name) as stream:
        found = stream.read(most + 1)
    if len(found) > most:
        raise EdgeError(f"{name} has more than {most:,} bytes, too many for what it should be")
    return found


def file_bytes(path: Path, most: int = LARGEST_FILE) -> bytes:
    """A plain file that a user names, with at most `most` bytes; EdgeError for anything else, such as a device."""
    try:
        with open(os.open(path, _FILE & ~_LINK), "rb") as stream:
            at = os.fstat(stream.fileno())
            if not stat.S_ISREG(at.st_mode):
                raise EdgeError(f"{path} is no plain file")
            if at.st_size > most:
                raise EdgeError(f"{path} has {at.st_size:,} bytes; the most is {most:,}")
            return stream.read(most)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise EdgeError(f"{path} cannot be read: {said}") from error


def read_json(folder: Path, name: str, kind: type = dict, most: int = LARGEST_JSON) -> Any:
    """A JSON file of `folder` whose top level is of `kind`; EdgeError, which begins with the name, for anything else."""
    return parsed(read_inside(folder, name, most), name, kind)


def parsed(written: bytes | str, where: str, kind: type = dict) -> Any:
    """JSON that was received: of at most DEEPEST_JSON levels, no name twice, no half of a character. EdgeError otherwise."""
    try:
        text = written if isinstance(written, str) else written.decode()
        found = json.loads(text, object_pairs_hook=_unique)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise EdgeError(f"{where} is nested too deep") from None
    except ValueError as error:
        raise EdgeError(f"{where} is damaged: {last_line(error)}") from error
    if not isinstance(found, kind):
        raise EdgeError(f"{where} holds {type(found).__name__} where {kind.__name__} belongs")
    if _deeper_than(found, DEEPEST_JSON):
        raise EdgeError(f"{where} is nested more than {DEEPEST_JSON} levels deep")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _deeper_than(value: Any, most: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def remove_inside(folder: Path, name: str) -> None:
    """Remove a file of `folder`, or a link of that name; nothing where it is not there, or lies behind a link."""
    path = Path(folder)
    for level in name.split("/")[:-1]:
        path /= level
        if path.is_symlink():
            return
    with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        (Path(folder) / name).unlink()


def make_folders(folder: Path, name: str) -> None:
    """Make the folders of `folder` that a file of this name lies in; a link or file in their place is removed."""
    path = Path(folder)
    for level in name.split("/")[:-1]:
        path /= level
        if path.is_symlink() or path.is_file():
            path.unlink()
        path.mkdir(exist_ok=True)


def damage_of(folder: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with a listed file, in a line that begins with its name; None when it is as it was written."""
    try:
        with open_inside(folder, name) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes instead of {entry['bytes']}"
            if hashed(stream) != entry["sha256"]:
                return f"{name} was changed: its sha256 is not the one that is listed"
    except EdgeError as error:
        return str(error)
    return None


def hashed(stream: BinaryIO) -> str:
    """sha256 of what is left of a stream, read in blocks."""
    total = hashlib.sha256()
    while block := stream.read(1 << 20):
        total.update(block)
    return total.hexdigest()


def strangers(folder: Path, listed: Mapping[str, Any], allowed: frozenset[str]) -> list[str]:
    """Names of what lies in `folder`, or in a folder that a listed file lies in, and is not listed; `allowed` may lie on top."""
    inside = {"/".join(name.split("/")[:depth]) for name in listed for depth in range(1, name.count("/") + 1)}
    found = []
    for place in ("", *sorted(inside)):
        if not (Path(folder) / place).is_dir():
            continue  # which its files are missing for
        with os.scandir(Path(folder) / place) as entries:
            names = [f"{place}/{entry.name}" if place else entry.name for entry in entries]
        found += [name for name in names if name not in listed and name not in inside and name not in allowed]
    return sorted(found)


# -------------------------------------------------------------------------------- text for a terminal


def printable(text: object) -> str:
    """A text without characters that a terminal obeys: control characters, and those that turn the direction of writing."""
    return _OBEYED.sub(lambda found: f"\\x{ord(found.group()):02x}", str(text))


def json_line(value: Any) -> str:
    """A value as one line of JSON that a terminal does not obey: what it would obey is escaped, and means the same."""
    written = json.dumps(value, ensure_ascii=False, default=str)
    return _OBEYED.sub(lambda found: f"\\u{ord(found.group()):04x}", written)


def mend_streams() -> None:
    """Let what is printed here never fail over a character that the terminal has not."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


# C0 without tab and line feed, DEL and C1; overrides of direction; line and paragraph separators; halves of characters
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


# -------------------------------------------------------------------------------- graphs, as far as their files go


def external_files(graph: memoryview) -> set[str]:
    """Names of the files that the tensors of an ONNX graph say they lie in. ValueError for what is no ONNX file.

    Read by protobuf's wire format, for a bundle has no onnx. Of a model 7 is the graph and 25 are functions; of both 1 and 7
    are nodes, 5 initializers, 15 sparse ones; attributes hold tensors and graphs again.
    """
    found: set[str] = set()
    todo = [(wire_fields(graph), "model")]
    count = 0
    while todo:
        fields, kind = todo[-1]
        field = next(fields, None)
        if field is None:
            todo.pop()
            continue
        number, _, content = field
        count += 1
        if count > MOST_FIELDS:
            raise ValueError(f"it has more than {MOST_FIELDS:,} nodes, tensors and names, more than make sense")
        inner = _HOLDS.get((kind, number))
        if inner == "location":
            entry = {at: bytes(value) for at, _, value in wire_fields(content)}
            if entry.get(1) == b"location":
                found.add(entry.get(2, b"").decode("utf-8", "replace"))
        elif inner:
            if len(todo) > DEEPEST_JSON:
                raise ValueError("its graphs are nested too deep")
            todo.append((wire_fields(content), inner))
    return found


_HOLDS = {
    ("model", 7): "graph", ("model", 25): "function", ("model", 20): "training",
    ("training", 1): "graph", ("training", 2): "graph",
    ("graph", 1): "node", ("graph", 5): "tensor", ("graph", 15): "sparse",
    ("function", 7): "node", ("function", 11): "attribute", ("node", 5): "attribute",
    ("attribute", 5): "tensor", ("attribute", 6): "graph", ("attribute", 10): "tensor", ("attribute", 11): "graph",
    ("attribute", 22): "sparse", ("attribute", 23): "sparse", ("sparse", 1): "tensor", ("sparse", 2): "tensor",
    ("tensor", 13): "location",
}  # fmt: skip  # message and field of onnx.proto -> what the field holds


def wire_fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, whole and content of every field of a protobuf message; ValueError where it is none."""
    at = 0
    while at < len(message):
        begun = at
        key, at = _varint(message, at)
        if key >> 32:  # protobuf reads the lower 32 bits, so that the field would be another one there
            raise ValueError("it is no protobuf message")
        kind = key & 7
        if kind == 2:
            size, at = _varint(message, at)
        elif kind == 0:
            size = _varint(message, at)[1] - at
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it is no protobuf message")
        if at + size > len(message):
            raise ValueError("it ends too early")
        yield key >> 3, message[begun : at + size], message[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("it is no protobuf message")


# -------------------------------------------------------------------------------- a process of its own


def tried_apart(command: Sequence[str], seconds: float) -> str | None:
    """What went wrong with a command in a process of its own, in one line; None when it ended well.

    Its own last `error:` line where it said one; else that it took too long, or how it ended. Where no process can be started
    there is a warning instead.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=seconds, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it did not come to an end in {seconds:.0f} s"
    except (
        OSError
    ) as error:  # Python inside another program, or emulated: this place's own limit, and no fault of the file
        warnings.warn(
            f"what was received is not tried in a process of its own first, none can be started: {error}", stacklevel=3
        )
        return None
    if done.returncode == 0:
        return None
    said = [line for line in done.stderr[-65536:].decode("utf-8", "replace").splitlines() if line.startswith("error: ")]
    if said:
        return printable(said[-1].removeprefix("error: "))
    return f"the process that tried it was ended by it (code {done.returncode})"


def limit_memory(megabytes: int) -> None:
    """Let this process have no more memory of its own than so much, where the system knows such limits; and leave no core."""
    if sys.platform == "win32":
        return
    resource = import_module("resource")
    for kind, most in ((resource.RLIMIT_DATA, megabytes << 20), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))


def marker_of(kind: str, key: bytes) -> Path | None:
    """The file that says of what `key` identifies that it went well; None for a user without a folder to keep such files in."""
    try:
        return cache_folder() / kind / hashlib.sha256(key).hexdigest()
    except EdgeError:
        return None


def is_left(marker: Path | None) -> bool:
    """Whether a process of this user left word here that something went well: by a file that nobody else can have written."""
    if marker is None:
        return False
    try:
        ours = not hasattr(os, "getuid") or all(
            entry.st_uid == os.getuid() and not entry.st_mode & 0o022
            for entry in (marker.lstat(), marker.parent.lstat())
        )
        return ours and stat.S_ISREG(marker.lstat().st_mode)
    except OSError:
        return False


def leave(marker: Path | None) -> None:
    """Leave the file that `is_left` looks for; nothing where that cannot be: what it says is then found out again."""
    if marker is None:
        return
    with suppress(OSError):
        marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


# -------------------------------------------------------------------------------- signatures


def signature_of(folder: Path) -> Path:
    """Where the signature of a bundle lies: beside it, for a signature cannot be within what it signs."""
    place = Path(folder).resolve()
    return place.with_name(f"{place.name}.sig")


def signed_files(folder: Path, ignored: frozenset[str]) -> Any:
    """What of a folder is signed: every file but those that a run of ours leaves beside a bundle. Links are not followed."""
    names = sorted(ignored)
    return signing_library().hashing.Config().set_ignored_paths(paths=[Path(folder).resolve() / name for name in names])


def require_signed(
    folder: Path, ignored: frozenset[str], *, key: Path | None = None, trust: Path | None = None
) -> None:
    """EdgeError unless a bundle is signed by the owner of the public `key`, or of a certificate that `trust` has issued (PEM)."""
    verifying = signing_library().verifying
    signature = signature_of(folder)
    if not signature.is_file():
        raise EdgeError(
            f"{folder} is not signed: there is no {signature}; get its signature from where the bundle came from"
        )
    for path in (key, trust):
        if path is not None and not Path(path).is_file():
            raise EdgeError(f"there is no file {path}")
    config = verifying.Config().set_hashing_config(signed_files(folder, ignored))
    try:
        if key is not None:
            config.use_elliptic_key_verifier(public_key=Path(key)).verify(Path(folder).resolve(), signature)
        if trust is not None:
            config.use_certificate_verifier(certificate_chain=[Path(trust)]).verify(Path(folder).resolve(), signature)
    except Exception as error:  # the library and those under it raise what they like
        said = " ".join(str(error).split()) or type(error).__name__
        raise EdgeError(f"{folder} is not signed by {key or trust}: {shorten(printable(said), 300)}") from error


def signing_library() -> Any:
    """The package model-signing; EdgeError where it is not installed."""
    library = need("model_signing", "model-signing pyOpenSSL")
    for name in ("hashing", "signing", "verifying"):
        import_module(f"model_signing.{name}")
    return library
