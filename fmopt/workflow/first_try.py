"""A run for somebody who wants to see one: a known model, two candidates, few items; the same steps as any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fmopt.core.progress import Progress
from fmopt.evaluation.gate import Budget
from fmopt.evaluation.record import Record
from fmopt.workflow.job.prepare import prepare
from fmopt.workflow.job.request import Request
from fmopt.workflow.optimize import carry_out

MODEL, DATA = "minilm", "builtin:pydoc"
BASELINES = ("onnxruntime-fp32", "openvino-fp32")
# The two of these that come first are tried; where OpenVINO's INT8 gains nothing (no VNNI), it is no candidate.
CANDIDATES = ("onnxruntime-dynamic-int8", "openvino-nncf-int8", "onnxruntime-dynamic-int8-embeddings")
ROWS = 48  # of each split


def first_try(out: Path, progress: Progress | None = None) -> Record:
    """Optimize all-MiniLM-L6-v2 for this machine with two candidates; the bundle, the report and the record are in `out`.

    So few items decide little about accuracy, which the verdict says; speed is timed as in every run. Raises what `optimize`
    raises: CheckpointError where the package with the weights is not installed.
    """
    job = prepare(
        Request(model=MODEL, data=DATA, out=out, budget=Budget(accept_undecided=True), command=f"fmopt try -o {out}")
    )
    named = {one.name: one for one in (*job.plan.baselines, *job.plan.candidates)}
    baselines = tuple(named[name] for name in BASELINES if name in named)
    candidates = tuple(named[name] for name in CANDIDATES if name in named)[:2]
    plan = job.plan.model_copy(update={"baselines": baselines, "candidates": candidates})
    data = replace(
        job.data,
        splits={name: rows[:ROWS] for name, rows in job.data.splits.items()},
        digest=f"{job.data.digest}:{ROWS}",
        notes=(*job.data.notes, f"the first {ROWS} items of each split"),
    )
    return carry_out(replace(job, plan=plan, data=data), progress)
