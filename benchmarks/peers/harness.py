"""What every `make_<peer>.py` shares: run each variant alone, time it, count its lines, write down what came of it.

Runs inside a peer's own environment, so it uses the standard library only and knows nothing of fmopt. A variant is one
function `(model, calibration, out)` whose **body is what a user of that peer would write**, from the checkpoint folder
to a file that a runtime opens; its lines are counted, except blank ones, comments and the docstring. `Shell` is the
same for a peer with a command line: one command, one line.

    python make_nncf.py MODEL CALIBRATION.jsonl OUT            every variant, each in a fresh process
    python make_nncf.py MODEL CALIBRATION.jsonl OUT int8       only this one

OUT/<variant>/ holds the files and meta.json: peer, variant, runtime, file, options, versions, minutes, lines, error.
"""

from __future__ import annotations

import ast
import datetime
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

WATCHED = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf",
           "olive-ai", "numpy")  # fmt: skip


@dataclass(frozen=True)
class Shell:
    """A variant made by commands. `{model}`, `{calibration}`, `{out}` and `{bin}` (the environment's) are filled in."""

    commands: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """How to make it, and how to open it: `runtime` onnxruntime, openvino or torch; `file` a pattern below its folder.

    `full_precision` says that it computes in fp32 or bf16: the fastest of these is what a speedup is claimed against.
    """

    make: Callable[[str, str, str], None] | Shell
    runtime: str
    file: str = ""
    full_precision: bool = False
    options: Mapping[str, object] = field(default_factory=dict)


def main(peer: str, variants: Mapping[str, Variant]) -> int:
    """The command line of a `make_<peer>.py`; 1 when a variant failed."""
    if len(sys.argv) not in (4, 5):
        print(f"usage: {Path(sys.argv[0]).name} MODEL CALIBRATION.jsonl OUT [VARIANT]", file=sys.stderr)
        return 2
    model, calibration, out = (str(Path(part).resolve()) for part in sys.argv[1:4])
    if len(sys.argv) == 5:
        return make(peer, sys.argv[4], variants[sys.argv[4]], model, calibration, Path(out))
    again = [sys.executable, str(Path(sys.argv[0]).resolve()), model, calibration, out]
    codes = [subprocess.run([*again, name]).returncode for name in variants]
    return int(any(codes))


def make(peer: str, name: str, variant: Variant, model: str, calibration: str, out: Path) -> int:
    """Make one variant in this process and write its meta.json; a failure is written down, with its message."""
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written = lines(variant.make)
    os.chdir(folder)  # what a tool caches where it stands must not make the next variant look quicker
    error, started = None, time.perf_counter()
    try:
        if isinstance(variant.make, Shell):
            run_commands(variant.make, model, calibration, folder)
        else:
            variant.make(model, calibration, str(folder))
        file = find(folder, variant.file) if variant.file else ""
    except BaseException as problem:
        traceback.print_exc()
        told = str(problem).replace(str(folder), "OUT").replace(str(Path.home()), "~")  # results are published
        error, file = f"{type(problem).__name__}: {shorten(told)}", ""
    meta = {
        "peer": peer,
        "variant": name,
        "runtime": variant.runtime,
        "file": file,
        "options": dict(variant.options),
        "full_precision": variant.full_precision,
        "minutes": round((time.perf_counter() - started) / 60, 3),
        "lines": written,
        "versions": {"python": platform.python_version(), **versions()},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "error": error,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    print(f"{peer} {name}: {error or 'made'} in {meta['minutes']} min, {meta['lines']} lines", flush=True)
    return int(error is not None)


def run_commands(shell: Shell, model: str, calibration: str, folder: Path) -> None:
    """Run the commands one after another; a failing one is an error with the end of what it said."""
    for command in shell.commands:
        words = command.format(model=model, calibration=calibration, out=folder, bin=Path(sys.executable).parent)
        got = subprocess.run(words, shell=True, capture_output=True, text=True)
        print(got.stdout[-4000:], got.stderr[-4000:], sep="\n")
        if got.returncode:
            raise RuntimeError(f"exit {got.returncode}: {(got.stderr.strip() or got.stdout.strip())[-400:]}")


def find(folder: Path, pattern: str) -> str:
    """The one file of that pattern, relative to the folder."""
    found = sorted(folder.rglob(pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern} was written")
    return str(found[0].relative_to(folder))


def lines(make_it: Callable[[str, str, str], None] | Shell) -> int:
    """Lines a user had to write."""
    if isinstance(make_it, Shell):
        return len(make_it.commands)
    source = textwrap.dedent(inspect.getsource(make_it))
    body = ast.parse(source).body[0].body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    text = source.splitlines()[body[0].lineno - 1 :]
    return sum(1 for line in text if line.strip() and not line.strip().startswith("#"))


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    installed = {dist.name.lower(): dist.version for dist in distributions()}
    return {name: installed[name] for name in WATCHED if name in installed}


def shorten(text: str) -> str:
    """One line, without the middle when it is long."""
    line = " ".join(text.split())
    return line if len(line) <= 500 else f"{line[:300]} … {line[-190:]}"
