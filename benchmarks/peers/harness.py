"""What every `make_<peer>.py` shares: run each variant alone, time it, count its lines, write down what came of it.

Runs inside a peer's own environment, so it uses the standard library only and knows nothing of fmopt. A variant is one
function `(model, task, calibration, out)` whose **body is what a user of that peer would write**, from the checkpoint
folder to a file that a runtime opens; its lines are counted, except blank ones, comments and the docstring. `Shell` is
the same for a peer with a command line: one command, one line. `task` knows what the peer's classes are called for the
task at hand: `model_class = task.auto_class()` stands where a user writes one import.

    python make_nncf.py MODEL TASK CALIBRATION.jsonl OUT            every variant, each in a fresh process
    python make_nncf.py MODEL TASK CALIBRATION.jsonl OUT int8       only this one

A line of CALIBRATION.jsonl holds what a user gives the tokenizer for one text: {"text"}, {"text", "text_pair"}, or
{"text": [words], "is_split_into_words"}.

OUT/<variant>/ holds the files and meta.json: peer, variant, runtime, file, options, versions, minutes (of wall clock and
of the processor, with the machine's load before), lines, error.
"""

from __future__ import annotations

import ast
import datetime
import inspect
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

WATCHED = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf",
           "olive-ai", "numpy")  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What the libraries call the model class, the task itself, and how its texts are given."""

    head: str  # end of the class name: transformers' AutoModel…, optimum's ORTModel…
    pipeline: str  # as in transformers' pipelines
    columns: tuple[str, ...] = ("text",)  # of CALIBRATION.jsonl that hold texts
    words: bool = False  # texts are lists of words

    def auto_class(self) -> Any:
        """The class of transformers that loads the checkpoint with its head."""
        # the encoder alone has no end of its own there
        head = "" if self.head == "ForFeatureExtraction" else self.head
        return getattr(import_module("transformers"), f"AutoModel{head}")

    def ort_class(self) -> Any:
        """The class of optimum-onnx that exports it."""
        return getattr(import_module("optimum.onnxruntime"), f"ORTModel{self.head}")


TASKS = {
    "sentence-embedding": Task("ForFeatureExtraction", "feature-extraction"),
    "text-classification": Task("ForSequenceClassification", "text-classification"),
    "text-regression": Task("ForSequenceClassification", "text-classification", ("text", "text_pair")),
    "token-classification": Task("ForTokenClassification", "token-classification", words=True),
}

Make = Callable[[str, Task, str, str], None]


@dataclass(frozen=True)
class Shell:
    """A variant made by commands.

    Filled in are `{model}`, `{task}` (a pipeline's name), `{calibration}`, `{columns}` (those of its texts), `{out}`
    and `{bin}` (the environment's).
    """

    commands: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """How to make it, and how to open it: `runtime` onnxruntime, openvino or torch; `file` a pattern below its folder.

    `full_precision` says that it computes in fp32 or bf16: the fastest of these is what a speedup is claimed against.
    """

    make: Make | Shell
    runtime: str
    file: str = ""
    full_precision: bool = False
    options: Mapping[str, object] = field(default_factory=dict)


def main(peer: str, variants: Mapping[str, Variant]) -> int:
    """The command line of a `make_<peer>.py`; 1 when a variant failed."""
    if len(sys.argv) not in (5, 6) or sys.argv[2] not in TASKS:
        print(f"usage: {Path(sys.argv[0]).name} MODEL TASK CALIBRATION.jsonl OUT [VARIANT]", file=sys.stderr)
        print(f"TASK is one of {', '.join(TASKS)}", file=sys.stderr)
        return 2
    model, calibration, out = (str(Path(sys.argv[place]).resolve()) for place in (1, 3, 4))
    task = sys.argv[2]
    if len(sys.argv) == 6:
        name = sys.argv[5]
        return make(peer, name, variants[name], (model, TASKS[task], calibration), Path(out))
    again = [sys.executable, str(Path(sys.argv[0]).resolve()), model, task, calibration, out]
    codes = [subprocess.run([*again, name]).returncode for name in variants]
    return int(any(codes))


def make(peer: str, name: str, variant: Variant, given: tuple[str, Task, str], out: Path) -> int:
    """Make one variant in this process from `given` (model, task, calibration) and write its meta.json.

    A failure is written down, with its message.
    """
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written = lines(variant.make)
    os.chdir(folder)  # what a tool caches where it stands must not make the next variant look quicker
    load = os.getloadavg()[0]
    error, started = None, time.perf_counter()
    try:
        if isinstance(variant.make, Shell):
            run_commands(variant.make, given, folder)
        else:
            variant.make(*given, str(folder))
        file = find(folder, variant.file) if variant.file else ""
    except BaseException as problem:
        traceback.print_exc()
        error, file = without_folders(f"{type(problem).__name__}: {shorten(str(problem))}", given[0], folder), ""
    meta = {
        "peer": peer,
        "variant": name,
        "runtime": variant.runtime,
        "file": file,
        "options": dict(variant.options),
        "full_precision": variant.full_precision,
        "minutes": round((time.perf_counter() - started) / 60, 3),
        # other work stretches the wall clock, hardly the processor time
        "cpu_minutes": round(cpu_seconds() / 60, 3),
        "load_before": round(load, 2),
        "lines": written,
        "versions": {"python": platform.python_version(), **versions()},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "error": error,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    print(f"{peer} {name}: {error or 'made'} in {meta['minutes']} min, {meta['lines']} lines", flush=True)
    return int(error is not None)


def run_commands(shell: Shell, given: tuple[str, Task, str], folder: Path) -> None:
    """Run the commands one after another; a failing one is an error with the last line that says why."""
    model, task, calibration = given
    for command in shell.commands:
        words = command.format(
            model=model, task=task.pipeline, calibration=calibration, columns=" ".join(task.columns), out=folder,
            bin=Path(sys.executable).parent,
        )  # fmt: skip
        got = subprocess.run(words, shell=True, capture_output=True, text=True)
        print(got.stdout[-4000:], got.stderr[-4000:], sep="\n")
        if got.returncode:
            raise RuntimeError(f"exit {got.returncode}: {last_words(got.stderr.strip() or got.stdout.strip())}")


def last_words(said: str) -> str:
    """The last exception in what a command said, from its name on; else the last line."""
    named = list(re.finditer(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*", said, re.MULTILINE))
    return said[named[-1].start() :] if named else (said.splitlines() or ["it said nothing"])[-1]


def cpu_seconds() -> float:
    """Processor time of this process and of the commands that it waited for."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in spent)


def without_folders(text: str, model: str, folder: Path) -> str:
    """A message without this machine's folders: results are published."""
    for place, name in ((str(folder), "OUT"), (model, "MODEL"), (str(Path.home()), "~")):
        text = text.replace(place, name)
    return text


def find(folder: Path, pattern: str) -> str:
    """The one file of that pattern, relative to the folder."""
    found = sorted(folder.rglob(pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern} was written")
    return str(found[0].relative_to(folder))


def lines(make_it: Make | Shell) -> int:
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
