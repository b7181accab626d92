"""What `fmopt optimize` takes for real checkpoints on this machine: minutes against its estimate, memory, and what came of it.

    python benchmarks/real_size.py --only mpnet smollm2 -o benchmarks/results/real-size.json [--time-limit 20m]

Checkpoints lie in `--models` (default: $XDG_CACHE_HOME/fmopt/real-models) as folders that transformers opens, data beside the
checkout in ../shared/data. Each run is the command itself in a process of its own, in a fresh folder; its peak memory is that of
its largest process. A result that is there already stays until the same name is run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import compact_results

from fmopt.evaluation.record import Record
from tests.fuzzing import made_on

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RUNS: dict[str, tuple[str, str]] = {  # name -> checkpoint, data
    "mpnet": ("all-mpnet-base-v2", "stsb"),
    "smollm2": ("smollm2-135m", "wikitext2_valtest"),
    "whisper": ("whisper-base", "fsdd"),
}
EVERY_S = 0.5  # between two looks at the memory


def optimized(checkpoint: Path, data: Path, more: list[str]) -> dict[str, Any]:
    """One run, measured."""
    with tempfile.TemporaryDirectory(prefix="fmopt-real-size-") as folder:
        out = Path(folder) / "out"
        command = [
            sys.executable,
            "-m",
            "fmopt",
            "optimize",
            str(checkpoint),
            "--data",
            str(data),
            "-o",
            str(out),
            *more,
        ]
        plan = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True, check=True)
        estimated = json.loads(plan.stdout)["estimates"]
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        found: dict[str, Any] = {
            "minutes": round(seconds / 60, 2), "estimated": estimated, "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
            "exit_code": os.waitstatus_to_exitcode(status), "options": more,
        }  # fmt: skip
        if not (out / "record.json").is_file():
            return found
        record = Record.load(out)
        winner = record.find(record.winner)
        assert winner is not None
        return found | {
            "verdict": record.verdict.outcome, "winner": record.winner, "reference": record.reference,
            "speedup": winner.speedup and winner.speedup.model_dump(),
            "drop": winner.test_drop and winner.test_drop.model_dump(),
            "metric": winner.primary and winner.primary.name,
            "warnings": list(record.circumstances.warnings),
        }  # fmt: skip


def main() -> None:
    """Run what is asked for and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--models", type=Path, default=cache / "fmopt" / "real-models")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--time-limit", help="as for fmopt optimize")
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args()
    made = json.loads(asked.output.read_text()) if asked.output.is_file() else {"runs": {}}
    more = ["--time-limit", asked.time_limit] if asked.time_limit else []
    for name in asked.only:
        checkpoint, data = RUNS[name]
        got = optimized(asked.models / checkpoint, DATA / data, more)
        made["runs"][name] = got | {
            "command": f"fmopt optimize {checkpoint} --data {data} {' '.join(more)}".strip(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        compact_results.write(made | made_on(), asked.output)
        print(name, json.dumps(made["runs"][name]), flush=True)


if __name__ == "__main__":
    main()
