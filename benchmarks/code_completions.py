"""How often what a code model writes is Python: greedy completions of functions it has not seen, of a baseline and a bundle.

    python benchmarks/code_completions.py BASELINE BUNDLE -o benchmarks/results/code-completions.json [--functions 200]

BASELINE and BUNDLE are bundles, the first in full precision (`fmopt export CKPT --data builtin:stdlib -o BASELINE`). Each gets
the first half of the lines of every function of the test split of builtin:stdlib and goes on for `--tokens`. What it wrote is cut
at its last whole line; it parses when `ast.parse` takes the function with it, up to the last two lines left out, which the
number of tokens may have cut in the middle of a statement. The answers to each function are kept, so that the two shares are
compared in pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import fmopt
from fmopt.core.results import Scores
from fmopt.data.builtin_code import parses, stdlib_splits
from fmopt.evaluation import bootstrap
from fmopt.exporters.bundles.bundle import Bundle
from fmopt.measurement import host_probe
from fmopt.workflow.search.builder import tool_versions

LEFT_OUT = 2  # last whole lines that may be an unfinished statement


def prompt_of(function: str) -> str:
    """The first half of a function's lines, two at least."""
    lines = function.splitlines(keepends=True)
    return "".join(lines[: max(2, len(lines) // 2)])


def is_python(prompt: str, completion: str) -> bool:
    """Whether a prompt with what was written parses, with one whole new line at least."""
    lines = (prompt + completion).splitlines(keepends=True)
    whole = lines if lines[-1].endswith("\n") else lines[:-1]
    fewest = len(prompt.splitlines()) + 1
    return any(parses("".join(whole[:end])) for end in range(len(whole), max(fewest, len(whole) - LEFT_OUT) - 1, -1))


def answers(bundle: Bundle, prompts: Sequence[str], tokens: int) -> list[dict[str, object]]:
    """What a bundle writes after each prompt, and whether it parses; prompts that fill its context are passed over."""
    found: list[dict[str, object]] = []
    for number, prompt in enumerate(prompts):
        written = bundle(prompt, max_new_tokens=tokens)["text"]
        found.append({"function": number, "written": written, "parses": is_python(prompt, written)})
    return found


def main(arguments: Sequence[str]) -> int:
    """Write the JSON and print the two shares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("baseline", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--functions", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args(arguments)
    bundles = {"baseline": fmopt.load(asked.baseline), "bundle": fmopt.load(asked.bundle)}
    room = min(int(one.pipeline["max_length"]) for one in bundles.values()) - asked.tokens
    encode = bundles["baseline"].preprocessor.ids
    drawn = np.random.default_rng(0).permutation([prompt_of(row["text"]) for row in stdlib_splits()["test"]])
    prompts = [str(prompt) for prompt in drawn if len(encode(str(prompt))) < room][: asked.functions]
    reported = {name: answers(one, prompts, asked.tokens) for name, one in bundles.items()}
    scores = [
        Scores(name="parses", metric="mean", values=[[float(bool(one["parses"]))] for one in each], primary=True)
        for each in reported.values()
    ]
    drop = bootstrap.paired_drop(*scores, confidence=0.95)
    shares = {name: float(one.array().mean()) for name, one in zip(reported, scores, strict=True)}
    record = {
        "what": "completions that parse", "command": f"python benchmarks/code_completions.py {' '.join(arguments)}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "host": host_probe.host_fingerprint(),
        "versions": tool_versions(), "functions": len(prompts), "tokens": asked.tokens, "shares": shares,
        "drop": drop.model_dump(), "answers": reported,
    }  # fmt: skip
    asked.output.write_text(json.dumps(record, indent=1), "utf8")
    words = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    print(
        f"{words} of {len(prompts)} completions parse; the drop is {100 * drop.point:.1f} pt (≤ {100 * drop.high:.1f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
