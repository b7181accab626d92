"""What all candidates of one run share: model, device, data, limits; what builds recipes and what times networks stand on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmopt.core.model import CheckpointMetadata, Inputs
from fmopt.core.progress import Progress
from fmopt.core.stages.store import Store
from fmopt.core.target import Target
from fmopt.core.workload import Workload
from fmopt.edge.parts import Sample
from fmopt.edge.text import Preprocessor
from fmopt.models import checkpoint
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from fmopt.passes.base import Context
from fmopt.tasks.base import find_task
from fmopt.training.examples import Example, known_examples

WORKLOAD = Workload()  # the data's own items, one by one


@dataclass(frozen=True)
class BuildContext:
    """What all candidates of one run share, and what their passes may know of it."""

    metadata: CheckpointMetadata
    target: Target
    store: Store
    preprocessor: Preprocessor
    calibration: Sequence[Sample]  # texts of the calibration split; they never judge
    calibration_digest: str
    seed: int
    memory_cap_bytes: int
    progress: Progress
    train: Sequence[Mapping[str, Any]] = ()  # rows of the train split, for passes that train
    workload: Workload = WORKLOAD  # what latency is judged on, for passes that time networks
    deadline: float | None = None  # time.monotonic() at which training stops

    def pass_context(self) -> Context:
        """What passes may know."""
        return Context(
            metadata=self.metadata,
            target=self.target,
            calibration=self.calibration_stream,
            seed=self.seed,
            memory_cap_bytes=self.memory_cap_bytes,
            scratch=self.store.root,
            progress=self.progress.say,
            examples=self._examples,
            teacher=self._teacher,
            deadline=self.deadline,
        )

    def calibration_stream(self) -> Iterator[Inputs]:
        """Encoded items of the calibration split, one a batch."""
        for sample in self.calibration:
            yield dict(self.preprocessor.encode([sample]).inputs)

    def _examples(self) -> Sequence[Example]:
        items = find_task(self.metadata.task).items(self.train, self.metadata)
        return known_examples(self.preprocessor, self.metadata, items, self.train)

    def _teacher(self, asked: str | None) -> TorchModel:
        """The baseline, or the checkpoint that `asked` names."""
        metadata = self.metadata if asked is None else checkpoint.inspect(resolve(asked), self.metadata.task)
        return checkpoint.load(metadata)

    def example(self) -> dict[str, np.ndarray]:
        """Two real items of different length: a padded batch, so that the mask is exported with its meaning."""
        texts = sorted(self.calibration, key=lambda sample: len(sample if isinstance(sample, bytes) else str(sample)))
        return dict(self.preprocessor.encode([texts[0], texts[len(texts) // 2]]).inputs)
