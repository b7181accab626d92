"""Static INT8 with the most damaging groups of Linears left in float, found by measuring each one's effect."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.recipe import Step
from fmopt.core.results import Sensitivity
from fmopt.core.stages import seals
from fmopt.core.stages.store import write_whole
from fmopt.core.target import Target
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context
from fmopt.passes.calibration.range_estimators import Calibrator
from fmopt.passes.quantize_static import QuantizeStatic

if TYPE_CHECKING:
    from fmopt.passes.calibration.statistics import Statistics

JUDGED_ITEMS = 16  # calibration items that a group's damage is measured on
_VERSION = 3  # of what is saved


@dataclass(frozen=True)
class MixedPrecision:
    """`QuantizeStatic`, except for the `groups` groups of Linears that pay most for staying in float.

    Groups are ranked by damage per multiplication given up. The other options are those of `QuantizeStatic`.
    """

    stage: ClassVar[Literal["torch"]] = "torch"
    rounds_products: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    decides_kernels: ClassVar[bool] = True
    timed_as: ClassVar[Step] = Step(use="quantize_static", options={"smooth": None})
    bytes_left: ClassVar[tuple[float, float]] = (1.0, 0.3)

    groups: int = 1
    calibrator: Calibrator = "minmax"
    smooth: float | Literal["search"] | None = "search"
    activations: Literal["uint8", "int8"] | None = None
    weight_bits: Literal[7, 8] | None = None
    keep_float: tuple[str, ...] = ()
    embeddings: bool = False

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ConfigError(f"MixedPrecision.groups is {self.groups}; at least 1 group stays in float")
        self.quantize(())

    def quantize(self, keep_float: tuple[str, ...]) -> QuantizeStatic:
        """The pass that quantizes everything but `keep_float`, and what is kept so in any case."""
        shared = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "groups"}
        return replace(QuantizeStatic(**shared), keep_float=(*self.keep_float, *keep_float))

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """As for `QuantizeStatic`."""
        return self.quantize(()).refusal(metadata, target)

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """Measure, then quantize the rest. PassError when nothing would be left to quantize."""
        from fmopt.passes.calibration.statistics import statistics

        found = statistics(model, ctx)
        ranked = _ranked(model, self.quantize(()), found, ctx)
        if self.groups >= len(ranked):
            raise PassError(
                f"mixed_precision: {self.groups} groups of {len(ranked)} in float leave nothing to quantize"
            )
        kept = tuple(name for entry in ranked[: self.groups] for name in entry.group)
        ctx.progress(f"kept in float: {', '.join(kept)}")
        return replace(self.quantize(kept).with_statistics(model, found, ctx), sensitivity=tuple(ranked))


PASS = MixedPrecision


def sensitivity(model: TorchModel, quantize: QuantizeStatic, ctx: Context) -> list[Sensitivity]:
    """Every group's damage and cost, the most worth keeping in float first; the model stays as it is.

    Damage is the mean relative squared error of the network's outputs to what they were in float.
    """
    from fmopt.passes.calibration.statistics import statistics

    return _ranked(model, quantize, statistics(model, ctx), ctx)


def _ranked(model: TorchModel, quantize: QuantizeStatic, found: Statistics, ctx: Context) -> list[Sensitivity]:
    from fmopt.training.environment import weights_digest

    path = None
    if ctx.scratch is not None:
        network = weights_digest(model.net)  # the same passes on other data leave other weights
        scheme = (quantize.scheme(ctx.target), quantize.keep_float)
        known = repr((_VERSION, network, scheme, found.items, found.digest))
        path = ctx.scratch / f"sensitivity-{hashlib.sha256(known.encode()).hexdigest()[:16]}.json"
        if seals.reusable(path, ctx.progress):
            return [Sensitivity(**entry) for entry in json.loads(path.read_text())]
    measured = _measured(model, quantize, found, ctx)
    ranked = sorted(measured, key=lambda entry: (-entry.damage / entry.cost, entry.group))
    if path is not None:
        seals.seal(write_whole(path, json.dumps([entry.model_dump() for entry in ranked])))
    return ranked


def _measured(model: TorchModel, quantize: QuantizeStatic, found: Statistics, ctx: Context) -> list[Sensitivity]:
    from fmopt.models.surgery.projections import replace_module
    from fmopt.passes.calibration.output_distance import distance_from_now
    from fmopt.passes.quantization.linears import quantized_linears

    distance = distance_from_now(model, ctx, JUDGED_ITEMS)
    groups = quantized_linears(model, found, quantize.scheme(ctx.target), quantize.keep_float)
    products = [sum(made.in_features * made.out_features for made in group.values()) for group in groups]
    result = []
    for index, (group, product) in enumerate(zip(groups, products, strict=True)):
        ctx.progress(f"measuring what quantizing costs, group {index + 1} of {len(groups)}")
        before = {name: model.net.get_submodule(name) for name in group}
        try:
            for name, made in group.items():
                replace_module(model.net, name, made)
            damage = distance()
        finally:
            for name, module in before.items():
                replace_module(model.net, name, module)
        result.append(Sensitivity(group=tuple(group), damage=damage, cost=product / sum(products)))
    return result
