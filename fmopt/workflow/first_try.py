"""A run for somebody who wants to see one: a known model, two candidates, few items; the same steps as any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fmopt.core.progress import Progress
from fmopt.evaluation.gate import Budget
from fmopt.evaluation.record import Record
from fmopt.workflow.optimize import carry_out
from fmopt.workflow.prepare import prepare
from fmopt.workflow.request import Request

MODEL = "minilm"
BASELINES = ("onnxruntime-fp32", "openvino-fp32")
CANDIDATES = ("onnxruntime-dynamic-int8", "openvino-nncf-int8")
ROWS = {"calibration": 64, "validation": 96, "test": 96}  # of each split


def first_try(out: Path, progress: Progress | None = None) -> Record:
    """Optimize all-MiniLM-L6-v2 for this machine with two candidates; the bundle, the report and the record are in `out`.

    So few items decide little about accuracy, which the verdict says; speed is timed as in every run. Raises what `optimize`
    raises: CheckpointError where the package with the weights is not installed.
    """
    job = prepare(Request(model=MODEL, out=out, budget=Budget(accept_undecided=True), command=f"fmopt try -o {out}"))
    plan = job.plan.model_copy(
        update={
            "baselines": tuple(one for one in job.plan.baselines if one.name in BASELINES),
            "candidates": tuple(one for one in job.plan.candidates if one.name in CANDIDATES),
        }
    )
    splits = {name: rows[: ROWS.get(name)] for name, rows in job.data.splits.items()}
    note = f"the first {ROWS['test']} items of each split"
    data = replace(job.data, splits=splits, digest=f"{job.data.digest}:{ROWS}", notes=(*job.data.notes, note))
    return carry_out(replace(job, plan=plan, data=data), progress)
