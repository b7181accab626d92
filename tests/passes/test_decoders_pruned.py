"""A network that generates is pruned to the time of one more token, scored on the tokens it would say next, and distilled by
their distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from scipy.special import log_softmax

from fmopt.core.errors import PassError
from fmopt.core.progress import Silent
from fmopt.core.recipe import Recipe, Step
from fmopt.core.stages.store import Store
from fmopt.core.workload import Workload
from fmopt.edge.loading import timed_call
from fmopt.edge.text import Preprocessor
from fmopt.measurement import backends
from fmopt.models import checkpoint
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from fmopt.models.structure import save_checkpoint, structure_of
from fmopt.models.surgery.projections import projection, weight_of
from fmopt.models.surgery.pruned_modules import prune_layer
from fmopt.passes.base import Context
from fmopt.passes.calibration import output_distance
from fmopt.passes.calibration.output_distance import distance_from_now
from fmopt.passes.distill import Distill
from fmopt.passes.prune_structured import PruneStructured
from fmopt.passes.pruning.fisher_scores import mask_fisher
from fmopt.passes.pruning.latency_table import latency_table
from fmopt.passes.pruning.obs_scores import by_importance, sublayers
from fmopt.workflow.search import network_timer
from fmopt.workflow.search.builder import Builder
from fmopt.workflow.search.network_timer import RecipeTimer
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.torch_models import context_of, items_of, model_of, outputs_of, padded, target

TEXTS = tuple(f"{SENTENCES[n % len(SENTENCES)]} {SENTENCES[n % 7]}" for n in range(48))


class Counted:
    """A clock that is exact: 1 ms, and 1 µs for every weight of the layers' projections."""

    key = "weights"

    def __call__(self, networks: Mapping[str, Callable[[], TorchModel]]) -> dict[str, float]:
        return {name: time_of(make()) for name, make in networks.items()}


def time_of(model: TorchModel) -> float:
    names = [layer.name for layer in model.family.layers(model.net)]
    weights = (v for name, v in model.net.named_parameters() if v.ndim == 2 and any(f"{n}." in name for n in names))
    return 1.0 + sum(value.numel() for value in weights) / 1000


def given(folder: Path, scratch: Path | None = None) -> tuple[TorchModel, Context]:
    model = model_of(folder)
    items = items_of(model, TEXTS)
    ctx = replace(context_of(model, scratch), calibration=lambda: iter(items), target=target(width_multiple=4),
                  timer=Counted())  # fmt: skip
    return model, ctx


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_time_asked_for_is_met_and_one_head_stays(tiny_checkpoint: TinyCheckpoint, tmp_path: Path, family: str):
    folder = tiny_checkpoint(family, "text-generation")
    whole, ctx = given(folder)
    table = latency_table(whole, whole.family, Counted(), 4, None)
    assert table.curve("attention").least == (1, 0)
    assert abs(table.additivity_error) < 1e-9
    assert table.base_ms == pytest.approx(1.0)
    distance, apart = distance_from_now(whole, ctx, 8), []
    for speedup in (1.3, 2.5):
        model, ctx = given(folder, tmp_path)
        pruned = PruneStructured(speedup=speedup, tries=6).apply(model, ctx)
        assert time_of(pruned) == pytest.approx(table.whole_ms / speedup, rel=0.06)
        assert structure_of(pruned.net, pruned.family).layers[0].heads
        whole.net, kept = pruned.net, whole.net
        apart.append(distance())
        whole.net = kept
    assert 0 < apart[0] < apart[1]
    again = checkpoint.load(checkpoint.inspect(resolve(str(save_checkpoint(pruned, tmp_path / "pruned")))))
    np.testing.assert_array_equal(outputs_of(again, padded(again)), outputs_of(pruned, padded(again)))
    model, ctx = given(folder)
    with pytest.raises(PassError, match="with one head left and no neuron"):
        PruneStructured(latency_ms=1.0001).apply(model, ctx)


def test_second_order_beats_plain_removal_of_the_same_units(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    """The weights that stay make up for those that go, GPT-2's too, which are kept the other way round."""
    folder = tiny_checkpoint("gpt2", "text-generation")
    model, ctx = given(folder, tmp_path)
    distance = distance_from_now(model, ctx, 48)
    pruned = PruneStructured(speedup=1.5, tries=0).apply(model, ctx)
    made_up = distance()
    plain = model_of(folder)
    numbers = structure_of(pruned.net, pruned.family).layers
    scores = next(path for path in tmp_path.glob("scores-*") if path.is_dir())
    from fmopt.passes.pruning.obs_scores import Scores

    removals = Scores(scores, sublayers(plain.net, plain.family)).removals
    for layer, left in zip(plain.family.layers(plain.net), numbers, strict=True):
        prune_layer(plain.net, layer, left.heads, removals[layer.ffn.narrow].kept(left.ffn))
    model.net = plain.net
    assert made_up < distance()


def test_the_distance_is_the_divergence_of_what_comes_next(
    tiny_checkpoint: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(output_distance, "TOKENS", 1000)  # all of them
    model, ctx = given(tiny_checkpoint("gpt2", "text-generation"))
    distance, item = distance_from_now(model, ctx, 1), items_of(model, TEXTS)[0]
    before = log_softmax(outputs_of(model, item)[0], axis=-1)
    assert distance() == pytest.approx(0, abs=1e-4)
    model.net.get_submodule("transformer.h.0.mlp.c_proj").weight.data *= 0.5
    after = log_softmax(outputs_of(model, item)[0], axis=-1)
    assert distance() == pytest.approx((np.exp(before) * (before - after)).sum(-1).mean(), rel=0.02)


def test_fisher_masks_ask_what_comes_next(tiny_checkpoint: TinyCheckpoint):
    model, _ = given(tiny_checkpoint("gpt2", "text-generation"))
    parts = sublayers(model.net, model.family)
    with torch.no_grad():
        for part in parts:
            weight_of(projection(model.net, part.output))[:, part.columns([2])] = 0
    found = by_importance(mask_fisher(model, parts, items_of(model, TEXTS[:6])))
    assert all(removal.order[0] == 2 and removal.errors[1] == 0 for removal in found)


def builder_of(model: TorchModel, scratch: Path, texts: tuple[str, ...] = TEXTS) -> Builder:
    preprocessor = Preprocessor(checkpoint.tokenizer_file(model.metadata), dict(model.metadata.pipeline))
    return Builder(
        metadata=model.metadata, target=target(), store=Store(scratch), preprocessor=preprocessor, calibration=list(TEXTS),
        calibration_digest="", seed=0, memory_cap_bytes=1 << 30, progress=Silent(), workload=Workload(length=16),
        train=[{"text": text} for text in texts],
    )  # fmt: skip


def watch_calls(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    """Have every call of a runner that is priced put the shapes of its inputs into `seen`."""

    class Watched:
        def __init__(self, runner: Any) -> None:
            self.runner = runner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.runner, name)

        def run(self, inputs: Mapping[str, np.ndarray]) -> Any:
            seen.append({name: value.shape for name, value in inputs.items()})
            return self.runner.run(inputs)

    monkeypatch.setattr(
        backends, "timed_call", lambda pipeline, runner, one: timed_call(pipeline, Watched(runner), one)
    )


def test_one_more_token_after_a_cache_is_what_is_timed(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = model_of(tiny_checkpoint("gpt2", "text-generation"))
    prune = Step(use="prune_structured", options={"speedup": 2.0})
    narrow = Step(use="quantize_weights", options={"bits": 8, "block": 32})
    recipe = Recipe(name="r", runtime="onnxruntime", precision="int8", steps=(prune, narrow))
    seen: list[Any] = []

    watch_calls(monkeypatch, seen)
    monkeypatch.setattr(network_timer, "SAMPLES", 3)
    monkeypatch.setattr(network_timer, "SECONDS", 1.0)

    def narrowed() -> TorchModel:
        made = model_of(model.metadata.folder)
        for layer, heads in zip(made.family.layers(made.net), ((1,), ()), strict=True):
            prune_layer(made.net, layer, heads, range(8))
        return made

    ms = RecipeTimer(builder_of(model, tmp_path), recipe)(
        {"whole": lambda: model_of(model.metadata.folder), "narrow": narrowed}
    )
    assert min(ms.values()) > 0
    steps = [one for one in seen if one["input_ids"] == (1, 1)]  # the others read what was before
    whole = [one for one in steps if "past_key_values.1.key" in one]
    narrow = [one for one in steps if "past_key_values.1.key" not in one]
    assert len(whole) >= 3 <= len(narrow)
    assert {one["past_key_values.1.key"] for one in whole} == {(1, 4, 15, 8)}
    assert {one["past_key_values.0.key"] for one in narrow} == {(1, 1, 15, 8)}


def test_one_in_full_precision_runs_between_two_that_are_timed(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, timed = model_of(tiny_checkpoint("gpt2", "text-generation")), []

    def clock(calls: dict[str, Any], **asked: Any) -> dict[str, list[float]]:
        timed.append(list(calls))
        return {name: [float(number)] for number, name in enumerate(calls)}

    monkeypatch.setattr(network_timer.interleaved, "time_in_turn", clock)
    steps = (
        Step(use="prune_structured", options={"speedup": 2.0}),
        Step(use="quantize_weights", options={"bits": 8, "block": 32}),
    )
    price = RecipeTimer(
        builder_of(model, tmp_path), Recipe(name="r", runtime="onnxruntime", precision="int8", steps=steps)
    )
    export, exported = network_timer.to_onnx.export_onnx, []
    monkeypatch.setattr(
        network_timer.to_onnx, "export_onnx", lambda *asked, **named: exported.append(1) or export(*asked, **named)
    )
    for count in (2, 3):  # the first of the two is built once
        assert price({"whole": lambda: model, "pruned": lambda: model}) == {"whole": 0.0, "pruned": 2.0}
        assert len(exported) == count
    assert price(dict.fromkeys("abc", lambda: model)) == {"a": 0.0, "b": 1.0, "c": 2.0}
    assert timed == [["whole", network_timer.COMPANY, "pruned"]] * 2 + [["a", "b", "c"]]
    (kept,) = price.context.store.root.glob("timed-*")
    narrow, full = (
        {node.op_type for node in onnx.load(next((kept / part).rglob("*.onnx"))).graph.node}
        for part in ("narrow", "full")
    )
    assert "MatMulNBits" in narrow - full


def test_a_pruned_network_learns_what_comes_next_from_the_whole_one(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    folder = tiny_checkpoint("gpt2", "text-generation")
    student = model_of(folder)
    items = items_of(student, TEXTS)
    ctx = replace(builder_of(student, tmp_path).pass_context(), calibration=lambda: iter(items))
    distance = distance_from_now(student, ctx, 48)
    for layer in student.family.layers(student.net):
        prune_layer(student.net, layer, (0, 1), range(24))
    before = distance()
    options = {"epochs": 12.0, "batch_size": 8, "learning_rate": 3e-3, "bf16": False}
    Distill(weights={"task": 0.0}, **options).apply(student, ctx)  # type: ignore[arg-type]
    assert distance() < 0.7 * before


def test_labels_teach_the_token_after_each_place(tiny_checkpoint: TinyCheckpoint, tmp_path: Path):
    """Text alone, without the teacher's word: the loss that the network itself is trained by falls."""
    student = model_of(tiny_checkpoint("gpt2", "text-generation"))
    ids = torch.tensor(items_of(student, TEXTS[:1])[0]["input_ids"])

    def own() -> float:
        with torch.no_grad():
            return float(student.net.eval()(input_ids=ids, labels=ids).loss)

    before = own()
    options = {"epochs": 10.0, "batch_size": 8, "learning_rate": 3e-3, "bf16": False}
    only = {"task": 1.0, "logits": 0.0, "hidden": 0.0}
    Distill(weights=only, **options).apply(student, builder_of(student, tmp_path).pass_context())  # type: ignore[arg-type]
    assert own() < 0.7 * before
