"""Which lengths a runtime that compiles for static shapes is to be compiled for, from the lengths that really come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# What a call of MiniLM cost on OpenVINO beside its tokens, in tokens: of a static shape, and with dynamic ones in addition
# (SST-2, TREC and AG News on a host with AVX-512 VNNI: 1.2 ms and 1.6 to 2 ms at 0.085 ms a token).
FIXED, DYNAMIC = 14, 20
MOST = (
    8  # each is compiled when the first text of its kind comes, in a fraction of a second, and holds weights of its own
)
MEMORY_BYTES = 1_000_000_000  # of all those weights together, about
NEAR = 1.02  # of the least time: within it fewer are better


def most_buckets(weight_bytes: int) -> int:
    """How many compilations fit the memory that they may take."""
    return int(np.clip(MEMORY_BYTES // max(weight_bytes, 1), 1, MOST))


def choose(lengths: Sequence[int], most: int = MOST) -> list[int]:
    """At most so many lengths, rising, to which texts are padded in the least expected time; empty without any lengths.

    Each is the length of some text. Texts longer than the last run on dynamic shapes, where that costs less than one more
    compilation gains. By dynamic programming over the histogram, with the fewest that come within `NEAR` of the best.
    """
    sizes, counts = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
    if not len(sizes):
        return []
    before = np.concatenate([[0], np.cumsum(counts)])  # items shorter than sizes[i]
    dynamic = np.concatenate([np.cumsum((counts * (sizes + FIXED + DYNAMIC))[::-1])[::-1], [0]])  # of those from i on
    costs = np.full(len(sizes) + 1, np.inf)  # least cost of all items before i, the last bucket being sizes[i - 1]
    costs[0] = 0
    found: list[tuple[float, list[int]]] = []
    paths: dict[int, list[int]] = {0: []}
    for _ in range(min(most, len(sizes))):
        after, taken = np.full(len(sizes) + 1, np.inf), {}
        for end in range(1, len(sizes) + 1):
            starts = costs[:end] + (before[end] - before[:end]) * (sizes[end - 1] + FIXED)
            start = int(np.argmin(starts))
            if np.isfinite(starts[start]):
                after[end], taken[end] = starts[start], [*paths[start], int(sizes[end - 1])]
        costs, paths = after, taken
        end = int(np.argmin(costs + dynamic))
        found.append((float(costs[end] + dynamic[end]), paths[end]))
    best = min(cost for cost, _ in found)
    return next(path for cost, path in found if cost <= NEAR * best)
