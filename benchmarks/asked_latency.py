"""How near to the speed asked for does pruning come? Ten requests, or those of --family, each in one shot by the command.

    .venv/bin/python benchmarks/asked_latency.py out/finetuned/banking77 ../shared/data/banking77

Accuracy is left free, so that each request makes one network. What is reached is the ratio of medians of the request's own
rounds; what is asked of pruning is 1.5 % more than the budget says, so that its interval lies within. The machine should be
quiet; a run resumes. Writes results/asked-latency-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ASKED = "3.2x,3.5x,4x,4.5x,5x,5.5x,6x,7x,8x,9x"  # of the fastest full precision
WITHIN = 0.05


def main() -> None:
    """Optimize the family, read what every member reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--family", default=ASKED)
    asked = parser.parse_args()
    speedups = asked.family.split(",")
    name = Path(asked.checkpoint).name
    out = Path("out", f"asked-latency-{name}")
    code = subprocess.call(
        [
            str(Path(sys.executable).with_name("fmopt")), "optimize", asked.checkpoint, "--data", asked.data, "--effort",
            "standard", "--family", asked.family, "--max-drop", "100pt", "--recipe",
            "benchmarks/recipes/openvino-int8.toml", "-o", str(out),
        ],
        cwd=ROOT,
    )  # fmt: skip
    if code not in (0, 1, 3):
        sys.exit(code)
    records = [json.loads((ROOT / out / speedup / "record.json").read_text()) for speedup in speedups]
    requests = [request(float(speedup[:-1]), record) for speedup, record in zip(speedups, records, strict=True)]
    near = sum(abs(one["missed"]) <= WITHIN for one in requests)
    last = records[-1]
    made = {
        "checkpoint": name, "within": WITHIN, "near": near, "requests": requests, "target": last["target"],
        "circumstances": last["circumstances"], "fmopt": last["fmopt"], "command": last["command"],
    }  # fmt: skip
    (HERE / "results" / f"asked-latency-{name}.json").write_text(json.dumps(made, indent=1))
    for one in requests:
        print(f"asked {one['asked']:g}x, aimed at {one['aimed']:.3g}x, reached {one['reached']['point']:.2f}x: "
              f"latency {one['missed']:+.1%} of what was asked")  # fmt: skip
    print(f"{near} of {len(requests)} within {WITHIN:.0%}")


def request(speedup: float, record: dict[str, Any]) -> dict[str, Any]:
    """What came of one."""
    trial = next(trial for trial in record["trials"] if trial["recipe"]["name"] == record["winner"])
    reached = trial["speedup"]
    aimed = float(trial["recipe"]["name"].rpartition("-pruned-")[2].removesuffix("x"))
    return {
        "asked": speedup, "aimed": aimed, "reached": reached, "missed": speedup / reached["point"] - 1,
        "steps": trial["recipe"]["steps"], "samples_ms": trial["latency"]["samples_ms"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
