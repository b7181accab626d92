"""This machine: its processor, the features that decide which kernels run, memory, versions, caches; and what threads and
forked processes may share on it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import stat
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import EdgeError

# CPU features that sum 8-bit products in 32 bits; a graph that needs one is served by any of them.
INT8_DOT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"})


# Features by the names that systems give them: Linux x86, Linux Arm, macOS; the values are those of target files.
X86 = "avx avx2 fma f16c avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 avx_vnni avx_vnni_int8"


AMX = "amx_tile amx_int8 amx_bf16 amx_fp16"


ARM = "asimd:neon asimdhp:fp16 asimddp:dotprod i8mm bf16 sve sve2"


MACOS = "avx1_0:avx avx2_0:avx2 advsimd:neon fp16 dotprod"


FEATURES = {
    name: new or name for name, _, new in (word.partition(":") for word in f"{X86} {AMX} {ARM} {MACOS}".split())
}


def isa_features() -> list[str]:
    """CPU features that decide which kernels run, sorted; empty when this system does not say (Windows)."""
    flags: list[str] = []
    if sys.platform.startswith("linux"):
        # x86 calls the line "flags", Arm "Features"
        line = next((part for part in _cpuinfo() if part.lower().startswith(("flags", "features"))), "")
        flags = line.partition(":")[2].split()
    elif sys.platform == "darwin":
        given = re.findall(r"hw\.optional\.(?:arm\.FEAT_)?(\w+): 1", _output("sysctl", "hw.optional"))
        flags = [name.lower() for name in given]
    return sorted({FEATURES[flag] for flag in flags if flag in FEATURES})


def host_fingerprint() -> dict[str, Any]:
    """What a measurement or a self-test on this machine depends on, except versions: cpu, arch, isa, cores, os."""
    cpu = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    if not cpu and sys.platform == "darwin":
        cpu = _output("sysctl", "-n", "machdep.cpu.brand_string").strip()
    if not cpu and Path("/proc/device-tree/model").is_file():  # Arm boards name the board, not the core
        cpu = Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n ")
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "arch": platform.machine(),
        "isa": isa_features(),
        "cores": available_cores(),
        "os": f"{platform.system()} {platform.release()}",
    }


def available_cores() -> int:
    """Cores this process may use: less than the machine's in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mb() -> float | None:
    """Largest memory this process ever held, in MB (10⁶ bytes); None where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: its maximum survives exec, so a child would inherit that of a large parent.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(found.group(1)) * 1024 / 1e6 if found else None
    if sys.platform == "win32":
        return None
    return import_module("resource").getrusage(0).ru_maxrss / 1e6  # macOS counts bytes


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except OSError:
        return ""


def package_version(package: str) -> str | None:
    """The installed version; None when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def writable_by_others(path: Path) -> str:
    """Who else can write a file or folder, in a few words; empty when nobody but this user and root can, or it is not there.
    What lies in such a folder may be anybody's."""
    if not hasattr(os, "getuid"):
        return ""
    try:
        found = path.lstat()
    except OSError:
        return ""
    if found.st_uid not in (os.getuid(), 0):
        return f"it belongs to another user (number {found.st_uid})"
    if found.st_mode & stat.S_IWOTH:
        return "every user of this machine can write it"
    if found.st_mode & stat.S_IWGRP and not _only_ours(found.st_gid):
        return f"the users of group {found.st_gid} can write it"
    return ""


def _only_ours(group: int) -> bool:
    """Whether a group is this user's own: many systems give everyone one of that kind, and a umask that lets it write."""
    import grp
    import pwd

    me = os.getuid()
    try:
        members = {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(group).gr_mem}
    except KeyError:
        return False
    first = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == group}
    return (members | first) <= {me, 0}


def too_old(metadata: Mapping[str, Any]) -> str:
    """What to install where a package that the bundle runs by is older than the one it was made with; empty when none is."""
    for package in (metadata["runtime"], "tokenizers", "numpy"):
        made, here = metadata["versions"].get(package), package_version(package)
        if made and here and _numbers(here) < _numbers(made):
            return (
                f"{package} {here} is too old for this bundle, which was made with {made}: pip install "
                f"'{package}>={made}' (Python {platform.python_version()} here)"
            )
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


@contextmanager
def some_home() -> Iterator[None]:
    """A HOME for libraries that look for one while they are imported (OpenVINO's telemetry), for a user who has none."""
    try:
        Path.home()
    except (RuntimeError, KeyError):
        os.environ["HOME"] = tempfile.gettempdir()
        try:
            yield
        finally:
            del os.environ["HOME"]
    else:
        yield


def cache_folder() -> Path:
    """Where this user's caches are, as the system wants it; EdgeError for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    if given:
        return Path(given) / "fmopt"
    try:
        home = Path.home()
    except (RuntimeError, KeyError) as error:  # no HOME, and no entry among the users: what containers have
        raise EdgeError(
            "there is no home folder to keep files in; set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "fmopt"


# -------------------------------------------------------------------------------- its threads and forked processes
#
# Several threads may call one model at once. A child of `os.fork` has its parent's memory and none of its other threads: a
# lock that one of those held would stay held for ever, and a runtime would wait for workers that are gone. So locks are free
# in a child, and what a runtime opened is opened again there by its first call.

T = TypeVar("T")


class ForkSafeLock:
    """A mutual exclusion lock that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _shared.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def forked(self) -> None:
        """Forget who holds it."""
        self._lock = threading.Lock()


class PerProcess(Generic[T]):
    """A value made once in every process that asks for it, by whichever thread asks first."""

    def __init__(self, make: Callable[[], T]):
        self._make, self._lock = make, ForkSafeLock()
        self._made: T | None = None
        _shared.add(self)

    def get(self) -> T:
        """The value of this process."""
        made = self._made
        if made is None:
            with self._lock:
                made = self._made
                if made is None:
                    made = self._made = self._make()
        return made

    def clear(self) -> None:
        """Forget the value."""
        self._made = None

    def forked(self) -> None:
        """Leave the parent's value to the parent. It is never freed here: a runtime would wait for the parent's threads."""
        if self._made is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._made))
        self._made = None


_shared: weakref.WeakSet[Any] = weakref.WeakSet()


def _in_child() -> None:
    for one in list(_shared):
        one.forked()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_in_child)
