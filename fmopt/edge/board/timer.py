"""Times artifacts in turn on a board: `python -m edge.board.timer REQUEST.json` prints one line of JSON.

Runs there from a copy of this folder, by the same clock and the same runners as here; knows nothing else of fmopt. A
variant that cannot be opened or run there is reported with its reason, and the others are timed all the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..loading import Model, sample_from_json, timed_call
from ..runners import open_runner
from ..text import open_preprocessor
from . import interleaved


def opened(request: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, str]]:
    """(runners, reasons why some are none) by name; each has run once."""
    inputs = [dict(np.load(path)) for path in request["inputs"]]
    runners, failed = {}, {}
    for name, one in request["variants"].items():
        try:
            runner = open_runner(one["runtime"], Path(one["path"]), one["options"], request["threads"])
            runner.run(inputs[0])
            runners[name] = runner
        except Exception as error:  # what a runtime raises for a graph or a CPU that it does not know
            failed[name] = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return inputs, runners, failed


def alone(request: dict[str, Any], inputs: list[dict[str, Any]], runners: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A call of each model on the next inputs."""
    for name, runner in runners.items():
        yield name, interleaved.Replay([timed_call(request["pipeline"], runner, one) for one in inputs])


def whole(request: dict[str, Any], runners: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A call of each from input to answer."""
    preprocessor = open_preprocessor(Path(request["reader"]), request["pipeline"])
    batches = [[sample_from_json(sample) for sample in batch] for batch in request["batches"]]
    for name, runner in runners.items():
        model = Model({"pipeline": request["pipeline"]}, preprocessor, runner)
        yield name, interleaved.Replay([partial(model.soonest, batch) for batch in batches])


def keep(samples: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[str]:
    """The fastest of some names by the samples so far."""
    return sorted((name for name in names if samples.get(name)), key=lambda name: float(np.median(samples[name])))[:1]


def main(path: str) -> None:
    """Time, and say what came of it."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    inputs, runners, failed = opened(request)
    calls = dict(whole(request, runners) if request["batches"] else alone(request, inputs, runners))
    before = sorted(interleaved.spin_ms() for _ in range(20))[10]
    samples = {}
    if calls:
        samples = interleaved.time_in_turn(
            calls,
            min_samples=request["min_samples"],
            max_seconds=request["max_seconds"],
            dominated=lambda so_far: interleaved.certainly_slower(so_far, keep=keep(so_far, request["full_precision"])),
            seed=request["seed"],
            clock=interleaved.settled_ms,
        )
    drift = interleaved.drift_warning(before, sorted(interleaved.spin_ms() for _ in range(20))[10])
    runtimes = {one["runtime"] for one in request["variants"].values()}
    print(
        json.dumps(
            {
                "samples": samples,
                "failed": failed,
                "warnings": [drift] if drift else [],
                "versions": {name: version(name) for name in sorted(runtimes)},
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
