"""Second-order removal: the update pays, orders are right, costs add up; statistics stay within memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fmopt.core.errors import PassError
from fmopt.passes.pruning.obs_scores import Sublayer, collect, key_of, removal, score, sublayers, updated_weight
from tests.torch_models import items_of, model_of


def planted(size: int, units: int = 8, seed: int = 0):
    """A projection whose unit 5 is, but for noise, a mixture of units 1 and 2, and whose unit 3 carries next to nothing."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(4000, units, size, generator=draw, dtype=torch.float64)
    x[:, 5] = 0.6 * x[:, 1] - 0.7 * x[:, 2] + 0.02 * x[:, 5]
    x[:, 3] *= 0.01
    x = x.reshape(4000, -1)
    weight = torch.randn(16, units * size, generator=draw, dtype=torch.float64)
    return weight, x, x.T @ x / len(x)


def loss(weight, x, kept, columns):
    """Share of the outputs' mean square that is lost with weights `kept` on `columns`."""
    wanted = x @ weight.T
    return float(((x[:, columns] @ kept.T - wanted).square().sum()) / wanted.square().sum())


@pytest.mark.parametrize("size", [1, 4])
def test_the_update_beats_plain_removal(size):
    weight, x, hessian = planted(size)
    found = removal(weight, hessian, size)
    assert set(found.order[:2]) <= {1, 2, 3, 5}
    assert found.order[0] == 3
    columns = [unit * size + i for unit in found.kept(6) for i in range(size)]
    ours = loss(weight, x, updated_weight(weight, hessian, columns), columns)
    plain = loss(weight, x, weight[:, columns], columns)
    assert ours < 0.01
    assert plain > 10 * ours


@pytest.mark.parametrize("size", [1, 4])
def test_costs_add_up_to_the_error_of_the_best_weights(size):
    weight, x, hessian = planted(size)
    found = removal(weight, hessian, size)
    assert sorted(found.order) == list(range(8))
    assert found.errors[0] == 0
    assert found.error(0) == pytest.approx(1)
    assert list(found.errors) == sorted(found.errors)
    for count in range(8):
        columns = [unit * size + i for unit in found.kept(count) for i in range(size)]
        assert found.error(count) == pytest.approx(
            loss(weight, x, updated_weight(weight, hessian, columns), columns), abs=1e-9
        )


def test_the_first_removal_is_the_best_of_all():
    weight, x, hessian = planted(2, units=6, seed=3)
    found = removal(weight, hessian, 2)
    alone = {}
    for gone in range(6):
        columns = [unit * 2 + i for unit in range(6) if unit != gone for i in range(2)]
        alone[gone] = loss(weight, x, updated_weight(weight, hessian, columns), columns)
    assert found.order[0] == min(alone, key=alone.get)


def test_statistics_are_of_the_tokens_that_are_no_padding(tiny_checkpoint):
    model = model_of(tiny_checkpoint("bert"))
    parts = sublayers(model.net, model.family)
    assert [(part.layer, part.kind, part.units, part.size) for part in parts] == [
        (0, "attention", 4, 8), (0, "ffn", 64, 1), (1, "attention", 4, 8), (1, "ffn", 64, 1)
    ]  # fmt: skip
    items = items_of(model)
    seen = []
    handle = model.net.get_submodule(parts[1].output).register_forward_pre_hook(lambda m, args: seen.append(args[0][0]))
    plain, mean = collect(model.net, parts, items)[1]
    handle.remove()
    x = torch.cat(seen).double()
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-4, atol=1e-7)
    wanted = (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)
    wanted += 0.01 * wanted.diagonal().mean() * torch.eye(64)
    torch.testing.assert_close(plain, wanted, rtol=1e-4, atol=1e-7)
    padded = [
        {name: np.pad(value, ((0, 0), (0, 5))) for name, value in item.items()} for item in items
    ]  # five padding tokens each, attended by nobody
    torch.testing.assert_close(collect(model.net, parts, padded)[1][0], plain, rtol=1e-4, atol=1e-7)


def test_a_small_cap_takes_more_passes_and_finds_the_same(tiny_checkpoint, tmp_path):
    model = model_of(tiny_checkpoint("modernbert"))
    parts = sublayers(model.net, model.family)
    items = items_of(model)
    passes = itertools.count()

    def stream():
        next(passes)
        return iter(items)

    def run(name, cap):
        return score(model.net, parts, stream, tmp_path / name, memory_cap_bytes=cap, progress=lambda text: None)

    roomy = run("roomy", 1 << 30)
    assert next(passes) == 1
    tight = run("tight", 140_000)
    assert next(passes) > 3
    assert tight.removals == roomy.removals
    again = run("tight", 140_000)
    assert again.removals == tight.removals
    widths = [again.updated(model.net, part, part.units // 2)[0].shape for part in parts]
    assert widths == [(32, 16), (32, 32)] * 2
    with pytest.raises(PassError, match="max-calibration-memory"):
        run("refused", 10_000)


def test_what_is_gone_leaves_its_mean_in_the_bias(tiny_checkpoint, tmp_path):
    model = model_of(tiny_checkpoint("bert"))
    parts = sublayers(model.net, model.family)
    items = items_of(model)
    results = []
    handle = model.net.get_submodule(parts[1].output).register_forward_hook(lambda m, args, out: results.append(out[0]))
    stream = lambda: iter(items)  # noqa: E731
    found = score(model.net, parts, stream, tmp_path / "s", memory_cap_bytes=1 << 30, progress=lambda text: None)
    handle.remove()
    weight, bias = found.updated(model.net, parts[1], 0)
    assert weight.shape == (32, 0)
    torch.testing.assert_close(bias, torch.cat(results).mean(0), rtol=1e-3, atol=1e-6)
    whole, bias = found.updated(model.net, parts[1], 64)
    assert torch.equal(whole, model.net.get_submodule(parts[1].output).weight)


def test_units_that_carry_nothing_go_first():
    weight, _, hessian = planted(1)
    hessian[4], hessian[:, 4] = 0, 0
    hessian += 1e-6 * torch.eye(8)
    assert removal(weight, hessian, 1).order[0] == 4


def test_a_key_tells_data_and_settings_apart(tiny_checkpoint):
    items = items_of(model_of(tiny_checkpoint("bert")))
    first, count = key_of("model", stream=items)
    assert count == len(items)
    assert key_of("model", stream=items) == (first, count)
    assert key_of("other", stream=items)[0] != first
    assert key_of("model", stream=items[1:])[0] != first


def test_columns_of_units():
    assert Sublayer(0, "attention", "o", 3, 2).columns([0, 2]) == [0, 1, 4, 5]
