"""Which candidates a target gets, and which are refused before any work."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from fmopt.core.errors import PlanError
from fmopt.core.model import ReceivedGraph
from fmopt.core.recipe import Recipe, Step
from fmopt.measurement.host_probe import load_target
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.passes.quantization import rounding_process
from fmopt.workflow.job.request import Training
from fmopt.workflow.search.candidates import STRIDE, gradual, pruned, trained_rounding
from fmopt.workflow.search.plan import make_plan


@pytest.fixture(scope="module")
def metadata(tiny_checkpoint):
    return checkpoint.inspect(resolve(str(tiny_checkpoint("bert", "text-classification"))), "text-classification")


def options_of(plan) -> dict[str, str]:
    return {recipe.name: recipe.options.get("precision", "f32") for recipe in plan.candidates}


def test_float_groups_of_int8_run_in_bf16_where_the_target_has_it(metadata):
    plan = make_plan(metadata, load_target("x86-amx"), effort="quick")
    assert options_of(plan)["openvino-nncf-int8"] == options_of(plan)["openvino-static-int8"] == "bf16"
    without = make_plan(metadata, load_target("x86-avx512-vnni"), effort="quick")
    assert options_of(without)["openvino-nncf-int8"] == options_of(without)["openvino-static-int8"] == "f32"


def test_int8_on_openvino_is_refused_without_dot_products(metadata):
    plan = make_plan(metadata, load_target("x86-avx2"), effort="quick")
    assert "openvino-nncf-int8" not in options_of(plan)
    reason = next(refusal.reason for refusal in plan.refused if refusal.recipe == "openvino-nncf-int8")
    assert "no VNNI or AMX" in reason


def test_openvino_is_compiled_for_the_judged_shape_baselines_too(metadata):
    plan = make_plan(metadata, load_target("x86-amx"), effort="quick", shape=(1, 64))
    for recipe in (*plan.baselines, *plan.candidates):
        assert recipe.options.get("shape") == ([1, 64] if recipe.runtime == "openvino" else None)
    without = make_plan(metadata, load_target("x86-amx"), effort="quick")
    assert not any("shape" in recipe.options for recipe in (*without.baselines, *without.candidates))


@pytest.mark.parametrize(("model_type", "kept"), [("gpt2", True), ("lstm", False)])
def test_openvino_keeps_the_cache_of_attention_and_not_the_state_of_an_lstm(metadata, model_type, kept):
    """Also where weights are narrow, in which case what is kept is so too; full precision is not."""
    pipeline = {**metadata.pipeline, "task": "text-generation", "eos_token_id": []}
    reported = dataclasses.replace(metadata, model_type=model_type, task="text-generation", pipeline=pipeline)
    plan = make_plan(reported, load_target("x86-avx2"), effort="quick")
    options = {
        recipe.name: recipe.options for recipe in (*plan.baselines, *plan.candidates) if recipe.runtime == "openvino"
    }
    narrow = {"openvino-weights-int8", "openvino-weights-int4"} if kept else set()  # no layer of an LSTM would be
    assert set(options) == {"openvino-fp32", *narrow}
    assert {bool(one.get("stateful")) for one in options.values()} == {kept}
    assert [options[name].get("kv_cache") for name in sorted(options)] == [None, *["u8" for _ in narrow]]


def test_a_program_for_executorch_is_no_candidate(metadata):
    recipe = Recipe(name="mine", runtime="executorch", precision="fp32")
    with pytest.raises(PlanError, match="fmopt export --format executorch"):
        make_plan(metadata, load_target("raspberry-pi-5"), effort="quick", recipe=recipe)


def test_training_prunes_in_strides_and_one_shot_in_one():
    assert gradual(4.0, "standard") == (4.0,)
    stops = gradual(7.0, "max")
    assert stops[-1] == pytest.approx(7.0)
    assert all(1 < after / before <= STRIDE for before, after in itertools.pairwise((1.0, *stops)))


def test_trained_pruning_goes_by_what_others_of_its_family_asked_for():
    slower = gradual(3.0, "max", (5.0,))
    assert slower == gradual(3.0, "max")
    assert gradual(5.0, "max", (3.0,)) == (*slower, 5.0)
    far = gradual(20.0, "max", (5.0, 3.0, 0.9))
    assert far[:3] == (*slower, 5.0)
    assert all(1 < after / before <= STRIDE for before, after in itertools.pairwise((1.0, *far)))
    assert gradual(5.0, "standard", (3.0,)) == (5.0,)


def test_pruning_comes_first_and_quantization_last():
    base = Recipe(name="base", runtime="openvino", precision="int8", steps=(Step(use="quantize_nncf"),))
    training = Training(teacher="big", epochs=2.0)
    recipe = pruned(base, (2.0, 4.0), "mine", "max", training)
    assert [step.use for step in recipe.steps] == [
        "prune_structured",
        "distill",
        "prune_structured",
        "distill",
        "quantize_nncf",
    ]
    assert [step.options.get("speedup") for step in recipe.steps[:4:2]] == [2.0, 4.0]
    assert recipe.steps[1].options == {"teacher": "big", "epochs": 2.0}
    assert [step.use for step in pruned(base, (2.0,), "mine", "standard").steps] == [
        "prune_structured",
        "quantize_nncf",
    ]
    rounding = trained_rounding(recipe, training, teacher="folder")
    assert (rounding.name, [step.use for step in rounding.steps][3:]) == ("mine-qat", ["distill", "qat"])
    assert rounding.steps[-1].options == {"teacher": "big", "epochs": 2.0}
    for step in rounding.steps:
        step.build()


def test_a_gpu_gets_what_its_tensor_cores_multiply(metadata):
    hopper = make_plan(metadata, load_target("nvidia-h100"), effort="quick", shape=(4, 16))
    names = {recipe.name for recipe in hopper.candidates}
    assert {"tensorrt-fp16", "tensorrt-bf16", "tensorrt-int8", "tensorrt-fp8"} <= names
    assert not any(recipe.runtime == "onnxruntime" for recipe in hopper.candidates)
    assert hopper.baselines[0].name == "tensorrt-fp32"
    built = {
        (tuple(r.options["batch"]), tuple(r.options["lengths"])) for r in hopper.candidates if r.runtime == "tensorrt"
    }
    assert built == {((1, 4, 4), (16, 64))}  # the judged length, and up to what the model reads
    reasons = {refusal.recipe: refusal.reason for refusal in hopper.refused}
    assert "measured gain" in reasons["2:4 sparsity"]
    assert "CPU kernels" in reasons["INT8 on ONNX Runtime"]
    turing = make_plan(metadata, load_target("nvidia-t4"), effort="quick")
    assert not {"tensorrt-fp8", "tensorrt-bf16"} & {recipe.name for recipe in turing.candidates}
    assert "sm_75" in next(refusal.reason for refusal in turing.refused if refusal.recipe == "tensorrt-fp8")
    ampere = make_plan(metadata, load_target("jetson-orin-nano"), effort="quick")
    assert {"tensorrt-int8", "tensorrt-bf16"} <= {recipe.name for recipe in ampere.candidates}
    host = make_plan(metadata, load_target("x86-amx"), effort="quick")
    assert not any("tensorrt" in refusal.recipe for refusal in host.refused)


def received(metadata, precision: str, operators: set[str], *, dequantize: bool = False):
    names = {name: name for name in metadata.pipeline["inputs"]}
    graph = ReceivedGraph(
        Path("model.onnx"), names, {"logits": "logits"}, precision, frozenset(operators), 200, 3, dequantize
    )
    return dataclasses.replace(metadata, graph=graph)


def test_a_graph_without_a_network_gets_passes_on_graphs_alone(metadata):
    plan = make_plan(received(metadata, "fp32", {"LayerNormalization"}), load_target("x86-amx"), effort="quick")
    assert [recipe.name for recipe in plan.baselines] == ["onnxruntime-fp32", "openvino-fp32"]
    stages = {step.build().stage for recipe in plan.candidates for step in recipe.steps}
    assert stages == {"graph"}
    assert {"openvino-nncf-int8", "onnxruntime-own-static-int8", "openvino-bf16"} <= options_of(plan).keys()
    reasons = {refusal.recipe: refusal.reason for refusal in plan.refused}
    assert "quantize_static needs the network" in reasons["openvino-static-int8"]
    assert "torch runs the network" in reasons["torch-bf16"]
    older = make_plan(received(metadata, "fp32", {"ReduceMean"}), load_target("x86-amx"), effort="quick")
    assert not any(step.use == "simplify" for recipe in older.candidates for step in recipe.steps)


def test_a_graph_that_came_quantized_is_held_to_itself_and_tried_elsewhere(metadata):
    came = received(metadata, "int8", {"QuantizeLinear", "DequantizeLinear"})
    plan = make_plan(came, load_target("x86-avx2"), effort="quick")  # also where OpenVINO's own INT8 would not be made
    assert [(recipe.name, recipe.precision) for recipe in plan.baselines] == [("onnxruntime-received", "int8")]
    assert [recipe.name for recipe in plan.candidates] == ["openvino-received"]
    folded = received(metadata, "int8", {"QuantizeLinear", "DequantizeLinear"}, dequantize=True)
    assert make_plan(folded, load_target("x86-avx2"), effort="quick").baselines[0].name == "onnxruntime-fp32"


@pytest.mark.parametrize("effort", ["standard", "max"])
def test_pruning_and_distillation_need_the_network(metadata, effort):
    with pytest.raises(PlanError, match=f"--effort {effort} prunes.*needs the network.*give the checkpoint"):
        make_plan(received(metadata, "fp32", set()), load_target("host"), effort=effort, texts=100)


def test_learned_rounding_is_tried_where_there_is_time_and_says_what_it_needs(tiny_checkpoint, monkeypatch):
    decoder = checkpoint.inspect(resolve(str(tiny_checkpoint("llama", "text-generation"))), "text-generation")
    named = ["onnxruntime-gptq-int4-32", "onnxruntime-autoround-int4-32"]

    def plan(effort):
        return make_plan(decoder, load_target("x86-avx2"), effort=effort, texts=1)

    monkeypatch.setattr(rounding_process, "find_spec", lambda name: object())
    assert not any(name in options_of(plan("quick")) for name in named)
    for effort in ("standard", "max"):
        assert list(options_of(plan(effort)))[-2:] == named
    monkeypatch.setattr(rounding_process, "find_spec", lambda name: None)
    reasons = {one.recipe: one.reason for one in plan("standard").refused}
    assert [reasons[name].partition(": ")[2] for name in named] == [
        "pip install 'fmopt[neural-compressor]'",
        "pip install 'fmopt[autoround]'",
    ]
