"""What proposing tokens brings: greedy tokens a second with and without, in turn in one process, and whether they are the same.

    .venv/bin/python benchmarks/lookup.py make          once: graphs of SmolLM2-135M in INT4, INT8 and fp32 (10 minutes)
    .venv/bin/python benchmarks/lookup.py measure [-o benchmarks/results/lookup.json]      on a quiet machine
    .venv/bin/python benchmarks/lookup.py measure --prompts 2 --tokens 32 -o /tmp/lookup.json     a try, 2 minutes

The checkpoint lies in $XDG_CACHE_HOME/fmopt/real-models/smollm2-135m, data beside the checkout in ../shared/data. Summaries are
of SciTLDR's test abstracts, code goes on from the first half of functions of the standard library, questions are over SQuAD's
paragraphs, open beginnings are written below. Every prompt goes through the graph by each way once, in random order; the time
of a token is that between two of them, so that reading the prompt is left out. Only figures are written, no text of any data set.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import compact_results
import decoding
import numpy as np

from fmopt.edge import runners
from fmopt.edge.generation import GenerationConfig, Session, continuations
from fmopt.edge.text import open_preprocessor
from fmopt.models.source import cache_folder
from tests.fuzzing import made_on

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
MADE = HERE.parent / "out" / "lookup"
CHECKPOINT = cache_folder() / "real-models" / "smollm2-135m"
GRAPHS = {"int4": "fmopt-int4-32", "int8": "fmopt-int8", "fp32": "fp32"}
KINDS = ("summaries", "code", "questions", "open")
WAYS = ("off", "auto", "lookup")
LONGEST_PROMPT = 400  # tokens
OPEN = (
    "Once upon a time", "The best way to learn a language is", "In the year 2150, people", "My favourite recipe begins with",
    "The history of the bicycle", "Dear Sir or Madam,", "What makes a good friend? A good friend", "It was raining when",
    "Three reasons to visit Norway are", "The moon rose over", "A letter to my younger self:", "How does a refrigerator work?",
)  # fmt: skip


def prompts_of(kind: str, count: int, seed: int) -> list[str]:
    """So many prompts of a kind, drawn with a seed."""
    import pandas

    if kind == "open":
        return list(OPEN[:count])
    if kind == "code":
        from code_completions import prompt_of

        from fmopt.data.builtin_code import stdlib_splits

        rows = [prompt_of(row["text"]) for row in stdlib_splits()["test"]]
    elif kind == "summaries":
        frame = pandas.read_parquet(DATA / "scitldr" / "test.parquet")
        rows = [f"{source}\n\nIn short: " for source in frame["source"]]
    else:
        frame = pandas.read_parquet(DATA / "squad_small" / "test.parquet").drop_duplicates("context")
        rows = [
            f"{context}\n\nQuestion: {question}\nAnswer:"
            for context, question in zip(frame["context"], frame["question"], strict=True)
        ]
    return random.Random(seed).sample([str(row) for row in rows], count)


def generated(
    runner: Any, ids: list[int], pipeline: Mapping[str, Any], config: GenerationConfig, session: Session
) -> tuple[list[int], float, float]:
    """(Tokens, seconds from the first to the last, seconds to the first)."""
    start = time.perf_counter()
    made: list[int] = []
    first = start
    for (token,) in continuations(runner, [ids], pipeline, config, session):
        first = first if made else time.perf_counter()
        made.append(token)
    return made, time.perf_counter() - first, first - start


def interval(one: Sequence[float], other: Sequence[float], seed: int) -> list[float]:
    """Ratio of two sums over the same prompts, and its 90 % interval by bootstrap over prompts."""
    pairs = np.array([one, other])
    draws = np.random.default_rng(seed).integers(0, pairs.shape[1], (2000, pairs.shape[1]))
    ratios = pairs[0][draws].sum(axis=1) / pairs[1][draws].sum(axis=1)
    return [float(pairs[0].sum() / pairs[1].sum()), *(float(one) for one in np.quantile(ratios, [0.05, 0.95]))]


def measured(
    runner: Any, prompts: Sequence[list[int]], pipeline: Mapping[str, Any], tokens: int, seed: int
) -> dict[str, Any]:
    """Seconds a token of every prompt and way, ratios to `off`, and how many answers are the same as with it."""
    order, sessions = random.Random(seed), {way: Session() for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    same = dict.fromkeys(WAYS, 0)
    for ids in prompts:
        answers = {}
        for way in order.sample(WAYS, len(WAYS)):
            config = GenerationConfig(max_new_tokens=tokens, speculation=way, prefix_cache=False)
            answers[way], taken, _ = generated(runner, ids, pipeline, config, sessions[way])
            seconds[way].append(taken / max(1, len(answers[way]) - 1))
        for way in WAYS:
            same[way] += answers[way] == answers["off"]
    found: dict[str, Any] = {"prompts": len(prompts), "tokens": tokens, "same": same, "seconds_per_token": seconds}
    found["tokens_per_second"] = {way: len(prompts) / sum(each) for way, each in seconds.items()}
    found["speedup"] = {way: interval(seconds["off"], seconds[way], seed) for way in WAYS[1:]}
    costs = sessions["lookup"].gain.costs
    return found | {"costs": {size: float(np.median(costs[size])) for size in sorted(costs)}}


def prefixes(runner: Any, prompts: Sequence[list[int]], pipeline: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Seconds to the first token of each prompt and five more behind it, which begin alike, with and without what is left."""
    seconds: dict[str, list[float]] = {"alone": [], "after another": []}
    same = asked = 0
    for ids in prompts:
        sessions = {"alone": Session(), "after another": Session()}
        for end in range(6):
            answers = []
            for name in random.Random(seed + end).sample(list(sessions), 2):
                config = GenerationConfig(max_new_tokens=1, speculation="off", prefix_cache=name != "alone")
                made, _, first = generated(runner, [*ids, 100 + end, 200 + end, 300], pipeline, config, sessions[name])
                answers.append(made)
                if end:
                    seconds[name].append(first)
            same, asked = same + (answers[0] == answers[1]), asked + 1
    return {
        "seconds": seconds,
        "same": [same, asked],
        "speedup": interval(seconds["alone"], seconds["after another"], seed),
    }


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """All graphs and kinds of prompts; written after each graph."""
    document: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/lookup.py", *sys.argv[1:]]), "seed": asked.seed,
                "threads": asked.threads, "model": "SmolLM2-135M", "graphs": {}}  # fmt: skip
    pipeline = json.loads((MADE / "fmopt-int8" / "pipeline.json").read_text("utf8"))
    preprocessor = open_preprocessor(CHECKPOINT, pipeline)
    for name in asked.graphs:
        runner = runners.open_runner("onnxruntime", MADE / GRAPHS[name] / "model.onnx", {}, asked.threads)
        rows: dict[str, Any] = {}
        for kind in KINDS:
            ids = [preprocessor.ids(text)[-LONGEST_PROMPT:] for text in prompts_of(kind, asked.prompts, asked.seed)]
            rows[kind] = measured(runner, ids, pipeline, asked.tokens, asked.seed)
            print(name, kind, shown(rows[kind]), flush=True)
        ids = [preprocessor.ids(text)[:LONGEST_PROMPT] for text in prompts_of("questions", asked.prompts, asked.seed)]
        rows["beginning alike"] = prefixes(runner, ids, pipeline, asked.seed)
        found = rows["beginning alike"]
        print(
            name,
            f"first token of prompts that begin alike: {found['speedup'][0]:.2f}x, same {found['same']}",
            flush=True,
        )
        runner.close()
        document["graphs"][name] = rows
        compact_results.write(document | made_on(), asked.output)
    return document


def shown(row: Mapping[str, Any]) -> str:
    """A row for people."""
    speeds = ", ".join(f"{way} {one:.1f} tokens/s" for way, one in row["tokens_per_second"].items())
    ratios = ", ".join(
        f"{way} {one:.2f}x ({low:.2f} to {high:.2f})" for way, (one, low, high) in row["speedup"].items()
    )
    same = ", ".join(f"{way} {one}/{row['prompts']}" for way, one in row["same"].items() if way != "off")
    return f"{speeds}; {ratios}; same answers: {same}"


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("make", "measure"))
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--prompts", type=int, default=12, help="of each kind (12)")
    parser.add_argument("--tokens", type=int, default=128, help="made of each (128)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "lookup.json")
    asked = parser.parse_args()
    if asked.do == "make":
        decoding.graphs(CHECKPOINT, MADE, {"fmopt int4 32": (4, 32, "rtn"), "fmopt int8": (8, 128, "rtn")})
    else:
        measure(asked)


if __name__ == "__main__":
    main()
