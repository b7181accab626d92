"""What is left of a run: the record, the bundle with its report, the pruned checkpoint."""

from __future__ import annotations

import shutil
from typing import Any

from fmopt.core.results import Verdict
from fmopt.evaluation.predictions import changed_items
from fmopt.evaluation.record import AblationStep, Record, summary_sentence
from fmopt.exporters.bundles import bundle_writer
from fmopt.reports.html import write_markdown, write_report
from fmopt.workflow.job.golden_items import golden_of
from fmopt.workflow.search.builder import CHECKPOINT
from fmopt.workflow.search.partial_record import by_kind, known
from fmopt.workflow.search.run import Run
from fmopt.workflow.search.scoring import predictions

CHANGED_SHOWN = 40


def make_record(run: Run, winner: str, reference: str, verdict: Verdict, steps: list[AblationStep]) -> Record:
    """Everything that was found, as the report reads it."""
    items = run.items("test")
    changed = (
        []
        if not run.job.request.items
        else changed_items(
            run.job.task,
            items,
            predictions(run, reference, "test"),
            predictions(run, winner, "test"),
            run.job.metadata,
            limit=CHANGED_SHOWN,
        )
    )
    baselines, candidates = by_kind(run)
    return with_summary(
        Record(
            **known(run),
            reference=reference,
            winner=winner,
            baselines=baselines,
            trials=candidates,
            verdict=verdict,
            changed=changed,
            waterfall=steps,
            stages=run.seconds,
            summary="",
        )
    )


def with_summary(record: Record) -> Record:
    """The record with its paragraph in plain words."""
    return record.model_copy(update={"summary": summary_sentence(record)})


def publish(run: Run, record: Record, winner: str) -> None:
    """Write the bundle, the record and the report; a bundle is made beside and moved in whole."""
    out, metadata = run.job.request.out, run.job.metadata
    run.progress.say("writing the bundle")
    request, artifact = run.job.request, run.artifacts[winner]
    precision = run.recipes[winner].precision
    judged = [item.sample for item in run.items("test")]
    golden = golden_of(request.golden, judged, metadata, artifact, precision, request.columns)
    run.progress.say(
        f"golden.json, the bundle's self-test, holds {golden.origin}; fmopt optimize --golden changes that"
    )
    bundle_writer.write_bundle(
        out,
        metadata=metadata,
        artifact=artifact,
        recipe=run.recipes[winner].model_dump(mode="json"),
        verdict=record.verdict.outcome.value,
        golden=golden,
        needs_isa=needed_isa(run, precision),
        for_browser=run.job.target.kind == "browser",
        judged=judged_as(run),
    )
    made = run.builder.networks(run.recipes[winner].steps)
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    if made:
        shutil.copytree(made[max(made)], out / CHECKPOINT)
    record.save(out / "record.json")
    write_report(record, out / "report.html")
    write_markdown(record, out / "report.md")


def judged_as(run: Run) -> dict[str, Any]:
    """What the bundle was judged on, and on how many threads it is opened as it was; empty where its device is not here."""
    if not run.job.target.present:
        return {}
    workload = run.job.request.workload
    return {"workload": workload.model_dump(mode="json"), "threads": workload.threads}


def needed_isa(run: Run, precision: str) -> list[str]:
    """ISA features that an INT8 graph was judged with and would saturate without."""
    if precision != "int8" or not run.job.target.int8_dot:
        return []
    return [name for name in run.job.target.isa if name in ("avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm")]
