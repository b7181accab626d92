"""The group that hurts most is found and left in float."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fmopt.core.errors import ConfigError, PassError
from fmopt.models.loading import TorchModel
from fmopt.passes.mixed_precision import MixedPrecision, sensitivity
from fmopt.passes.quantization.modules import QuantizedLinear
from fmopt.passes.quantize_static import QuantizeStatic
from tests.conftest import TinyCheckpoint
from tests.torch_models import context_of, model_of, outputs_of, padded

FRAGILE = "encoder.layer.1.intermediate.dense"


def fragile(folder: Path) -> TorchModel:
    """A tiny BERT with one LayerNorm channel a thousand times the others, which the next Linear barely reads."""
    model = model_of(folder)
    norm = model.net.get_submodule("encoder.layer.1.attention.output.LayerNorm")
    with torch.no_grad():
        norm.weight[5] *= 300  # type: ignore[index, union-attr]
        model.net.get_submodule(FRAGILE).weight[:, 5] *= 1e-3  # type: ignore[index, union-attr]
    return model


def test_the_fragile_group_comes_first_and_the_model_stays_as_it_was(tiny_checkpoint: TinyCheckpoint):
    model = fragile(tiny_checkpoint("bert"))
    before = outputs_of(model, padded(model))
    ranked = sensitivity(model, QuantizeStatic(smooth=None), context_of(model))
    assert ranked[0].group == (FRAGILE,)
    assert ranked[0].damage > 1.5 * ranked[1].damage * ranked[0].cost / ranked[1].cost
    assert sum(entry.cost for entry in ranked) == pytest.approx(1)
    assert len(ranked) == 8
    assert (outputs_of(model, padded(model)) == before).all()
    assert not any(isinstance(module, QuantizedLinear) for module in model.net.modules())


def test_k_groups_stay_in_float_and_the_ranking_is_shared(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    left = []
    for groups in (1, 2, 4):
        model = fragile(tiny_checkpoint("bert"))
        made = MixedPrecision(groups=groups, smooth=None).apply(model, context_of(model, tmp_path))
        assert isinstance(made.net.get_submodule(FRAGILE), torch.nn.Linear)
        assert made.sensitivity[0].group == (FRAGILE,)
        left.append({n for n, m in made.net.named_modules() if isinstance(m, torch.nn.Linear)})
    assert left[0] < left[1] < left[2]
    assert len(list(tmp_path.glob("sensitivity-*.json"))) == 1


def test_leaving_everything_in_float_is_refused(tiny_checkpoint: TinyCheckpoint):
    model = model_of(tiny_checkpoint("bert"))
    with pytest.raises(PassError, match="8 groups of 8 in float leave nothing to quantize"):
        MixedPrecision(groups=8).apply(model, context_of(model))
    with pytest.raises(ConfigError, match="at least 1 group stays in float"):
        MixedPrecision(groups=0)


def test_the_ranking_is_that_of_these_weights(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    """Not of another network with the same history and the same ranges of what its Linears read."""
    model, other = fragile(tiny_checkpoint("bert")), fragile(tiny_checkpoint("bert"))
    with torch.no_grad():
        other.net.get_submodule("encoder.layer.1.output.dense").weight[:] *= (
            3.0  # the last one: nothing reads its range
        )
    quantize = QuantizeStatic(smooth=None)
    first, second = (sensitivity(one, quantize, context_of(one, tmp_path)) for one in (model, other))
    assert second == sensitivity(other, quantize, context_of(other))
    assert second != first
