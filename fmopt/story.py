"""The story: baselines, candidates, one clock for all, selection on validation, judgement on test, a bundle, a record.

The only file that knows the order; what depends on how candidates came out is in latecomers.py. Selection and judgement
use different items: the fastest candidate that keeps its accuracy on the validation split is chosen, and only that one is
judged on the test split, so that trying many candidates does not make luck look like quality.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

import fmopt.bundle as bundles
from fmopt import checkpoint, findings, gate, lookup, probe, trials, web, wording
from fmopt.board_clock import board_target
from fmopt.build import CHECKPOINT, Workshop
from fmopt.clock import Clock, HostClock
from fmopt.data import load_data
from fmopt.edge import open_preprocessor
from fmopt.errors import ConfigError, PlanError
from fmopt.labelled import with_labels
from fmopt.latecomers import rescue, shrink
from fmopt.metrics import METRICS
from fmopt.model import CheckpointFacts, static_shape, takes_length
from fmopt.plan import Training, make_plan
from fmopt.predictions import changed_items
from fmopt.progress import Progress, Silent
from fmopt.recipe import Recipe, read_recipe
from fmopt.record import Record, Rung, Trial, endless, summary_sentence, value_of
from fmopt.recording import by_kind, known, so_far
from fmopt.report import write_markdown, write_report
from fmopt.results import Verdict
from fmopt.running import noted
from fmopt.selection import choose, drop_limit, fastest_baseline, score_candidates
from fmopt.source import resolve
from fmopt.store import Store, disk_errors, own_folder
from fmopt.target import Target
from fmopt.trials import Job, Request, Run, primary
from fmopt.waterfall import waterfall

CALIBRATION_ITEMS = {"quick": 300, "standard": 1024, "max": 1024}  # second-order scores want more than ranges do
CHANGED_SHOWN = 40
GOLDEN_ITEMS = 8


def prepare(request: Request) -> Job:
    """Look everything up and refuse what can be refused, before any weight is touched."""
    source = resolve(request.model)
    facts = checkpoint.inspect(source, request.task or source.task, allow_pickle=request.allow_pickle)
    if not takes_length(facts.pipeline):
        request = request.model_copy(update={"length": None})
    if request.length is not None and request.length > facts.pipeline["max_length"]:
        raise ConfigError(
            f"--length {request.length} is more than the {facts.pipeline['max_length']} tokens that "
            f"{source.title} takes"
        )
    task = lookup.find("tasks", facts.task)
    spec = request.data or source.default_data
    if spec is None:
        raise PlanError(
            f"{source.title} has no default data; give some with --data (texts of your application, labels if you "
            "have them): calibration and judgement on made-up text would mean nothing"
        )
    target, clock = device(request, facts)
    if target.kind == "browser":
        web.check(facts.task)
    data = load_data(spec, task, facts, columns=request.columns, seed=request.seed)
    facts = with_labels(facts, data)
    recipe = read_recipe(request.recipe) if request.recipe else None
    shape = static_shape(facts.pipeline, request.batch, request.length)
    check_training(request, facts)
    texts = len(data.splits.get("train", ())) + (request.training.unlabelled is not None)
    plan = make_plan(
        facts, target, effort=request.effort, recipe=recipe, shape=shape, texts=texts, training=request.training
    )
    return Job(request, facts, task, target, data, plan, clock)


def device(request: Request, facts: CheckpointFacts) -> tuple[Target, Clock]:
    """What is optimized for, and the clock that stands there: on a board where one is named, else here."""
    if request.on is None:
        if request.clean:
            raise ConfigError("--clean goes with --on; add it, or leave --clean out")
        return probe.load_target(request.target), HostClock()
    return board_target(request.on, request.target, facts, clean=request.clean)


def check_training(request: Request, facts: CheckpointFacts) -> None:
    """ConfigError or CheckpointError for what training is told to use and cannot."""
    training = request.training
    if training != Training() and request.effort != "max":
        raise ConfigError("teacher, unlabelled and epochs are for training, which only --effort max does")
    if training.unlabelled is not None and not Path(training.unlabelled).is_file():
        raise ConfigError(f"there is no file {training.unlabelled}; --unlabelled takes one with a text on each line")
    if training.teacher is not None:
        checkpoint.inspect(resolve(training.teacher), facts.task)


def optimize(request: Request, progress: Progress | None = None) -> Record:
    """Find, prove and bundle the fastest variant that keeps its accuracy; resumes what `request.out` holds already."""
    job = prepare(request)
    with (
        closing(job.clock),
        own_folder(request.out, fresh=request.fresh),
        noted(request.out, progress or Silent(), job.plan.estimates.minutes) as notes,
        disk_errors(request.stages_folder),
    ):
        run = start(job, notes)
        run.on_change, notes.so_far = notes.changed, so_far(run)
        build_all(run, job.plan.baselines)
        build_all(run, job.plan.candidates)
        time_all(run)
        reference = fastest_baseline(run)
        score_candidates(run, reference)
        rescue(run, reference)
        shrink(run, reference)
        winner = choose(run, reference)
        verdict = judge(run, winner, reference)
        explain_losers(run, winner, reference)
        steps = rungs(run, winner, reference)
        record = make_record(run, winner, reference, verdict, steps)
        publish(run, record, winner)
    run.progress.stop()
    return record


def optimize_family(request: Request, speedups: Sequence[float], progress: Progress | None = None) -> list[Record]:
    """A bundle for each speedup, slowest first, in `request.out`/2x, /4x …; what they share is built and measured once, and
    with effort "max" each one's network is trained on from the one before."""
    ordered = sorted(speedups)
    with own_folder(request.out, fresh=request.fresh):
        return [
            optimize(
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


def start(job: Job, progress: Progress) -> Run:
    """Open the store and gather what all candidates share."""
    request = job.request
    items = job.task.items(job.data.split("calibration"), job.facts)[: CALIBRATION_ITEMS[request.effort]]
    limit = request.time_limit_s
    deadline = None if limit is None else time.monotonic() + limit
    shop = Workshop(
        facts=job.facts,
        target=job.target,
        store=Store(request.stages_folder),
        preprocessor=open_preprocessor(job.facts.folder, dict(job.facts.pipeline)),
        calibration=[item.raw for item in items],
        calibration_digest=f"{job.data.digest}:{len(items)}",
        seed=request.seed,
        memory_cap_bytes=request.max_calibration_memory,
        progress=progress,
        train=job.data.splits.get("train", ()),
        batch=request.batch,
        length=request.length,
        threads=request.threads,
        deadline=deadline,
    )
    run = Run(job, shop, progress, deadline)
    if job.clock.note:
        run.warnings.append(job.clock.note)
    if "tensorrt" in job.target.runtimes and not job.target.present:
        run.warnings.append(
            f"{job.target.title} is not here: accuracy is that of the graphs that TensorRT builds from, computed by ONNX "
            "Runtime and rounded after every operator in half precision; no engine was built, and no speed measured"
        )
    return run


def build_all(run: Run, recipes: Sequence[Recipe]) -> None:
    """Make every recipe's artifact, or its reason why not."""
    for number, recipe in enumerate(recipes, 1):
        run.progress.start(f"building {recipe.name} ({number} of {len(recipes)})", 1)
        trials.build(run, recipe)
        run.progress.step()


def time_all(run: Run) -> None:
    """One clock for all where the device can be timed, and a labelled prediction beside it, or alone where it cannot."""
    begun = time.monotonic()
    if run.job.target.present:
        trials.time_in_turn(run, list(run.artifacts))
    trials.predict_latency(run)
    run.seconds["latency"] = round(time.monotonic() - begun, 3)


def judge(run: Run, winner: str, reference: str) -> Verdict:
    """The winner on the test split, its footprint and its latency against the budget."""
    begun = time.monotonic()
    request, items = run.job.request, run.items("test")
    baseline = trials.predictions(run, reference, "test")
    got = trials.predictions(run, winner, "test")
    for name, predicted in ((reference, baseline), (winner, got)):
        run.update(name, test_scores=run.job.task.scores(predicted, items, baseline, run.job.facts))
    ours, theirs = primary(run.trials[winner].test_scores), primary(run.trials[reference].test_scores)
    drop = gate.paired_drop(theirs, ours, confidence=request.budget.confidence, seed=request.seed)
    run.update(winner, test_drop=drop)
    run.seconds["test"] = round(time.monotonic() - begun, 3)
    present = run.job.target.present
    if present:
        trials.time_end_to_end(run, sorted({reference, winner}))
        for name in sorted({reference, winner}):
            trials.footprint(run, name)
    trial = run.trials[winner]
    return gate.judge(
        request.budget,
        drop=drop,
        baseline_metric=value_of(theirs),
        bounded=METRICS[theirs.metric].bounded,
        speedup=trial.speedup,
        latency_ms=gate.median_latency(trial.latency, request.budget.confidence, request.seed)
        if trial.latency
        else None,
        size_mb=(trial.size_bytes or 0) / 1e6,
        memory_mb=trial.footprint.peak_memory_mb if trial.footprint else None,
        device_present=present,
        items_changed=int(np.any(np.not_equal(*ours.paired(theirs)), axis=1).sum()),
        n=len(ours.values),
        samples=len(trial.latency.samples_ms) if trial.latency else 0,
    )


def explain_losers(run: Run, winner: str, reference: str) -> None:
    """One line for each variant that was not chosen, read off its runtime's own profile where the device is this machine."""
    if not run.job.target.present:
        return
    limit = drop_limit(run, reference)
    if run.job.target.here:
        profile_all(run, winner)
    for name in run.artifacts:
        if name != winner and not run.trials[name].reason:
            run.update(name, reason=losing_reason(run.trials[name], run.trials[winner], run.trials[reference], limit))


def profile_all(run: Run, winner: str) -> None:
    """Where every variant's time goes, and why it is not faster."""
    against = trials.profile(run, winner)
    run.update(winner, profile=against)
    for name, artifact in run.artifacts.items():
        profile = trials.profile(run, name)
        found = findings.why_not_faster(
            profile, against, graph_path=artifact.path, target=run.job.target, threads=run.job.request.threads
        )
        run.update(name, findings=found, profile=profile, layer_bytes=trials.layer_bytes(artifact))


def losing_reason(trial: Trial, winner: Trial, reference: Trial, limit: float | None) -> str:
    """Why this one was not chosen, in one line."""
    if trial.latency is None or winner.latency is None:
        return "not timed"
    ratio = float(np.median(trial.latency.samples_ms) / np.median(winner.latency.samples_ms))
    if ratio < 1:
        drops = (trial.drop.point if trial.drop else float("nan"), limit or 0.0)
        lost, allowed = (wording.loss(drop, endless(reference)) for drop in drops)
        return f"faster, but lost {lost} on validation, where half of the allowed {allowed} may go"
    why = f": {trial.findings[0].text}" if trial.findings else ""
    return f"{ratio:.2f}× as long as {winner.recipe.name}{why}"


def rungs(run: Run, winner: str, reference: str) -> list[Rung]:
    """What each pass of the winner gave; not when the time is over."""
    begun = time.monotonic()
    found = [] if run.out_of_time() else waterfall(run, winner, reference)
    run.seconds["waterfall"] = round(time.monotonic() - begun, 3)
    return found


def make_record(run: Run, winner: str, reference: str, verdict: Verdict, steps: list[Rung]) -> Record:
    """Everything that was found, as the report reads it."""
    items = run.items("test")
    changed = changed_items(
        run.job.task,
        items,
        trials.predictions(run, reference, "test"),
        trials.predictions(run, winner, "test"),
        run.job.facts,
        limit=CHANGED_SHOWN,
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
    out, facts = run.job.request.out, run.job.facts
    run.progress.say("writing the bundle")
    items = run.items("test")
    golden_items = items[:GOLDEN_ITEMS]
    predicted = trials.predictions(run, winner, "test")[:GOLDEN_ITEMS]
    precision = run.recipes[winner].precision
    bundles.write_bundle(
        out,
        facts=facts,
        artifact=run.artifacts[winner],
        recipe=run.recipes[winner].model_dump(mode="json"),
        verdict=record.verdict.outcome.value,
        golden=[(item.raw, got) for item, got in zip(golden_items, predicted, strict=True)],
        tolerance=1e-3 if precision == "fp32" else 0.1,
        needs_isa=needed_isa(run, precision),
        for_browser=run.job.target.kind == "browser",
    )
    made = run.shop.networks(run.recipes[winner].steps)
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    if made:
        shutil.copytree(made[max(made)], out / CHECKPOINT)
    record.save(out / "record.json")
    write_report(record, out / "report.html")
    write_markdown(record, out / "report.md")


def needed_isa(run: Run, precision: str) -> list[str]:
    """ISA features that an INT8 graph was judged with and would saturate without."""
    if precision != "int8" or not run.job.target.int8_dot:
        return []
    return [name for name in run.job.target.isa if name in ("avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm")]


__all__ = ["Request", "optimize", "optimize_family", "prepare"]
