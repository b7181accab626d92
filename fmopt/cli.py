"""The command: argv → one call → a printed answer and an exit code. Heavy modules load inside the verbs.

Exit codes: 0 all gates passed, 1 a gate failed, 2 bad input or usage, 3 undecided, 4 something could not be measured,
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fmopt import several
from fmopt.arguments import (
    parse_bytes,
    parse_choice,
    parse_columns,
    parse_count,
    parse_counts,
    parse_seconds,
    read_lines,
)
from fmopt.errors import BundleError, ConfigError, FmoptError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make a pretrained Transformer as small and fast on your device as its accuracy allows, and prove it.",
)
targets_app = typer.Typer(no_args_is_help=True, help="Devices that fmopt knows, and this one.", rich_markup_mode=None)
app.add_typer(targets_app, name="targets")

Model = Annotated[
    str, typer.Argument(help="A folder in Hugging Face format, a hub name, or an entry of models/ (minilm).")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="csv/tsv/jsonl/parquet file, folder with one file per split, hub data set, or builtin:pydoc."
    ),
]
Task = Annotated[str | None, typer.Option("--task", help="Overrides the task found in the checkpoint.")]
Columns = Annotated[str | None, typer.Option("--columns", help="Which column is what: text=sentence,label=label.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Seed = Annotated[int, typer.Option("--seed")]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load pickle weights (weights_only) where there is no safetensors.")
]


@app.command()
def optimize(
    model: Model,
    target: Annotated[
        str, typer.Option("--target", help="Device: host, or a name from `fmopt targets list`, or a TOML file.")
    ] = "host",
    data: Data = None,
    task: Task = None,
    columns: Columns = None,
    effort: Annotated[
        str, typer.Option("--effort", help="quick: quantize. standard: prune in one shot too. max: prune and distil.")
    ] = "quick",
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="max: a checkpoint to learn from instead of MODEL itself.")
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option("--unlabelled", help="max: further texts to train on, one a line.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="max: of each distillation.")] = None,
    max_drop: Annotated[
        str, typer.Option("--max-drop", help="Allowed loss: 1pt is one absolute point, 1% is relative to the baseline.")
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
    batch: Annotated[int, typer.Option("--batch", help="Batch size that is judged.")] = 1,
    length: Annotated[str, typer.Option("--length", help="Tokens that are judged: a number, or from-data.")] = "128",
    threads: Annotated[str, typer.Option("--threads", help="A number, or all.")] = "1",
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Try this recipe (TOML) instead of the plan's candidates.")
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", help="30m: stop trying further candidates then.")
    ] = None,
    max_calibration_memory: Annotated[str, typer.Option("--max-calibration-memory")] = "1GB",
    seed: Seed = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the bundle, the report and resumable stages.")
    ] = Path("fmopt-out"),
    family: Annotated[
        str | None, typer.Option("--family", help="2x,4x,8x: a bundle for each speedup, in OUT/2x and so on.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget finished stages in the output folder.")] = False,
    allow_pickle: Pickle = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Find, prove and bundle the fastest variant that keeps its accuracy."""
    from fmopt import api, gate, present

    budget = gate.Budget.parse(
        max_drop=max_drop,
        min_speedup=min_speedup,
        max_latency=max_latency,
        max_size=max_size,
        max_memory=max_memory,
        confidence=confidence,
        accept_undecided=accept_undecided,
    )
    request = api.make_request(
        model,
        target=target,
        data=data,
        task=task,
        columns=parse_columns(columns),
        effort=parse_choice("effort", effort, ("quick", "standard", "max")),
        training=api.Training(
            teacher=teacher, unlabelled=None if unlabelled is None else str(unlabelled), epochs=epochs
        ),
        budget=budget,
        batch=batch,
        length=parse_count("length", length, "from-data"),
        threads=parse_count("threads", threads, "all"),
        recipe=recipe,
        time_limit_s=None if time_limit is None else parse_seconds(time_limit),
        seed=seed,
        out=output,
        fresh=fresh,
        allow_pickle=allow_pickle,
        max_calibration_memory=parse_bytes(max_calibration_memory),
        command=shlex.join(["fmopt", *sys.argv[1:]]),
    )
    if dry_run:
        plan = api.plan(request)
        return answer(plan.model_dump(mode="json"), as_json, lambda: present.plan(plan))
    if family is not None:
        if min_speedup is not None:
            raise ConfigError("--family names the speedups; leave --min-speedup out")
        speedups = [gate.parse_speedup(part) for part in family.split(",")]
        with present.live_progress() as progress:
            records = api.optimize_family(request, speedups, progress)
        shown = [record.model_dump(mode="json") for record in records]
        answer(shown, as_json, lambda: present.family(speedups, records, output))
        codes = {gate.exit_code(record.verdict, accept_undecided=accept_undecided) for record in records}
        raise typer.Exit(next((code for code in (1, 4, 3) if code in codes), 0))
    with present.live_progress() as progress:
        record = api.run_optimize(request, progress)
    answer(record.model_dump(mode="json"), as_json, lambda: present.record(record, output))
    raise typer.Exit(gate.exit_code(record.verdict, accept_undecided=accept_undecided))


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bundle.")],
    format: Annotated[str, typer.Option("--format", help="onnx or openvino.")] = "onnx",
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16, bf16 or int8.")] = "fp32",
    data: Data = None,
    task: Task = None,
    columns: Columns = None,
    seed: Seed = 0,
    allow_pickle: Pickle = False,
    as_json: Json = False,
) -> None:
    """Export in one format and precision, checked against the torch model; no candidates, no gate."""
    from fmopt import api, present

    with present.live_progress() as progress:
        folder = api.export(
            model,
            output,
            format=parse_choice("format", format, ("onnx", "openvino")),
            precision=parse_choice("precision", precision, ("fp32", "fp16", "bf16", "int8")),
            task=task,
            data=data,
            columns=parse_columns(columns),
            seed=seed,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    facts = json.loads((folder / "fmopt.json").read_text())
    answer(facts, as_json, lambda: print(f"{folder} holds {facts['model_file']}; try: python {folder}/run.py verify"))


@app.command()
def finetune(
    model: Model,
    data: Annotated[str, typer.Option("--data", help="Labelled data with a train split.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint.")],
    task: Task = None,
    columns: Columns = None,
    epochs: Annotated[float, typer.Option("--epochs")] = 3.0,
    batch: Annotated[int, typer.Option("--batch")] = 32,
    learning_rate: Annotated[float, typer.Option("--learning-rate")] = 5e-5,
    patience: Annotated[
        int, typer.Option("--patience", help="Epochs without a better validation metric before it stops.")
    ] = 2,
    time_limit: Annotated[str | None, typer.Option("--time-limit", help="30m: stop then with the best so far.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a task head on a checkpoint: the baseline that `optimize` starts from. Resumes when run again."""
    from fmopt import api, present

    with present.live_progress() as progress:
        made = api.finetune(
            model,
            data,
            output,
            task=task,
            columns=parse_columns(columns),
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            patience=patience,
            time_limit_s=None if time_limit is None else parse_seconds(time_limit),
            seed=seed,
            progress=progress,
        )
    answer(made, as_json, lambda: print(f"{output}: {made['metric']} {made['value']:.4f} on validation"))


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="A PEFT LoRA folder, as save_pretrained wrote it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint.")],
    base: Annotated[
        str | None, typer.Option("--base", help="The model it was trained on, when it is not where the adapter says.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge a LoRA adapter into its base model's weights: a plain checkpoint that `optimize` takes."""
    from fmopt import adapters

    made = adapters.merge(adapter, output, base=base)
    answer({"checkpoint": str(made)}, as_json, lambda: print(f"{made} is a checkpoint; try: fmopt inspect {made}"))


@app.command()
def trim(
    model: Model,
    texts: Annotated[Path, typer.Option("--texts", help="What the model will read, one text a line.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint.")],
    as_json: Json = False,
) -> None:
    """Cut the vocabulary to what texts need; they give the same tokens and outputs, others are spelled in more tokens."""
    from fmopt import present, vocabulary

    got = vocabulary.trim(model, read_lines(texts), output)
    answer(dataclasses.asdict(got), as_json, lambda: present.trimmed(got))


@app.command()
def bench(
    models: Annotated[list[str], typer.Argument(help="Bundles, or models (run on every full-precision runtime).")],
    batch: Annotated[str, typer.Option("--batch", help="1,8")] = "1",
    length: Annotated[str, typer.Option("--length", help="32,128")] = "128",
    threads: Annotated[str, typer.Option("--threads", help="1,2")] = "1",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Time models and bundles in turn, in one process."""
    from fmopt import api, present

    with present.live_progress() as progress:
        got = api.benchmark(
            models,
            batch=parse_counts("batch", batch),
            length=parse_counts("length", length),
            threads=parse_counts("threads", threads),
            seed=seed,
            progress=progress,
        )
    answer(
        [{"model": name, **latency.model_dump(mode="json")} for name, latency in got],
        as_json,
        lambda: present.bench(got),
    )


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A model or a bundle.")],
    data: Data = None,
    task: Task = None,
    columns: Columns = None,
    split: Annotated[str, typer.Option("--split")] = "test",
    batch: Annotated[int, typer.Option("--batch")] = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Metrics of a model or bundle on labelled data."""
    from fmopt import api, present

    with present.live_progress() as progress:
        got = api.evaluate(
            model,
            data,
            task=task,
            columns=parse_columns(columns),
            split=split,
            batch=batch,
            seed=seed,
            progress=progress,
        )
    rows = [
        {"metric": score.name, "value": value, "items": len(score.values), "primary": score.primary}
        for score, value in got
    ]
    answer(rows, as_json, lambda: present.metrics(rows))


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; a pair as two texts with --pair.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="One text per line.")] = None,
    pair: Annotated[
        bool, typer.Option("--pair", help="The two texts are one pair (question and context, premise and hypothesis).")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a bundle makes of raw text."""
    from fmopt import bundle as bundles

    raws: list[Any] = list(texts or [])
    if file is not None:
        raws += read_lines(file)
    if pair:
        if len(raws) != 2:
            raise ConfigError(f"--pair takes two texts; {len(raws)} were given")
        raws = [tuple(raws)]
    if not raws:
        raise ConfigError("nothing to predict; give texts, or --file with one text per line")
    got = bundles.load(bundle)(raws)
    answer(got, as_json, lambda: [print(json.dumps(one, ensure_ascii=False)) for one in got])


@app.command()
def compare(a: Path, b: Path, as_json: Json = False) -> None:
    """Compare two records or bundles: the differences that matter first."""
    from fmopt import present
    from fmopt.compare import compare as compare_records
    from fmopt.record import Record

    rows = compare_records(Record.load(record_path(a)), Record.load(record_path(b)))
    answer(rows.model_dump(mode="json"), as_json, lambda: present.comparison(rows))


@app.command()
def inspect(model: Model, task: Task = None, allow_pickle: Pickle = False, as_json: Json = False) -> None:
    """What a checkpoint is: architecture, task, labels, size, and what fmopt can do with it."""
    from fmopt import checkpoint, present
    from fmopt.source import resolve

    source = resolve(model)
    facts = checkpoint.inspect(source, task or source.task, allow_pickle=allow_pickle)
    answer(present.facts_data(facts), as_json, lambda: present.facts(facts))


@targets_app.command("list")
def targets_list(as_json: Json = False) -> None:
    """Every known target."""
    from fmopt import present
    from fmopt.target import read_target, target_names

    known = [read_target(name) for name in target_names() if name != "host"]
    answer([t.model_dump(mode="json") for t in known], as_json, lambda: present.targets(known))


@targets_app.command("show")
def targets_show(name: str, as_json: Json = False) -> None:
    """One target's facts."""
    from fmopt import present, probe

    target = probe.load_target(name)
    answer(target.model_dump(mode="json"), as_json, lambda: present.target(target))


@targets_app.command("probe")
def targets_probe(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the target as TOML.")] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: ISA, cores, caches, bandwidth, arithmetic."""
    from fmopt import present, probe

    target = probe.probe_host()
    if output is not None:
        if output.exists():
            raise ConfigError(f"{output} exists; nothing was overwritten. Choose another name")
        probe.save_target(target, output)
    answer(target.model_dump(mode="json"), as_json, lambda: present.target(target))


@app.command()
def report(output: Annotated[Path, typer.Argument(help="Folder of an optimization.")], as_json: Json = False) -> None:
    """Draw the report again from its record."""
    from fmopt.record import Record
    from fmopt.report import write_markdown, write_report

    record = Record.load(record_path(output))
    folder = output if output.is_dir() else output.parent
    write_markdown(record, folder / "report.md")
    page = write_report(record, folder / "report.html")
    answer({"html": str(page), "markdown": str(folder / "report.md")}, as_json, lambda: print(page))


@app.command()
def verify(bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")], as_json: Json = False) -> None:
    """Check every file of a bundle against its hash and the golden items against the model."""
    from fmopt import bundle as bundles

    if not bundles.is_bundle(bundle):
        raise BundleError(f"{bundle} is not a bundle: it has no fmopt.json; name a folder that `fmopt optimize` wrote")
    problems = bundles.verify_bundle(bundle)
    answer(
        {"bundle": str(bundle), "problems": problems},
        as_json,
        lambda: print("\n".join(problems) if problems else f"{bundle}: every file is as it was made"),
    )
    raise typer.Exit(1 if problems else 0)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is installed and usable here, and what is missing."""
    from fmopt import present
    from fmopt.doctor import examine

    found = examine()
    answer([line.model_dump(mode="json") for line in found], as_json, lambda: present.doctor(found))


def answer(data: Any, as_json: bool, show: Any) -> None:
    """One JSON document on stdout, or what a person reads."""
    if as_json:
        print(json.dumps(data, ensure_ascii=False, default=str))
    else:
        show()


def record_path(path: Path) -> Path:
    """The record of a folder, or the file itself."""
    return path / "record.json" if path.is_dir() else path


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; what fmopt can explain is one line on stderr."""
    if several.follows():
        several.follow()
        return 0
    try:
        app(args=argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    except FmoptError as error:
        print(f"fmopt: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        several.dismiss()
    return 0


def entry() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
