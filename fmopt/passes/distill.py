"""Win back what pruning cost: train the network on what the unpruned one, or a larger one, makes of the same texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fmopt.core.model import CheckpointMetadata
from fmopt.core.target import Target
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context
from fmopt.passes.distillation.settings import DistillationSettings
from fmopt.tasks.base import Output, output_of

# What has no one vector of classes or features to learn from.
REFUSED = {
    Output.MAP: "maps of classes are not distilled",
    Output.BOXES: "sets of boxes are not distilled",
    Output.AUDIO: "networks for speech synthesis are not distilled",
}


@dataclass(frozen=True)
class Distill(DistillationSettings):
    """Train the network on the train split, taught by the baseline or by the checkpoint folder `teacher`; see the settings."""

    stage: ClassVar[Literal["torch"]] = "torch"
    leaves_checkpoint: ClassVar[bool] = True

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Every network can be trained whose answer is one vector of classes or features, for an item or for each token."""
        output = output_of(metadata.pipeline)
        if output is Output.VECTOR and metadata.modality != "text":
            return f"vectors of {metadata.modality}s are not distilled"
        return REFUSED.get(output)

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """Train in place. PassError when there is nothing to train on, or the teacher does not fit."""
        from fmopt.passes.distillation.trainer import distill

        return distill(model, self, ctx)


PASS = Distill
