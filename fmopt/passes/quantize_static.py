"""INT8 calibrated in PyTorch: one statistics pass, five calibrators, SmoothQuant with its alpha searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.target import Target
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context
from fmopt.passes.calibration.range_estimators import Calibrator

if TYPE_CHECKING:
    from fmopt.passes.calibration.statistics import Statistics
    from fmopt.passes.quantization.linears import Scheme


@dataclass(frozen=True)
class QuantizeStatic:
    """Make every Linear of the layers compute on 8-bit integers, with ranges found on calibration items.

    `smooth`: None, a SmoothQuant alpha in (0, 1), or "search" (the alpha with the least error, for every tensor).
    `weight_bits`: 8, 7, or None for what the target sums without saturating. `keep_float`: names of modules, or of
    modules that contain them, to leave alone. `embeddings`: the lookup tables too, in int8 rows, for size.
    `activations`: None is what the target's kernels multiply: int8 without a zero point on GPUs, where TensorRT takes
    nothing else and fuses what follows into the product; uint8 on CPUs, which has a bit more for what is mostly positive.
    """

    stage: ClassVar[Literal["torch"]] = "torch"
    rounds_products: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    decides_kernels: ClassVar[bool] = True
    partly: ClassVar[str] = "mixed_precision"
    bytes_left: ClassVar[tuple[float, float]] = (1.0, 0.25)

    calibrator: Calibrator = "minmax"
    smooth: float | Literal["search"] | None = "search"
    activations: Literal["uint8", "int8"] | None = None
    weight_bits: Literal[7, 8] | None = None
    keep_float: tuple[str, ...] = ()
    embeddings: bool = False

    def __post_init__(self) -> None:
        if self.calibrator not in get_args(Calibrator):
            raise ConfigError(
                f"QuantizeStatic.calibrator is {self.calibrator!r}; it is one of {', '.join(get_args(Calibrator))}"
            )
        if isinstance(self.smooth, str) and self.smooth != "search":
            raise ConfigError(f"QuantizeStatic.smooth is {self.smooth!r}; it is a number in (0, 1) or 'search'")
        if isinstance(self.smooth, int | float) and not 0 < self.smooth < 1:
            raise ConfigError(f"QuantizeStatic.smooth is {self.smooth}; an alpha lies in (0, 1)")
        if self.activations not in (None, "uint8", "int8"):
            raise ConfigError(f"QuantizeStatic.activations is {self.activations!r}; it is 'uint8' or 'int8'")
        if self.weight_bits not in (None, 7, 8):
            raise ConfigError(f"QuantizeStatic.weight_bits is {self.weight_bits}; it is 7 or 8")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """A device without 8-bit kernels gains nothing."""
        return None if "int8" in target.precisions else f"target {target.name} does not compute in int8"

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """Calibrate, then replace the Linears in place. PassError when there is too little data or nothing to do."""
        from fmopt.passes.calibration.statistics import statistics

        return self.with_statistics(model, statistics(model, ctx), ctx)

    def scheme(self, target: Target) -> Scheme:
        """What the target makes of this configuration."""
        from fmopt.passes.quantization.linears import Scheme

        bits = self.weight_bits or (8 if target.int8_dot else 7)
        kind = self.activations or ("int8" if target.signed_activations else "uint8")
        return Scheme(self.calibrator, self.smooth, kind == "uint8", bits)

    def with_statistics(self, model: TorchModel, found: Statistics, ctx: Context) -> TorchModel:
        """`apply`, on statistics taken before."""
        from fmopt.passes.quantization.linears import fold_value_smoothing, quantize_embeddings, quantize_linears

        scheme = self.scheme(ctx.target)
        ctx.progress(f"quantizing ({self.calibrator}, {scheme.weight_bits}-bit weights)")
        done = quantize_linears(model, found, scheme, self.keep_float)
        fold_value_smoothing(model)
        if self.embeddings:
            quantize_embeddings(model)
        if not done and not self.embeddings:
            raise PassError("quantize_static: no Linear of this model was left to quantize; shorten keep_float")
        return model.after(f"quantize_static({self.calibrator})")


PASS = QuantizeStatic
