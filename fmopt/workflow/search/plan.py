"""Which candidates to try, in which order, which not and why, and what it will take.

The plan refuses before work starts, all reasons at once, and never touches weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from fmopt.core.errors import PlanError
from fmopt.core.model import CheckpointMetadata, generates, takes_length
from fmopt.core.recipe import Recipe, Step
from fmopt.core.results import Frozen
from fmopt.core.target import Target
from fmopt.models.graphs.ports import GIVE_THE_NETWORK
from fmopt.workflow.job.request import Effort
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
    """What a run will take (see job/estimates.py)."""

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


def make_plan(
    metadata: CheckpointMetadata,
    target: Target,
    *,
    effort: Effort,
    recipe: Recipe | None = None,
    shape: tuple[int, ...] | None = None,
    buckets: Mapping[str, Any] | None = None,
    texts: int = 0,
) -> Plan:
    """The plan for a model on a target; PlanError when not a single baseline can run.

    `shape` is that of the inputs that will be judged, None for the data's own lengths, for which `buckets` has the options of
    runtimes that compile for lengths; `texts` says how many rows there are to train on. What it takes is
    for job/estimates.py.
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
    usual = tensorrt_candidates() if on_tensorrt else candidates_for(metadata, target, effort)
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


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-able data, for `--dry-run --json`."""
    return plan.model_dump(mode="json")
