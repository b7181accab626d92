"""A run under way as a record: what is known before anything came out, and what came out so far."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fmopt.core.results import Circumstances, Verdict
from fmopt.evaluation.record import Record, Refused, Trial
from fmopt.measurement import host_probe
from fmopt.reports.run_status import SoFar
from fmopt.workflow.search.run import Run

RAW: dict[str, Any] = {"scores": [], "test_scores": [], "profile": [], "layer_bytes": {}}  # large, and not shown so far


def known(run: Run) -> dict[str, Any]:
    """Fields of the record that do not depend on how the variants came out; the date is now."""
    request, metadata, data = run.job.request, run.job.metadata, run.job.data
    return {
        "fmopt": version("fmopt"),
        "command": request.command,
        "model": {
            "title": metadata.source.title,
            "model_type": metadata.model_type,
            "task": metadata.task,
            "parameters": metadata.parameters,
            "bytes": metadata.weight_bytes,
            "digest": metadata.digest,
            "licence": metadata.source.licence,
        },
        "data": {
            "name": data.name,
            "digest": data.digest,
            "rows": {name: len(rows) for name, rows in data.splits.items()},
            "notes": list(data.notes),
        },
        "target": run.job.target,
        "budget": request.budget.model_dump(mode="json"),
        "effort": request.effort,
        "workload": request.workload,
        "refused": [Refused(recipe=refusal.recipe, reason=refusal.reason) for refusal in run.job.plan.refused],
        "circumstances": Circumstances(
            host=run.clock.host,
            versions=host_probe.versions() | run.clock.versions,
            threads=request.workload.threads,
            batch=request.workload.batch,
            length=request.workload.length,
            seed=request.seed,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            warnings=run.warnings,
        ),
    }


def by_kind(run: Run) -> tuple[list[Trial], list[Trial]]:
    """(baselines, candidates) among the trials."""
    full = {recipe.name for recipe in run.job.plan.baselines}
    named = run.trials.items()
    return [trial for name, trial in named if name in full], [trial for name, trial in named if name not in full]


def so_far(run: Run) -> Callable[[], SoFar]:
    """What asks a run how far it is: the record without winner and verdict, and the recipes that wait."""
    fields = known(run)

    def ask() -> SoFar:
        baselines, candidates = ([trial.model_copy(update=RAW) for trial in kind] for kind in by_kind(run))
        timed = [trial for trial in baselines if trial.p50 is not None]
        reference = min(timed, key=lambda trial: trial.p50 or 0.0).name if timed else ""
        record = Record(
            **fields, reference=reference, winner="", baselines=baselines, trials=candidates, verdict=Verdict()
        )
        recipes = (*run.job.plan.baselines, *run.job.plan.candidates)
        return SoFar(record=record, waiting=[recipe.name for recipe in recipes if recipe.name not in run.trials])

    return ask
