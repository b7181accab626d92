"""Pruning to a latency: the time asked for is met, the loss is the least, and what cannot be is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fmopt.core.errors import ConfigError, PassError
from fmopt.exporters import to_onnx
from fmopt.exporters.openvino_graph import read_ir
from fmopt.models import checkpoint
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from fmopt.models.structure import save_checkpoint, structure_of
from fmopt.passes import prune_structured
from fmopt.passes.base import Context
from fmopt.passes.prune_structured import PruneStructured, _corrected
from fmopt.passes.pruning.latency_table import latency_table, uncut
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.torch_models import context_of, items_of, model_of, outputs_of, padded, target


class Counted:
    """A clock that is exact: 1 ms, and 1 µs for every weight of the layers' Linears."""

    key = "weights"

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, networks: Mapping[str, Callable[[], TorchModel]]) -> dict[str, float]:
        self.asked += 1
        return {name: time_of(make()) for name, make in networks.items()}


def time_of(model: TorchModel) -> float:
    linears = (m for n, m in model.net.named_modules() if isinstance(m, torch.nn.Linear) and ".layer." in f".{n}")
    return 1.0 + sum(m.weight.numel() for m in linears) / 1000


def given(folder: Path, scratch: Path | None = None, items: int = 48) -> tuple[TorchModel, Context]:
    model = model_of(folder)
    encoded = items_of(model, tuple(f"{SENTENCES[n % len(SENTENCES)]} {n % 7}" for n in range(items)))
    ctx = replace(context_of(model, scratch), calibration=lambda: iter(encoded), target=target(width_multiple=4),
                  timer=Counted())  # fmt: skip
    return model, ctx


def test_the_time_asked_for_is_met_and_the_outputs_stay_near(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    folder = tiny_checkpoint("bert")
    whole = model_of(folder)
    wanted = outputs_of(whole, padded(whole))
    distances = []
    for speedup in (1.2, 2.0, 4.0):
        model, ctx = given(folder, tmp_path)
        pruned = PruneStructured(speedup=speedup).apply(model, ctx)
        assert time_of(pruned) == pytest.approx(time_of(whole) / speedup, rel=0.05)
        assert pruned.history[-1].startswith("prune_structured(")
        distances.append(np.square(outputs_of(pruned, padded(whole)) - wanted).sum() / np.square(wanted).sum())
    assert distances[0] < distances[1] < distances[2]
    assert distances[0] < 0.1


def test_a_pruned_network_comes_back_from_disk_and_can_be_pruned_again(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model, ctx = given(tiny_checkpoint("bert", "text-classification"))
    pruned = PruneStructured(speedup=1.5, tries=4).apply(model, ctx)
    saved = save_checkpoint(pruned, tmp_path / "pruned")
    again = checkpoint.load(checkpoint.inspect(resolve(str(saved)), "text-classification"))
    assert structure_of(again.net, again.family) == structure_of(pruned.net, pruned.family)
    np.testing.assert_array_equal(outputs_of(again, padded(again)), outputs_of(pruned, padded(again)))
    goal = time_of(again) / 2
    assert time_of(PruneStructured(latency_ms=goal, tries=0).apply(again, ctx)) == pytest.approx(goal, rel=0.05)


def test_what_was_chosen_is_chosen_again(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    asked = []
    for _ in range(2):
        model, ctx = given(tiny_checkpoint("bert"), tmp_path)
        pruned = PruneStructured(speedup=2.0, tries=4).apply(model, ctx)
        asked.append((structure_of(pruned.net, pruned.family), ctx.timer.asked))
    assert asked[0][0] == asked[1][0]
    assert asked[1][1] == 0  # neither the table nor the network chosen was timed anew


def test_fisher_scores_meet_the_time_too_and_differ(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    for score in ("obs", "fisher"):
        model, ctx = given(tiny_checkpoint("bert", "text-classification"), tmp_path)
        goal = time_of(model) / 2
        pruned = PruneStructured(speedup=2.0, score=score, tries=8).apply(model, ctx)
        assert time_of(pruned) == pytest.approx(goal, rel=0.05)
    assert sum(path.is_dir() for path in tmp_path.glob("scores-*")) == 2
    with pytest.raises(ConfigError, match="'obs' or 'fisher'"):
        PruneStructured(speedup=2.0, score="magnitude")


def test_its_parts_add_up_to_the_whole_and_are_timed_once(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    model, clock = model_of(tiny_checkpoint("bert")), Counted()
    table = latency_table(model, model.family, clock, 4, tmp_path)
    assert abs(table.additivity_error) < 1e-9
    assert table.whole_ms == pytest.approx(time_of(model))
    assert table.curve("attention").at(2) == pytest.approx(4 * 32 * 16 / 1000)
    assert table.curve("ffn").at(20) == pytest.approx(2 * 32 * 20 / 1000)
    assert table.floor_ms == table.base_ms == pytest.approx(1.0)
    assert latency_table(model, model.family, clock, 4, tmp_path) == table
    assert clock.asked == 1


class Launched(Counted):
    """A clock on which every sublayer that is there costs half a millisecond more, however narrow."""

    key = "weights and launches"

    def __call__(self, networks: Mapping[str, Callable[[], TorchModel]]) -> dict[str, float]:
        found = {}
        for name, make in networks.items():
            model = make()
            layers = model.family.layers(model.net)
            there = sum((layer.attention.heads > 0) + (layer.ffn.width > 0) for layer in layers)
            found[name] = time_of(model) + 0.5 * there
        return found


def test_a_narrow_sublayer_costs_what_it_takes_to_have_one(tiny_checkpoint: TinyCheckpoint):
    model = model_of(tiny_checkpoint("bert"))
    table = latency_table(model, model.family, Launched(), 4, None)
    assert table.curve("attention").at(1) == pytest.approx(0.5 + 4 * 32 * 8 / 1000)
    assert table.curve("ffn").at(4) == pytest.approx(0.5 + 2 * 32 * 4 / 1000)
    assert table.curve("attention").at(0) == table.curve("ffn").at(0) == 0.0
    assert abs(table.additivity_error) < 1e-9


def test_what_is_only_timed_has_the_operators_of_a_trained_network(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    """Converters leave out biases of 0 and norms of 1, which new networks have and trained ones do not."""

    def operators(net: torch.nn.Module, name: str) -> int:
        graph = to_onnx.export_onnx(replace(model, net=net), padded(model), tmp_path / name)
        return len(read_ir(graph.path).get_ops())

    model = model_of(tiny_checkpoint("bert"))
    for value in model.net.parameters():
        torch.nn.init.uniform_(value)
    assert operators(uncut(model), "timed") == operators(model.net, "trained")


def test_the_next_choice_lies_between_what_was_too_fast_and_too_slow():
    assert _corrected([(4.0, 6.0)], 4.0, 2.0) == pytest.approx(2.0)
    assert _corrected([(4.0, 6.0), (2.0, 3.0)], 4.0, 2.0) == pytest.approx(2.0 + 2.0 / 3.0)
    assert _corrected([(4.0, 6.0), (2.0, 3.0), (2.6, 4.4)], 4.0, 2.0) == pytest.approx(2.0 + 0.6 / 1.4)
    # A network that was given less and took longer says nothing about the way between.
    assert _corrected([(2.0, 6.0), (3.0, 3.0)], 4.0, 2.0) == pytest.approx(6.0)


class Late(Counted):
    """A clock on which whatever was pruned takes a `share` of the whole's time."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.pruned: list[str] = []

    def __call__(self, networks: Mapping[str, Callable[[], TorchModel]]) -> dict[str, float]:
        found = super().__call__(networks)
        if "pruned" in networks:
            model = networks["pruned"]()
            self.pruned.append(str(structure_of(model.net, model.family)))
            found["pruned"] = self.share * found["whole"]
        return found


def test_a_network_that_was_timed_is_not_timed_again(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prune_structured, "ROUNDS", 6)  # enough for some to lead to the same network
    model, ctx = given(tiny_checkpoint("bert"), tmp_path)
    clock = Late(0.75)
    PruneStructured(speedup=3.0).apply(model, replace(ctx, timer=clock))
    assert 1 < len(clock.pruned) < 6
    assert len(set(clock.pruned)) == len(clock.pruned)


@pytest.mark.parametrize(("taken", "anew"), [(0.97, True), (0.985, False), (1.005, False), (1.015, True)])
def test_a_little_too_fast_is_near_enough_and_half_as_much_too_slow(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, taken: float, anew: bool
):
    model, ctx = given(tiny_checkpoint("bert"), tmp_path)
    clock = Late(taken / 2)
    PruneStructured(speedup=2.0).apply(model, replace(ctx, timer=clock))
    assert (len(clock.pruned) > 1) is anew


def test_second_order_choices_beat_pruning_all_layers_alike(tiny_checkpoint: TinyCheckpoint):
    from fmopt.models.surgery.pruned_modules import prune_layer

    folder = tiny_checkpoint("roberta")
    whole = model_of(folder)
    wanted = outputs_of(whole, padded(whole))
    uniform = model_of(folder)
    for layer in uniform.family.layers(uniform.net):
        prune_layer(uniform.net, layer, range(2), range(32))
    model, ctx = given(folder)
    pruned = PruneStructured(latency_ms=time_of(uniform)).apply(model, ctx)
    assert time_of(pruned) <= 1.05 * time_of(uniform)
    losses = [np.square(outputs_of(m, padded(whole)) - wanted).sum() for m in (pruned, uniform)]
    assert losses[0] < losses[1]


def test_what_cannot_be_is_refused_with_its_reason(tiny_checkpoint: TinyCheckpoint):
    model, ctx = given(tiny_checkpoint("bert"))
    with pytest.raises(
        PassError, match=r"cannot be reached: without any head or neuron the network still takes 1\.00 ms"
    ):
        PruneStructured(latency_ms=0.5).apply(model, ctx)
    model, ctx = given(tiny_checkpoint("bert"), items=10)
    with pytest.raises(PassError, match="at least 32 items of real data and has 10"):
        PruneStructured(speedup=2.0).apply(model, ctx)
    with pytest.raises(PassError, match="no runtime to time sublayers on"):
        PruneStructured(speedup=2.0).apply(model, replace(ctx, timer=None))
    here, away = target(present=True), target()
    assert "layers" in str(PruneStructured(speedup=2.0).refusal(model_of(tiny_checkpoint("albert")).metadata, here))
    assert PruneStructured(speedup=2.0).refusal(model.metadata, here) is None
    assert "cannot be timed here" in str(PruneStructured(speedup=2.0).refusal(model.metadata, away))
    with pytest.raises(ConfigError, match="either a speedup or a latency_ms"):
        PruneStructured()
