"""Serves one artifact in a process of its own and says what that took: `python -m fmopt.edge.board.footprint REQUEST`.

Imports numpy, the runtime and its siblings alone, so that nothing else is in memory; a board runs it from a copy of this
folder. Prints one line of JSON: peak_memory_mb of the whole process, load_ms from importing the runtime to an open model.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..host import peak_memory_mb
from ..runners import open_runner

RUNS = 3  # the peak is reached in the first; arenas may still grow in the second


def served(request: dict[str, Any], opened: Callable[[], Callable[[Any], object]]) -> dict[str, float | None]:
    """What it took to open a model by `opened` and to run it on the stored inputs of a request."""
    with np.load(request["inputs"]) as stored:
        inputs = dict(stored)
    begun = time.perf_counter_ns()
    run = opened()
    load_ms = (time.perf_counter_ns() - begun) / 1e6
    for _ in range(RUNS):
        run(inputs)
    return {"peak_memory_mb": peak_memory_mb(), "load_ms": load_ms}


def open_graph(request: dict[str, Any]) -> Any:
    """The run method of a graph's runner."""
    return open_runner(request["runtime"], Path(request["path"]), request["options"], request["threads"]).run


def main(words: str) -> None:
    """Serve what the request says, and print what it took."""
    request = json.loads(words)
    print(json.dumps(served(request, lambda: open_graph(request))))


if __name__ == "__main__":
    main(sys.argv[1])
