"""An encoder and a decoder are pruned to the time of an answer, each stack by prices of its own, scored on the answers that the
network gives, and distilled by what a larger one would say at every word."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fmopt.core.errors import PassError
from fmopt.core.recipe import Recipe, Step
from fmopt.edge.runners import ENCODER_DECODER, open_runner
from fmopt.edge.seq2seq import NEW
from fmopt.edge.text import open_preprocessor
from fmopt.exporters.to_onnx import export_onnx
from fmopt.models.loading import TorchModel
from fmopt.models.structure import structure_of
from fmopt.models.surgery.pruned_modules import drop_layers, least_heads, prune_layer
from fmopt.models.wrappers.seq2seq import AsEncoderDecoder
from fmopt.passes.base import Context
from fmopt.passes.calibration import generated_answers
from fmopt.passes.calibration.generated_answers import answered_by, answering
from fmopt.passes.calibration.output_distance import distance_from_now
from fmopt.passes.distill import Distill
from fmopt.passes.distillation.objective import inputs_and_labels
from fmopt.passes.drop_layers import DropLayers
from fmopt.passes.mixed_precision import MixedPrecision
from fmopt.passes.prune_structured import PruneStructured
from fmopt.passes.pruning.fisher_scores import mask_fisher
from fmopt.passes.pruning.latency_table import latency_table
from fmopt.passes.pruning.obs_scores import by_importance, sublayers
from fmopt.passes.qat import Qat
from fmopt.passes.quantize_dynamic import QuantizeDynamic
from fmopt.training.examples import IGNORED
from fmopt.workflow.job.request import Training
from fmopt.workflow.search import network_timer
from fmopt.workflow.search.builder import Builder
from fmopt.workflow.search.candidates import trained_rounding
from fmopt.workflow.search.network_timer import RecipeTimer
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.models.surgery.test_answers_pruned import FAMILIES, asked, said, two_and_two
from tests.passes.test_decoders_pruned import TEXTS, Counted, builder_of, time_of, watch_calls
from tests.torch_models import context_of, items_of, model_of, target


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> TorchModel:
    return two_and_two(tiny_checkpoint, request.param)


def given(model: TorchModel, scratch: Path | None = None) -> Context:
    items = items_of(model, TEXTS)
    return replace(context_of(model, scratch), calibration=lambda: iter(items), target=target(width_multiple=4),
                   timer=Counted())  # fmt: skip


def copied(model: TorchModel) -> TorchModel:
    """The same network once more."""
    net = type(model.net)(copy.deepcopy(model.net.config)).eval()
    net.load_state_dict(model.net.state_dict())
    return replace(model, net=net)


def test_each_stack_has_prices_of_its_own(model: TorchModel) -> None:
    table = latency_table(model, model.family, Counted(), 4, None)
    assert [(one.stack, one.kind) for one in table.curves] == [
        ("encoder", "attention"), ("encoder", "ffn"), ("decoder", "attention"), ("decoder", "cross"), ("decoder", "ffn"),
    ]  # fmt: skip
    assert abs(table.additivity_error) < 1e-9
    assert table.whole_ms == pytest.approx(time_of(model))
    for kind in ("attention", "cross"):
        assert table.curve(kind, "decoder").least == (1, 0)
        assert table.curve(kind, "decoder").at(3) == pytest.approx(3 * 4 * 32 * 8 / 1000)
    first = int(model.metadata.model_type == "t5")
    assert table.curve("attention", "encoder").least == (first, 0)
    # what stays whatever is cut: a head is 4 projections of 32 x 8 weights; T5 counts its table of biases too, once a stack
    assert table.floor_ms == pytest.approx(table.base_ms + (2 + first) * 4 * 32 * 8 / 1000)


def test_the_time_asked_for_is_met_by_pruning_both(model: TorchModel, tmp_path: Path) -> None:
    whole_ms, apart = time_of(model), []
    for speedup in (1.1, 2.2):
        pruned, ctx = copied(model), given(model, tmp_path)
        distance = distance_from_now(pruned, ctx, 8)
        pruned = PruneStructured(speedup=speedup, tries=6).apply(pruned, ctx)
        assert time_of(pruned) == pytest.approx(whole_ms / speedup, rel=0.06)
        apart.append(distance())
    assert 0 < apart[0] < apart[1]
    left = structure_of(pruned.net, pruned.family).layers
    for stack in ("encoder", "decoder"):
        assert sum(len(one.heads) + len(one.cross) + one.ffn for one in left if one.stack == stack) < 2 * (4 + 64)
    assert left[2].heads
    assert left[2].cross
    assert " decoder " in pruned.history[-1]
    assert pruned.history[-1].count("+") == 2  # heads to its own tokens and to the encoder's


def test_second_order_beats_plain_removal_of_the_same_units(model: TorchModel, tmp_path: Path) -> None:
    from fmopt.passes.pruning.obs_scores import Scores

    ctx, plain = given(model, tmp_path), copied(model)
    distance = distance_from_now(model, ctx, 48)
    pruned = PruneStructured(speedup=1.4, tries=0).apply(model, ctx)
    made_up, numbers = distance(), structure_of(pruned.net, pruned.family).layers
    removals = Scores(
        next(path for path in tmp_path.glob("scores-*") if path.is_dir()), sublayers(plain.net, plain.family)
    ).removals
    for layer, left in zip(plain.family.layers(plain.net), numbers, strict=True):
        prune_layer(plain.net, layer, left.heads, removals[layer.ffn.narrow].kept(left.ffn), left.cross)
    model.net = plain.net
    assert made_up < distance()


def test_fisher_masks_ask_for_every_word_of_the_answer(model: TorchModel) -> None:
    parts = sublayers(model.net, model.family)
    assert {part.kind for part in parts} == {"attention", "cross", "ffn"}
    with torch.no_grad():
        for part in parts:
            model.net.get_submodule(part.output).weight[:, part.columns([2])] = 0
    items = answering(model, given(model), 6).calibration()
    found = by_importance(mask_fisher(model, parts, items))
    assert all(removal.order[0] == 2 and removal.errors[1] == 0 for removal in found)


def test_an_answer_that_is_looked_at_is_the_networks_own(model: TorchModel) -> None:
    item = next(answering(model, given(model), 2).calibration())
    ids = item[NEW][0].tolist()
    pipeline = model.metadata.pipeline
    logits = said(model, item)[0]
    logits[:, pipeline.get("suppress_tokens", [])] = -np.inf
    follow = logits.argmax(-1).tolist()
    start = len(pipeline["decoder_start_token_ids"])
    assert ids[start:] == follow[start - 1 : -1]
    assert len(ids) > start


@pytest.mark.parametrize("idle", [1, 3])
def test_the_layer_that_is_missed_least_goes_from_either_stack(tiny_checkpoint: TinyCheckpoint, idle: int) -> None:
    model = two_and_two(tiny_checkpoint, "t5")
    layer = model.family.layers(model.net)[idle]
    with torch.no_grad():
        for name in (*(block.output for block in layer.attentions), layer.ffn.narrow):
            model.net.get_submodule(name).weight.zero_()
    inputs = asked(model)
    wanted = said(model, inputs)
    dropped = DropLayers(count=1).apply(model, given(model))
    assert dropped.history[-1] == f"drop_layers({idle})"
    np.testing.assert_allclose(said(dropped, inputs), wanted, atol=1e-5)


@pytest.mark.long
def test_an_answer_is_what_is_timed(tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = two_and_two(tiny_checkpoint, "marian")
    prune = Step(use="prune_structured", options={"speedup": 2.0})
    recipe = Recipe(name="r", runtime="onnxruntime", precision="int8", steps=(prune, Step(use="quantize_dynamic")))
    monkeypatch.setattr(network_timer, "SAMPLES", 3)
    monkeypatch.setattr(network_timer, "SECONDS", 1.0)

    def narrowed() -> TorchModel:
        made = copied(model)
        for layer, heads in zip(made.family.layers(made.net), ((1,), (), (0, 2), ()), strict=True):
            prune_layer(made.net, layer, heads, range(8), heads)
        return made

    seen: list[Any] = []
    watch_calls(monkeypatch, seen)
    ms = RecipeTimer(builder_of(model, tmp_path), recipe)({"whole": lambda: model, "narrow": narrowed})
    assert min(ms.values()) > 0
    read = [one for one in seen if NEW not in one]
    assert {one["input_ids"] for one in read} == {(1, 16)}
    assert len(seen) == (1 + 16) * len(read)  # as many words are made as were read
    caches = {
        tuple(sorted(name for name in one if name.startswith("past_key_values.1.encoder")))
        for one in seen
        if NEW in one
    }
    assert len(caches) == 2  # of both networks: one has lost its last attentions


def builder_with_answers(model: TorchModel, scratch: Path, *, answered: bool = True) -> Builder:
    rows: list[dict[str, Any]] = [{"source": text, "target": text[::-1], "text": text} for text in TEXTS]
    if not answered:
        rows = [{"source": row["source"], "text": row["text"]} for row in rows]
    return replace(builder_of(model, scratch), train=rows)


def test_a_pruned_network_learns_to_answer_as_the_whole_one(model: TorchModel, tmp_path: Path) -> None:
    """By the words of answers in the data, and by the teacher's own answers to texts without any."""
    whole, items = copied(model), items_of(model, TEXTS)
    builder = builder_with_answers(model, tmp_path)
    ctx = replace(builder.pass_context(), calibration=lambda: iter(items), teacher=lambda asked: copied(whole))
    distance = distance_from_now(model, ctx, 16)
    for layer in model.family.layers(model.net):
        prune_layer(model.net, layer, (0, 1), range(24), (1, 2))
    before = distance()
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES))
    options: dict[str, Any] = {"epochs": 12.0, "batch_size": 8, "learning_rate": 3e-3, "unlabelled": str(texts)}
    trained = Distill(weights={"task": 0.0}, bf16=False, **options).apply(model, ctx)
    assert distance() < 0.7 * before
    assert trained.history[-1] == "distill(baseline)"
    answered = [path.read_text().splitlines() for path in builder.store.root.glob("answers-*.jsonl")]
    assert sorted(map(len, answered)) == [len(SENTENCES), 16]  # the texts by the teacher, the items that are judged by


def test_a_teacher_answers_texts_without_answers_once(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_and_two(tiny_checkpoint, "marian")
    ctx = builder_with_answers(model, tmp_path, answered=False).pass_context()
    examples = ctx.examples()
    assert all("labels" not in example for example in examples)
    found = answered_by(model, examples, ctx)
    ctx = replace(ctx, calibration=lambda: iter(items_of(model, TEXTS[:1])))
    heard = next(answering(model, ctx, 1).calibration())[NEW][0].tolist()
    labels = next(
        one["labels"].tolist() for one, text in zip(found, dict.fromkeys(TEXTS), strict=True) if text == TEXTS[0]
    )
    made = heard[len(model.metadata.pipeline["decoder_start_token_ids"]) :]
    assert labels[: len(made)] == made
    assert IGNORED not in labels
    kept = max(ctx.scratch.glob("answers-*.jsonl"), key=lambda path: path.stat().st_size)
    whole = kept.read_text()
    kept.write_text(whole[: len(whole) // 2])  # a kill in the middle of a line
    again = answered_by(model, examples, ctx)
    assert [one["labels"].tolist() for one in again] == [one["labels"].tolist() for one in found]
    assert sorted(kept.read_text().splitlines()) == sorted(whole.splitlines())
    with pytest.raises(PassError, match="the time limit was reached after 1 of"):
        answered_by(model, examples, replace(ctx, scratch=None, deadline=0.0))
    monkeypatch.setattr(generated_answers, "with_starts", None)  # would be called
    assert next(answering(model, ctx, 1).calibration())[NEW][0].tolist() == heard
    again = answered_by(model, examples, ctx)
    assert [one["labels"].tolist() for one in again] == [one["labels"].tolist() for one in found]


def test_rounding_is_trained_and_the_head_is_rounded_as_before(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    """As `--effort max` does where a distilled network loses its accuracy in INT8: the graph answers as the trained network."""
    recipe = Recipe(name="r", runtime="onnxruntime", precision="int8", steps=(Step(use="quantize_dynamic"),))
    training = Training(epochs=1.0)
    trained = trained_rounding(recipe, training, "baseline", answers=True)
    assert [step.use for step in trained.steps] == ["qat", "quantize_dynamic"]
    assert [step.use for step in trained_rounding(recipe, training, "baseline").steps] == ["qat"]
    static = recipe.model_copy(update={"steps": (Step(use="quantize_static"),)})
    assert [step.use for step in trained_rounding(static, training, "baseline", answers=True).steps] == ["qat"]

    model = two_and_two(tiny_checkpoint, "marian")
    items = items_of(model, TEXTS)
    builder = builder_with_answers(model, tmp_path)
    whole = copied(model)
    ctx = replace(builder.pass_context(), calibration=lambda: iter(items), teacher=lambda asked: copied(whole))
    made = Qat(epochs=1.0, bf16=False).apply(model, ctx)
    item = next(answering(made, ctx, 1).calibration())
    wanted = said(made, item)
    graph = export_onnx(made, items[0], tmp_path / "graph")
    (tmp_path / "dynamic").mkdir()
    narrow = QuantizeDynamic().apply(graph, ctx, tmp_path / "dynamic")
    kinds = Counter(node.op_type for node in onnx.load(narrow.path).graph.node)
    assert kinds["QuantizeLinear"] > 10  # of the layers
    assert kinds["MatMulInteger"] == 1  # the head
    for path, bound in ((graph.path, 1e-3), (narrow.path, 2e-2)):
        runner = AsEncoderDecoder(open_runner("onnxruntime", path, {ENCODER_DECODER: True}, 1))
        np.testing.assert_allclose(runner.run(item)["logits"], wanted, atol=bound * np.abs(wanted).max())


@pytest.mark.parametrize("family", ["marian", "gpt2"])
def test_a_killed_training_of_tied_weights_goes_on_where_it_was(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """A head that is the table of words shares its memory, which files of weights do not take."""
    from fmopt.passes.distillation import trainer

    answers = family == "marian"
    whole = two_and_two(tiny_checkpoint, family) if answers else model_of(tiny_checkpoint(family, "text-generation"))

    def trained(scratch: Path, said: list[str], **options: Any) -> dict[str, torch.Tensor]:
        student = copied(whole)
        for layer in student.family.layers(student.net):
            prune_layer(student.net, layer, (0, 1), range(24), (1, 2))
        builder = builder_with_answers(student, scratch) if answers else builder_of(student, scratch)
        ctx = replace(builder.pass_context(), teacher=lambda asked: copied(whole), progress=said.append)
        done = Distill(epochs=2.0, batch_size=8, bf16=False, **options).apply(student, ctx)
        return {name: value.clone() for name, value in done.net.state_dict().items()}

    wanted = trained(tmp_path / "whole", [])

    def killed(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step == 3
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Watch, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "cut", [])
    said: list[str] = []
    again = trained(tmp_path / "cut", said)
    assert any("going on at step 3" in line for line in said)
    assert all(torch.equal(again[name], value) for name, value in wanted.items())


def test_no_layer_is_left_out_while_a_network_is_taught(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    """A checkpoint that was trained with layerdrop, as M2M100 always is, is distilled with all of its layers."""
    model = two_and_two(tiny_checkpoint, "bart")
    config: Any = model.net.config
    config.encoder_layerdrop = config.decoder_layerdrop = 0.9
    whole = copied(model)
    assert {part.layerdrop for part in model.net.modules() if hasattr(part, "layerdrop")} == {0.0}
    model.net = copied(model).net
    assert {part.layerdrop for part in model.net.modules() if hasattr(part, "layerdrop")} == {0.9}
    ctx = replace(builder_with_answers(model, tmp_path).pass_context(), teacher=lambda asked: copied(whole))
    made = Distill(epochs=1.0, batch_size=8, bf16=False).apply(model, ctx)
    assert {part.layerdrop for part in made.net.modules() if hasattr(part, "layerdrop")} == {0.9}
    assert made.net.config.encoder_layerdrop == 0.9


def test_a_teacher_of_more_layers_teaches_both_stacks(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    whole = two_and_two(tiny_checkpoint, "marian")
    model = copied(whole)
    drop_layers(model, [1, 2])
    ctx = replace(builder_with_answers(model, tmp_path).pass_context(), teacher=lambda asked: copied(whole),
                  calibration=lambda: iter(items_of(whole, TEXTS)))  # fmt: skip
    Distill(epochs=1.0, batch_size=8, bf16=False).apply(model, ctx)
    (record,) = tmp_path.rglob("distill.json")
    layers = json.loads(record.read_text())["layers"]
    assert [pair[0] for pair in layers] == [0, 1]
    assert layers[0][1] < 2 <= layers[1][1] == 3  # the encoder's from its own, the decoder's last from the last


def test_a_network_that_answers_is_quantized_by_what_each_group_costs(model: TorchModel, tmp_path: Path) -> None:
    made = MixedPrecision(groups=2).apply(model, given(model, tmp_path))
    damages = [entry.damage for entry in made.sensitivity]
    assert len(damages) > 4
    assert min(damages) >= 0
    assert max(damages) > 0


def test_what_stays_of_caches_stays_when_the_first_layer_is_gone(tiny_checkpoint: TinyCheckpoint) -> None:
    model = two_and_two(tiny_checkpoint, "bart")
    last = model.family.layers(model.net)[3]
    prune_layer(model.net, last, range(4), range(64), ())
    assert least_heads(model.net, model.family) == ((0,), (0,), (1, 1), (0, 0))
    model = two_and_two(tiny_checkpoint, "bart")
    prune_layer(model.net, model.family.layers(model.net)[2], (), range(64), range(4))
    assert least_heads(model.net, model.family) == ((0,), (0,), (0, 1), (1, 0))


@pytest.mark.parametrize(
    ("name", "value"), [("decoder_start_token_ids", [7]), ("eos_token_id", [9]), ("forced_bos_token_id", 11)]
)
def test_a_teacher_that_answers_otherwise_is_refused(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, name: str, value: object
) -> None:
    model = two_and_two(tiny_checkpoint, "marian")
    other = copied(model)
    metadata = replace(other.metadata, digest="another", pipeline={**other.metadata.pipeline, name: value})
    ctx = replace(
        builder_with_answers(model, tmp_path).pass_context(), teacher=lambda asked: replace(other, metadata=metadata)
    )  # fmt: skip
    with pytest.raises(PassError, match=f"has another {name} than the student"):
        Distill(epochs=1.0, bf16=False).apply(model, ctx)


def test_a_decoder_reads_the_answer_one_word_behind_as_in_the_networks_own_training(model: TorchModel) -> None:
    preprocessor = open_preprocessor(model.metadata.folder, dict(model.metadata.pipeline))
    texts = {name: torch.from_numpy(value) for name, value in preprocessor.encode(list(SENTENCES[:2])).inputs.items()}
    labels = torch.tensor([[5, 6, 7, 8], [9, 10, IGNORED, IGNORED]])
    inputs, asked_for = inputs_and_labels({**texts, "labels": labels}, model.metadata.pipeline)
    assert set(inputs) == {*texts, NEW}
    assert set(asked_for) == {"labels"}
    with torch.no_grad():
        own, ours = model.net(**texts, labels=labels).logits, model.net(**inputs).logits
    known = labels != IGNORED
    torch.testing.assert_close(ours[known], own[known])
