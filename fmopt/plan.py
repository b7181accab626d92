"""Which candidates to try, in which order, which not and why, and what it will take.

The plan refuses before work starts, all reasons at once, and never touches weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field

from fmopt import lookup
from fmopt.errors import PlanError
from fmopt.model import CheckpointFacts, takes_length
from fmopt.networks import RECURRENT
from fmopt.passes.distill import Distill
from fmopt.recipe import Recipe, Step
from fmopt.results import Frozen
from fmopt.seq2seq import generates, makes_answers
from fmopt.target import Target

Effort = Literal["quick", "standard", "max"]


class Refusal(Frozen):
    """A recipe that was not tried, and why."""

    recipe: str
    reason: str


class Estimates(Frozen):
    """What a run will take, by rules of thumb from the parameter count (see `estimate`)."""

    minutes: float
    ram_gb: float
    disk_gb: float


class Plan(Frozen):
    """Baselines and candidates in the order they are tried; `later` is what depends on how those came out."""

    baselines: tuple[Recipe, ...]
    candidates: tuple[Recipe, ...]
    later: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    estimates: Estimates = Field(default_factory=lambda: Estimates(minutes=0, ram_gb=0, disk_gb=0))


# The same model with no passes, on every runtime: the fastest of these is what a speedup is claimed against.
BASELINES = (
    Recipe(name="torch-fp32", runtime="torch", options={"dtype": "fp32"}),
    Recipe(name="onnxruntime-fp32", runtime="onnxruntime"),
    Recipe(name="openvino-fp32", runtime="openvino", options={"precision": "f32"}),
)
# On GPUs that TensorRT is for; TF32 stays off, as in PyTorch, so that this is full precision.
TENSORRT_BASELINE = Recipe(name="tensorrt-fp32", runtime="tensorrt")


CPU = "CPUExecutionProvider"
QUANTIZERS = ("quantize_dynamic", "quantize_static", "quantize_static_ort", "quantize_nncf", "mixed_precision")
# In 4 bits scales by the squared error lose less than the nearest ones, at the same speed: +0.36 % instead of +0.48 % perplexity
# for a trained GPT-2 shape (benchmarks/decoding.py), less than llama.cpp's Q4_0 loses. In 8 there is nothing to win.
SCALED: dict[int, dict[str, str]] = {4: {"method": "mse"}, 8: {}}
STEPS, BATCH = 3_000, 32  # of a distillation at least: small data is seen more often, 3 to 30 times
TOKENS = 128  # of a text; with fewer, what is kept of the teacher takes less disk
STRIDE = 2.5  # one-shot pruning beyond this factor loses what distillation does not win back


def quick_candidates(target: Target) -> tuple[Recipe, ...]:
    """Everything that needs no training, cheap ones first.

    What OpenVINO leaves in float around INT8 products runs in bf16 where the target has it: a twentieth faster on MiniLM.
    """
    islands = {"precision": "bf16"} if "bf16" in target.precisions else {}
    dynamic = Step(use="quantize_dynamic")
    tables, simplify = Step(use="quantize_embeddings"), Step(use="simplify")
    minmax = Step(use="quantize_static", options={"calibrator": "minmax", "smooth": "search"})
    return (
        _int8("onnxruntime-dynamic-int8", "onnxruntime", dynamic, simplify),
        _int8("onnxruntime-dynamic-int8-embeddings", "onnxruntime", dynamic, tables, simplify),
        _int8("openvino-nncf-int8", "openvino", Step(use="quantize_nncf"), options=islands),
        _int8("onnxruntime-static-int8", "onnxruntime", minmax, simplify),
        _int8("onnxruntime-static-int8-embeddings", "onnxruntime", minmax, tables, simplify),
        _int8("openvino-static-int8", "openvino", minmax, options=islands),
        _int8("onnxruntime-own-static-int8", "onnxruntime", Step(use="quantize_static_ort"), simplify),
        Recipe(name="torch-bf16", runtime="torch", precision="bf16", options={"dtype": "bf16"}),
        Recipe(name="openvino-bf16", runtime="openvino", precision="bf16", options={"precision": "bf16"}),
        Recipe(name="onnxruntime-fp16-weights", runtime="onnxruntime", precision="fp16", steps=(Step(use="cast"),)),
        *(arm_candidates() if target.arch == "aarch64" else ()),
    )


def arm_candidates() -> tuple[Recipe, ...]:
    """Other kernels for Arm, in builds of ONNX Runtime that have them: XNNPACK's and the Arm Compute Library's, in fp32."""
    kernels = {"xnnpack": "XnnpackExecutionProvider", "acl": "ACLExecutionProvider"}
    return tuple(
        Recipe(name=f"onnxruntime-{name}-fp32", runtime="onnxruntime", options={"providers": [provider, CPU]})
        for name, provider in kernels.items()
    )


def tensorrt_candidates() -> tuple[Recipe, ...]:
    """What TensorRT can be given: precision stands in the graph, as types and as Q/DQ."""
    minmax = Step(use="quantize_static", options={"calibrator": "minmax", "smooth": "search"})
    fp16, bf16 = (Step(use="cast", options={"to": to}) for to in ("fp16", "bf16"))
    return (
        Recipe(name="tensorrt-fp16", runtime="tensorrt", precision="fp16", steps=(fp16,)),
        Recipe(name="tensorrt-bf16", runtime="tensorrt", precision="bf16", steps=(bf16,)),
        _int8("tensorrt-int8", "tensorrt", minmax, fp16),
        Recipe(name="tensorrt-fp8", runtime="tensorrt", precision="fp8", steps=(Step(use="quantize_fp8"), fp16)),
        Recipe(name="torch-bf16", runtime="torch", precision="bf16", options={"dtype": "bf16"}),
    )


def not_for_gpus(target: Target) -> tuple[Refusal, ...]:
    """What is left out where TensorRT is, said once."""
    return (
        Refusal(
            recipe="INT8 on ONNX Runtime",
            reason=f"fmopt's INT8 graphs for it are made for CPU kernels; on {target.name} Q/DQ goes to TensorRT",
        ),
        Refusal(
            recipe="2:4 sparsity",
            reason="it is taken only for a measured gain, which needs the device: there, a recipe with the step "
            "sparsify_2_4 and the option sparse = true",
        ),
    )


def generation_candidates(target: Target) -> tuple[Recipe, ...]:
    """For networks that make one token at a time, each time reading every weight: narrow weights first of all.

    HQQ is left to recipes: its zero points are no whole numbers, for which ONNX Runtime has no fast kernel on a CPU.
    """
    tables, dynamic = Step(use="quantize_embeddings"), Step(use="quantize_dynamic")
    fused = Step(use="fuse_decoder")
    floats = "bf16" if "bf16" in target.precisions else "f32"

    def narrow(bits: int, block: int) -> Recipe:
        step = Step(use="quantize_weights", options={"bits": bits, "block": block, **SCALED[bits]})
        name = f"onnxruntime-weights-int{bits}-{block}"
        return Recipe(name=name, runtime="onnxruntime", precision=f"int{bits}", steps=(step, tables, fused))

    def compressed(bits: int) -> Recipe:
        step = Step(use="compress_weights", options={"bits": bits})
        name = f"openvino-weights-int{bits}"
        options = {"precision": floats}
        return Recipe(name=name, runtime="openvino", precision=f"int{bits}", steps=(step,), options=options)

    return (
        _int8("onnxruntime-dynamic-int8", "onnxruntime", dynamic),
        _int8("onnxruntime-dynamic-int8-embeddings", "onnxruntime", dynamic, tables),
        narrow(8, 32),
        narrow(8, 128),
        narrow(4, 32),
        narrow(4, 128),
        compressed(8),
        compressed(4),
        Recipe(name="torch-bf16", runtime="torch", precision="bf16", options={"dtype": "bf16"}),
        Recipe(name="openvino-bf16", runtime="openvino", precision="bf16", options={"precision": "bf16"}),
    )


def answer_candidates(*, words: bool) -> tuple[Recipe, ...]:
    """For an encoder that reads all at once and a decoder that makes one token at a time: INT8 that both compute in, or narrow
    weights. `words`: what is read are texts, whose words are looked up in a large table. INT8 with ranges known beforehand is
    left to recipes: beside a dynamic head it is no faster (Marian, width 512), on OpenVINO it takes more than twice as long."""
    dynamic = Step(use="quantize_dynamic")
    tables = (Step(use="quantize_embeddings"),) if words else ()

    def narrow(bits: int, block: int) -> Recipe:
        step = Step(use="quantize_weights", options={"bits": bits, "block": block, **SCALED[bits]})
        name = f"onnxruntime-weights-int{bits}-{block}"
        return Recipe(name=name, runtime="onnxruntime", precision=f"int{bits}", steps=(step, *tables))

    looked_up = (_int8("onnxruntime-dynamic-int8-embeddings", "onnxruntime", dynamic, *tables),) if words else ()
    return (
        _int8("onnxruntime-dynamic-int8", "onnxruntime", dynamic),
        *looked_up,
        narrow(8, 32),
        narrow(4, 32),
        Recipe(name="torch-bf16", runtime="torch", precision="bf16", options={"dtype": "bf16"}),
        Recipe(name="openvino-bf16", runtime="openvino", precision="bf16", options={"precision": "bf16"}),
    )


def speech_candidates(target: Target) -> tuple[Recipe, ...]:
    """For networks that speak, nearly all of whose work are convolutions: dynamic INT8 reaches the products of the text
    encoder, NNCF and narrow floats reach convolutions too."""
    islands = {"precision": "bf16"} if "bf16" in target.precisions else {}
    return (
        _int8("onnxruntime-dynamic-int8", "onnxruntime", Step(use="quantize_dynamic"), Step(use="simplify")),
        _int8("openvino-nncf-int8", "openvino", Step(use="quantize_nncf"), options=islands),
        Recipe(name="torch-bf16", runtime="torch", precision="bf16", options={"dtype": "bf16"}),
        Recipe(name="openvino-bf16", runtime="openvino", precision="bf16", options={"precision": "bf16"}),
        Recipe(name="onnxruntime-fp16-weights", runtime="onnxruntime", precision="fp16", steps=(Step(use="cast"),)),
    )


def make_plan(
    facts: CheckpointFacts,
    target: Target,
    *,
    effort: Effort,
    recipe: Recipe | None = None,
    shape: tuple[int, ...] | None = None,
    texts: int = 0,
    training: Training | None = None,
) -> Plan:
    """The plan for a model on a target; PlanError when not a single baseline can run.

    `shape` is that of the inputs that will be judged, None for the data's own lengths; `texts` says how many rows
    there are to train on, `training` how they are used.
    """
    if effort == "max" and not texts:
        raise PlanError(
            "--effort max trains, and the data has no train split; give data with one, or --unlabelled FILE with texts"
        )
    on_tensorrt = "tensorrt" in target.runtimes and takes_length(facts.pipeline) and not generates(facts.pipeline)
    usual = (
        tensorrt_candidates()
        if on_tensorrt
        else answer_candidates(words=facts.modality == "text")
        if makes_answers(facts.pipeline)
        else generation_candidates(target)
        if generates(facts.pipeline)
        else speech_candidates(target)
        if facts.task == "text-to-audio"
        else quick_candidates(target)
    )
    asked = (recipe,) if recipe else usual
    if recipe and recipe.runtime == "executorch":
        raise PlanError(
            f"recipe {recipe.name!r} cannot be used: ExecuTorch programs are made by fmopt export --format executorch"
        )
    refused: list[Refusal] = []
    full = (TENSORRT_BASELINE, *BASELINES) if on_tensorrt else BASELINES
    most = int(facts.pipeline.get("max_length", 0))
    stateful = keeps_past(facts)
    baselines = _possible(compiled_for(shape, full, most, stateful=stateful), facts, target, refused)
    if not baselines:
        raise PlanError(
            f"no full-precision variant of {facts.source.title} can be built for {target.name}: "
            + "; ".join(f"{r.recipe}: {r.reason}" for r in refused)
        )
    candidates = _possible(compiled_for(shape, asked, most, stateful=stateful), facts, target, refused)
    if on_tensorrt and not recipe:
        refused += not_for_gpus(target)
    if recipe and not candidates:
        raise PlanError(f"recipe {recipe.name!r} cannot be used: {refused[-1].reason}")
    later = () if effort == "quick" else _later(facts, target, effort, refused)
    return Plan(
        baselines=baselines,
        candidates=candidates,
        later=later,
        refused=tuple(refused),
        estimates=estimate(facts, (*baselines, *candidates), effort, texts, training),
    )


def _later(facts: CheckpointFacts, target: Target, effort: Effort, refused: list[Refusal]) -> tuple[str, ...]:
    """What pruning will try once the candidates are measured, in words; nothing, with the reason, where it cannot."""
    reason = Step(use="prune_structured", options={"speedup": 2.0}).build().refusal(facts, target)
    if reason:
        refused.append(Refusal(recipe="pruned networks", reason=reason))
        return ()
    trained = (
        ", each distilled from the baseline after every step of pruning, and once more as INT8 (qat) where only "
        "rounding loses too much; what the teacher says is kept on disk where that is cheaper than asking in every epoch"
        if effort == "max"
        else ", in one shot"
    )
    return (f"the fastest INT8 recipe on networks pruned to the latency that the budget asks for, or to 1.25×, 1.6×, 2× "
            f"and 2.5× while accuracy holds{trained}",)  # fmt: skip


def keeps_past(facts: CheckpointFacts) -> bool:
    """Whether a network goes on with a text by keys and values that grow with it, in one graph."""
    return facts.task == "text-generation" and facts.model_type not in RECURRENT


def compiled_for(
    shape: tuple[int, ...] | None, recipes: Sequence[Recipe], most: int, *, stateful: bool = False
) -> tuple[Recipe, ...]:
    """The recipes, those on runtimes that compile made for the judged shape: full precision and INT8 alike, so that it is
    fair. TensorRT's engines take texts of up to `most` tokens too, in a profile of their own. `stateful`: OpenVINO is to
    keep what earlier tokens left."""

    def options(recipe: Recipe) -> dict[str, Any]:
        if recipe.runtime == "openvino" and stateful:
            return {"stateful": True} | ({"kv_cache": "u8"} if recipe.precision in ("int8", "int4") else {})
        if recipe.runtime == "openvino" and shape is not None:
            return {"shape": list(shape)}
        if recipe.runtime == "tensorrt":
            batch, length = shape if shape is not None and len(shape) == 2 else (1, most)
            return {"batch": [1, batch, batch], "lengths": sorted({min(length, most), most})}
        return {}

    return tuple(recipe.model_copy(update={"options": {**options(recipe), **recipe.options}}) for recipe in recipes)


class Training(Frozen):
    """What training effort "max" may use beside the data's train split."""

    teacher: str | None = None  # a checkpoint to learn from instead of the baseline
    unlabelled: str | None = None  # a file of texts without labels
    epochs: float | None = Field(None, gt=0)  # of each distillation; None: enough for `STEPS` steps

    def over(self, rows: int) -> Training:
        """With epochs that fit so many rows."""
        if self.epochs is not None:
            return self
        return self.model_copy(update={"epochs": float(min(max(math.ceil(STEPS * BATCH / max(rows, 1)), 3), 30))})


def pruned(
    base: Recipe, speedups: Sequence[float], name: str, effort: Effort, training: Training | None = None
) -> Recipe:
    """`base` on a network pruned until it is the last of `speedups` as fast as `base` uncut; "max" distils after every one.

    Ratios, not milliseconds: a machine's clock is another one minutes later. Pruned first, distilled, then quantized as
    `base` says: each step sees the network that the next one gets.
    """
    steps: list[Step] = []
    for speedup in speedups:
        steps.append(Step(use="prune_structured", options={"speedup": round(speedup, 4)}))
        if effort == "max":
            options = {} if training is None else training.model_dump(exclude_none=True)
            steps.append(Step(use="distill", options=options))
    return base.model_copy(update={"name": name, "steps": (*steps, *base.steps)})


def trained_rounding(recipe: Recipe, training: Training, teacher: str, *, answers: bool = False) -> Recipe:
    """`recipe` with its products' quantization learned in training instead of calibrated after it. `answers`: of a network whose
    head, which training leaves alone, is large: there `quantize_dynamic` stays, for the head."""
    learned = Step(use="qat", options={"teacher": teacher, **training.model_dump(exclude_none=True)})
    steps: list[Step] = []
    for step in recipe.steps:
        quantizes = step.use in QUANTIZERS
        if quantizes:
            steps.append(learned)
        if not quantizes or (answers and step.use == "quantize_dynamic"):
            steps.append(step)
    return recipe.model_copy(update={"name": f"{recipe.name}-qat", "steps": tuple(steps)})


def gradual(speedup: float, effort: Effort, slower: Sequence[float] = ()) -> tuple[float, ...]:
    """Speedups on the way to the one asked for, which is the last: with training no step is larger than a `STRIDE`, and it
    goes by the `slower` ones that others asked for, so that what was trained for them is trained once."""
    if effort != "max":
        return (speedup,)
    ends = (1.0, *sorted(one for one in slower if 1 < one < speedup), speedup)
    return tuple(stop for before, after in pairwise(ends) for stop in _strides(before, after))


def _strides(before: float, after: float) -> tuple[float, ...]:
    """From one speedup to another in steps of one factor, of at most a `STRIDE`."""
    factor = after / before
    count = max(math.ceil(math.log(factor) / math.log(STRIDE)), 1)
    return tuple(before * factor ** (number / count) for number in range(1, count + 1))


def refusal(recipe: Recipe, facts: CheckpointFacts, target: Target) -> str | None:
    """The first reason why a recipe cannot be used; None when it can."""
    runtime = lookup.find("runtimes", recipe.runtime)
    reasons: list[str | None] = [runtime.missing(), runtime.refusal(target, recipe.options)]
    if recipe.options.get("stateful") and not keeps_past(facts):
        reasons.append(f"stateful = true is for networks that go on with a text by attention; {facts.task} by "
                       f"{facts.model_type} does not")  # fmt: skip
    computes_in_int8 = recipe.precision == "int8" and not any(step.use == "compress_weights" for step in recipe.steps)
    if recipe.runtime == "openvino" and computes_in_int8 and target.arch == "x86_64" and not target.int8_dot:
        reasons.append(
            f"{target.name} has no VNNI or AMX; without them OpenVINO's INT8 is slower than its fp32 "
            "(0.66x on MiniLM) and its products saturate"
        )
    reasons += [step.build().refusal(facts, target) for step in recipe.steps]
    return next((reason for reason in reasons if reason), None)


def estimate(
    facts: CheckpointFacts, recipes: Sequence[Recipe], effort: Effort = "quick", texts: int = 0,
    training: Training | None = None,
) -> Estimates:  # fmt: skip
    """Minutes, RAM and disk. Constants were read off runs of MiniLM (22M) and a BERT-base shape (110M) on two cores.

    Beyond quick for one pruned network, "max" with two rounds of training: what else is tried depends on how that came out.
    """
    millions = facts.parameters / 1e6
    built = len(recipes)
    seconds = 40 + built * (6 + 0.25 * millions)
    if effort != "quick":
        seconds += 45 + 14 * millions
    if effort == "max":
        epochs = (training or Training()).over(texts).epochs or 0.0
        seconds += 2 * (epochs * texts / BATCH) * 0.01 * millions + 5 * millions
    states_gb = texts * TOKENS * facts.layers * facts.hidden_size * 2 / 1e9 if effort == "max" else 0.0
    return Estimates(
        minutes=round(seconds / 60, 1),
        ram_gb=round(1.2 + 10 * facts.weight_bytes / 1e9, 1),
        disk_gb=round(
            sum(_shrink(r) for r in recipes) * facts.weight_bytes / 1e9 + 0.05 + min(states_gb, Distill().cache_gb), 2
        ),
    )


def _possible(
    recipes: Sequence[Recipe], facts: CheckpointFacts, target: Target, refused: list[Refusal]
) -> tuple[Recipe, ...]:
    kept = []
    for recipe in recipes:
        reason = refusal(recipe, facts, target)
        if reason is None:
            kept.append(recipe)
        else:
            refused.append(Refusal(recipe=recipe.name, reason=reason))
    return tuple(kept)


def _shrink(recipe: Recipe) -> float:
    # graph and artifact are both kept, so that a resumed run finds them
    return {"int4": 0.6, "int8": 1.0, "fp16": 1.2}.get(recipe.precision, 2.0)


def _int8(name: str, runtime: str, *steps: Step, options: Mapping[str, Any] | None = None) -> Recipe:
    return Recipe(name=name, runtime=runtime, precision="int8", steps=steps, options=dict(options or {}))


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-able data, for `--dry-run --json`."""
    return plan.model_dump(mode="json")
