"""`fmopt serve` under load on loopback, beside sentence-transformers behind FastAPI: MiniLM, real sentences.

    .venv/bin/python benchmarks/serving.py [--callers 8,64] [--seconds 20] [--checked 100000]

Both servers run in turn, each in a process of its own; a third process asks with so many callers at once, each sending its next
sentence (SST-2's) when it has the answer to the last. Every answer is compared with the bundle's own vector. At the end so many
further answers are asked of `fmopt serve` with its memory watched. Raw latencies are not kept; results/serving.json has
percentiles, requests per second, wrong or missing answers, and memory. The peer needs sentence-transformers in an environment
of its own, which is made in --work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import compact_results
import httpx
import numpy as np
import psutil
import pyarrow.parquet as parquet

import fmopt
from tests.fuzzing import made_on

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DATA = ROOT / "benchmarks" / "results", ROOT.parent / "shared" / "data" / "sst2"
PINS = ("sentence-transformers==6.2.0", "fastapi==0.165.0", "uvicorn==0.54.0", "transformers==5.23.0")
PEER = """
import sys
from fastapi import FastAPI, Request
from sentence_transformers import SentenceTransformer
import torch, uvicorn
torch.set_num_threads(1)
model, app = SentenceTransformer(sys.argv[1], device="cpu"), FastAPI()
@app.post("/v1/embeddings")
def embeddings(body: dict):
    return {"data": [{"embedding": one.tolist()} for one in model.encode(body["input"])]}
print("http://127.0.0.1:" + sys.argv[2], flush=True)
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""
CLOSE = 1e-3  # vectors further from the bundle's own, by their largest difference, are wrong


class Server:
    """A server process."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.address = "http://" + line.partition("http://")[2].split(";")[0].strip()

    @property
    def memory_mb(self) -> float:
        """Resident memory."""
        return round(psutil.Process(self.process.pid).memory_info().rss / 1e6, 1)

    def stop(self) -> None:
        """Ask it to end."""
        self.process.terminate()
        self.process.wait(60)


async def load(
    address: str, texts: list[str], wanted: np.ndarray, callers: int, *, seconds: float = 1e9, count: int = 1 << 60
) -> dict[str, Any]:
    """What so many callers saw."""
    taken: list[float] = []
    wrong = missing = asked = 0
    begun = time.monotonic()
    limits = httpx.Limits(max_connections=callers, max_keepalive_connections=callers)

    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:

        async def call() -> None:
            nonlocal wrong, missing, asked
            while time.monotonic() - begun < seconds and asked < count:
                place, asked, sent = asked % len(texts), asked + 1, time.monotonic()
                got = await client.post("/v1/embeddings", json={"input": [texts[place]]})
                taken.append(time.monotonic() - sent)
                if got.status_code != 200:
                    missing += 1
                elif np.abs(np.array(got.json()["data"][0]["embedding"]) - wanted[place]).max() > CLOSE:
                    wrong += 1

        await asyncio.gather(*(call() for _ in range(callers)))
    p50, p90, p99 = (round(1000 * float(np.percentile(taken, q)), 2) for q in (50, 90, 99))
    return {
        "callers": callers, "requests": len(taken), "per_second": round(len(taken) / (time.monotonic() - begun), 1),
        "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "wrong": wrong, "missing": missing,
    }  # fmt: skip


def peer_python(work: Path) -> Path:
    """Python of the peer's environment."""
    home = work / "peer"
    if not (home / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        for part in (("torch==2.13.0",), PINS):
            subprocess.run([home / "bin/pip", "install", "-q", "--no-compile", *part], check=True)
        (home / "made").touch()
    return home / "bin" / "python"


def main() -> None:
    """Make, serve, load, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", default="8,64")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--checked", type=int, default=100_000)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "serving")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    texts = parquet.read_table(DATA / "test.parquet")["text"].to_pylist()
    bundle = asked.work / "minilm"
    if not (bundle / "fmopt.json").exists():
        fmopt.export("minilm", bundle)
    wanted = np.array(fmopt.load(bundle)(texts))
    commands = {
        "fmopt serve, ONNX Runtime fp32": [
            sys.executable,
            "-m",
            "fmopt",
            "serve",
            str(bundle),
            "--port",
            "0",
            "--threads",
            "1",
        ],
        "sentence-transformers + FastAPI, fp32": [
            str(peer_python(asked.work)),
            "-c",
            PEER,
            str(model_folder()),
            "8911",
        ],
    }
    rows = []
    for name, command in commands.items():
        server = Server(command)
        try:
            asyncio.run(load(server.address, texts, wanted, 8, seconds=3))  # warm
            for callers in map(int, asked.callers.split(",")):
                got = asyncio.run(load(server.address, texts, wanted, callers, seconds=asked.seconds))
                rows.append({"server": name, **got, "memory_mb": server.memory_mb})
                print(rows[-1], flush=True)
        finally:
            server.stop()
    server = Server(commands["fmopt serve, ONNX Runtime fp32"])
    try:
        memory, checked = [server.memory_mb], []
        for _ in range(10):
            checked.append(asyncio.run(load(server.address, texts, wanted, 64, count=asked.checked // 10)))
            memory.append(server.memory_mb)
            print(checked[-1], memory[-1], flush=True)
    finally:
        server.stop()
    total = {name: sum(one[name] for one in checked) for name in ("requests", "wrong", "missing")}
    result = {
        "what": "fmopt serve under load, MiniLM on SST-2's sentences", "rows": rows,
        "checked": {**total, "memory_mb": memory}, "command": "python benchmarks/serving.py " + " ".join(sys.argv[1:]),
        **made_on(),
    }  # fmt: skip
    compact_results.write(result, RESULTS / "serving.json")
    print(json.dumps(result["checked"]))


def model_folder() -> Path:
    """MiniLM as its package holds it."""
    from fmopt.models.source import resolve

    return resolve("minilm").folder


if __name__ == "__main__":
    main()
