"""Is what fmopt ships ever slower than full precision? A bundle against ONNX Runtime and OpenVINO fp32 over many shapes.

    .venv/bin/python benchmarks/grid.py OUT [--batch 1,8] [--length 16,32,64,128,256,512] [--threads 1,2]

Three variants are called in turn in one process at every shape; raw samples go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmopt.core.results import Latency
from fmopt.core.stages.store import Store
from fmopt.edge.board import interleaved
from fmopt.evaluation import bootstrap
from fmopt.exporters.bundles import bundle
from fmopt.measurement import host_probe
from fmopt.measurement import latency as measurement_latency
from fmopt.workflow.deployed import Contestant, bench_metadata, contestants, deployed, open_artifact

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure every shape, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--length", default="16,32,64,128,256,512")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each variant, if slow")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = contestants(asked.model, bench_metadata(asked.model), Store(Path(scratch)))
        variants = {f"{one.artifact.runtime} fp32": one for one in made if one.artifact.runtime != "torch"}
        variants["fmopt"] = deployed(asked.bundle)
        shapes = [
            (b, n, t) for t in numbers(asked.threads) for b in numbers(asked.batch) for n in numbers(asked.length)
        ]
        rows = [one_shape(variants, *shape, asked) for shape in shapes]
    document = {
        "what": "fmopt's bundle against fp32 on ONNX Runtime and OpenVINO, in turn, at many shapes",
        "command": shlex.join(["python", "benchmarks/grid.py", *sys.argv[1:]]),
        "shipped": bundle.bundle_artifact(asked.bundle).runtime, "host": host_probe.host_fingerprint(),
        "versions": host_probe.versions(), "seed": asked.seed, "warnings": measurement_latency.quiet_machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "shapes": rows,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"grid-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(document))
    print(path.name)


def one_shape(
    variants: dict[str, Contestant], batch: int, length: int, threads: int, asked: argparse.Namespace
) -> dict[str, Any]:
    """Samples of all variants at one shape, and the bundle's speedup over the faster full-precision one."""
    runners = {name: open_artifact(one.artifact, threads) for name, one in variants.items()}
    first = next(iter(variants.values()))
    inputs = measurement_latency.latency_inputs(
        first.preprocessor, first.samples, batch=batch, length=length, seed=asked.seed
    )[0]
    samples = interleaved.time_in_turn(
        {name: (lambda runner=runner: runner.run(inputs)) for name, runner in runners.items()},
        min_samples=asked.samples, min_seconds=asked.seconds, seed=asked.seed,
    )  # fmt: skip
    for runner in runners.values():
        runner.close()
    timed = {name: Latency(samples_ms=ms, batch=batch, length=length, threads=threads) for name, ms in samples.items()}
    medians = {name: bootstrap.median_latency(latency).point for name, latency in timed.items()}
    best = min((name for name in medians if name != "fmopt"), key=lambda name: medians[name])
    gain = bootstrap.speedup(timed[best], timed["fmopt"])
    shape = f"{threads} thread(s), batch {batch}, {length:3} tokens"
    print(f"{shape}: {best} {medians[best]:8.2f} ms, fmopt {medians['fmopt']:8.2f} ms, "
          f"{gain.point:.2f}x ({gain.low:.2f}-{gain.high:.2f})", flush=True)  # fmt: skip
    return {"batch": batch, "length": length, "threads": threads, "reference": best, "median_ms": medians,
            "speedup": gain.model_dump(), "samples_ms": {n: [round(x, 4) for x in ms] for n, ms in samples.items()}}  # fmt: skip


def numbers(text: str) -> list[int]:
    """`1,8` → [1, 8]."""
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
