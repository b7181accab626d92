"""The Python API: the same words as the command, typed. Importing it is heavy; `import fmopt` is not."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmopt import bundle as bundles
from fmopt import checkpoint, lookup, measure, probe
from fmopt.build import Workshop
from fmopt.data import load_data
from fmopt.edge import Preprocessor
from fmopt.errors import CheckpointError, ConfigError, DataError
from fmopt.evaluate import predict
from fmopt.gate import Budget
from fmopt.metrics import METRICS
from fmopt.model import Artifact, CheckpointFacts
from fmopt.plan import BASELINES, Effort, Plan, Training, refusal
from fmopt.progress import Progress, Silent
from fmopt.recipe import Recipe, Step
from fmopt.record import Record
from fmopt.results import Latency, Scores
from fmopt.runtimes.base import Runner
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
    command: str = "",
    progress: Progress | None = None,
) -> Record:
    """Make `model` as fast on `target` as its accuracy allows, prove it, and leave a bundle and a report in `out`.

    `effort` "quick" quantizes; "standard" prunes in one shot too, towards the budget's speedup or latency; "max" distils
    after each step of pruning. Latency is judged at `batch` × `length` tokens with `threads`; `max_calibration_memory` is
    in bytes. The same call again resumes. Raises FmoptError subclasses; an impossible budget is no error but a verdict:
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
    command: str,
) -> Request:
    """The words of the call as a checked value."""
    for name, value in (("batch", batch), ("length", length), ("threads", threads)):
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
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
        command=command,
    )


def plan(request: Request) -> Plan:
    """What `optimize` would try, what not and why, and what it would take; nothing is written."""
    return prepare(request).plan


def export(
    model: str | Path,
    out: str | Path,
    *,
    format: Literal["onnx", "openvino"] = "onnx",
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32",
    task: str | None = None,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Export `model` as a bundle in one format and precision, checked against the torch model; no candidates, no gate.

    INT8 is calibrated on the calibration split of `data`. Returns the folder `out`.
    """
    out = Path(out)
    source = resolve(str(model))
    facts = checkpoint.inspect(source, task or source.task, allow_pickle=allow_pickle)
    recipe = export_recipe(format, precision)
    target = probe.load_target("host")
    reason = refusal(recipe, facts, target)
    if reason:
        raise ConfigError(f"--format {format} --precision {precision}: {reason}")
    kind = lookup.find("tasks", facts.task)
    spec = str(data) if data else source.default_data
    if spec is None:
        if precision == "int8":
            raise DataError("INT8 is calibrated on real texts: give some with --data")
        raws: list[Any] = [plain_example(facts.pipeline)] * 2
        digest = "none"
    else:
        dataset = load_data(spec, kind, facts, columns=columns, seed=seed)
        raws = [item.raw for item in kind.items(dataset.split("calibration"), facts)[:300]]
        digest = f"{dataset.digest}:{len(raws)}"
    with own_folder(out), disk_errors(out / "stages"):
        shop = Workshop(
            facts,
            target,
            Store(out / "stages"),
            Preprocessor(checkpoint.tokenizer_file(facts), dict(facts.pipeline)),
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
        )
    return out


def export_recipe(format: str, precision: str) -> Recipe:
    """The one recipe that a format and precision name."""
    name = f"{format}-{precision}"
    runtime = {"onnx": "onnxruntime", "openvino": "openvino"}[format]
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


def benchmark(
    models: Sequence[str | Path],
    *,
    batch: Sequence[int] = (1,),
    length: Sequence[int] = (128,),
    threads: Sequence[int] = (1,),
    seed: int = 0,
    progress: Progress | None = None,
) -> list[tuple[str, Latency]]:
    """Latency of models and bundles, in turn in one process, at every combination of shape and threads.

    A bundle runs as deployed; a checkpoint runs on each full-precision runtime. Raw samples are in milliseconds.
    """
    results: list[tuple[str, Latency]] = []
    with tempfile.TemporaryDirectory(prefix="fmopt-bench-") as scratch:
        variants = [
            v for number, model in enumerate(models) for v in bench_variants(str(model), Path(scratch) / str(number))
        ]
        for count in threads:
            runners = [(name, pre, open_artifact(artifact, count)) for name, pre, artifact in variants]
            for size in batch:
                for tokens in length:
                    samples = bench_once(runners, size, tokens, seed, progress or Silent())
                    results += [
                        (name, Latency(samples_ms=ms, batch=size, length=tokens, threads=count))
                        for name, ms in samples.items()
                    ]
            for _, _, runner in runners:
                runner.close()
    return results


def bench_once(
    runners: Sequence[tuple[str, Preprocessor, Runner]], batch: int, length: int, seed: int, progress: Progress
) -> dict[str, list[float]]:
    """One shape, all runners in turn."""
    progress.start(f"batch {batch} × {length} tokens", measure.MIN_SAMPLES)
    turns = {}
    for name, preprocessor, runner in runners:
        inputs = measure.latency_inputs(preprocessor, list(BENCH_TEXTS), batch=batch, length=length, seed=seed)
        turns[name] = lambda r=runner, i=inputs[0]: r.run(i)
    return measure.time_in_turn(turns, seed=seed, progress=progress.step)


BENCH_TEXTS = (
    "The quick brown fox jumps over the lazy dog while the river keeps its course to the sea.",
    "A report is only as good as the measurements behind it, and a measurement only as good as its circumstances.",
)


def bench_variants(model: str, scratch: Path) -> list[tuple[str, Preprocessor, Artifact]]:
    """A bundle as it is; a checkpoint on every full-precision runtime."""
    if bundles.is_bundle(Path(model)):
        facts = bundles.bundle_facts(Path(model))
        return [
            (
                model,
                Preprocessor(Path(model) / "tokenizer.json", dict(facts.pipeline)),
                bundles.bundle_artifact(Path(model)),
            )
        ]
    source = resolve(model)
    facts = checkpoint.inspect(source, source.task)
    preprocessor = Preprocessor(checkpoint.tokenizer_file(facts), dict(facts.pipeline))
    target = probe.load_target("host")
    raws = [plain_example(facts.pipeline)] * 4
    shop = Workshop(facts, target, Store(scratch), preprocessor, raws, "bench", 0, 1 << 30, Silent())
    return [
        (f"{source.title} {recipe.name}", preprocessor, shop.artifact(recipe))
        for recipe in BASELINES
        if refusal(recipe, facts, target) is None
    ]


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
        tokenizer, default = folder / "tokenizer.json", None
    else:
        source = resolve(str(model))
        facts = checkpoint.inspect(source, task or source.task)
        runtime = lookup.find("runtimes", "torch")
        artifact = runtime.build(facts, {"dtype": "fp32"}, facts.folder)
        tokenizer, default = checkpoint.tokenizer_file(facts), source.default_data
    kind = lookup.find("tasks", facts.task)
    spec = str(data) if data else default
    if spec is None:
        raise DataError("nothing to evaluate on: give --data")
    items = kind.items(load_data(spec, kind, facts, columns=columns, seed=seed).split(split), facts)
    runner = open_artifact(artifact, probe.cores())
    progress = progress or Silent()
    progress.start(f"evaluating on {split}", len(items))
    try:
        got = predict(
            runner,
            Preprocessor(tokenizer, dict(facts.pipeline)),
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
    epochs: float = 3.0,
    batch: int = 32,
    learning_rate: float = 5e-5,
    patience: int = 2,
    time_limit_s: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a task head on `model` into the checkpoint folder `out`; resumes a run that was cut off. Returns its record."""
    from fmopt.finetune import finetune as train

    source = resolve(str(model))
    if task is None:
        task = checkpoint.inspect(source).task
    facts = checkpoint.inspect(source, task, fresh_head=True)
    kind = lookup.find("tasks", task)
    dataset = load_data(str(data), kind, facts, columns=columns, seed=seed)
    folder = train(
        facts,
        dataset,
        kind,
        Path(out),
        labels=dataset.label_names or None,
        epochs=epochs,
        batch_size=batch,
        learning_rate=learning_rate,
        patience=patience,
        time_limit_s=time_limit_s,
        seed=seed,
        progress=progress,
    )
    record: dict[str, Any] = json.loads((folder / "finetune.json").read_text())
    return record


def open_artifact(artifact: Artifact, threads: int) -> Runner:
    """An artifact opened as deployed."""
    return lookup.find("runtimes", artifact.runtime).open(artifact, threads)


def plain_example(pipeline: Mapping[str, Any]) -> Any:
    """A text in the shape that the pipeline's task takes, where no data is needed: export and bench without data."""
    text, task = BENCH_TEXTS[0], pipeline["task"]
    if task == "fill-mask":
        return text.replace("fox", pipeline["mask"]["token"])
    if task == "question-answering":
        return ("What does the fox jump over?", text)
    return text.split() if task == "token-classification" else text


def kind_items(raws: Sequence[Any]) -> list[Any]:
    """Items without labels, for golden predictions."""
    from fmopt.tasks.base import Item

    return [Item(row=number, raw=raw) for number, raw in enumerate(raws)]


__all__ = [
    "CheckpointError",
    "CheckpointFacts",
    "benchmark",
    "evaluate",
    "export",
    "load",
    "load_model",
    "optimize",
    "optimize_family",
    "plan",
]
