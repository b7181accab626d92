"""Kill, damage and starve optimizations of a tiny model, and look at what came of them: nothing may be lost or believed wrongly.

    python benchmarks/kills.py --kills 200 --damages 32 --disks 64k,1M,4M,16M,64M -o benchmarks/results/kills.json
    python benchmarks/kills.py --model minilm --kills 20 --each 5 --damages 0 --disks "" -o benchmarks/results/kills-minilm.json

Runs are killed (SIGKILL) at random moments, up to `--each` times in one folder, and then run to their end: the bundle must
verify, every graph, artifact and prediction must have the bytes of the undisturbed run, and nothing half-written may lie about.
Files of finished stages are damaged one by one: each must be noticed, in one line, and made again with the same bytes. Disks of
several sizes (tmpfs, which needs root) must end a run in one line, and the same command must finish it once there is room.

A child is forked for every run, so that imports are paid once.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import compact_results
import torch
import transformers

from fmopt.core.errors import StoreError
from fmopt.core.progress import Silent
from fmopt.core.workload import Workload
from fmopt.evaluation.gate import Budget
from fmopt.evaluation.record import Record
from fmopt.exporters.bundles.bundle import verify_bundle
from fmopt.workflow.job.request import Request
from fmopt.workflow.optimize import optimize_request
from tests.conftest import LABELS, SENTENCES, tiny_config, write_tokenizer
from tests.fuzzing import made_on

TASK = "text-classification"
SAME = ("graph-", "artifact-", "predictions-")  # stages whose bytes do not depend on the clock
RECIPE = 'name = "mine"\nruntime = "onnxruntime"\nprecision = "int8"\n[[steps]]\nuse = "quantize_dynamic"\n'
OUT_OF_DISK = 23  # exit code of a child that said so in one line


class Said(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keep it."""
        self.lines.append(text)


@dataclass
class Bench:
    """One model, its data, an undisturbed run, and what went wrong with others."""

    work: Path
    model: str | None = None  # an entry of models/ with data of its own; None: a tiny network
    seconds: float = 0.0
    chosen: tuple[str, str] = ("", "")  # winner and reference
    want: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def request(self, out: Path) -> Request:
        """The same command in another folder."""
        tiny = self.model is None
        return Request(
            model=str(self.work / "model") if tiny else str(self.model), data=str(self.work / "data.csv") if tiny else None,
            recipe=self.work / "mine.toml", workload=Workload(length=32), budget=Budget.parse(max_drop="50pt"), out=out,
            keep_stages=True,
        )  # fmt: skip

    def start(self, out: Path) -> int:
        """Fork a child that optimizes into `out`; its process id."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                optimize_request(self.request(out))
                code = 0
            except StoreError as error:
                (self.work / "said").write_text(str(error))
                code = OUT_OF_DISK
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        return child

    def finish(self, out: Path) -> int:
        """Run to the end; the exit code, -9 when killed."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(out), 0)[1])

    def problem(self, text: str) -> None:
        """Keep and show what went wrong."""
        self.problems.append(text)
        print("PROBLEM", text, flush=True)


def prepare(work: Path, named: str | None) -> Bench:
    """A model (a tiny BERT with texts where none is named), a recipe, and a run that nobody disturbs."""
    if named is None:
        make_tiny(work)
    (work / "mine.toml").write_text(RECIPE)
    bench, begun = Bench(work, named), time.monotonic()
    out = work / "undisturbed"
    if bench.finish(out):
        sys.exit("the undisturbed run failed")
    record = Record.load(out)
    bench.seconds, bench.want = time.monotonic() - begun, digests(out)
    bench.chosen = (record.winner, record.reference)
    return bench


def make_tiny(work: Path) -> None:
    """A BERT of two layers with random weights, and 160 texts with labels."""
    model = work / "model"
    model.mkdir(parents=True)
    config = tiny_config("bert", write_tokenizer(model, "bert"), TASK)
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(model)
    words, draw = sorted({word for sentence in SENTENCES for word in sentence.split()}), random.Random(0)
    rows = [(" ".join(draw.choices(words, k=8 + n % 9)), draw.choice(LABELS[TASK])) for n in range(160)]
    with (work / "data.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])


def digests(out: Path) -> dict[str, str]:
    """sha256 of every file of a stage whose bytes do not depend on the clock."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((out / "stages").rglob("*"))
        if path.is_file() and path.relative_to(out / "stages").parts[0].startswith(SAME)
    }


def half_written(out: Path) -> list[str]:
    """JSON files that do not parse, and a bundle that does not verify."""
    found = []
    for path in out.rglob("*.json"):
        if "unfinished-" in str(path):
            continue
        try:
            json.loads(path.read_text())
        except (OSError, ValueError) as error:
            found.append(f"{path.name}: {error!r}")
    if (out / "fmopt.json").exists() and not (out / ".fmopt-writing").exists():
        found += verify_bundle(out)
    return found


def kill(bench: Bench, kills: int, each: int, draw: random.Random, until: float) -> dict[str, Any]:
    """Kill runs at random moments and let them end."""
    done = runs = other_winner = 0
    while done < kills and time.monotonic() < until:
        out, mine = bench.work / f"killed-{runs}", 0
        while mine < each and done < kills and time.monotonic() < until:
            child = bench.start(out)
            time.sleep(draw.uniform(0.05, bench.seconds * draw.choice((0.1, 0.25, 0.5, 0.9))))
            os.kill(child, signal.SIGKILL)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            done, mine = done + 1, mine + 1
            if ended not in (-9, 0):
                bench.problem(f"{out.name}: ended by itself with {ended}")
            if out.exists() and (half := half_written(out)):
                bench.problem(f"{out.name}, kill {done}: {half[:3]}")
        runs += 1
        if code := bench.finish(out):
            bench.problem(f"{out.name}: exit code {code} when it was run again")
            continue
        other_winner += judge(bench, out)
        print(f"{done} kills, {runs} runs, {len(bench.problems)} problems", flush=True)
        shutil.rmtree(out)
    return {"kills": done, "runs": runs, "another choice by the clock": other_winner}


def judge(bench: Bench, out: Path) -> bool:
    """Look at a finished run; whether the clock preferred another winner."""
    for wrong in verify_bundle(out):
        bench.problem(f"{out.name}: {wrong}")
    got = digests(out)
    different = [name for name in bench.want.keys() & got.keys() if got[name] != bench.want[name]]
    if different:
        bench.problem(f"{out.name}: other bytes in {different[:3]}")
    record = Record.load(out)
    other = (record.winner, record.reference) != bench.chosen
    if not other and (missing := bench.want.keys() - got.keys()):
        bench.problem(f"{out.name}: missing: {sorted(missing)[:3]}")
    # The clock may prefer another full precision before the kill than after it, whose predictions are then there too.
    if more := [name for name in got.keys() - bench.want.keys() if not name.startswith("stages/predictions-")]:
        bench.problem(f"{out.name}: other files: {sorted(more)[:3]}")
    left = [path.name for path in out.rglob("*unfinished-*")] + [
        name for name in ("running", ".fmopt-writing") if (out / name).exists()
    ]
    if left:
        bench.problem(f"{out.name}: left over: {left[:3]}")
    return other


def damage(bench: Bench, count: int, draw: random.Random, until: float) -> dict[str, int]:
    """Damage files of finished stages one after the other; how many were noticed and mended."""
    out, noticed, done = bench.work / "undisturbed", 0, 0
    paths = [path for path in sorted((out / "stages").rglob("*")) if path.is_file()]
    left = list(paths)
    while done < count and time.monotonic() < until:
        path = left.pop(0) if left else draw.choice(paths)
        if not path.is_file():  # another file's damage made its stage superfluous
            continue
        how = ("a byte", "cut", "emptied", "removed")[done % 4]
        before = path.read_bytes()
        path.unlink()  # so that a file that shares its bytes is not damaged too
        place = draw.randrange(len(before) or 1)
        if how != "removed":
            spoilt = before[:place] + bytes([before[place] ^ 0x55]) + before[place + 1 :] if before else b"x"
            path.write_bytes({"a byte": spoilt, "cut": before[:place], "emptied": b""}[how])
        said = Said()
        optimize_request(bench.request(out), said)
        done += 1
        # one that nothing had to be made of again is gone, and another run of the clock has other numbers
        again = path.is_file() and path.parent.name.startswith(SAME)
        same = path.read_bytes() == before if again else True
        if same and any(" is made again: " in line for line in said.lines):
            noticed += 1
        else:
            bench.problem(f"{path.relative_to(out)} {how}: not noticed, or not made again as it was")
    return {"damaged": done, "noticed and made again": noticed, "files": len(paths)}


def starve(bench: Bench, sizes: Sequence[str], until: float) -> list[dict[str, Any]]:
    """Run on disks of several sizes, and again with room."""
    found: list[dict[str, Any]] = []
    for size in sizes:
        if time.monotonic() > until:
            break
        disk = bench.work / "disk"
        disk.mkdir(exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False).returncode:
            print("no disks: mounting needs root", flush=True)
            break
        try:
            (bench.work / "said").unlink(missing_ok=True)
            code = bench.finish(disk / "out")
            said = (bench.work / "said").read_text() if (bench.work / "said").exists() else ""
            if code not in (0, OUT_OF_DISK):
                bench.problem(f"a disk of {size}: exit code {code}")
            subprocess.run(["mount", "-o", "remount,size=512m", disk], check=True)
            again = bench.finish(disk / "out")
            if again:
                bench.problem(f"a disk of {size}, then with room: exit code {again}")
            else:
                judge(bench, disk / "out")
            found.append({"size": size, "said": said.replace(str(bench.work), "…"), "with room": again})
        finally:
            subprocess.run(["umount", disk], check=True)
    return found


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="an entry of models/ with data of its own; without it a tiny network")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--each", type=int, default=8, help="kills in one folder before it is run to its end")
    parser.add_argument("--damages", type=int, default=32)
    parser.add_argument("--disks", default="64k,256k,1m,2m,4m,8m,16m,64m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=120.0, help="of each part, at most")
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="fmopt-kills-") as work:
        bench = prepare(Path(work), asked.model)
        parts: dict[str, Any] = {"seed": asked.seed, "seconds of the undisturbed run": round(bench.seconds, 1)}

        def until() -> float:
            return time.monotonic() + 60 * asked.minutes

        parts["disks"] = starve(bench, [size for size in asked.disks.split(",") if size], until())
        parts["damages"] = damage(bench, asked.damages, draw, until())
        parts["killed"] = kill(bench, asked.kills, asked.each, draw, until())
    command = " ".join(["python benchmarks/kills.py", *sys.argv[1:]])
    parts |= {"problems": bench.problems, "command": command, **made_on()}
    compact_results.write(parts, asked.output)
    print(json.dumps(parts, indent=1, ensure_ascii=False))
    sys.exit(1 if bench.problems else 0)


if __name__ == "__main__":
    main()
