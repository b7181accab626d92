"""The Python API: the same words as the command, typed. Importing it is heavy; `import fmopt` is not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmopt import bundle as bundles
from fmopt import checkpoint, executorch_program, lookup, measure, probe, untrained, web
from fmopt.benchmarking import deployed, open_artifact, plain_example
from fmopt.build import Workshop
from fmopt.data import catalogue, load_data, training_texts
from fmopt.diagnosis import Diagnosis, diagnose, example_inputs
from fmopt.edge import open_preprocessor, timed_inputs
from fmopt.errors import CheckpointError, ConfigError, DataError
from fmopt.gate import Budget
from fmopt.labelled import with_labels
from fmopt.metrics import METRICS
from fmopt.model import Artifact, CheckpointFacts, takes_length
from fmopt.plan import Effort, Plan, Training, compiled_for, keeps_past, refusal
from fmopt.predictions import predict
from fmopt.progress import Progress, Silent
from fmopt.recipe import Recipe, Step
from fmopt.record import Record
from fmopt.results import Scores
from fmopt.runtimes.base import Runner
from fmopt.seq2seq import generates
from fmopt.source import resolve
from fmopt.store import Store, disk_errors, own_folder
from fmopt.story import optimize as run_optimize
from fmopt.story import optimize_family, prepare
from fmopt.trials import Request

if TYPE_CHECKING:
    import torch


def optimize(
    model: str | Path,
    *,
    target: str = "host",
    data: str | Path | None = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    effort: Effort = "quick",
    training: Training | None = None,
    budget: Budget | None = None,
    batch: int = 1,
    length: int | Literal["from-data"] = 128,
    threads: int | Literal["all"] = 1,
    recipe: str | Path | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    out: str | Path = "fmopt-out",
    fresh: bool = False,
    allow_pickle: bool = False,
    max_calibration_memory: int = 1 << 30,
    on: str | None = None,
    clean: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Record:
    """Make `model` as fast on `target` as its accuracy allows, prove it, and leave a bundle and a report in `out`.

    `effort` "quick" quantizes; "standard" prunes in one shot too, towards the budget's speedup or latency; "max" distils
    after each step of pruning. Latency is judged at `batch` × `length` tokens with `threads`; `max_calibration_memory` is
    in bytes. With `on` ("ssh://user@host") variants are timed on that board, and `clean` leaves nothing there. The same call
    again resumes. Raises FmoptError subclasses; an impossible budget is no error but a verdict:
    see `Record.verdict`.
    """
    request = make_request(
        model,
        target=target,
        data=data,
        task=task,
        columns=columns,
        effort=effort,
        training=training,
        budget=budget,
        batch=batch,
        length=length,
        threads=threads,
        recipe=recipe,
        time_limit_s=time_limit_s,
        seed=seed,
        out=out,
        fresh=fresh,
        allow_pickle=allow_pickle,
        max_calibration_memory=max_calibration_memory,
        on=on,
        clean=clean,
        command=command,
    )
    return run_optimize(request, progress)


def make_request(
    model: str | Path,
    *,
    target: str,
    data: str | Path | None,
    task: str | None,
    columns: Mapping[str, str] | None,
    effort: Effort,
    training: Training | None,
    budget: Budget | None,
    batch: int,
    length: int | Literal["from-data"],
    threads: int | Literal["all"],
    recipe: str | Path | None,
    time_limit_s: float | None,
    seed: int,
    out: str | Path,
    fresh: bool,
    allow_pickle: bool,
    max_calibration_memory: int,
    on: str | None = None,
    clean: bool = False,
    command: str,
) -> Request:
    """The words of the call as a checked value."""
    for name, value in (("batch", batch), ("length", length), ("threads", threads)):
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if on is not None and threads == "all":
        raise ConfigError("--threads all is about this machine; with --on say how many of the board's cores")
    return Request(
        model=str(model),
        target=target,
        data=None if data is None else str(data),
        task=task,
        columns=dict(columns) if columns else None,
        effort=effort,
        training=training or Training(),
        budget=budget or Budget(),
        batch=batch,
        length=None if length == "from-data" else length,
        threads=probe.cores() if threads == "all" else threads,
        recipe=Path(recipe) if recipe else None,
        time_limit_s=time_limit_s,
        seed=seed,
        out=Path(out),
        fresh=fresh,
        allow_pickle=allow_pickle,
        max_calibration_memory=max_calibration_memory,
        on=on,
        clean=clean,
        command=command,
    )


def plan(request: Request) -> Plan:
    """What `optimize` would try, what not and why, and what it would take; nothing is written."""
    return prepare(request).plan


def export(
    model: str | Path,
    out: str | Path,
    *,
    format: Literal["onnx", "openvino", "executorch"] = "onnx",
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32",
    target: str = "host",
    task: str | None = None,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Export `model` as a bundle in one format and precision, checked against the torch model; no candidates, no gate.

    `target` decides how INT8 is made (in 7 or 8 bits) and how the bundle is laid out (for browsers). INT8 with fixed scales
    is calibrated on the calibration split of `data`. An ExecuTorch program comes in fp32 and int8. Returns the folder `out`.
    """
    out = Path(out)
    source = resolve(str(model))
    facts = checkpoint.inspect(source, task or source.task, allow_pickle=allow_pickle)
    asked = export_recipe(format, precision, facts)
    (recipe,) = compiled_for(None, (asked,), 0, stateful=keeps_past(facts))
    device = probe.load_target(target)
    reason = refusal(recipe, facts, device) or (executorch_program.refusal(facts) if format == "executorch" else None)
    if reason:
        raise ConfigError(f"--format {format} --precision {precision}: {reason}")
    if device.kind == "browser":
        web.check(facts.task)
    kind = lookup.find("tasks", facts.task)
    spec = str(data) if data else source.default_data
    if spec is None:
        facts = with_labels(facts, None)
        if any(step.use == "quantize_static" for step in recipe.steps):
            raise DataError("INT8 is calibrated on real items: give some with --data")
        raws: list[Any] = [plain_example(facts.pipeline)] * 2
        digest = "none"
    else:
        dataset = load_data(spec, kind, facts, columns=columns, seed=seed)
        facts = with_labels(facts, dataset)
        raws = [item.raw for item in kind.items(dataset.split("calibration"), facts)[:300]]
        digest = f"{dataset.digest}:{len(raws)}"
    with own_folder(out), disk_errors(out / "stages"):
        shop = Workshop(
            facts,
            device,
            Store(out / "stages"),
            open_preprocessor(facts.folder, dict(facts.pipeline)),
            raws,
            digest,
            seed,
            1 << 30,
            progress or Silent(),
        )
        artifact = shop.artifact(recipe)
        runner = open_artifact(artifact, probe.cores())
        try:
            golden = predict(runner, shop.preprocessor, dict(facts.pipeline), kind_items(raws[:8]), batch=1)
        finally:
            runner.close()
        bundles.write_bundle(
            out,
            facts=facts,
            artifact=artifact,
            recipe=recipe.model_dump(mode="json"),
            verdict="UNMEASURED",
            golden=list(zip(raws[:8], golden, strict=True)),
            tolerance=1e-3 if precision == "fp32" else 0.1,
            needs_isa=[],
            for_browser=device.kind == "browser",
        )
    return out


def export_recipe(format: str, precision: str, facts: CheckpointFacts) -> Recipe:
    """The one recipe that a format and precision name, for a model."""
    name = f"{format}-{precision}"
    runtime = {"onnx": "onnxruntime"}.get(format, format)
    if format == "executorch":
        if precision not in ("fp32", "int8"):
            raise ConfigError(f"--format executorch has no --precision {precision}; it has fp32 and int8")
        return Recipe(
            name=name, runtime=runtime, precision=precision, options={"quantize": "int8"} if precision == "int8" else {}
        )
    if precision == "int8" and generates(facts.pipeline):
        if format == "openvino" and facts.task != "text-generation":
            raise ConfigError(f"--precision int8 of {facts.task} is made for ONNX Runtime; use --format onnx")
        if format == "openvino":
            return Recipe(name=name, runtime=runtime, precision="int8", steps=(Step(use="compress_weights"),))
        narrow = Step(use="quantize_weights", options={"bits": 8, "block": 32})
        tables = (Step(use="quantize_embeddings"),) if facts.modality == "text" else ()
        return Recipe(name=name, runtime=runtime, precision="int8", steps=(narrow, *tables))
    if precision == "int8":
        return Recipe(name=name, runtime=runtime, precision="int8", steps=(Step(use="quantize_static"),))
    if format == "onnx":
        if precision == "bf16":
            raise ConfigError("--format onnx has no bf16 kernels on CPUs; use --format openvino, or --precision fp16")
        return Recipe(
            name=name, runtime=runtime, precision=precision, steps=(Step(use="cast"),) if precision == "fp16" else ()
        )
    options = {
        "fp32": {"precision": "f32"},
        "bf16": {"precision": "bf16"},
        "fp16": {"precision": "f32", "fp16_weights": True},
    }
    return Recipe(name=name, runtime=runtime, precision=precision, options=options[precision])


def load(bundle: str | Path, threads: int | None = None) -> Any:
    """A bundle as a callable on raw text; hashes are verified first. Never imports torch."""
    return bundles.load(Path(bundle), threads)


def load_model(model: str | Path, *, task: str | None = None) -> torch.nn.Module:
    """The network of a checkpoint, pruned or not: a transformers model in eval mode, to train further or to save.

    `fmopt.structure.save_checkpoint` writes one that was pruned; its own `save_pretrained` leaves structure.json out.
    """
    return checkpoint.load(checkpoint.inspect(resolve(str(model)), task)).net


def explain(
    model: str | Path,
    *,
    batch: int = 1,
    length: int = 128,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Why a bundle (or an ONNX file by itself) is not faster on this machine: where its time goes and what would change it.

    It is run and timed here at `batch` × `length` tokens; findings come with the share of the time that they concern,
    the largest first. ConfigError for anything else than a bundle or an ONNX file, or for more tokens than it reads.
    """
    path = Path(model)
    for name, value in (("batch", batch), ("length", length), ("threads", threads)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if bundles.is_bundle(path):
        artifact, pipeline = bundles.bundle_artifact(path), bundles.bundle_facts(path).pipeline
        tokens = length if takes_length(pipeline) else None
        if tokens is not None and tokens > int(pipeline["max_length"]):
            raise ConfigError(f"length is {length}, but {path} reads at most {pipeline['max_length']} tokens")
        one = deployed(path)
        rows = measure.latency_inputs(one.preprocessor, one.raws, batch=batch, length=tokens, seed=seed)[0]

        def inputs_of(runner: Runner) -> Mapping[str, Any]:
            return timed_inputs(one.preprocessor.pipeline, runner, rows)

    elif path.suffix == ".onnx" and path.is_file():
        artifact, example = Artifact("onnxruntime", path, {}), example_inputs(path, batch, length, seed)
        tokens = length

        def inputs_of(runner: Runner) -> Mapping[str, Any]:
            return example

    else:
        raise ConfigError(f"{path} is neither a bundle nor an ONNX file; make one: fmopt optimize, or fmopt export")
    target = probe.load_target("host")
    return diagnose(
        artifact, inputs_of, target, model=str(model), batch=batch, length=tokens, threads=threads, seed=seed,
        progress=progress,
    )  # fmt: skip


def evaluate(
    model: str | Path,
    data: str | Path | None,
    *,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "test",
    batch: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[tuple[Scores, float]]:
    """Metrics of a model or bundle on a split of labelled data; each with its value."""
    folder = Path(model)
    if bundles.is_bundle(folder):
        facts, artifact = bundles.bundle_facts(folder), bundles.bundle_artifact(folder)
        default = None
    else:
        source = resolve(str(model))
        facts, artifact = checkpoint.inspect(source, task or source.task), None
        default = source.default_data
    kind = lookup.find("tasks", facts.task)
    spec = str(data) if data else default
    if spec is None:
        raise DataError("nothing to evaluate on: give --data")
    dataset = load_data(spec, kind, facts, columns=columns, seed=seed)
    if artifact is None:
        facts = with_labels(facts, dataset)
        artifact = lookup.find("runtimes", "torch").build(facts, {"dtype": "fp32"}, facts.folder)
    items = kind.items(dataset.split(split), facts)
    runner = open_artifact(artifact, probe.cores())
    progress = progress or Silent()
    progress.start(f"evaluating on {split}", len(items))
    try:
        got = predict(
            runner,
            open_preprocessor(facts.folder, dict(facts.pipeline)),
            dict(facts.pipeline),
            items,
            batch=batch,
            progress=progress.step,
        )
    finally:
        runner.close()
    scores = [score for score in kind.scores(got, items, None, facts) if not score.against_baseline]
    if not scores:
        raise DataError(
            f"{spec} has no labels for {facts.task}; only a comparison with a baseline could be made: see `fmopt optimize`"
        )
    return [(score, float(METRICS[score.metric].of(score.array()))) for score in scores]


def finetune(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    patience: int | None = None,
    augment: Sequence[str] | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a task head on `model` into the checkpoint folder `out`; resumes a run that was cut off. Returns its record.

    What is None is as the entry of `models/` says, else 3 epochs in batches of 32 at 5e-5, a patience of 2, and pictures
    left as they are. `augment` names what is done to pictures: "shift", "mirror". An entry with a tokenizer to be made has
    it trained on the texts of the train split, one with a catalogue has that made of the items of the data.
    """
    from fmopt.finetune import finetune as train
    from fmopt.training import AUGMENTATIONS

    entry = untrained.read_entry(str(model))
    if entry is not None:
        kind = lookup.find("tasks", task or entry["task"])
        texts = (
            training_texts(str(data), kind, columns=columns, seed=seed)
            if "tokenizer" in entry
            else catalogue(str(data), kind, columns=columns)
        )
        task = task or entry["task"]
        cache = checkpoint.cache_folder()
        model = untrained.write_untrained({**entry, "task": task}, texts, cache, str(model), seed)
    source = resolve(str(model))
    if entry is not None:
        source = dataclasses.replace(source, training=entry.get("finetune", {}))
    asked = {
        "epochs": epochs,
        "batch_size": batch,
        "learning_rate": learning_rate,
        "patience": patience,
        "augment": augment,
    }
    settings = {**source.training, **{name: value for name, value in asked.items() if value is not None}}
    unknown = [way for way in settings.get("augment", ()) if way not in AUGMENTATIONS]
    if unknown:
        raise ConfigError(
            f"--augment {unknown[0]}: there is no such change{lookup.did_you_mean(unknown[0], AUGMENTATIONS)}"
        )
    if task is None:
        task = source.task or checkpoint.inspect(source).task
    facts = checkpoint.inspect(source, task, fresh_head=True)
    kind = lookup.find("tasks", task)
    dataset = load_data(str(data), kind, facts, columns=columns, seed=seed)
    folder = train(
        facts,
        dataset,
        kind,
        Path(out),
        labels=dataset.label_names or None,
        time_limit_s=time_limit_s,
        seed=seed,
        progress=progress,
        **settings,
    )
    record: dict[str, Any] = json.loads((folder / "finetune.json").read_text())
    return record


def kind_items(raws: Sequence[Any]) -> list[Any]:
    """Items without labels, for golden predictions."""
    from fmopt.tasks.base import Item

    return [Item(row=number, raw=raw) for number, raw in enumerate(raws)]


__all__ = [
    "CheckpointError",
    "CheckpointFacts",
    "evaluate",
    "explain",
    "export",
    "load",
    "load_model",
    "optimize",
    "optimize_family",
    "plan",
]
