"""Two of every four weights made zero, the pattern that NVIDIA's sparse tensor cores skip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fmopt.core.errors import PassError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.target import Target
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context

if TYPE_CHECKING:
    import torch

FIRST_SM = 80  # Ampere; older tensor cores compute every product (Mishra et al. 2021)


@dataclass(frozen=True)
class Sparsify24:
    """2:4 sparsity: of every four neighbouring inputs of an output, the two that matter most stay.

    What matters is |w|·‖x‖, weight times the norm of its input over calibration items (Wanda, Sun et al. 2024).
    Shapes do not change; only an engine that uses the pattern gains from it.
    """

    stage: ClassVar[Literal["torch"]] = "torch"

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Only NVIDIA GPUs from Ampere on have sparse tensor cores."""
        sm = target.arch.removeprefix("sm_")
        if target.kind == "gpu" and sm.isdigit() and int(sm) >= FIRST_SM:
            return None
        return f"{target.name} does not skip 2:4 zeros: sparse tensor cores are in NVIDIA GPUs from sm_{FIRST_SM} on"

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """Zero weights in place. PassError when no Linear of the layers has a multiple of four inputs."""
        import torch

        from fmopt.passes.calibration.statistics import statistics
        from fmopt.passes.quantization.linears import quantizable

        done = 0
        for observer in statistics(model, ctx).observers:
            norms = torch.from_numpy(observer.rows).pow(2).sum(0).sqrt()
            for name in observer.names:
                linear = model.net.get_submodule(name)
                if quantizable(model, name) and len(norms) % 4 == 0:
                    assert isinstance(linear, torch.nn.Linear)
                    with torch.no_grad():
                        linear.weight.mul_(kept_2_4(linear.weight, norms))
                    done += 1
        if not done:
            raise PassError("sparsify_2_4: no Linear of this model's layers has a multiple of four inputs")
        return model.after("sparsify_2_4")


def kept_2_4(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """A mask of `weight` [out, in] with two ones in every four inputs; `norms` [in] weighs them."""
    import torch

    scores = (weight.detach().abs() * norms).reshape(len(weight), -1, 4)
    mask = torch.zeros_like(scores).scatter_(2, scores.topk(2, dim=2).indices, 1.0)
    return mask.reshape_as(weight)


PASS = Sparsify24
