"""What runs on a board at the other end of an ssh line: receives files, starts programs that outlive the line, tells of them.

Knows nothing but Python's standard library and nothing of fmopt: measurement/remote/ssh.py sends this file's text with
every request, so that nothing is installed there and no two versions meet. It touches one folder, `~/.fmopt-board`. A request is
one line of JSON with a "verb"; the answer is one line of JSON after `MARK`, whatever else a login shell prints. Written for
Python 3.7, so that a Python too old for a bundle can still say so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import site
import subprocess
import sys
import time
import zipfile
from typing import IO, Any

MARK = "fmopt-board: "
FOLDER = ".fmopt-board"
BLOCK = 1 << 18
PART = ".part-"
# Waits for a program in a session of its own, and says with which code it ended.
KEEPER = """
import json, os, subprocess, sys
argv, folder, cwd = json.loads(sys.argv[1])
with open(folder + "/out", "wb") as out, open(folder + "/err", "wb") as err:
    try:
        code = subprocess.call(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd)
    except OSError as error:
        err.write(str(error).encode())
        code = 127
with open(folder + "/code.new", "w") as file:
    file.write(str(code))
os.rename(folder + "/code.new", folder + "/code")
"""


HOME = os.path.expanduser("~")


def root() -> str:
    """The board's own folder."""
    return os.path.join(HOME, FOLDER)


def command(argv: list[str]) -> list[str]:
    """A command line: python3 is the Python that this runs in, ~ the home that was logged in to."""
    own = "~/" + FOLDER
    words = [root() + word[len(own) :] if word.startswith(own) else word for word in argv]
    return [sys.executable if words[0] == "python3" else words[0], *words[1:]]


def inside(name: str) -> str:
    """A path within the folder; ValueError for one that leads out of it."""
    path = os.path.normpath(os.path.join(root(), name))
    if not path.startswith(root() + os.sep):
        raise ValueError(f"{name!r} leads out of {root()}")
    return path


def answer(**what: Any) -> None:
    """The one line that is the answer."""
    sys.stdout.write("\n" + MARK + json.dumps(what) + "\n")
    sys.stdout.flush()


def hello(request: dict[str, Any], stream: Any) -> None:
    """What this place is, as far as it decides which packages fit."""
    os.makedirs(root(), exist_ok=True)
    answer(
        python=list(sys.version_info[:2]),
        implementation=platform.python_implementation(),
        machine=platform.machine(),
        system=platform.system(),
        release=platform.release(),
        libc=list(platform.libc_ver()),
        free=shutil.disk_usage(root()).free,
        folder=root(),
    )


def have(request: dict[str, Any], stream: Any) -> None:
    """Of each file, how many bytes are here: all of them only when the sha256 is right too."""
    found = {}
    for name, (size, digest) in request["files"].items():
        path = inside(name)
        if os.path.isfile(path) and os.path.getsize(path) == size and sha256(path) == digest:
            found[name] = size
        else:
            part = path + PART + digest[:12]
            found[name] = min(os.path.getsize(part), size - 1) if os.path.isfile(part) else -1
    answer(have=found, free=shutil.disk_usage(root()).free)


def take(request: dict[str, Any], stream: Any) -> None:
    """Files, or what is missing of them, one after the other from the stream.

    Written at offsets into a part beside the file, so that what a cut line delivers late does no harm; moved into place
    when its sha256 is right.
    """
    for name, size, digest, offset in request["files"]:
        path = inside(name)
        part = path + PART + digest[:12]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(part, "r+b" if os.path.exists(part) else "wb") as file:
            file.seek(offset)
            left = size - offset
            while left:
                block = stream.read1(min(BLOCK, left))
                if not block:
                    return  # the line was cut; what came is kept
                file.write(block)
                file.flush()
                left -= len(block)
        if sha256(part) != digest:
            os.remove(part)
            answer(error="damaged", name=name)
            return
        os.replace(part, path)
    answer(taken=len(request["files"]))


def unpack(request: dict[str, Any], stream: Any) -> None:
    """Every wheel of a folder into another: a wheel is a zip of what an import wants."""
    place = inside(request["into"])
    os.makedirs(place, exist_ok=True)
    wheels = sorted(name for name in os.listdir(inside(request["wheels"])) if name.endswith(".whl"))
    for name in wheels:
        with zipfile.ZipFile(os.path.join(inside(request["wheels"]), name)) as wheel:
            wheel.extractall(place)
    shutil.rmtree(inside(request["wheels"]), ignore_errors=True)
    answer(unpacked=wheels)


def start(request: dict[str, Any], stream: Any) -> None:
    """Start a program that goes on without the line; nothing when the same job runs or has ended already."""
    folder = inside("jobs/" + request["job"])
    if state(folder) == "lost":
        shutil.rmtree(folder, ignore_errors=True)
    if not os.path.isdir(folder):
        os.makedirs(folder)
        launch = json.dumps([command(request["argv"]), folder, inside(request["cwd"])])
        keeper = subprocess.Popen(
            [sys.executable, "-c", KEEPER, launch],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            close_fds=True,
        )
        with open(os.path.join(folder, "pid"), "w") as file:
            file.write(f"{keeper.pid} {boot()}")
    answer(state=state(folder))


def poll(request: dict[str, Any], stream: Any) -> None:
    """What became of a job; waits for its end up to `wait` seconds. An ended one comes with what it printed."""
    folder = inside("jobs/" + request["job"])
    until = time.monotonic() + request["wait"]
    while state(folder) == "running" and time.monotonic() < until:
        time.sleep(0.1)
    now = state(folder)
    if now != "ended":
        answer(state=now)
        return
    answer(state=now, code=int(text(folder, "code")), out=text(folder, "out"), err=text(folder, "err"))


def forget(request: dict[str, Any], stream: Any) -> None:
    """End a job and remove what it left."""
    folder = inside("jobs/" + request["job"])
    end(folder)
    shutil.rmtree(folder, ignore_errors=True)
    answer(forgotten=request["job"])


def remove(request: dict[str, Any], stream: Any) -> None:
    """Remove a file or folder of ours."""
    path = inside(request["name"])
    shutil.rmtree(path, ignore_errors=True)
    if os.path.isfile(path):
        os.remove(path)
    answer(removed=request["name"])


def clean(request: dict[str, Any], stream: Any) -> None:
    """End every job and remove the whole folder."""
    jobs = os.path.join(root(), "jobs")
    for name in os.listdir(jobs) if os.path.isdir(jobs) else []:
        end(os.path.join(jobs, name))
    shutil.rmtree(root(), ignore_errors=True)
    answer(left=os.path.exists(root()))


def run(request: dict[str, Any], stream: Any) -> None:
    """A short program and what it printed."""
    argv = command(request["argv"])
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=request["seconds"])
        answer(
            code=done.returncode, out=done.stdout.decode("utf-8", "replace"), err=done.stderr.decode("utf-8", "replace")
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        answer(code=127, out="", err=str(error))


def describe(request: dict[str, Any], stream: Any) -> None:
    """The CPU as the system describes it; understood by the one who asked."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    places = set()
    for cpu in cpus:
        topology = f"/sys/devices/system/cpu/cpu{cpu}/topology/"
        places.add(
            (lines(topology + "physical_package_id"), lines(topology + "core_id"))
            if lines(topology + "core_id")
            else cpu
        )
    caches = {}
    base = f"/sys/devices/system/cpu/cpu{cpus[0]}/cache"
    for index in sorted(os.listdir(base)) if os.path.isdir(base) else []:
        if index.startswith("index") and lines(f"{base}/{index}/type") != "Instruction":
            caches[lines(f"{base}/{index}/level")] = lines(f"{base}/{index}/size")
    memory = [line for line in lines("/proc/meminfo").splitlines() if line.startswith("MemTotal")]
    answer(
        cpuinfo=lines("/proc/cpuinfo").split("\n\n")[0],
        board=lines("/proc/device-tree/model").strip("\0"),
        machine=platform.machine(),
        system=platform.system(),
        release=platform.release(),
        python=platform.python_version(),
        cores=len(places),
        memory_kb=int(memory[0].split()[1]) if memory else 0,
        caches=caches,
    )


def lines(path: str) -> str:
    """The text of a system file; empty where there is none."""
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def text(folder: str, name: str) -> str:
    """What a job printed."""
    with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
        return file.read()


def state(folder: str) -> str:
    """absent, running, ended, or lost: killed or switched off before it could say how it ended."""
    if os.path.exists(os.path.join(folder, "code")):
        return "ended"
    if not os.path.isdir(folder):
        return "absent"
    pid, _, booted = lines(os.path.join(folder, "pid")).partition(" ")
    if booted != boot() or not pid:
        return "lost"
    try:
        os.kill(int(pid), 0)
    except OSError as error:
        if error.errno == errno.ESRCH:
            return "ended" if os.path.exists(os.path.join(folder, "code")) else "lost"
    return "running"


def end(folder: str) -> None:
    """Kill what a job runs: its keeper leads a session of its own."""
    if state(folder) == "running":
        os.killpg(int(lines(os.path.join(folder, "pid")).split()[0]), signal.SIGKILL)


def boot() -> str:
    """This start of the system: a process number of an earlier one means nothing."""
    return lines("/proc/sys/kernel/random/boot_id") or "unknown"


def sha256(path: str) -> str:
    """Of a file, read in blocks."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            total.update(block)
    return total.hexdigest()


VERBS = {f.__name__: f for f in (hello, have, take, unpack, start, poll, forget, remove, clean, run, describe)}


def main(stream: IO[bytes]) -> None:
    """Answer one request."""
    os.umask(0o077)
    # Runtimes write caches and traces of use into a home: into one within the folder.
    os.environ.setdefault("PYTHONUSERBASE", site.getuserbase())
    os.environ.update(HOME=os.path.join(root(), "home"), PYTHONDONTWRITEBYTECODE="1")
    os.environ.pop("XDG_CACHE_HOME", None)
    request = json.loads(stream.readline().decode("utf-8"))
    try:
        VERBS[request["verb"]](request, stream)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        at = error.filename or root()
        answer(error="full" if full else "system", text=f"{at}: {error.strerror or error}", folder=root())


if __name__ == "__main__":
    main(sys.stdin.buffer)
