"""Run an optimization once undisturbed, then again in another folder while killing it again and again (see test_optimize.py).

A child is forked for every run, so that the imports are paid once. Prints a JSON line at the end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import fmopt.workflow.export  # noqa: F401  (imported before forking: seconds of imports are not what is being killed)
from fmopt.core.workload import Workload
from fmopt.workflow.job.request import Request
from fmopt.workflow.optimize import optimize_request


def run(words: list[str], out: Path) -> int:
    """Fork a child that optimizes into `out`; its process id."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        model, data, recipe = words
        optimize_request(
            Request(
                model=model, data=data, recipe=Path(recipe), workload=Workload(length=32), out=out, keep_stages=True
            )
        )
        os._exit(0)
    return child


def main() -> None:
    *words, undisturbed, killed, kills = sys.argv[1:]
    begun = time.monotonic()
    assert os.waitpid(run(words, Path(undisturbed)), 0)[1] == 0
    whole = time.monotonic() - begun
    draw, done = random.Random(0), 0
    while done < int(kills):
        child = run(words, Path(killed))
        # early moments more often: once every stage is finished a run is short
        time.sleep(draw.uniform(0.05, whole / 4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
    _, status = os.waitpid(run(words, Path(killed)), 0)
    print(json.dumps({"killed": done, "finished": status == 0}))


main()
