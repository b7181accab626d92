"""The settings of a distillation: from whom, how long, and how much each loss counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fmopt.core.errors import ConfigError
from fmopt.core.model import CheckpointMetadata, generates
from fmopt.core.plugins import did_you_mean
from fmopt.tasks.base import Output, output_of

LOSSES = ("task", "logits", "hidden", "relations", "cosine", "similarity")


@dataclass(frozen=True)
class DistillationSettings:
    """The network learns on the train split, taught by the baseline or by the checkpoint folder `teacher`.

    `weights` says how much each loss counts; without it each task has sensible ones:
    task        distance to the labels (cross entropy, squared error)
    logits      KL divergence from the teacher's, softened by `temperature` (Hinton et al., 2015), at every token where the
                network says how a text goes on; without one 2, and there 1: what is judged is the likelihood itself
    hidden      every token's states after every layer (CoFi, Xia et al., 2022), projected where widths differ
    relations   among queries, keys and values (MiniLM, Wang et al., 2020), the default where widths differ
    cosine      of text vectors to the teacher's; similarity: of the texts of a batch to each other (embedding models)

    `dropout` is the share of values that training leaves out at random where the checkpoint leaves out some; without it what the
    checkpoint says, and for text vectors nothing: a pruned network has no room for the noise beside what it is to learn.

    `unlabelled` is a text file that adds texts, one a line (a tab parts a pair). `accumulation` batches make one step.
    `bf16` None takes bfloat16 where the device multiplies it natively. It stops after `time_limit_s` with what it has,
    and saves every `save_minutes`, so that a killed run goes on from there. What the teacher says is kept on disk, within
    `cache_gb`, where that is cheaper than asking it in every epoch.
    """

    teacher: str | None = None
    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 1e-4
    accumulation: int = 1
    temperature: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    unlabelled: str | None = None
    dropout: float | None = None
    bf16: bool | None = None
    time_limit_s: float | None = None
    save_minutes: float = 5.0
    cache_gb: float = 8.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "accumulation", "temperature"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"Distill.{name} is {getattr(self, name)}; it is above 0")
        if self.cache_gb < 0:
            raise ConfigError(f"Distill.cache_gb is {self.cache_gb}; it is 0 (keep nothing of the teacher) or more")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"Distill.dropout is {self.dropout}; it is 0 (nothing is left out) or more, and below 1")
        for name, weight in self.weights.items():
            if name not in LOSSES:
                raise ConfigError(f"Distill.weights has no loss {name!r}{did_you_mean(name, LOSSES)}")
            if weight < 0:
                raise ConfigError(f"Distill.weights[{name!r}] is {weight}; it is 0 or more")

    def softened(self, metadata: CheckpointMetadata) -> float:
        """The temperature of a network's logits."""
        return self.temperature or (1.0 if generates(metadata.pipeline) else 2.0)

    def left_out(self, metadata: CheckpointMetadata) -> float | None:
        """The dropout to train with; None leaves the network's own."""
        if self.dropout is None and output_of(metadata.pipeline) is Output.VECTOR:
            return 0.0
        return self.dropout
