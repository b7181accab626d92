"""The order of a run: baselines, candidates, one clock for all, selection on validation, judgement on test, a bundle, a record.

The only file that knows the order; what depends on how candidates came out is in search/followups.py. Selection and judgement
use different items: the fastest candidate that keeps its accuracy on the validation split is chosen, and only that one is
judged on the test split, so that trying many candidates does not make luck look like quality.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from fmopt.core import formatting
from fmopt.core.progress import Progress, Silent
from fmopt.core.recipe import Recipe
from fmopt.core.stages.store import disk_errors, own_folder
from fmopt.core.workload import Workload
from fmopt.evaluation.gate import Budget
from fmopt.evaluation.record import AblationStep, Record, endless
from fmopt.measurement.roofline import findings
from fmopt.reports.run_status import noted
from fmopt.workflow.job.disk import drop_on_the_way, drop_shared, require_room
from fmopt.workflow.job.prepare import prepare
from fmopt.workflow.job.publish import make_record, publish
from fmopt.workflow.job.request import Asked, Effort, Request, RunOptions, Training, make_request
from fmopt.workflow.job.start import start
from fmopt.workflow.judgement import chosen_and_judged
from fmopt.workflow.search import trials
from fmopt.workflow.search.ablation import waterfall
from fmopt.workflow.search.executor import Build
from fmopt.workflow.search.followups import fallback_to_mixed_precision, prune_to_budget
from fmopt.workflow.search.partial_record import so_far
from fmopt.workflow.search.plan import Plan
from fmopt.workflow.search.run import BUILDING, Job, Run, time_ratio
from fmopt.workflow.search.selection import drop_limit, fastest_baseline, score_candidates

if TYPE_CHECKING:
    from fmopt.workflow.job.given import Data, Model


def optimize(
    model: Model,
    *,
    data: Data | None = None,
    task: str | None = None,
    target: str = "host",
    budget: Budget | None = None,
    workload: Workload | None = None,
    effort: Effort = "quick",
    training: Training | None = None,
    recipe: str | Path | Recipe | None = None,
    out: str | Path = "fmopt-out",
    seed: int = 0,
    **options: Unpack[RunOptions],
) -> Record:
    """Make `model` as fast on `target` as its accuracy allows, prove it, and leave a bundle and a report in `out`.

    The same call again resumes. An impossible budget is no error but a verdict: see `Record.verdict`.

    Arguments:
        model: a checkpoint's folder, an ONNX or GGUF file, a known name, a hub name, or a live `torch.nn.Module` of transformers.
        data: a file, a folder, a hub name, a `datasets.Dataset` or `DatasetDict`, or a list of dicts; None takes the data of a
            known model.
        task: what the model is for, where its files do not show it.
        target: the device: "host", a name of `targets/`, or a TOML file.
        budget: the drop in accuracy that is accepted, and the speedup, latency (ms), size (MB) or memory (MB) that is wanted.
        workload: what speed is judged on; by default the data's own items, one by one, from raw input to answer.
        effort: "quick" quantizes; "standard" prunes in one shot too, towards the budget's speedup or latency; "max" distils after
            each step of pruning.
        training: what effort "max" may use beside the data's train split.
        recipe: a `Recipe`, or a TOML file of one, that is tried instead of the plan's candidates.
        out: the folder of the bundle, the record, the report and the stages that are resumed.
        seed: decides every draw.
        options: tokenizer or processor (what reads a live network's samples; of an ONNX file the folder of its tokenizer),
            dequantize (of an ONNX file: fold its Q/DQ pairs into fp32 weights), columns (the data's column for each role), on
            ("ssh://user@host": variants are timed on that board) and clean (leave nothing there), time_limit_s (seconds after
            which no further candidate is begun), store (a folder, file:// or s3:// URL of stages that several runs share), fresh
            (forget finished stages of `out`), keep_stages, allow_pickle, max_calibration_memory (bytes), golden (what the
            bundle's self-test holds: "data", "none", "synthetic", or a data file), items (whether record and report show items
            of the data), command (how the record says that it was asked for).

    Returns the `Record` of all measurements, which is in `out`/record.json too. Raises ConfigError, CheckpointError, DataError or
    PlanError before any work when something cannot be as it is asked for; BoardError, StoreError or ParityError later.

    >>> recipe = fmopt.Recipe(name="int8", runtime="onnxruntime", precision="int8", steps=(fmopt.Step(use="quantize_dynamic"),))
    >>> record = fmopt.optimize(checkpoint, data=rows, recipe=recipe, workload=fmopt.Workload(length=16), out=out / "made")
    >>> record.verdict.outcome in ("PASS", "FAIL", "UNDECIDED")
    True
    """
    asked = {
        "data": data, "task": task, "target": target, "budget": budget, "workload": workload, "effort": effort,
        "training": training, "recipe": recipe, "out": out, "seed": seed, **options,
    }  # fmt: skip
    return optimize_request(make_request(model, asked))


def plan(model: Model | Request, **asked: Unpack[Asked]) -> Plan:
    """What `optimize` would try for the same arguments, what not and why, and what it would take; nothing is written to `out`.

    `model` is what `optimize` takes, and `asked` are its keywords. Returns a `Plan`: `baselines` and `candidates` in the order in
    which they are tried, `refused` with the reasons, and `estimates` of minutes, RAM and disk (GB). Raises what `optimize` raises
    before any work.

    >>> found = fmopt.plan(checkpoint, data=rows)
    >>> [recipe.name for recipe in found.baselines][:2]
    ['torch-fp32', 'onnxruntime-fp32']
    """
    job = prepare(make_request(model, asked))
    with closing(job.executor), closing(job.clock):
        return job.plan


def optimize_request(request: Request, progress: Progress | None = None) -> Record:
    """Find, prove and bundle the fastest variant that keeps its accuracy; resumes what `request.out` holds already."""
    return carry_out(prepare(request), progress)


def carry_out(job: Job, progress: Progress | None = None) -> Record:
    """Do what was prepared; resumes what the request's folder holds already."""
    request = job.request
    needed = job.plan.estimates.disk_gb - job.plan.estimates.optional_gb
    require_room(request.out, request.stages_folder, needed * 1e9)
    with (
        closing(job.executor),
        closing(job.clock),
        own_folder(request.out, fresh=request.fresh),
        noted(request.out, progress or Silent(), job.plan.estimates.minutes) as notes,
        disk_errors(request.stages_folder),
    ):
        run = start(job, notes)
        job.executor.begin(run)
        run.on_change, notes.so_far = notes.changed, so_far(run)
        build_all(run, job.plan.baselines)
        build_all(run, job.plan.candidates)
        time_all(run)
        reference = fastest_baseline(run)
        score_candidates(run, reference)
        fallback_to_mixed_precision(run, reference)
        prune_to_budget(run, reference)
        winner, verdict = chosen_and_judged(run, reference)
        explain_losers(run, winner, reference)
        steps = ablation_steps(run, winner, reference)
        record = make_record(run, winner, reference, verdict, steps)
        publish(run, record, winner)
        if shared := shared_line(run):
            notes.say(shared)
        drop_shared(request.stages_folder)
        if request.stages is None:  # else its family goes on with them
            drop_stages(request, notes)
    run.progress.stop()
    return record


def optimize_family(
    model: Model | Request, speedups: Sequence[float], progress: Progress | None = None, **asked: Unpack[Asked]
) -> list[Record]:
    """A bundle for each speedup, slowest first, in `out`/2x, /4x …; what they share is built and measured once, and with effort
    "max" each one's network is trained on from the one before.

    Arguments:
        model: what `optimize` takes.
        speedups: factors, each against the fastest full-precision variant.
        progress: gets a line for each step.
        asked: the keywords of `optimize`.

    Returns a `Record` for each speedup, slowest first. Raises what `optimize` raises.

    >>> recipe = fmopt.Recipe(name="int8", runtime="onnxruntime", precision="int8", steps=(fmopt.Step(use="quantize_dynamic"),))
    >>> asked = {"data": rows, "recipe": recipe, "workload": fmopt.Workload(length=16), "out": out / "family"}
    >>> [record.budget["min_speedup"] for record in fmopt.optimize_family(checkpoint, [1.2, 1.1], **asked)]
    [1.1, 1.2]
    """
    request = make_request(model, asked)
    ordered = sorted(speedups)
    with own_folder(request.out, fresh=request.fresh):
        records = [
            optimize_request(
                request.model_copy(
                    update={
                        "budget": request.budget.model_copy(update={"min_speedup": speedup}),
                        "out": request.out / f"{speedup:g}x",
                        "stages": request.out / "stages",
                        "slower": tuple(ordered[:number]),
                        "fresh": False,
                    }
                ),
                progress,
            )
            for number, speedup in enumerate(ordered)
        ]
        drop_stages(request, progress or Silent())
        return records


def shared_line(run: Run) -> str:
    """How much of a run others had made already; empty where it shares nothing."""
    store = run.store
    if store.shared is None:
        return ""
    return f"{len(store.fetched)} stages were taken from {store.shared.url}, {len(store.made)} were made here"


def drop_stages(request: Request, progress: Progress) -> None:
    """Give back the disk of stages that nothing reads any more, unless they are to be kept."""
    if request.keep_stages:
        return
    freed = drop_on_the_way(request.stages_folder)
    if freed:
        progress.say(
            f"{formatting.size(freed)} of stages were only on the way and are dropped; fmopt optimize --keep-stages keeps them"
        )


def build_all(run: Run, recipes: Sequence[Recipe]) -> None:
    """Make every recipe's artifact, or its reason why not."""
    run.executor.ahead([Build(recipe) for recipe in recipes])
    for number, recipe in enumerate(recipes, 1):
        run.progress.start(f"building {recipe.name} ({number} of {len(recipes)})", 1)
        trials.build(run, recipe, share=BUILDING)
        run.progress.step()


def time_all(run: Run) -> None:
    """One clock for all where the device can be timed, and a labelled prediction beside it, or alone where it cannot."""
    begun = time.monotonic()
    if run.job.target.present:
        trials.time_all(run)
    trials.predict_latency(run)
    run.seconds["latency"] = round(time.monotonic() - begun, 3)


def explain_losers(run: Run, winner: str, reference: str) -> None:
    """One line for each variant that was not chosen, read off its runtime's own profile where the device is this machine."""
    if not run.job.target.present:
        return
    if run.job.target.here:
        profile_all(run, winner)
    for name in run.artifacts:
        if name != winner and not run.trials[name].reason:
            run.update(name, reason=losing_reason(run, name, winner, reference))


def profile_all(run: Run, winner: str) -> None:
    """Where every variant's time goes, and why it is not faster."""
    run.progress.start("profiling each variant", len(run.artifacts))
    against = trials.profile(run, winner)
    run.update(winner, profile=against)
    for name, artifact in run.artifacts.items():
        profile = trials.profile(run, name)
        found = findings.why_not_faster(
            profile, against, graph_path=artifact.path, target=run.job.target, threads=run.job.request.workload.threads
        )
        run.update(name, findings=found, profile=profile, layer_bytes=trials.layer_bytes(artifact))
        run.progress.step()


def losing_reason(run: Run, name: str, winner: str, reference: str) -> str:
    """Why this one was not chosen, in one line."""
    trial, ratio = run.trials[name], time_ratio(run, name, winner)
    if ratio is None:
        return "not timed"
    if ratio < 1:
        drops = (trial.drop.point if trial.drop else float("nan"), drop_limit(run, reference) or 0.0)
        lost, allowed = (formatting.loss(drop, endless(run.trials[reference])) for drop in drops)
        return f"faster, but lost {lost} on validation, where half of the allowed {allowed} may go"
    why = f": {trial.findings[0].text}" if trial.findings else ""
    return f"{ratio:.2f}× as long as {winner}{why}"


def ablation_steps(run: Run, winner: str, reference: str) -> list[AblationStep]:
    """What each pass of the winner gave; not when the time is over."""
    begun = time.monotonic()
    found = [] if run.out_of_time() else waterfall(run, winner, reference)
    run.seconds["waterfall"] = round(time.monotonic() - begun, 3)
    return found
