"""Training with the rounding in place: it wins back what rounding cost, and what is deployed is what was trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fmopt.core.errors import ConfigError
from fmopt.edge import runners
from fmopt.exporters import to_onnx
from fmopt.passes.qat import Qat
from fmopt.passes.quantization.fake_quantize import FakeQuantizedLinear, _rounded, load_rounding, save_rounding
from fmopt.passes.quantization.linears import Scheme
from fmopt.passes.quantization.modules import Grid, QuantizedLinear, weight_integers
from fmopt.passes.quantize_static import QuantizeStatic
from tests.passes.test_distill import context, distance, teacher_of
from tests.torch_models import items_of, model_of, outputs_of

FAST = {"epochs": 8.0, "batch_size": 8, "learning_rate": 1e-3, "bf16": False, "weights": {"task": 0.0}}


def linears() -> tuple[QuantizedLinear, FakeQuantizedLinear]:
    torch.manual_seed(0)
    weight, smoothing = torch.randn(24, 32), torch.rand(32) + 0.5
    integers, scales = weight_integers(weight / smoothing, 8)
    made = QuantizedLinear(integers, scales, torch.randn(24), Grid.over(-3.0, 3.5, unsigned=True), smoothing)
    return made, FakeQuantizedLinear(made, weight, 8)


def test_untrained_it_computes_what_the_integers_compute_and_goes_back_to_them():
    quantized, fake = linears()
    x = torch.randn(7, 32)
    torch.testing.assert_close(fake(x), quantized(x), atol=1e-5, rtol=1e-5)
    again = fake.frozen()
    assert torch.equal(again.weight, quantized.weight)
    torch.testing.assert_close(again(x), quantized(x))


def test_gradients_reach_weights_inside_the_grid_and_both_steps():
    _, fake = linears()
    fake(torch.randn(64, 32)).square().sum().backward()
    assert (fake.weight.grad != 0).float().mean() > 0.9
    assert fake.scales.grad.abs().min() > 0
    assert float(fake.step.grad) != 0
    # LSQ: a value on the grid leaves its step no gradient but the rounding's; one that is clamped gives the bound
    step = torch.nn.Parameter(torch.tensor(1.0))
    _rounded(torch.tensor([100.0]), step, -8, 7, 1).sum().backward()
    assert float(step.grad) == pytest.approx(7 * 7**-0.5)


def test_a_process_that_trains_along_gets_the_same_rounding(tmp_path):
    made, fake = linears()
    sibling = FakeQuantizedLinear(made, torch.randn(24, 32), 7)  # smoothed by the same tensor, as query and key are
    net = torch.nn.Sequential(fake, torch.nn.Linear(24, 32), sibling)
    with torch.no_grad():
        fake.step *= 1.1
    torch.manual_seed(1)
    other = torch.nn.Sequential(*(torch.nn.Linear(*sizes, bias=False) for sizes in ((32, 24), (24, 32), (32, 24))))
    other[1] = net[1]
    save_rounding(net, tmp_path / "rounding")
    load_rounding(other, tmp_path / "rounding")
    x = torch.randn(7, 32)
    assert torch.equal(other(x), net(x))
    assert torch.equal(other[2].frozen().weight, sibling.frozen().weight)
    save_rounding(torch.nn.Sequential(net[1]), tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_training_wins_back_what_rounding_cost_and_deploys_what_was_trained(tiny_checkpoint, tmp_path, monkeypatch):
    folder = teacher_of(tiny_checkpoint, "bert", "text-classification", tmp_path)
    teacher = model_of(folder)
    # 8 bits cost so small a network nothing; 2 bits leave something to win back.
    monkeypatch.setattr(QuantizeStatic, "scheme", lambda self, target: Scheme("minmax", None, True, 2))

    def given(scratch: str):
        model = model_of(folder)
        items = items_of(model)
        return model, replace(context(model, tmp_path / scratch), calibration=lambda: iter(items))

    rounded = QuantizeStatic().apply(*given("static"))
    trained = Qat(**FAST).apply(*given("qat"))
    assert trained.history[-1] == "qat"
    assert not any(isinstance(module, FakeQuantizedLinear) for module in trained.net.modules())
    assert distance(trained, teacher, tmp_path) < 0.7 * distance(rounded, teacher, tmp_path)

    batch = items_of(trained)[0]
    graph = to_onnx.export_onnx(trained, batch, tmp_path / "graph")
    runner = runners.open_runner("onnxruntime", graph.path, {}, 1)
    got, wanted = runner.run(batch)["logits"], outputs_of(trained, batch)
    runner.close()
    assert np.abs(got - wanted).max() <= 1e-3 * np.abs(wanted).max()


def test_options_of_both_parts_are_checked():
    with pytest.raises(ConfigError, match=r"QuantizeStatic\.calibrator"):
        Qat(calibrator="guess")
    with pytest.raises(ConfigError, match=r"Distill\.epochs"):
        Qat(epochs=0)
