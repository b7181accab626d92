"""Prune, distil and quantize the fine-tuned checkpoints to speeds that were asked for, judged on their test splits.

    .venv/bin/python benchmarks/smaller.py run banking77 standard 4x [--seed 1] [--max-drop 1pt]
    .venv/bin/python benchmarks/smaller.py table                        prints what results/smaller-*.json hold

Checkpoints are those of finetuned.sh (out/finetuned/NAME, $FMOPT_CHECKPOINTS), data lies in ../shared/data ($FMOPT_DATA);
`embeddings` is all-MiniLM-L6-v2 itself. A run resumes; the machine should be quiet. A result is the run's record as
compact_results.py keeps it, with the wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import compact_results

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent  # commands run here, with paths relative to it: a record shows its command
RESULTS = HERE / "results"
DATA = Path(os.environ.get("FMOPT_DATA", Path("..", "shared", "data")))
CHECKPOINTS = Path(os.environ.get("FMOPT_CHECKPOINTS", Path("out", "finetuned")))
FULL = "onnxruntime-fp32"  # what speedups of the table are against


def run(name: str, effort: str, speedup: str, seed: int, max_drop: str, more: list[str]) -> int:
    """Optimize one checkpoint and keep its record; the exit code of fmopt."""
    model = "minilm" if name == "embeddings" else str(CHECKPOINTS / name)
    data = "stsb" if name == "embeddings" else name
    out = Path("out", f"smaller-{name}-{effort}-{seed}")
    began = time.monotonic()
    code = subprocess.call(
        [
            str(Path(sys.executable).with_name("fmopt")), "optimize", model, "--data", str(DATA / data), "--effort", effort,
            "--min-speedup", speedup, "--max-drop", max_drop, "--seed", str(seed), "-o", str(out), *more,
        ],
        cwd=ROOT,
    )  # fmt: skip
    if code not in (0, 1, 3):
        return code
    record = json.loads((ROOT / out / "record.json").read_text())
    made = record | {"minutes": round((time.monotonic() - began) / 60, 2), "asked": speedup}
    suffix = f"-{seed}" if seed else ""
    compact_results.write(made, RESULTS / f"smaller-{name}-{effort}-{speedup}{suffix}.json")
    return 0


def table() -> None:
    """One line for each result, the winner and the most accurate one at the speed asked for."""
    print("| data | effort | asked | seed | variant | against ONNX Runtime fp32 | latency missed by | drop on test, 95 % bound | "
          "drop on validation | size | verdict | minutes |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for path in sorted(RESULTS.glob("smaller-*.json")):
        record = json.loads(path.read_text())
        trials = {trial["recipe"]["name"]: trial for trial in (*record["baselines"], *record["trials"])}
        shown = [record["winner"], *(name for name in trials if "-pruned-" in name and name != record["winner"])]
        for name in shown:
            print(line(path, record, trials, name))


def line(path: Path, record: dict[str, Any], trials: dict[str, Any], name: str) -> str:
    """One variant of a record."""
    trial = trials[name]
    speedup = (trial["speedup"] or {"point": float("nan")})["point"]
    full = over_full(speedup, trials)
    wished = name.rpartition("-pruned-")[2].removesuffix("x") if "-pruned-" in name else ""
    missed = f"{100 * (float(wished) / speedup - 1):+.1f} %" if wished else ""
    test, drop = trial["test_drop"], trial["drop"]
    on_test = f"{100 * test['point']:.2f} pt, at most {100 * test['high']:.2f}" if test else ""
    won = name == record["winner"]
    seed = record["command"].partition("--seed ")[2].split(" ")[0]
    cells = [
        path.stem.split("-")[1], record["effort"], record["asked"], seed, f"**{name}**" if won else name, f"{full:.2f}×", missed,
        on_test, f"{100 * drop['point']:.2f} pt" if drop else "", f"{trial['size_bytes'] / 1e6:.1f} MB",
        record["verdict"]["outcome"] if won else "", f"{record['minutes']}" if won else "",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def over_full(speedup: float, trials: dict[str, Any]) -> float:
    """A speedup over a record's reference as one over `FULL`: what that took of the reference's time in the rounds that both
    had, for the reference was timed again later, when the machine may have had another clock."""
    return float(speedup / trials[FULL]["speedup"]["point"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("table")
    one = verbs.add_parser("run")
    one.add_argument("name")
    one.add_argument("effort", choices=("quick", "standard", "max"))
    one.add_argument("speedup")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--max-drop", default="1pt")
    asked, rest = parser.parse_known_args()
    if asked.verb == "table":
        table()
    else:
        sys.exit(run(asked.name, asked.effort, asked.speedup, asked.seed, asked.max_drop, rest))
