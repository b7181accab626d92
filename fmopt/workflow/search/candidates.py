"""Which recipes are worth a try on a target: the lists of candidates, and why one is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fmopt.core import plugins
from fmopt.core.model import CheckpointMetadata, ReceivedGraph, continues_texts
from fmopt.core.recipe import Recipe, Step
from fmopt.core.results import Frozen
from fmopt.core.target import Target
from fmopt.models.networks import RECURRENT
from fmopt.passes.base import traits_of
from fmopt.tasks.base import Output, output_of
from fmopt.workflow.job.request import Effort, Training


class Refusal(Frozen):
    """A recipe that was not tried, and why."""

    recipe: str
    reason: str


# The same model with no passes, on every runtime: the fastest of these is what a speedup is claimed against.
BASELINES = (
    Recipe(name="torch-fp32", runtime="torch", options={"dtype": "fp32"}),
    Recipe(name="onnxruntime-fp32", runtime="onnxruntime"),
    Recipe(name="openvino-fp32", runtime="openvino", options={"precision": "f32"}),
)


# What is known of a graph that came quantized: only itself, as it was received.
RECEIVED = "received"


# On GPUs that TensorRT is for; TF32 stays off, as in PyTorch, so that this is full precision.
TENSORRT_BASELINE = Recipe(name="tensorrt-fp32", runtime="tensorrt")


CPU = "CPUExecutionProvider"


# In 4 bits scales by the squared error lose less than the nearest ones, at the same speed: +0.36 % instead of +0.48 % perplexity
# for a trained GPT-2 shape (benchmarks/decoding.py), less than llama.cpp's Q4_0 loses. In 8 there is nothing to win.
SCALED: dict[int, dict[str, str]] = {4: {"method": "mse"}, 8: {}}


STRIDE = 2.5  # one-shot pruning beyond this factor loses what distillation does not win back


def quick_candidates(target: Target) -> tuple[Recipe, ...]:
    """Everything that needs no training, cheap ones first.

    What OpenVINO leaves in float around INT8 products runs in bf16 where the target has it: a twentieth faster on MiniLM.
    """
    float_groups = {"precision": "bf16"} if "bf16" in target.precisions else {}
    dynamic = Step(use="quantize_dynamic")
    tables, simplify = Step(use="quantize_embeddings"), Step(use="simplify")
    minmax = Step(use="quantize_static", options={"calibrator": "minmax", "smooth": "search"})
    return (
        _int8("onnxruntime-dynamic-int8", "onnxruntime", dynamic, simplify),
        _int8("onnxruntime-dynamic-int8-embeddings", "onnxruntime", dynamic, tables, simplify),
        _int8("openvino-nncf-int8", "openvino", Step(use="quantize_nncf"), options=float_groups),
        _int8("onnxruntime-static-int8", "onnxruntime", minmax, simplify),
        _int8("onnxruntime-static-int8-embeddings", "onnxruntime", minmax, tables, simplify),
        _int8("openvino-static-int8", "openvino", minmax, options=float_groups),
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


def rounded_candidates(effort: Effort) -> tuple[Recipe, ...]:
    """For networks that go on with texts, when there is time to look for a better rounding: the layers in 4 bits by tools that
    learn it from calibration items, the head as in `generation_candidates`. AutoRound's usual number of iterations only with
    "max", for they are most of what it takes."""
    later = (
        Step(use="quantize_weights", options={"bits": 4, "block": 32, **SCALED[4]}),
        Step(use="quantize_embeddings"),
        Step(use="fuse_decoder"),
    )
    layers: dict[str, Any] = {"bits": 4, "block": 32}
    iterations = {} if effort == "max" else {"iterations": 50}
    return tuple(
        Recipe(
            name=f"onnxruntime-{use}-int4-32",
            runtime="onnxruntime",
            precision="int4",
            steps=(Step(use=use, options={**layers, **options}), *later),
        )
        for use, options in (("gptq", {}), ("autoround", iterations))
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
    float_groups = {"precision": "bf16"} if "bf16" in target.precisions else {}
    return (
        _int8("onnxruntime-dynamic-int8", "onnxruntime", Step(use="quantize_dynamic"), Step(use="simplify")),
        _int8("openvino-nncf-int8", "openvino", Step(use="quantize_nncf"), options=float_groups),
        Recipe(name="torch-bf16", runtime="torch", precision="bf16", options={"dtype": "bf16"}),
        Recipe(name="openvino-bf16", runtime="openvino", precision="bf16", options={"precision": "bf16"}),
        Recipe(name="onnxruntime-fp16-weights", runtime="onnxruntime", precision="fp16", steps=(Step(use="cast"),)),
    )


def received_baselines(graph: ReceivedGraph) -> tuple[Recipe, ...]:
    """Of a graph that came in full precision the graph on both runtimes; of one that came quantized the graph as it was received,
    on the runtime that such graphs are made for."""
    if graph.is_full_precision:
        return tuple(recipe for recipe in BASELINES if recipe.runtime != "torch")
    return (Recipe(name=f"onnxruntime-{RECEIVED}", runtime="onnxruntime", precision=graph.precision),)


def received_candidates(graph: ReceivedGraph, target: Target) -> tuple[Recipe, ...]:
    """What is worth a try for a graph without a network. One that came quantized is tried on the other runtime, and with its
    residuals apart; one in full precision as every model, where its graph has what a pass looks for."""
    if graph.is_full_precision:
        gone = () if "LayerNormalization" in graph.operators else ("simplify",)
        return tuple(
            recipe.model_copy(update={"steps": tuple(step for step in recipe.steps if step.use not in gone)})
            for recipe in quick_candidates(target)
        )
    floats = ("f32", "bf16") if "bf16" in target.precisions else ("f32",)
    hosted = tuple(
        Recipe(
            name=f"openvino-{RECEIVED}{'' if one == 'f32' else '-' + one}",
            runtime="openvino",
            precision=graph.precision,
            options={"precision": one},
        )
        for one in floats
    )
    simplified = Recipe(
        name=f"onnxruntime-{RECEIVED}-simplified",
        runtime="onnxruntime",
        precision=graph.precision,
        steps=(Step(use="simplify"),),
    )
    return (*hosted, simplified) if "LayerNormalization" in graph.operators else hosted


def without_network(recipe: Recipe, metadata: CheckpointMetadata) -> str | None:
    """Why a recipe cannot be made of a model that came as an ONNX graph; None when it can, or the model has its network."""
    if metadata.graph is None:
        return None
    if plugins.find("runtimes", recipe.runtime).format in ("torch", "executorch"):
        return f"{recipe.runtime} runs the network, and {metadata.source.title} came as an ONNX graph without one"
    step = next((step for step in recipe.steps if step.build().stage == "torch"), None)
    return (
        f"{step.use} needs the network, and {metadata.source.title} came as an ONNX graph without one" if step else None
    )


def candidates_for(metadata: CheckpointMetadata, target: Target, effort: Effort = "quick") -> tuple[Recipe, ...]:
    """What is worth a try for what the network gives, where TensorRT is not."""
    if metadata.graph is not None:
        return received_candidates(metadata.graph, target)
    match output_of(metadata.pipeline):
        case Output.ANSWER_WORDS:
            return answer_candidates(words=metadata.modality == "text")
        case Output.NEXT_WORDS:
            rounded = () if effort == "quick" else rounded_candidates(effort)
            return (*generation_candidates(target), *rounded)
        case Output.AUDIO:
            return speech_candidates(target)
        case _:
            return quick_candidates(target)


def keeps_kv_cache(metadata: CheckpointMetadata) -> bool:
    """Whether a network goes on with a text by keys and values that grow with it, in one graph."""
    return continues_texts(metadata.pipeline) and metadata.model_type not in RECURRENT


def compiled_for(
    shape: tuple[int, ...] | None,
    recipes: Sequence[Recipe],
    most: int,
    *,
    stateful: bool = False,
    buckets: Mapping[str, Any] | None = None,
) -> tuple[Recipe, ...]:
    """The recipes, those on runtimes that compile made for the judged shape, or for `buckets` of lengths (options of OpenVINO)
    where items come at their own: full precision and INT8 alike, so that it is fair. TensorRT's engines take texts of up to
    `most` tokens too, in a profile of their own. `stateful`: OpenVINO is to keep what earlier tokens left."""

    def options(recipe: Recipe) -> dict[str, Any]:
        if recipe.runtime == "openvino" and stateful:
            return {"stateful": True} | ({"kv_cache": "u8"} if recipe.precision in ("int8", "int4") else {})
        if recipe.runtime == "openvino" and shape is not None:
            return {"shape": list(shape)}
        if recipe.runtime == "openvino" and buckets and "shape" not in recipe.options:
            return dict(buckets)
        if recipe.runtime == "tensorrt":
            batch, length = shape if shape is not None and len(shape) == 2 else (1, most)
            return {"batch": [1, batch, batch], "lengths": sorted({min(length, most), most})}
        return {}

    return tuple(recipe.model_copy(update={"options": {**options(recipe), **recipe.options}}) for recipe in recipes)


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
    head, which training leaves alone, is large: there what rounds the head too stays, for that."""
    learned = Step(use="qat", options={"teacher": teacher, **training.model_dump(exclude_none=True)})
    steps: list[Step] = []
    for step in recipe.steps:
        traits = traits_of(step)
        if traits.rounds_products:
            steps.append(learned)
        if not traits.rounds_products or (answers and traits.rounds_head):
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


def refusal(recipe: Recipe, metadata: CheckpointMetadata, target: Target) -> str | None:
    """The first reason why a recipe cannot be used; None when it can."""
    runtime = plugins.find("runtimes", recipe.runtime)
    reasons: list[str | None] = [
        without_network(recipe, metadata),
        runtime.missing(),
        runtime.refusal(target, recipe.options),
    ]
    if recipe.options.get("stateful") and not keeps_kv_cache(metadata):
        reasons.append(f"stateful = true is for networks that go on with a text by attention; {metadata.task} by "
                       f"{metadata.model_type} does not")  # fmt: skip
    received = metadata.graph is not None and not metadata.graph.is_full_precision  # its INT8 is judged, not chosen
    computes_in_int8 = (
        recipe.precision == "int8" and not received and not any(traits_of(step).only_weights for step in recipe.steps)
    )
    if recipe.runtime == "openvino" and computes_in_int8 and target.arch == "x86_64" and not target.int8_dot:
        reasons.append(
            f"{target.name} has no VNNI or AMX; without them OpenVINO's INT8 is slower than its fp32 "
            "(0.66x on MiniLM) and its products saturate"
        )
    reasons += [step.build().refusal(metadata, target) for step in recipe.steps]
    return next((reason for reason in reasons if reason), None)


def _possible(
    recipes: Sequence[Recipe], metadata: CheckpointMetadata, target: Target, refused: list[Refusal]
) -> tuple[Recipe, ...]:
    kept = []
    for recipe in recipes:
        reason = refusal(recipe, metadata, target)
        if reason is None:
            kept.append(recipe)
        else:
            refused.append(Refusal(recipe=recipe.name, reason=reason))
    return tuple(kept)


def _int8(name: str, runtime: str, *steps: Step, options: Mapping[str, Any] | None = None) -> Recipe:
    return Recipe(name=name, runtime=runtime, precision="int8", steps=steps, options=dict(options or {}))
