"""Verbs that make something: bundles and checkpoints."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fmopt.cli import completion
from fmopt.cli.config_file import command_line
from fmopt.cli.options import (
    EFFORTS,
    FORMATS,
    PRECISIONS,
    Clean,
    Columns,
    Data,
    Golden,
    Json,
    Model,
    On,
    Pickle,
    Seed,
    Task,
    Tokenizer,
    answer,
    one_board,
)
from fmopt.cli.parsing import (
    parse_bytes,
    parse_choice,
    parse_columns,
    parse_count,
    parse_seconds,
    parse_threads,
    read_lines,
)
from fmopt.core import escaping
from fmopt.core.errors import ConfigError


def optimize(
    model: Model,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            help="Device: host, or a name from `fmopt targets list`, or a TOML file.",
            autocompletion=completion.targets,
        ),
    ] = "host",
    on: On = None,
    clean: Clean = False,
    data: Data = None,
    task: Task = None,
    tokenizer: Tokenizer = None,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize", help="Of an ONNX graph: fold its Q/DQ pairs into fp32 weights, and start from those."
        ),
    ] = False,
    columns: Columns = None,
    effort: Annotated[
        str,
        typer.Option(
            "--effort",
            help="quick: quantize. standard: prune in one shot too. max: prune and distil.",
            autocompletion=completion.words(*EFFORTS),
        ),
    ] = "quick",
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="max: a checkpoint to learn from instead of MODEL itself.")
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option("--unlabelled", help="max: further texts to train on, one a line.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0, help="max: of each distillation.")] = None,
    max_drop: Annotated[
        str,
        typer.Option(
            "--max-drop", help="Allowed loss: 1pt is one absolute point (1% of a perplexity), 1% of the baseline."
        ),
    ] = "1pt",
    min_speedup: Annotated[
        str | None, typer.Option("--min-speedup", help="Against the fastest full-precision variant: 2x.")
    ] = None,
    max_latency: Annotated[str | None, typer.Option("--max-latency", help="Median: 8ms.")] = None,
    max_size: Annotated[str | None, typer.Option("--max-size", help="Model files: 25MB.")] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", help="Peak of a process that serves it: 300MB.")
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the one-sided bounds.")] = 0.95,
    accept_undecided: Annotated[
        bool, typer.Option("--accept-undecided", help="Exit 0 when only the point estimate is within budget.")
    ] = False,
    arrival: Annotated[
        str,
        typer.Option(
            "--workload",
            help="What is judged: single (one call after another), batch (items/s), server (--rate, --p99).",
            autocompletion=completion.arrivals,
        ),
    ] = "single",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Items of one call.")] = 1,
    length: Annotated[
        str,
        typer.Option(
            "--length",
            help="from-data: the items at their own lengths. A number: a stated shape of so many tokens.",
            autocompletion=completion.words("from-data"),
        ),
    ] = "from-data",
    also_length: Annotated[
        int | None, typer.Option("--also-length", min=1, help="Time this shape too, for comparison: 128.")
    ] = None,
    from_tokens: Annotated[
        bool, typer.Option("--from-tokens", help="Time the model alone, without tokenizer and answer.")
    ] = False,
    rate: Annotated[float | None, typer.Option("--rate", min=0, help="server: queries per second that arrive.")] = None,
    p99: Annotated[str | None, typer.Option("--p99", help="server: 99 % are answered within this: 20ms.")] = None,
    threads: Annotated[
        str, typer.Option("--threads", help="A number, or all.", autocompletion=completion.words("all"))
    ] = "1",
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Try this recipe (TOML) instead of the plan's candidates.")
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", help="30m for everything: fewer candidates and test items.")
    ] = None,
    max_calibration_memory: Annotated[str, typer.Option("--max-calibration-memory")] = "1GB",
    seed: Seed = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the bundle, the report and resumable stages.")
    ] = Path("fmopt-out"),
    family: Annotated[
        str | None, typer.Option("--family", help="2x,4x,8x: a bundle for each speedup, in OUT/2x and so on.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            help="Build, score and time on Ray's nodes: ray://HOST:PORT, auto, or local:N (docs/cluster.md).",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="Stages shared by several runs: a folder, file:///FOLDER or s3://BUCKET/PREFIX (docs/cluster.md).",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget finished stages in the output folder.")] = False,
    keep_stages: Annotated[
        bool, typer.Option("--keep-stages", help="Also those that nothing reads once the bundle is written.")
    ] = False,
    allow_pickle: Pickle = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    golden: Golden = "data",
    no_items: Annotated[
        bool, typer.Option("--no-items", help="Show no items of the data in the record and the report.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find, prove and bundle the fastest variant that keeps its accuracy."""
    from fmopt.cli import console
    from fmopt.cli import output as cli_output
    from fmopt.core.workload import ARRIVALS, Workload
    from fmopt.evaluation import gate
    from fmopt.workflow import optimize as workflow_optimize
    from fmopt.workflow.job import request as workflow_request

    budget = gate.Budget.parse(
        max_drop=max_drop,
        min_speedup=min_speedup,
        max_latency=max_latency,
        max_size=max_size,
        max_memory=max_memory,
        confidence=confidence,
        accept_undecided=accept_undecided,
    )
    request = workflow_request.Request(
        model=model,
        target=target,
        data=data,
        task=task,
        tokenizer=tokenizer,
        dequantize=dequantize,
        columns=parse_columns(columns),
        effort=parse_choice("effort", effort, EFFORTS),
        training=workflow_request.Training(
            teacher=teacher, unlabelled=None if unlabelled is None else str(unlabelled), epochs=epochs
        ),
        budget=budget,
        workload=Workload(
            arrival=parse_choice("workload", arrival, ARRIVALS),
            length=None if length == "from-data" else parse_count("length", length, "from-data"),
            batch=batch,
            threads=parse_threads(threads, one_board(on)),
            from_raw=not from_tokens,
            rate=rate,
            p99_ms=None if p99 is None else gate.parse_latency(p99, "p99"),
            also_length=also_length,
        ),
        recipe=recipe,
        time_limit_s=None if time_limit is None else parse_seconds(time_limit),
        seed=seed,
        out=output,
        cluster=cluster,
        store=store,
        fresh=fresh,
        allow_pickle=allow_pickle,
        max_calibration_memory=parse_bytes(max_calibration_memory),
        on=one_board(on),
        clean=clean,
        keep_stages=keep_stages,
        golden=golden,
        items=not no_items,
        command=command_line(),
    )
    if dry_run:
        plan = workflow_optimize.plan(request)
        return answer(plan.model_dump(mode="json"), as_json, lambda: cli_output.plan(plan))
    if family is not None:
        if min_speedup is not None:
            raise ConfigError("--family names the speedups; leave --min-speedup out")
        speedups = sorted(gate.parse_speedup(part) for part in family.split(","))
        with console.live_progress() as progress:
            records = workflow_optimize.optimize_family(request, speedups, progress)
        shown = [record.model_dump(mode="json") for record in records]
        answer(shown, as_json, lambda: cli_output.family(speedups, records, output))
        codes = {gate.exit_code(record.verdict, accept_undecided=accept_undecided) for record in records}
        raise typer.Exit(next((code for code in (1, 4, 3) if code in codes), 0))
    with console.live_progress() as progress:
        record = workflow_optimize.optimize_request(request, progress)
    answer(record.model_dump(mode="json"), as_json, lambda: cli_output.record(record, output))
    raise typer.Exit(gate.exit_code(record.verdict, accept_undecided=accept_undecided))


def sweep(
    plan: Annotated[Path, typer.Argument(help="A TOML file of models, targets and data (docs/sweep.md).")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the page, of a bundle for each cell, and of the trials.")
    ] = Path("fmopt-sweep"),
    as_json: Json = False,
) -> None:
    """Search recipes and their options for models × targets × data, beside the fixed plan. Resumes when run again."""
    from fmopt.cli import console
    from fmopt.cli import output as cli_output
    from fmopt.workflow.sweep import suite

    with console.live_progress() as progress:
        found = suite.sweep(plan, out=output, command=command_line(), progress=progress)
    answer(found.model_dump(mode="json"), as_json, lambda: cli_output.sweep(found, output))
    raise typer.Exit(suite.exit_code(found))


def export(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bundle.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx, openvino, executorch (.pte), or gguf (for llama.cpp).",
            autocompletion=completion.words(*FORMATS),
        ),
    ] = "onnx",
    precision: Annotated[
        str,
        typer.Option(
            "--precision", help="fp32, fp16, bf16, int8, or int4 (gguf).", autocompletion=completion.words(*PRECISIONS)
        ),
    ] = "fp32",
    target: Annotated[
        str,
        typer.Option(
            "--target", "-t", help="What it is for; see `fmopt targets list`.", autocompletion=completion.targets
        ),
    ] = "host",
    data: Data = None,
    task: Task = None,
    tokenizer: Tokenizer = None,
    columns: Columns = None,
    seed: Seed = 0,
    allow_pickle: Pickle = False,
    golden: Golden = "data",
    as_json: Json = False,
) -> None:
    """Export in one format and precision, checked against the torch model; no candidates, no gate."""
    from fmopt.cli import console
    from fmopt.workflow import export as workflow_export

    with console.live_progress() as progress:
        folder = workflow_export.export(
            model,
            output,
            format=parse_choice("format", format, FORMATS),
            precision=parse_choice("precision", precision, PRECISIONS),
            target=target,
            task=task,
            data=data,
            tokenizer=tokenizer,
            columns=parse_columns(columns),
            seed=seed,
            allow_pickle=allow_pickle,
            golden=golden,
            progress=progress,
        )
    metadata = json.loads((folder / "fmopt.json").read_text())
    answer(
        metadata,
        as_json,
        lambda: print(escaping.terminal(f"{folder} holds {metadata['model_file']}; try: ") + first_try_of(folder)),
    )


def first_try_of(bundle: Path) -> str:
    """The command line that a new bundle is tried by."""
    from fmopt.exporters.bundles.bundle import script_of

    gguf = bundle / "model.gguf"
    if gguf.is_file():
        return f"llama-server -m {shlex.quote(escaping.one_line(gguf))}"
    return f"python {shlex.quote(escaping.one_line(bundle / script_of(bundle)))} verify"


def finetune(
    model: Model,
    data: Annotated[
        str, typer.Option("--data", help="Labelled data with a train split.", autocompletion=completion.data)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint.")],
    task: Task = None,
    columns: Columns = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0, help="As MODEL's entry says, else 3.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="As MODEL's entry says, else 32.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", min=0, help="As MODEL's entry says, else 5e-5.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", min=0, help="Epochs without a better validation metric before it stops (2)."),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option("--augment", help="Of images: shift,mirror.", autocompletion=completion.listed("shift", "mirror")),
    ] = None,
    time_limit: Annotated[str | None, typer.Option("--time-limit", help="30m: stop then with the best so far.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a task head on a checkpoint: the baseline that `optimize` starts from. Resumes when run again."""
    from fmopt.cli import console
    from fmopt.workflow import finetune as workflow_finetune

    with console.live_progress() as progress:
        made = workflow_finetune.finetune(
            model,
            data,
            output,
            task=task,
            columns=parse_columns(columns),
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            patience=patience,
            augment=None if augment is None else [way for way in augment.split(",") if way],
            time_limit_s=None if time_limit is None else parse_seconds(time_limit),
            seed=seed,
            progress=progress,
        )
    answer(made, as_json, lambda: print(f"{output}: {made['metric']} {made['value']:.4f} on validation"))


def merge(
    adapter: Annotated[str, typer.Argument(help="A PEFT LoRA folder, as save_pretrained wrote it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The model it was trained on, when it is not where the adapter says.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge a LoRA adapter into its base model's weights: a plain checkpoint that `optimize` takes."""
    from fmopt.models import adapters

    made = adapters.merge(adapter, output, base=base)
    answer(
        {"checkpoint": str(made)},
        as_json,
        lambda: print(
            f"{escaping.one_line(made)} is a checkpoint; try: fmopt inspect {shlex.quote(escaping.one_line(made))}"
        ),
    )


def trim(
    model: Model,
    texts: Annotated[Path, typer.Option("--texts", help="What the model will read, one text a line.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint.")],
    as_json: Json = False,
) -> None:
    """Cut the vocabulary to what texts need; they give the same tokens and outputs, others are spelled in more tokens."""
    from fmopt.cli import output as cli_output
    from fmopt.models import vocabulary

    got = vocabulary.trim(model, read_lines(texts), output)
    answer(dataclasses.asdict(got), as_json, lambda: cli_output.trimmed(got))


def clean(
    output: Annotated[Path, typer.Argument(help="Folder of an optimization, a family or a benchmark.")],
    as_json: Json = False,
) -> None:
    """Free the disk that finished stages take; the bundle, its record and its report stay."""
    from fmopt.core import formatting
    from fmopt.workflow.job import disk

    done = disk.clean(output)
    answer(
        done.model_dump(mode="json"),
        as_json,
        lambda: print(f"{output}: {formatting.size(done.freed_bytes)} freed, {done.stages} finished stages removed"),
    )
