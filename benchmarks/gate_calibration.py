"""How often the gate is wrong: error rates by simulation on real per-item results, and of latency by real A/A runs.

    .venv/bin/python benchmarks/gate_calibration.py accuracy    passes with a true drop of 0, half, all and twice the allowed
    .venv/bin/python benchmarks/gate_calibration.py power       does the n that UNDECIDED names decide 4 times in 5
    .venv/bin/python benchmarks/gate_calibration.py winner      50 candidates, one test set
    .venv/bin/python benchmarks/gate_calibration.py looks       the same evaluations looked at once, and in growing parts
    .venv/bin/python benchmarks/gate_calibration.py latency --runs 100 [--load]    a model against itself; needs a quiet machine
    .venv/bin/python benchmarks/gate_calibration.py table       the tables of docs/measuring.md from the results

Every simulated evaluation is n items drawn with replacement from a population (gate_populations.py) and goes through
`gate.paired_drop` and `gate.at_most` as a real one. Results are written after every cell or run to
results/gate-calibration-*.json, and a run that is started again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gate_populations import NAMES, RESULTS, Population, population, rates

from fmopt.core.results import Check, Latency, Scores
from fmopt.edge.board import interleaved
from fmopt.evaluation import bootstrap, gate
from fmopt.evaluation.metrics import METRICS
from fmopt.measurement import host_probe
from fmopt.measurement import latency as measurement_latency
from fmopt.workflow.search.scoring import FIRST
from fmopt.workflow.search.selection import within_reserve

ITEMS = (100, 300, 1000, 3000, 10_000, 20_000)
SHARES = (1.0, 0.0, 2.0, 0.5)  # of the allowed drop, what matters most first
RESAMPLES = (
    399  # for a bound at 95 % the 380th is exact (Davidson and MacKinnon 2000); `resamples` shows the same with more
)
CANDIDATES = 50
DOCS = RESULTS.parents[1] / "docs" / "measuring.md"
TOLERANCE = 0.02  # of a speedup: what is within is no difference
BURN = "import os\nwhile os.getppid() == {parent}: sum(range(10_000))"  # ends with us, however we end


def judged(
    one: Population, scores: tuple[Scores, Scores], seed: int, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Check:
    """The accuracy check of one evaluation, with the limit from the baseline's own value as `gate.judge` has it."""
    drop = bootstrap.paired_drop(*scores, resamples=resamples, seed=seed, confidence=confidence)
    allowed = gate.Drop(amount=1.0, unit="%" if one.metric == "perplexity" else "pt")
    return gate.at_most("accuracy drop", drop, allowed.limit(float(METRICS[one.metric].of(scores[0].array()))))


def accuracy(asked: argparse.Namespace) -> None:
    """Passed, failed and undecided for every population, n and true drop; most evaluations at the boundary."""
    made = Result("accuracy", asked)
    for batch in range(asked.batches):
        for name in asked.only or NAMES:
            for share in SHARES:
                one = population(name, share)
                for n in ITEMS:
                    cell = made.cell(f"{name} | {share:g} | {n}", population=one.metadata(), outcomes={})
                    if cell.get("batches", 0) > batch:
                        continue
                    count = 4 * asked.size if share == 1 else asked.size
                    rng = np.random.default_rng([asked.seed, batch, NAMES.index(name), int(10 * share), n])
                    got = [judged(one, one.evaluation(rng, n), seed).outcome.value for seed in range(count)]
                    made.count(cell, got, batch)
        print(f"batch {batch + 1} of {asked.batches}", flush=True)


def resamples(asked: argparse.Namespace) -> None:
    """The same evaluations judged with RESAMPLES and with the 10,000 of a real run: how often outcome and bound differ."""
    made = Result("resamples", asked)
    for name in NAMES:
        one = population(name, 1.0)
        cell = made.cell(f"{name} | 1 | 1000", outcomes={})
        rng = np.random.default_rng([asked.seed, NAMES.index(name)])
        pairs = []
        for seed in range(asked.size):
            scores = one.evaluation(rng, 1000)
            pairs.append((judged(one, scores, seed), judged(one, scores, seed, 10_000)))
        few, many = ([check.outcome.value for check in checks] for checks in zip(*pairs, strict=True))
        bounds = np.asarray([[check.got.high - check.got.point for check in pair] for pair in pairs])  # type: ignore[union-attr]
        cell.update(
            fewer=Counter(few), more=Counter(many), both_alike=sum(a == b for a, b in zip(few, many, strict=True)),
            evaluations=len(pairs), mean_width_ratio=round(float((bounds[:, 0] / bounds[:, 1]).mean()), 4),
        )  # fmt: skip
        made.save()


def at_looks(asked: argparse.Namespace) -> None:
    """Evaluations of 3,000 items, judged whole and at the first of several looks that decides, as a slow network is."""
    made, n = Result("looks", asked), 3000
    ends = [*itertools.takewhile(lambda end: end < n, (FIRST * 2**power for power in itertools.count())), n]
    for name in NAMES:
        for share in SHARES[:3]:
            one = population(name, share)
            cell = made.cell(f"{name} | {share:g} | {n}", population=one.metadata(), once={}, looks={})
            if cell["once"]:
                continue
            rng = np.random.default_rng([asked.seed, NAMES.index(name), int(10 * share)])
            once, first, needed = Counter[str](), Counter[str](), []
            for seed in range(asked.size):
                scores = one.evaluation(rng, n)
                once[judged(one, scores, seed).outcome.value] += 1
                for number, end in enumerate(ends):
                    part = tuple(each.model_copy(update={"values": each.values[:end]}) for each in scores)
                    at = gate.confidence_of_look(0.95, number, last=end == n)
                    # a bound at 99.9 % needs more resamples than one at 95 %
                    outcome = judged(one, part, seed, 10 * RESAMPLES + 9, at).outcome.value
                    if outcome != "UNDECIDED" or end == n:
                        first[outcome] += 1
                        needed.append(end)
                        break
            cell.update(once=dict(once), looks=dict(first), mean_items=round(float(np.mean(needed))))
            cell["rates"] = {"once": rates(dict(once)), "looks": rates(dict(first))}
            made.save()
            print(name, share, cell["rates"], cell["mean_items"], flush=True)


def looks_table(cells: dict[str, Any]) -> str:
    """Passes exactly at the limit by both ways, and items that looks needed."""
    lines = [
        "| 3,000 items | passed exactly at the limit, looked at once | in growing parts | "
        "items needed at the limit / at twice / with no drop |",
        "|---|---|---|---|",
    ]
    for name in NAMES:
        found = [cells.get(f"{name} | {share:g} | 3000") for share in (1.0, 2.0, 0.0)]
        if all(cell and cell["once"] for cell in found):
            shown = [percent(found[0]["rates"][way].get("PASS", [0.0, 0.0, 0.0])) for way in ("once", "looks")]
            needed = " / ".join(f"{cell['mean_items']:,}" for cell in found)
            lines.append(f"| {name} | {shown[0]} | {shown[1]} | {needed} |")
    return "\n".join(lines)


def power(asked: argparse.Namespace) -> None:
    """A pilot that is UNDECIDED names n; how often does a fresh evaluation of n items pass a candidate that lost nothing."""
    made = Result("power", asked)
    for name in NAMES:
        one = population(name, 0.0)
        for pilot in asked.pilots:
            cell = made.cell(f"{name} | pilot {pilot}", population=one.metadata(), outcomes={}, needed=[])
            rng = np.random.default_rng([asked.seed, NAMES.index(name), pilot])
            if "pilots" in cell:
                continue
            got, undecided = [], 0
            for seed in range(asked.size):
                scores = one.evaluation(rng, pilot)
                check = judged(one, scores, seed)
                if check.outcome.value != "UNDECIDED" or check.got is None or check.limit is None:
                    continue
                undecided += 1
                needed = gate.items_needed(check.got, check.limit, pilot)
                if needed is None or check.got.point > check.limit:
                    continue  # it was told that no number decides, or that a fail is likelier: that is no promise to pass
                cell["needed"].append(needed)
                got.append(judged(one, one.evaluation(rng, min(needed, asked.most_items)), seed).outcome.value)
            cell.update(pilots=asked.size, pilots_undecided=undecided)
            if not got:  # every pilot decided: there was nothing to name
                made.save()
                continue
            made.count(cell, got, 0)
            print(name, pilot, cell["rates"], int(np.median(cell["needed"] or [0])), flush=True)


def winner(asked: argparse.Namespace) -> None:
    """50 candidates over the same items: fmopt's way against taking the best, or the first that passes, on the test split.

    All are at the limit, or spread evenly from once to twice the limit, or 45 at the limit and 5 without any drop; their
    order of speed is random. Validation has the 600 items that fmopt reads of it at most.
    """
    made = Result("winner", asked)
    one = population(NAMES[0], 1.0)
    worlds = {
        "all at the limit": np.ones(CANDIDATES),
        "from once to twice the limit": np.linspace(1, 2, CANDIDATES),
        "45 at the limit, 5 without a drop": np.repeat([1.0, 0.0], [45, 5]),
    }
    for number, (world, shares) in enumerate(worlds.items()):
        for n in (1000, 3000):
            cell = made.cell(
                f"{world} | {n}", candidates=CANDIDATES, validation=600, population=one.metadata(), ways={}
            )
            if cell["ways"]:
                continue
            rng = np.random.default_rng([asked.seed, number, n])
            ways: dict[str, Counter[str]] = {}
            for seed in range(asked.size):
                shuffled = rng.permutation(shares)  # in order of speed
                validation, test = (together(one, shuffled, rng, items) for items in (600, n))
                for way, choice in choices(one, validation, test, seed).items():
                    kind = "nothing chosen" if choice is None else choice[1]
                    wrong = kind == "PASS" and choice is not None and shuffled[choice[0]] >= 1
                    ways.setdefault(way, Counter())["wrong PASS" if wrong else kind] += 1
            cell["ways"] = {way: dict(counts) for way, counts in ways.items()}
            cell["rates"] = {way: rates(dict(counts)) for way, counts in ways.items()}
            made.save()
            print(world, n, cell["rates"], flush=True)


def together(one: Population, shares: np.ndarray, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rights and wrongs of the baseline (n,) and of all candidates (candidates, n) on the same items.

    The baseline is right, and a candidate wins what was wrong, as often as in the real population; it loses what was
    right as often as its true drop needs. Candidates are independent given the baseline: luck has the most to choose from.
    """
    right, hit = one.base[:, 0] > 0.5, one.candidate[:, 0] > 0.5
    share = one.weights[right].sum()
    wins = one.weights[~right & hit].sum() / (1 - share)
    loses = (shares * one.allowed + wins * (1 - share)) / share
    base, luck = rng.random(n) < share, rng.random((len(shares), n))
    return base, np.where(base, luck >= loses[:, None], luck < wins)


def choices(
    one: Population, validation: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, tuple[int, str] | None]:
    """Which candidate each way ends with, and its outcome on the test split; None when none is chosen."""

    def scores(rights: np.ndarray) -> Scores:
        rows = [[0.0], [1.0]]
        values = [rows[right] for right in rights.tolist()]
        return Scores.model_construct(name=one.name, metric=one.metric, values=values, primary=True)

    base, held = scores(test[0]), scores(validation[0])
    on_test = [judged(one, (base, scores(rights)), seed) for rights in test[1]]
    points = [check.got.point for check in on_test if check.got is not None]
    best = int(np.argmin(points))
    passing = next((k for k, check in enumerate(on_test) if check.outcome.value == "PASS"), None)
    keeping = (
        k
        for k, rights in enumerate(validation[1])
        if within_reserve(bootstrap.paired_drop(held, scores(rights), resamples=RESAMPLES), one.allowed)
    )
    chosen = next(keeping, None)
    return {
        "fmopt": None if chosen is None else (chosen, on_test[chosen].outcome.value),
        "the best on test": (best, on_test[best].outcome.value),
        "the first that passes on test": None if passing is None else (passing, "PASS"),
    }


def latency(asked: argparse.Namespace) -> None:
    """A/A: MiniLM in fp32 on ONNX Runtime opened twice, timed in turn and judged as a candidate is."""
    from fmopt.core.stages.store import Store
    from fmopt.workflow.deployed import bench_metadata, contestants, open_artifact

    made = Result("latency-load" if asked.load else "latency", asked)
    burner = subprocess.Popen([sys.executable, "-c", BURN.format(parent=os.getpid())]) if asked.load else None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            made_of = contestants("minilm", bench_metadata("minilm"), Store(Path(scratch)))
            one = next(one for one in made_of if one.artifact.runtime == "onnxruntime")
            inputs = measurement_latency.latency_inputs(one.preprocessor, one.samples, batch=1, length=asked.length)
            for run in range(asked.runs):
                cell = made.cell(f"run {run}")
                if "speedup" in cell:
                    continue
                warnings = measurement_latency.quiet_machine()
                runners = [open_artifact(one.artifact, 1) for _ in range(2)]
                calls = {
                    name: interleaved.Replay([partial(runner.run, item) for item in inputs])
                    for name, runner in zip("AB", runners, strict=True)
                }
                samples = interleaved.time_in_turn(calls, seed=run, clock=interleaved.settled_ms)  # as optimize does
                for runner in runners:
                    runner.close()
                got = claim(samples, asked.length, run)
                cell.update(
                    got, warnings=warnings, samples_ms={k: np.round(ms, 3).tolist() for k, ms in samples.items()}
                )
                made.save()
                print(f"run {run}: {got['speedup']} {got['says']}", flush=True)
    finally:
        if burner:
            burner.kill()
    print(Counter(cell["says"] for cell in made.cells.values()))


def claim(samples: dict[str, list[float]], length: int, seed: int) -> dict[str, Any]:
    """The speedup of B over A as a run finds it, and what its interval says about TOLERANCE."""
    first, second = (Latency(samples_ms=samples[name], batch=1, length=length, threads=1) for name in "AB")
    got = bootstrap.speedup(first, second, seed=seed)
    if got.low > 1 + TOLERANCE or got.high < 1 - TOLERANCE:
        says = "a difference"
    else:
        says = "no difference" if got.low >= 1 - TOLERANCE and got.high <= 1 + TOLERANCE else "UNDECIDED"
    return {"speedup": [round(x, 4) for x in (got.point, got.low, got.high)], "says": says}


class Result:
    """A file of results, made or gone on with: circumstances, and cells by name."""

    def __init__(self, verb: str, asked: argparse.Namespace) -> None:
        self.path = RESULTS / f"gate-calibration-{verb}.json"
        given = json.loads(self.path.read_text()) if self.path.exists() else {"cells": {}}
        self.cells: dict[str, dict[str, Any]] = given["cells"]
        self.head = {
            "command": " ".join(["python", "benchmarks/gate_calibration.py", *sys.argv[1:]]), "seed": asked.seed,
            "resamples": RESAMPLES, "host": host_probe.host_fingerprint(), "versions": host_probe.versions(),
        }  # fmt: skip

    def cell(self, name: str, **start: Any) -> dict[str, Any]:
        """The cell of that name, begun with `start` when it is new."""
        return self.cells.setdefault(name, start)

    def count(self, cell: dict[str, Any], outcomes: list[str], batch: int) -> None:
        """Add outcomes to a cell and write."""
        total = Counter({kind: cell["outcomes"].get(kind, 0) for kind in ("PASS", "FAIL", "UNDECIDED")}) + Counter(
            outcomes
        )
        cell.update(
            outcomes={kind: total[kind] for kind in ("PASS", "FAIL", "UNDECIDED")},
            batches=batch + 1,
        )
        cell["rates"] = rates(cell["outcomes"])
        self.save()

    def save(self) -> None:
        """Write in whole, so that a kill leaves what was there."""
        made = {**self.head, "date": datetime.now(UTC).isoformat(timespec="seconds"), "cells": self.cells}
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(made))
        beside.replace(self.path)


def table(_: argparse.Namespace) -> None:
    """Markdown of what the results hold, printed and put between the marks of docs/measuring.md."""
    made = []
    for name, draw in TABLES.items():
        file = RESULTS / f"gate-calibration-{name}.json"
        if file.exists():
            made.append(draw(json.loads(file.read_text())["cells"]))
    text = "\n\n".join(made)
    before, start, rest = DOCS.read_text().partition("<!-- gate_calibration.py table -->\n")
    _, end, after = rest.partition("<!-- end of table -->")
    DOCS.write_text(f"{before}{start}{text}\n{end}{after}")
    print(text)


def accuracy_table(cells: dict[str, Any]) -> str:
    """Wrong passes exactly at the limit, over all n and at the worst, those at twice the limit, and passes without a drop."""
    shown = (1000, 3000, 10_000)
    lines = [
        "| evaluations of | passed exactly at the limit | at the worst n | passed at twice the limit | passed with no drop, n = "
        + " / ".join(f"{n:,}" for n in shown)
        + " |",
        "|---|---|---|---|---|",
    ]
    for name in NAMES:
        made = {(share, n): cells.get(f"{name} | {share:g} | {n}") for share in SHARES for n in ITEMS}
        found = {key: cell for key, cell in made.items() if cell and cell["outcomes"]}
        if len(found) < len(made):
            continue
        worst = max(ITEMS, key=lambda n: found[1.0, n]["rates"]["PASS"][0])
        at, twice = (pooled([found[share, n]["outcomes"] for n in ITEMS]) for share in (1.0, 2.0))
        passed = " / ".join(f"{found[0.0, n]['rates']['PASS'][0]:.0%}".replace("%", " %") for n in shown)
        at_worst = f"{percent(found[1.0, worst]['rates']['PASS'])}, n = {worst:,}"
        lines.append(f"| {name} | {percent(at)} | {at_worst} | {percent(twice)} | {passed} |")
    return "\n".join(lines)


def pooled(outcomes: list[dict[str, int]]) -> list[float]:
    """The share of passes over several cells, with its interval."""
    return rates({kind: sum(each[kind] for each in outcomes) for kind in outcomes[0]})["PASS"]


def power_table(cells: dict[str, Any]) -> str:
    """Passes with the n that UNDECIDED named."""
    lines = ["| population, true drop 0 | pilot | n said, median | passed with that n |", "|---|---|---|---|"]
    for key, cell in cells.items():
        name, pilot = key.split(" | pilot ")
        if not cell["needed"]:
            continue
        lines.append(
            f"| {name} | {int(pilot):,} | {int(np.median(cell['needed'])):,} | {percent(cell['rates']['PASS'])} |"
        )
    return "\n".join(lines)


def winner_table(cells: dict[str, Any]) -> str:
    """Wrong passes of each way to choose."""
    ways = ("fmopt", "the first that passes on test", "the best on test")
    lines = ["| 50 candidates | test items | " + " | ".join(ways) + " |", "|---|---|" + "---|" * len(ways)]
    for key, cell in cells.items():
        world, n = key.split(" | ")
        shown = [percent(cell["rates"][way].get("wrong PASS", [0.0, 0.0, 0.0])) for way in ways]
        lines.append(f"| {world} | {int(n):,} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def latency_table(cells: dict[str, Any]) -> str:
    """What A/A runs said."""
    kinds = ("a difference", "no difference", "UNDECIDED")
    counts = dict.fromkeys(kinds, 0) | Counter(cell["says"] for cell in cells.values())
    shown = "; ".join(f"{says} {percent(interval)}" for says, interval in rates(counts).items())
    warned = sum(bool(cell["warnings"]) for cell in cells.values())
    return f"{len(cells)} A/A runs, {warned} with a warning about the machine: {shown}"


def percent(interval: list[float]) -> str:
    """`3.2 % (2.1–4.6)`."""
    share, low, high = (100 * value for value in interval)
    return f"{share:.1f} % ({low:.1f}–{high:.1f})"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "accuracy": accuracy_table,
    "looks": looks_table,
    "power": power_table,
    "winner": winner_table,
    "latency": lambda cells: "A quiet machine: " + latency_table(cells),
    "latency-load": lambda cells: "Beside a process that burns one core: " + latency_table(cells),
}


def main() -> None:
    """Read the words and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, work, size in (
        ("accuracy", accuracy, 25), ("resamples", resamples, 100), ("power", power, 200), ("winner", winner, 400),
        ("looks", at_looks, 200),
        ("latency", latency, 0), ("table", table, 0),
    ):  # fmt: skip
        one = verbs.add_parser(verb, help=(work.__doc__ or "").splitlines()[0])
        one.set_defaults(work=work)
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--size", type=int, default=size, help="simulated evaluations of a cell and batch")
        one.add_argument("--batches", type=int, default=6, help="accuracy: how often each cell is gone on with")
        one.add_argument("--only", action="append", choices=NAMES, help="accuracy: only these populations")
        one.add_argument(
            "--pilots", type=int, nargs="+", default=[100, 300, 1000], help="power: items of the first evaluation"
        )
        one.add_argument("--most-items", type=int, default=20_000, help="power: evaluations are not larger than this")
        one.add_argument("--runs", type=int, default=100, help="latency: A/A runs")
        one.add_argument("--length", type=int, default=16, help="latency: tokens")
        one.add_argument("--load", action="store_true", help="latency: beside a process that burns one core")
    asked = parser.parse_args()
    asked.work(asked)


if __name__ == "__main__":
    main()
