"""How much memory it takes to make a decoder of 1.1B parameters narrow: every step in a process of its own, its peak recorded.

    .venv/bin/python benchmarks/decoder_memory.py OUT [--shape llama-1.1b] [--keep]      about 15 GB of disk, 15 minutes

Random weights are written in shards; then fmopt's own steps: load and export with the weights beside the graph, 4-bit
weights one at a time, the table, the fused graph, and eight tokens of it. Writes results/decoder-memory-….json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STEPS = ("export", "quantize_weights", "quantize_embeddings", "fuse_decoder", "generate")
LIMIT_MB = 8000


def step(name: str, out: Path) -> None:
    """One step in this process; prints its largest memory in MB (10⁶ bytes)."""
    import numpy as np

    from fmopt.core.model import Graph
    from fmopt.edge import host, runners
    from fmopt.edge.generation import GenerationConfig, continuations
    from fmopt.exporters import to_onnx
    from fmopt.measurement.host_probe import load_target
    from fmopt.models import checkpoint
    from fmopt.models.source import resolve
    from fmopt.passes.base import Context
    from fmopt.passes.fuse_decoder import FuseDecoder
    from fmopt.passes.quantize_embeddings import QuantizeEmbeddings
    from fmopt.passes.quantize_weights import QuantizeWeights

    metadata = checkpoint.inspect(resolve(str(out / "checkpoint")), None)
    passes = {
        "quantize_weights": QuantizeWeights(bits=4, block=128),
        "quantize_embeddings": QuantizeEmbeddings(),
        "fuse_decoder": FuseDecoder(),
    }
    if name == "export":
        to_onnx.export_onnx(checkpoint.load(metadata), {}, out / "export")
    elif name in passes:
        before = Graph("onnx", out / STEPS[STEPS.index(name) - 1] / "model.onnx", (), ("logits",))
        passes[name].apply(before, Context(metadata, load_target("host"), lambda: iter(())), out / name)
    else:
        runner = runners.open_runner("onnxruntime", out / "fuse_decoder" / "model.onnx", {}, 2)
        prompt = np.random.default_rng(0).integers(1, 1000, 128).tolist()
        made = list(continuations(runner, [prompt], metadata.pipeline, GenerationConfig(max_new_tokens=8)))
        assert len(made) == 8
    print(json.dumps({"peak_mb": host.peak_memory_mb()}))


def main() -> None:
    """The command line; exit code 1 when a step took more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", default="llama-1.1b")
    parser.add_argument("--keep", action="store_true", help="leave the files")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        step(asked.step, asked.out)
        return
    weights = asked.out / "checkpoint"
    if not (weights / "model.safetensors.index.json").is_file():
        subprocess.run([sys.executable, str(HERE / "random_decoders.py"), asked.shape, str(weights)], check=True)
    total = json.loads((weights / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    rows: list[dict[str, Any]] = []
    for name in STEPS:
        began = time.monotonic()
        command = [sys.executable, __file__, str(asked.out), "--step", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peak = json.loads(done.stdout.splitlines()[-1])["peak_mb"]
        files = [path for path in (asked.out / name).rglob("*") if path.is_file()]
        rows.append({"step": name, "peak_mb": round(peak), "seconds": round(time.monotonic() - began),
                     "bytes": sum(path.stat().st_size for path in files)})  # fmt: skip
        print(rows[-1], flush=True)
        if name == "quantize_weights" and not asked.keep:
            shutil.rmtree(asked.out / "export")
    from fmopt.measurement import host_probe

    worst = max(row["peak_mb"] for row in rows)
    day = datetime.now(UTC)
    document = {
        "what": "largest resident memory (VmHWM) of every step from sharded fp32 weights to INT4 tokens",
        "command": shlex.join(["python", "benchmarks/decoder_memory.py", *sys.argv[1:]]),
        "shape": asked.shape, "parameters": total // 4, "limit_mb": LIMIT_MB, "worst_mb": worst, "steps": rows,
        "host": host_probe.host_fingerprint(), "versions": host_probe.versions(), "date": day.isoformat(timespec="seconds"),
    }  # fmt: skip
    path = HERE / "results" / f"decoder-memory-{asked.shape}-{day:%Y-%m-%d}.json"
    path.write_text(json.dumps(document))
    print(f"{path.name}: worst {worst} MB of {LIMIT_MB} allowed")
    if not asked.keep:
        shutil.rmtree(asked.out)
    raise SystemExit(int(worst > LIMIT_MB))


if __name__ == "__main__":
    main()
