"""A Python on a board with what a bundle's run.py imports: the board's own where it has it, else a virtual environment.

The packages are fetched here as wheels for the board's system and copied, so that a board needs neither pip nor a line to
a package index.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmopt.core.errors import BoardError
from fmopt.edge.board.agent import FOLDER
from fmopt.measurement.remote.answers import last_of
from fmopt.measurement.remote.ssh import Board

MODULES = {"pillow": "PIL"}  # where the module is not called as its package
# What they import themselves; all that their metadata asks for would be ten times as much.
NEEDS = {"onnxruntime": ("flatbuffers", "packaging", "protobuf")}
OWN = f"~/{FOLDER}/venv/bin/python"
OLD_TAGS = {17: "manylinux2014", 12: "manylinux2010"}  # glibc 2.17 and 2.12 by their first names
PIP_TIMEOUT_S = 900


def ensure_python(board: Board, place: Mapping[str, Any], packages: Mapping[str, str | None]) -> str:
    """The path there of a Python that imports `packages` (name → version wanted, None for any); made if needed.

    BoardError when there are no packages for that system, or the disk there is full.
    """
    for python in (OWN, "python3"):
        if imports(board, python, packages):
            return python
    version, machine = place["python"], place["machine"]
    board.progress.say(f"{board.address} lacks {', '.join(packages)}: making a virtual environment there")
    made = board.ask("run", argv=["python3", "-m", "venv", "--without-pip", f"~/{FOLDER}/venv"], seconds=300)
    if made["code"]:
        said = (made["err"] or made["out"]).strip().splitlines()
        raise BoardError(
            f"no virtual environment could be made on {board.address}: {said[-1] if said else made['code']}"
        )
    with tempfile.TemporaryDirectory(prefix="fmopt-wheels-") as folder:
        wheels = fetch(packages, place, Path(folder))
        board.send({f"wheels/{wheel.name}": wheel for wheel in wheels})
    board.ask("unpack", wheels="wheels", into=f"venv/lib/python{version[0]}.{version[1]}/site-packages")
    if not imports(board, OWN, packages):
        raise BoardError(f"{', '.join(packages)} were copied to {board.address} and do not import there ({machine})")
    return OWN


def imports(board: Board, python: str, packages: Mapping[str, str | None]) -> bool:
    """Whether a Python there imports all of them."""
    modules = "; ".join(f"import {MODULES.get(name, name)}" for name in packages)
    return bool(board.ask("run", argv=[python, "-c", modules], seconds=300)["code"] == 0)


def fetch(packages: Mapping[str, str | None], place: Mapping[str, Any], folder: Path) -> list[Path]:
    """Wheels of the packages for the board's system, from the index that pip uses here.

    In the versions that are wanted where the board's Python takes them, else in those that it takes.
    """
    wanted = [name if version is None else f"{name}=={version}" for name, version in packages.items()]
    also = sorted({need for name in packages for need in NEEDS.get(name, ())})
    options = ["--dest", str(folder), "--no-deps", "--only-binary=:all:", *fits(place)]
    done = _pip("download", *options, *wanted, *also)
    if done.returncode:
        done = _pip("download", *options, *packages, *also)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        system = f"{place['system']} {place['machine']}, Python {'.'.join(map(str, place['python']))}"
        raise BoardError(
            f"pip here finds no packages for the board ({system}): {said[-1] if said else 'it said nothing'}; "
            f"install {', '.join(packages)} there yourself"
        )
    return sorted(folder.glob("*.whl"))


def fits(place: Mapping[str, Any]) -> list[str]:
    """pip's options for a system other than this one: every glibc up to the board's, its machine and its Python."""
    system, machine = place["system"], place["machine"]
    found = re.match(r"2\.(\d+)", place["libc"][1] if place["libc"][0] == "glibc" else "")
    if system != "Linux" or not found or place["implementation"] != "CPython":
        raise BoardError(
            f"wheels are chosen for CPython on Linux with glibc; the board is {system} {machine}, "
            f"{place['implementation']}, {' '.join(place['libc']) or 'unknown libc'}: install the packages there yourself"
        )
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(int(found[1]), 4, -1)]
    tags += [f"{name}_{machine}" for minor, name in OLD_TAGS.items() if minor <= int(found[1])]
    version = ".".join(map(str, place["python"]))
    return [
        "--python-version",
        version,
        "--implementation",
        "cp",
        *(part for tag in tags for part in ("--platform", tag)),
    ]


def versions(board: Board, python: str, packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages there."""
    code = (
        "import importlib.metadata as m, json\n"
        f"print(json.dumps({{name: m.version(name) for name in {list(packages)!r}}}))"
    )
    return last_of(board.ask("run", argv=[python, "-c", code], seconds=60)["out"], dict[str, str], board.address)


def _pip(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PIP_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BoardError(
            f"pip took over {PIP_TIMEOUT_S} s to fetch packages for the board; is its index reachable?"
        ) from error
