"""Populations for gate_calibration.py: real per-item results, reweighted so that the true drop is exactly what is wanted.

An item of a population is a pair of rows: what the reference and what the candidate got on it, taken from a committed
record. Weights ∝ exp(λ · influence of the item on the drop) (exponential tilting: Efron, Canadian J. Statistics 1981)
keep every item possible; λ is found by bisection on the metric of the weighted population itself, so the drop is exact
for any metric that reads weights, Spearman's too. Evaluations are n items drawn with replacement.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from fmopt.core.results import Scores
from fmopt.evaluation.metrics import METRICS

RESULTS = Path(__file__).resolve().parent / "results"
PERPLEXITY_ITEMS = RESULTS / "gate-calibration-perplexity-items.json"
SOURCES = {  # name: (metric, record, candidate, field of the trial)
    "accuracy, Banking77, pruned 10x": ("mean", "smaller-banking77-max-10x", "openvino-nncf-int8-pruned-10.3x", "test_scores"),
    "accuracy, SST-2, pruned 4x": ("mean", "smaller-sst2-standard-4x", "openvino-nncf-int8-pruned-4.12x", "scores"),
    "span F1, WNUT17, INT8": ("micro_f1", "finetuned-wnut17", "openvino-static-int8", "test_scores"),
    "Spearman, STS-B, dynamic INT8": ("spearman", "finetuned-stsb", "onnxruntime-dynamic-int8", "scores"),
}  # fmt: skip
PERPLEXITY = "perplexity, tinyshakespeare, rounded weights"
NAMES = (*SOURCES, PERPLEXITY)


@dataclass(frozen=True)
class Population:
    """Pairs of rows with a probability each; `drop` of `metric` is exact, `allowed` is what a budget of 1 lets go."""

    name: str
    metric: str
    base: np.ndarray  # (N, columns)
    candidate: np.ndarray  # (N, columns)
    weights: np.ndarray  # (N,), sum 1
    drop: float
    allowed: float

    def metadata(self) -> dict[str, float | int | str]:
        """What the table and a reader of the JSON need to know."""
        changed = (self.base != self.candidate).any(axis=1)
        return {
            "items": len(self.base), "effective_items": round(float(1 / (self.weights**2).sum()), 1),
            "changed_share": round(float(self.weights[changed].sum()), 5), "drop": self.drop, "allowed": self.allowed,
            "baseline": float(METRICS[self.metric].of(self.base, self.weights[None])[0]),
        }  # fmt: skip

    def evaluation(self, rng: np.random.Generator, n: int) -> tuple[Scores, Scores]:
        """The scores of reference and candidate on n items drawn with replacement."""
        drawn = rng.choice(len(self.base), size=n, p=self.weights).tolist()
        return tuple(
            Scores.model_construct(name=self.name, metric=self.metric, values=[rows[i] for i in drawn], primary=True)
            for rows in self.rows
        )

    @cached_property
    def rows(self) -> tuple[list[list[float]], list[list[float]]]:
        """The rows of both as lists, made once: an evaluation is picked from them, not copied."""
        return self.base.tolist(), self.candidate.tolist()


@cache
def population(name: str, share_of_allowed: float) -> Population:
    """The population of a source whose true drop is this share of the allowed one (1 pt; 1 % of a perplexity)."""
    metric, base, candidate = source(name)
    influence = influences(name)

    def at(strength: float) -> Population:
        weights = np.exp(strength * influence)
        weights /= weights.sum()
        before, after = (float(METRICS[metric].of(rows, weights[None])[0]) for rows in (base, candidate))
        allowed = 0.01 * (before if metric == "perplexity" else 1.0)
        drop = before - after if METRICS[metric].higher_is_better else after - before
        return Population(name, metric, base, candidate, weights, drop, allowed)

    low, high = -16.0, 16.0
    for _ in range(80):
        middle = (low + high) / 2
        found = at(middle)
        low, high = (middle, high) if found.drop < share_of_allowed * found.allowed else (low, middle)
    if abs(found.drop - share_of_allowed * found.allowed) > 1e-9:
        raise SystemExit(f"{name} cannot be tilted to {share_of_allowed} of the allowed drop")
    return found


@cache
def source(name: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Metric, and the rows of the reference and of the candidate as the record holds them."""
    if name == PERPLEXITY:
        held = json.loads(PERPLEXITY_ITEMS.read_text())
        return "perplexity", np.asarray(held["reference"], float), np.asarray(held["candidate"], float)
    metric, file, candidate, field = SOURCES[name]
    record = json.loads((RESULTS / f"{file}.json").read_text())
    trials = {trial["recipe"]["name"]: trial for trial in (*record["baselines"], *record["trials"])}
    rows = [
        np.asarray(next(score["values"] for score in trials[trial][field] if score["primary"]), float)
        for trial in (record["reference"], candidate)
    ]
    return metric, rows[0], rows[1]


@cache
def influences(name: str) -> np.ndarray:
    """How much each item moves the drop, by leaving it out; scaled to at most 1 so that one strength suits all."""
    metric, base, candidate = source(name)
    n = len(base)
    formula = METRICS[metric]
    without = np.ones((n, n)) - np.eye(n)
    whole = [float(formula.of(rows)) for rows in (base, candidate)]
    left = [formula.of(rows, without) for rows in (base, candidate)]
    moved = (whole[0] - left[0]) - (whole[1] - left[1])
    moved = moved if formula.higher_is_better else -moved
    return moved / np.abs(moved).max()


def rates(metric_counts: dict[str, int]) -> dict[str, list[float]]:
    """Outcome → share with its exact 95 % interval (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    total = sum(metric_counts.values())
    found = {}
    for outcome, count in metric_counts.items():
        low = beta.ppf(0.025, count, total - count + 1) if count else 0.0
        high = beta.ppf(0.975, count + 1, total - count) if count < total else 1.0
        found[outcome] = [round(float(x), 5) for x in (count / total, low, high)]
    return found
