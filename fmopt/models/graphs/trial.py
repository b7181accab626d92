"""A received graph tried in a process of its own, with limits of time and memory, before anything here opens it.

It may never come to an end, may ask for all memory, or make its runtime crash; and it alone knows how long its texts may be.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import CheckpointError
from fmopt.edge.errors import last_line
from fmopt.edge.files import limit_memory, tried_apart
from fmopt.edge.loading import TRY_MEMORY_MB, TRY_MEMORY_PER_CORE_MB, TRY_MEMORY_TIMES
from fmopt.edge.runners import open_runner

SECONDS, SECONDS_PER_MB = 60.0, 1.0  # for all calls of a trial
LONGEST = 512  # tokens of a call: what a graph takes beyond is what its configuration says
SHORT = 8  # tokens of the calls that only show shapes


@dataclass(frozen=True)
class Trial:
    """What came of it: the shapes of the outputs of two texts of `SHORT` tokens, and the longest text that was computed."""

    shapes: Mapping[str, tuple[int, ...]]
    longest: int


def tried(graph: Path, kinds: Mapping[str, str], weight_bytes: int, longest: int, rows: int) -> Trial:
    """Run a graph on made-up tokens. `kinds` are element types of its inputs by their own names; texts are tried up to `longest`
    tokens, with ids below `rows`.

    CheckpointError where it cannot be opened, does not compute two texts at once, gives a number that is not finite, or did not
    come to an end.
    """
    megabytes = weight_bytes / 1e6
    memory = TRY_MEMORY_MB + TRY_MEMORY_PER_CORE_MB * (os.cpu_count() or 1) + TRY_MEMORY_TIMES * megabytes
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "trial.json"
        asked = json.dumps({"graph": str(graph), "kinds": dict(kinds), "longest": min(longest, LONGEST), "rows": rows,
                            "memory": int(memory), "answer": str(answer)})  # fmt: skip
        code = (
            "import sys; sys.path[:] = sys.argv[1].split(chr(10)); "
            "from fmopt.models.graphs.trial import main; sys.exit(main(sys.argv[2]))"
        )
        command = [sys.executable, "-c", code, "\n".join(sys.path), asked]
        wrong = tried_apart(command, SECONDS + SECONDS_PER_MB * megabytes)
        if wrong is not None:
            raise CheckpointError(f"{graph} cannot be used: {wrong}; get the file again, or export the model anew")
        found = json.loads(answer.read_text()) if answer.is_file() else _run_here(asked)
    return Trial({name: tuple(shape) for name, shape in found["shapes"].items()}, int(found["longest"]))


def _run_here(asked: str) -> dict[str, Any]:
    """Where no process can be started (said by a warning), what one would have found."""
    main(asked, limited=False)
    found: dict[str, Any] = json.loads(Path(json.loads(asked)["answer"]).read_text())
    return found


def main(text: str, *, limited: bool = True) -> int:
    """The process's own work: see `tried`. Exit code 0, or 1 with a line that begins with `error: `."""
    asked = json.loads(text)
    if limited:
        limit_memory(asked["memory"])
    try:
        found = _found(asked)
    except Exception as error:  # the runtime raises what it likes
        print(f"error: {last_line(error)}", file=sys.stderr)
        return 1
    Path(asked["answer"]).write_text(json.dumps(found))
    return 0


def _found(asked: Mapping[str, Any]) -> dict[str, Any]:
    with closing(open_runner("onnxruntime", Path(asked["graph"]), {}, 1)) as runner:

        def run(rows: int, tokens: int) -> dict[str, np.ndarray]:
            outputs: dict[str, np.ndarray] = runner.run(_feed(asked["kinds"], rows, tokens, asked["rows"]))
            return outputs

        shapes = {name: array.shape for name, array in run(2, SHORT).items()}
        run(2, SHORT + 3)
        if not all(np.isfinite(array).all() for array in run(1, SHORT).values() if array.dtype.kind == "f"):
            raise ValueError("it gives numbers that are not finite")
        return {"shapes": shapes, "longest": _longest(run, asked["longest"])}


def _longest(run: Any, most: int) -> int:
    """The most tokens up to `most` that a call computes: beyond the table of positions a lookup fails."""
    least, beyond = SHORT, most + 1
    middle = most
    while beyond - least > 1:
        try:
            run(1, middle)
            least = middle
        except Exception:  # runtimes have classes of their own
            beyond = middle
        middle = (least + beyond) // 2
    return least


def _feed(kinds: Mapping[str, str], rows: int, tokens: int, words: int) -> dict[str, np.ndarray]:
    made: dict[str, Sequence[Any] | np.ndarray] = {}
    for name, kind in kinds.items():
        known, _, dtype = kind.partition(" ")
        one = {"input_ids": min(5, words - 1), "attention_mask": 1, "token_type_ids": 0}.get(known)
        array = np.tile(np.arange(tokens), (rows, 1)) if one is None else np.full((rows, tokens), one)
        made[name] = array.astype(dtype)
    return {name: np.asarray(array) for name, array in made.items()}
