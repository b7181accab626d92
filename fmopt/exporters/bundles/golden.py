"""Golden items: inputs that a bundle carries with their predictions, and how far those may be off on another machine.

What is allowed follows from what was seen: the same items are computed with one thread, beside copies of themselves and beside a
longer item, where nothing but the order of sums changes. `MARGIN` times the most that any of this moves a prediction is taken
for the runtime's own noise on any machine.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fmopt.core import plugins
from fmopt.core.errors import FmoptError
from fmopt.core.model import Artifact, CheckpointMetadata
from fmopt.edge import loading, parts
from fmopt.edge.errors import EdgeError
from fmopt.edge.parts import Sample
from fmopt.edge.text import open_preprocessor

MARGIN = 5
UNSTABLE = 0.25  # an item whose prediction moves this far by noise alone tells nothing about a machine
COPIES = 4
# What is always allowed, of narrower numbers and of fp32. A cosine distance is about half the square of a relative change.
LEAST_TOLERANCES = {"cosine distance": (1e-3, 1e-5), "difference": (0.1, 1e-3)}
OTHER_TOLERANCES = (0.02, 1e-3)


@dataclass(frozen=True)
class Golden:
    """Samples with their predictions, and what was measured about them."""

    items: Sequence[tuple[Sample, Any]] = ()
    origin: str = "none"  # whose items they are, in words for the reader of a bundle
    tolerance: float = 0.0  # in units of `distance`
    distance: str = ""  # empty: largest absolute difference
    noise: dict[str, float] = field(default_factory=dict)  # what was changed -> the most that a prediction moved
    batched: float = 0.0  # how far a prediction moves when all items are in one batch


def measure_golden(
    metadata: CheckpointMetadata, artifact: Artifact, items: Sequence[tuple[Sample, Any]], precision: str, origin: str
) -> Golden:
    """Golden items of an artifact, those left out that move by noise alone; computes each about ten times."""
    name, distance = parts.distance_of(metadata.pipeline)
    if not items:
        return Golden(distance=name)
    pipeline = dict(metadata.pipeline)
    runner = plugins.find("runtimes", artifact.runtime).open(artifact, 1)
    model = loading.Model({"pipeline": pipeline}, open_preprocessor(metadata.folder, pipeline), runner)
    try:
        moved = _moved(model, items, distance)
        batched = _apart(model, [sample for sample, _ in items], [got for _, got in items], distance)
    finally:
        runner.close()
    stable = [at for at in range(len(items)) if max(each[at] for each in moved.values()) <= UNSTABLE]
    noise = {kind: max((each[at] for at in stable), default=0.0) for kind, each in moved.items()}
    least = LEAST_TOLERANCES.get(name, OTHER_TOLERANCES)[precision == "fp32"]
    tolerance = max(least, MARGIN * max(noise.values(), default=0.0))
    return Golden([items[at] for at in stable], origin, tolerance, name, noise, batched)


def _moved(model: loading.Model, items: Sequence[tuple[Sample, Any]], distance: Any) -> dict[str, list[float]]:
    """For each change that should change nothing, how far each item's prediction moved."""
    longest = max((sample for sample, _ in items), key=lambda sample: len(sample) if sample else 0)
    moved: dict[str, list[float]] = {"threads": [], "batch": [], "length": []}
    for sample, got in items:
        moved["threads"].append(distance(got, model.predict([sample])[0]))
        moved["batch"].append(_apart(model, [sample] * COPIES, [got] * COPIES, distance))
        # Scales of a whole batch change with what is in it, which is no noise.
        alone = model.mixes_rows
        moved["length"].append(0.0 if alone else _apart(model, [sample, longest], [got], distance))
    return moved


def _apart(model: loading.Model, samples: Sequence[Sample], wanted: Sequence[Any], distance: Any) -> float:
    """How far predictions of one batch are from those `wanted` of its first samples; 0 where it takes no batch."""
    with warnings.catch_warnings(), contextlib.suppress(EdgeError, FmoptError):
        warnings.simplefilter("ignore")
        found = model.predict(samples, batch_size=len(samples))
        return max(map(distance, wanted, found[: len(wanted)]), default=0.0)
    return 0.0
