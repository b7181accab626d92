"""Drop whole layers, chosen by what their absence does to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fmopt.core.errors import ConfigError, PassError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.target import Target
from fmopt.models.families.base import find_family
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context

JUDGED_ITEMS = 32  # calibration items that a layer's effect is measured on


@dataclass(frozen=True)
class DropLayers:
    """Drop `count` layers, one after the other: each time the one without which the outputs change least.

    Effects are measured on calibration items, without labels, on the network as it is after the layers already gone
    (greedy; ShortGPT, Men et al., 2024, ranks once). The configuration says then how many layers there are, so that the
    network saves and loads like any other.
    """

    stage: ClassVar[Literal["torch"]] = "torch"
    leaves_checkpoint: ClassVar[bool] = True

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"DropLayers.count is {self.count}; at least 1 layer is dropped")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Layers must be known, each its own, and one must stay."""
        family = find_family(metadata.model_type)
        if family is None:
            return f"fmopt does not know where the layers of {metadata.model_type} are"
        if family.pruning_refusal:
            return f"{metadata.model_type} cannot lose a layer: {family.pruning_refusal}"
        if self.count >= metadata.layers:
            return f"there are {metadata.layers} layers and at least one stays, so {self.count} cannot be dropped"
        return None

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """Measure and drop, in place. PassError without calibration items, or when no layer would stay."""
        from fmopt.models.surgery.pruned_modules import drop_layers, require_cuttable
        from fmopt.passes.calibration.output_distance import distance_from_now

        if next(ctx.calibration(), None) is None:
            raise PassError("drop_layers: there are no calibration items to measure on; give data")
        distance = distance_from_now(model, ctx, JUDGED_ITEMS)
        kept = list(range(len(require_cuttable(model).layers(model.net))))
        dropped = []
        for _ in range(self.count):
            ctx.progress(f"measuring what each of {len(kept)} layers does")
            found = effects(model, distance)
            least = min(found, key=found.__getitem__)
            drop_layers(model, [least])
            dropped.append(kept.pop(least))
            ctx.progress(f"dropped layer {dropped[-1]}: the outputs moved by {found[least]:.3g} (squared, relative)")
        return model.after(f"drop_layers({', '.join(str(number) for number in sorted(dropped))})")


def effects(model: TorchModel, distance: Callable[[], float]) -> dict[int, float]:
    """What `distance` is without each layer, by its number, where it can be dropped; the network stays as it is."""
    from fmopt.models.surgery.pruned_modules import drop_layers, require_cuttable

    found, reason = {}, ""
    for number in range(len(require_cuttable(model).layers(model.net))):
        with _restored(model):
            try:
                drop_layers(model, [number])
            except PassError as error:  # the last one left, or a first layer of its own kind
                reason = str(error)
            else:
                found[number] = distance()
    if not found:
        raise PassError(f"drop_layers: {reason}")
    return found


@contextmanager
def _restored(model: TorchModel) -> Iterator[None]:
    """Put layers and configuration back in the end."""
    from fmopt.models.surgery.projections import replace_module
    from fmopt.models.surgery.pruned_modules import number_caches, require_cuttable

    net: Any = model.net
    layers = require_cuttable(model).layers(net)
    held = {home: net.get_submodule(home) for home in {layer.name.rpartition(".")[0] for layer in layers}}
    given = dict(vars(net.config))
    try:
        yield
    finally:
        for home, modules in held.items():
            replace_module(net, home, modules)
        vars(net.config).clear()
        vars(net.config).update(given)
        number_caches(net)


PASS = DropLayers
