"""How far a network's outputs are from what they were, on real items: what a change inside it costs, without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from fmopt.model import TorchModel
from fmopt.passes.base import Context, Inputs


def distance_from_now(model: TorchModel, ctx: Context, count: int) -> Callable[[], float]:
    """A function that measures how far `model` is, when called, from what it is now: on the first `count` calibration
    items, the mean over outputs of ‖got − wanted‖² / ‖wanted‖²."""
    items = list(islice(ctx.calibration(), count))
    wanted = _outputs(model, items)

    def now() -> float:
        got = _outputs(model, items)
        return sum(_error(a, b) for a, b in zip(got, wanted, strict=True)) / len(wanted)

    return now


def _outputs(model: TorchModel, items: Sequence[Inputs]) -> list[Any]:
    from fmopt.exporting import torch_outputs

    names = model.facts.pipeline["outputs"]
    return [value for item in items for value in torch_outputs(model.net, item, names).values()]


def _error(got: Any, wanted: Any) -> float:
    """‖got − wanted‖² / ‖wanted‖²; a difference of cosines this small would drown in the rounding of float32."""
    difference, wanted = np.subtract(got, wanted, dtype=np.float64), np.asarray(wanted, np.float64)
    return float(np.vdot(difference, difference) / max(float(np.vdot(wanted, wanted)), 1e-24))
