"""Bundles on emulated Arm processors: each one's own run.py, on golden items and on test items. No speed is claimed.

    make test-arm                    # sets the emulated arm64 Python up, exports MiniLM, and does what follows
    .venv/bin/python benchmarks/arm.py out/arm-fp32 out/arm-int8 --data ../shared/data/stsb --rows 40 \\
        -o benchmarks/results/arm-emulated.json

Full precision must meet its golden predictions within 1e-5 on every CPU; INT8, whose rounding differs between kernels,
within the bundle's tolerance, and is judged by the task's metric against full precision on this machine. Exit code 1
when a check failed, 2 for bad input, 4 when nothing is wrong but something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core import plugins
from fmopt.core.errors import FmoptError
from fmopt.core.results import Check, Estimate, Outcome, Scores, Verdict
from fmopt.data.datasets import load_data
from fmopt.edge import host, parts
from fmopt.edge import manifest as edge_manifest
from fmopt.evaluation import bootstrap, gate
from fmopt.evaluation.metrics import METRICS
from fmopt.exporters.bundles import bundle
from fmopt.measurement import host_probe

FOLDER = Path(os.environ.get("FMOPT_ARM", host.cache_folder() / "arm64"))
# Always named: QEMU's default has extensions that it emulates wrongly in some versions. What each has is in the result.
# A72 computes as A53 does, N1 as A76: bit by bit the same INT8.
CPUS = ("cortex-a53", "cortex-a76", "neoverse-v1", "neoverse-n2")
DOT_PRODUCTS = "cortex-a76"  # Raspberry Pi 5
EXACT = 1e-5
ABSENT = "emulated: QEMU's speed says nothing about a processor's"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write the JSON, print a line for each bundle and CPU; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="of one model; the first in full precision")
    parser.add_argument("--cpus", nargs="+", default=list(CPUS), help="as `qemu-aarch64 -cpu help` names them")
    parser.add_argument("--judge-on", default=DOT_PRODUCTS, help="the CPU that predicts test items")
    parser.add_argument("--data", help="labelled; without it the task's metric is UNMEASURED")
    parser.add_argument("--rows", type=int, default=40, help="of the test split: emulation takes seconds for a text")
    parser.add_argument("--max-drop", default="1pt")
    parser.add_argument("--output", "-o", type=Path, required=True)
    asked = parser.parse_args(argv)
    try:
        found = judged(asked)
    except (FmoptError, parts.EdgeError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(found, indent=1))
    for name, one in found["bundles"].items():
        for check in one["verdict"]["checks"]:
            got = f" {check['got']['point']:.2g}" if check["got"] else ""
            print(f"{name}: {check['name']}{got} {check['outcome']} {check['note']}".rstrip())
    outcomes = {check["outcome"] for one in found["bundles"].values() for check in one["verdict"]["checks"]}
    return 1 if "FAIL" in outcomes else 0


def judged(asked: argparse.Namespace) -> dict[str, Any]:
    """Everything that was found, as JSON; RuntimeError where the emulated Python is absent or a run breaks."""
    if not (FOLDER / "finished").is_file():
        raise RuntimeError(f"there is no emulated arm64 Python in {FOLDER}; make one: benchmarks/arm_setup.sh {FOLDER}")
    begun = time.monotonic()
    native = items_of(asked) if asked.data else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host_probe.host_fingerprint(),
        "emulator": emulated("cortex-a76", "--version", bare=True).splitlines()[0],
        "packages": dict(sorted(path.name.split("-")[:2] for path in (FOLDER / "wheels").glob("*.whl"))),
        "cpus": {cpu: features(asked.bundles[0], cpu) for cpu in asked.cpus},
        "bundles": {folder.name: one_bundle(folder, asked, native) for folder in asked.bundles},
        "minutes": round((time.monotonic() - begun) / 60, 2),
    }  # fmt: skip


def emulated(cpu: str, *arguments: str, bare: bool = False) -> str:
    """What a Python program prints on an emulated CPU (with `bare`, what the emulator says of itself)."""
    root = FOLDER / "arm64" / "root"
    environment = {
        "PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(FOLDER / "packages"), "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(FOLDER / "cache"), "LANG": "C.UTF-8",
    }  # fmt: skip
    before = [] if bare else ["-cpu", cpu, "-L", str(root), str(root / "usr" / "bin" / "python3.11")]
    done = subprocess.run(
        [str(FOLDER / "emulator" / "qemu-aarch64"), *before, *arguments],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 2) or not done.stdout.strip():  # 2: run.py says in its answer what is wrong
        raise RuntimeError(f"{cpu}: exit code {done.returncode}: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return done.stdout


def features(folder: Path, cpu: str) -> list[str]:
    """CPU features as the bundle's run.py sees them."""
    script = f"import sys; sys.path.insert(0, {str(folder)!r}); from edge import host; print(*host.isa_features())"
    return emulated(cpu, "-c", script).split()


def one_bundle(folder: Path, asked: argparse.Namespace, native: dict[str, Any] | None) -> dict[str, Any]:
    """Golden predictions on every CPU, the task's metric on one, and the checks they come to."""
    metadata = edge_manifest.read_manifest(folder)
    exact = metadata["recipe"]["precision"] == "fp32"
    golden = {
        cpu: json.loads(emulated(cpu, str(folder / "run.py"), "verify", "--json", "--threads", "1"))
        for cpu in asked.cpus
    }
    checks = [golden_check(cpu, got, EXACT if exact else None) for cpu, got in golden.items()]
    metric: dict[str, Any] = {}
    if native and not exact:
        metric, check = metric_check(folder, asked, native)
        checks.append(check)
    checks.append(Check(name="latency", outcome=Outcome.UNMEASURED, unit="ms", note=ABSENT))
    return {
        "recipe": metadata["recipe"], "golden": golden, "metric": metric,
        "verdict": Verdict(checks=checks).model_dump(mode="json"),
    }  # fmt: skip


def golden_check(cpu: str, got: dict[str, Any], limit: float | None) -> Check:
    """Whether golden predictions were met on a CPU, within `limit` or else the bundle's own tolerance."""
    name = f"golden predictions on {cpu}"
    largest = got["largest_difference"]
    if largest is None:
        return Check(name=name, outcome=Outcome.FAIL, note="; ".join(got["problems"]))
    estimate = Estimate(point=largest, low=largest, high=largest)
    return gate.at_most(name, estimate, got["tolerance"] if limit is None else limit)


def items_of(asked: argparse.Namespace) -> dict[str, Any]:
    """Test items with what full precision predicts for them on this machine."""
    metadata = bundle.bundle_metadata(asked.bundles[0])
    if metadata.task != "sentence-embedding":
        raise RuntimeError(f"run.py shows of {metadata.task} less than is judged; leave --data out, or take embeddings")
    task = plugins.find("tasks", metadata.task)
    items = task.items(load_data(asked.data, task, metadata, seed=0).split("test")[: asked.rows], metadata)
    if any("\n" in item.sample for item in items):
        raise RuntimeError(f"{asked.data} has texts of several lines; run.py reads one text a line")
    model = bundle.load(asked.bundles[0])
    return {"facts": metadata, "task": task, "items": items, "full": model.predict([item.sample for item in items])}


def metric_check(folder: Path, asked: argparse.Namespace, native: dict[str, Any]) -> tuple[dict[str, Any], Check]:
    """The metric of what run.py answers on the emulated CPU, against full precision here on the same items."""
    items, task, metadata = native["items"], native["task"], native["facts"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as texts:
        texts.write("\n".join(item.sample for item in items))
        texts.flush()
        predict = ("predict", "--file", texts.name, "--json", "--threads", "1")
        said = emulated(asked.judge_on, str(folder / "run.py"), *predict)
    got = [np.asarray(one, dtype=np.float32) for one in json.loads(said)]
    here = bundle.load(folder).predict([item.sample for item in items])
    scores = {
        name: primary(task.scores(one, items, native["full"], metadata))
        for name, one in (("fp32 here", native["full"]), ("here", here), ("emulated", got))
    }
    values = {name: float(METRICS[one.metric].of(one.array())) for name, one in scores.items()}
    budget = gate.Budget.parse(max_drop=asked.max_drop)
    verdict = gate.judge(
        budget, drop=bootstrap.paired_drop(scores["fp32 here"], scores["emulated"]), baseline_metric=values["fp32 here"],
        speedup=None, latency_ms=None, size_mb=None, memory_mb=None, device_present=True,
        items_changed=int(np.any(scores["fp32 here"].array() != scores["emulated"].array(), axis=1).sum()),
        n=len(scores["emulated"].values),
    )  # fmt: skip
    reported = {"name": scores["emulated"].name, "cpu": asked.judge_on, "items": len(items), "values": values}
    return reported, verdict.checks[0]


def primary(scores: Sequence[Scores]) -> Scores:
    """The metric that the drop is judged by."""
    return next(score for score in scores if score.primary)


if __name__ == "__main__":
    sys.exit(main())
