"""Which candidates to try, in which order, which not and why, and what it will take.

The plan refuses before work starts, all reasons at once, and never touches weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from fmopt.core.errors import PlanError
from fmopt.core.model import TOKENIZER, CheckpointMetadata, generates, takes_length
from fmopt.core.recipe import Recipe, Step
from fmopt.core.results import Frozen
from fmopt.core.target import Target
from fmopt.models.graphs.ports import GIVE_THE_NETWORK
from fmopt.passes.base import traits_of
from fmopt.passes.distill import Distill
from fmopt.workflow.job.request import BATCH, Effort, Training
from fmopt.workflow.search.candidates import (
    BASELINES,
    TENSORRT_BASELINE,
    Refusal,
    _possible,
    candidates_for,
    compiled_for,
    keeps_kv_cache,
    not_for_gpus,
    received_baselines,
    tensorrt_candidates,
)


class Estimates(Frozen):
    """What a run will take, by rules of thumb from the parameter count (see `estimate`)."""

    minutes: float
    ram_gb: float
    disk_gb: float
    optional_gb: float = 0.0  # of that, what is taken only where there is room


class Plan(Frozen):
    """Baselines and candidates in the order they are tried; `later` is what depends on how those came out."""

    baselines: tuple[Recipe, ...]
    candidates: tuple[Recipe, ...]
    later: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    estimates: Estimates = Field(default_factory=lambda: Estimates(minutes=0, ram_gb=0, disk_gb=0))


# Read off runs of BERTs of two layers: a layer of a graph without its weights, in ONNX and in OpenVINO's XML; and what a run
# writes of itself (report, programs, record), once and for each recipe (its samples, profile and predictions).
ONNX_LAYER_BYTES, OPENVINO_LAYER_BYTES = 9e3, 45e3
RUN_BYTES, RECIPE_BYTES = 0.15e6, 0.06e6
TOKENS = 128  # of a text; with fewer, what is kept of the teacher takes less disk


def make_plan(
    metadata: CheckpointMetadata,
    target: Target,
    *,
    effort: Effort,
    recipe: Recipe | None = None,
    shape: tuple[int, ...] | None = None,
    buckets: Mapping[str, Any] | None = None,
    texts: int = 0,
    training: Training | None = None,
) -> Plan:
    """The plan for a model on a target; PlanError when not a single baseline can run.

    `shape` is that of the inputs that will be judged, None for the data's own lengths, for which `buckets` has the options of
    runtimes that compile for lengths; `texts` says how many rows
    there are to train on, `training` how they are used.
    """
    if metadata.graph is not None and effort != "quick":
        how = "prunes" if effort == "standard" else "prunes and trains"
        raise PlanError(
            f"--effort {effort} {how}, which needs the network, and {metadata.source.title} came as an ONNX graph; leave it at "
            f"quick, or {GIVE_THE_NETWORK}"
        )
    if effort == "max" and not texts:
        raise PlanError(
            "--effort max trains, and the data has no train split; give data with one, or --unlabelled FILE with texts"
        )
    on_tensorrt = "tensorrt" in target.runtimes and takes_length(metadata.pipeline) and not generates(metadata.pipeline)
    usual = tensorrt_candidates() if on_tensorrt else candidates_for(metadata, target)
    asked = (recipe,) if recipe else usual
    if recipe and recipe.runtime == "executorch":
        raise PlanError(
            f"recipe {recipe.name!r} cannot be used: ExecuTorch programs are made by fmopt export --format executorch"
        )
    refused: list[Refusal] = []
    plain = BASELINES if metadata.graph is None else received_baselines(metadata.graph)
    full = (TENSORRT_BASELINE, *plain) if on_tensorrt else plain
    most = int(metadata.pipeline.get("max_length", 0))
    stateful = keeps_kv_cache(metadata)
    baselines = _possible(
        compiled_for(shape, full, most, stateful=stateful, buckets=buckets), metadata, target, refused
    )
    if not baselines:
        raise PlanError(
            f"no full-precision variant of {metadata.source.title} can be built for {target.name}: "
            + "; ".join(f"{r.recipe}: {r.reason}" for r in refused)
        )
    candidates = _possible(
        compiled_for(shape, asked, most, stateful=stateful, buckets=buckets), metadata, target, refused
    )
    if on_tensorrt and not recipe:
        refused += not_for_gpus(target)
    if recipe and not candidates:
        raise PlanError(f"recipe {recipe.name!r} cannot be used: {refused[-1].reason}")
    later = () if effort == "quick" else _later(metadata, target, effort, refused)
    return Plan(
        baselines=baselines,
        candidates=candidates,
        later=later,
        refused=tuple(refused),
        estimates=estimate(metadata, (*baselines, *candidates), effort, texts, training),
    )


def _later(metadata: CheckpointMetadata, target: Target, effort: Effort, refused: list[Refusal]) -> tuple[str, ...]:
    """What pruning will try once the candidates are measured, in words; nothing, with the reason, where it cannot."""
    reason = Step(use="prune_structured", options={"speedup": 2.0}).build().refusal(metadata, target)
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


def estimate(
    metadata: CheckpointMetadata, recipes: Sequence[Recipe], effort: Effort = "quick", texts: int = 0,
    training: Training | None = None,
) -> Estimates:  # fmt: skip
    """Minutes, RAM and disk. Constants were read off runs of MiniLM (22M) and a BERT-base shape (110M) on two cores.

    Beyond quick for one pruned network, "max" with two rounds of training: what else is tried depends on how that came out.
    """
    millions = metadata.parameters / 1e6
    built = len(recipes)
    seconds = 40 + built * (6 + 0.25 * millions)
    if effort != "quick":
        seconds += 45 + 14 * millions
    if effort == "max":
        epochs = (training or Training()).over(texts).epochs or 0.0
        seconds += 2 * (epochs * texts / BATCH) * 0.01 * millions + 5 * millions
    disk = stage_bytes(metadata, recipes)
    if effort != "quick":  # a network pruned, trained, exported and quantized, and what its sublayers were scored by
        disk += 3 * metadata.weight_bytes + 4 * metadata.layers * 17 * metadata.hidden_size**2
    states = texts * TOKENS * metadata.layers * metadata.hidden_size * 2 if effort == "max" else 0
    said = min(states, Distill().cache_gb * 1e9)  # of the teacher, kept on disk where that is cheaper than asking again
    return Estimates(
        minutes=round(seconds / 60, 1),
        ram_gb=round(1.2 + 10 * metadata.weight_bytes / 1e9, 1),
        disk_gb=float(f"{(disk + said) / 1e9:.3g}"),
        optional_gb=float(f"{said / 1e9:.3g}"),
    )


def stage_bytes(metadata: CheckpointMetadata, recipes: Sequence[Recipe]) -> float:
    """What graphs and artifacts of recipes take on disk at most, with the bundle: each graph once, whoever is built of it.

    ONNX Runtime and TensorRT open a graph as it is, OpenVINO its own form of it. Each pass says what it leaves of the lookup
    tables and of the rest.
    """
    tables = 4 * int(metadata.config.get("vocab_size") or 0) * metadata.hidden_size
    rest = max(4 * metadata.parameters - tables, 0)
    graph = ONNX_LAYER_BYTES * metadata.layers
    taken: dict[tuple[str, ...], float] = {}
    for recipe in recipes:
        if recipe.runtime == "torch":
            continue
        left, done = (1.0, 1.0), [""]
        taken.setdefault(("",), graph + tables + rest)
        for step in recipe.steps:
            kept = traits_of(step).bytes_left
            left = (left[0] * kept[0], left[1] * kept[1])
            done.append(str(step))
            taken[tuple(done)] = graph + left[0] * tables + left[1] * rest
        if recipe.runtime == "openvino":
            half = 0.5 if recipe.options.get("fp16_weights") else 1.0
            key = ("openvino", f"{half}", *done)
            xml = OPENVINO_LAYER_BYTES * metadata.layers
            taken[key] = xml + half * (left[0] * tables + left[1] * rest)
    encoder = metadata.folder / TOKENIZER
    beside = RUN_BYTES + RECIPE_BYTES * len(recipes) + (encoder.stat().st_size if encoder.is_file() else 0)
    return sum(taken.values()) + max(taken.values(), default=0.0) + beside


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-able data, for `--dry-run --json`."""
    return plan.model_dump(mode="json")
