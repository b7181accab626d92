"""Short kernels that show how fast a board's memory and arithmetic are at best. Runs there beside a copy of interleaved.py,
on numpy and ONNX Runtime alone.

What host_kernels.py measures on this machine, in the same way: the shortest call counts. `python -m board.kernels
SECONDS CORES NAME=GRAPH.onnx…` prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort

from .interleaved import best_seconds

NUMBERS = 16_000_000  # three float32 arrays of 64 MB each: beyond any last-level cache we know of
KINDS = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


def wait_for_all(pool: ThreadPoolExecutor, work: Any, parts: list[slice]) -> None:
    """One call for each part, at once."""
    list(pool.map(work, parts))


def bandwidth(seconds: float, cores: int) -> float:
    """GB/s by STREAM's add a = b + c, which moves what its triad moves; the better of one thread and all."""
    a, b, c = (np.ones(NUMBERS, np.float32) for _ in range(3))

    def add(at: slice) -> None:
        np.add(b[at], c[at], out=a[at])

    best = float("inf")
    for threads in sorted({1, cores}):
        parts = [slice(i * NUMBERS // threads, (i + 1) * NUMBERS // threads) for i in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            best = min(best, best_seconds(partial(wait_for_all, pool, add, parts), seconds))
    return 3 * 4 * NUMBERS / best / 1e9


def gops(path: str, seconds: float) -> float:
    """10⁹ operations/s of one core in the product of a graph x · weights."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    x = np.random.default_rng(0).integers(0, 255, port.shape).astype(KINDS[port.type])
    return 2 * port.shape[0] ** 3 / best_seconds(lambda: session.run(None, {"x": x}), seconds) / 1e9


def main(argv: list[str]) -> None:
    """Measure, and say what came of it."""
    seconds, cores = float(argv[0]), int(argv[1])
    graphs = dict(word.split("=") for word in argv[2:])
    found = {name: round(gops(path, seconds), 1) for name, path in graphs.items()}
    print(json.dumps({"bandwidth_gbs": round(bandwidth(seconds, cores), 1), "gops": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
