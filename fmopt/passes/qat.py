"""INT8 that was trained as INT8: the network learns with the rounding of its deployment in place."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fmopt.core.errors import PassError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.recipe import Step
from fmopt.core.target import Target
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context
from fmopt.passes.calibration.range_estimators import Calibrator
from fmopt.passes.distill import Distill
from fmopt.passes.quantize_static import QuantizeStatic

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Qat:
    """`QuantizeStatic`, then training from a teacher with learned step sizes (LSQ, Esser et al. 2020).

    The first options are those of `QuantizeStatic`, the others those of `Distill`. The deployed graph computes what the
    network in training computed in evaluation.
    """

    stage: ClassVar[Literal["torch"]] = "torch"
    decides_kernels: ClassVar[bool] = True
    timed_as: ClassVar[Step] = Step(use="quantize_static", options={"smooth": None})

    calibrator: Calibrator = "minmax"
    smooth: float | Literal["search"] | None = "search"
    activations: Literal["uint8", "int8"] = "uint8"
    weight_bits: Literal[7, 8] | None = None
    keep_float: tuple[str, ...] = ()
    teacher: str | None = None
    epochs: float = 1.0
    batch_size: int = 32
    learning_rate: float = 2e-5
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
        self.quantize, self.training  # noqa: B018  both check their options

    @property
    def quantize(self) -> QuantizeStatic:
        """Where the grids come from."""
        return QuantizeStatic(**self._shared(QuantizeStatic))

    @property
    def training(self) -> Distill:
        """How it is trained."""
        return Distill(**self._shared(Distill))

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """As for both parts."""
        return self.quantize.refusal(metadata, target) or self.training.refusal(metadata, target)

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """Quantize, train, freeze; in place. PassError when there is nothing to quantize or to train on."""
        from fmopt.models.surgery.projections import replace_module
        from fmopt.passes.calibration.statistics import statistics
        from fmopt.passes.distillation.trainer import distill
        from fmopt.passes.quantization.fake_quantize import FakeQuantizedLinear
        from fmopt.passes.quantization.linears import fold_value_smoothing, quantize_linears

        scheme = self.quantize.scheme(ctx.target)
        weights = {name: module.weight for name, module in model.net.named_modules() if hasattr(module, "weight")}
        names = quantize_linears(model, statistics(model, ctx), scheme, self.keep_float)
        if not names:
            raise PassError("qat: no Linear of this model was left to quantize; shorten keep_float")
        for name in names:
            quantized: Any = model.net.get_submodule(name)
            replace_module(model.net, name, FakeQuantizedLinear(quantized, weights[name], scheme.weight_bits))
        made = distill(model, self.training, ctx)
        for name in names:
            trained: Any = made.net.get_submodule(name)
            replace_module(made.net, name, trained.frozen())
        fold_value_smoothing(made)
        return model.after("qat")

    def _shared(self, kind: Any) -> dict[str, Any]:
        names = {entry.name for entry in fields(self)}
        return {entry.name: getattr(self, entry.name) for entry in fields(kind) if entry.name in names}


PASS = Qat
