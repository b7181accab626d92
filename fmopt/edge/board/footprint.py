"""Serves one artifact in a process of its own and says what that took: run by path by measure.footprint.

Knows `edge.py` by its path only, so that nothing but numpy and the runtime is in memory; only runtime "torch" imports
more. Prints one line of JSON: peak_memory_mb of the whole process, load_ms from importing the runtime to an open model.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.measurement.torch_process import open_torch

RUNS = 3  # the peak is reached in the first; arenas may still grow in the second


def main(request: dict[str, Any]) -> dict[str, float]:
    """Open, run, report."""
    with np.load(request["inputs"]) as stored:
        inputs = dict(stored)
    begun = time.perf_counter_ns()
    run = open_torch(request) if request["runtime"] == "torch" else open_graph(request)
    load_ms = (time.perf_counter_ns() - begun) / 1e6
    for _ in range(RUNS):
        run(inputs)
    return {"peak_memory_mb": peak_memory_mb(), "load_ms": load_ms}


def open_graph(request: dict[str, Any]) -> Any:
    """The run method of edge.py's runner."""
    spec = importlib.util.spec_from_file_location("edge", Path(__file__).with_name("edge.py"))
    assert spec is not None
    assert spec.loader is not None
    edge = importlib.util.module_from_spec(spec)
    sys.modules["edge"] = edge  # its dataclasses look their module up
    spec.loader.exec_module(edge)
    runner = edge.open_runner(request["runtime"], Path(request["path"]), request["options"], request["threads"])
    return runner.run


def peak_memory_mb() -> float:
    """The most that this process ever had in memory (resident), in 10⁶ bytes.

    On Linux not by getrusage: its figure is inherited over exec and would be that of a large parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
