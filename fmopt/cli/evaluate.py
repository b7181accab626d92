"""Verbs that run a model or a bundle: time it, score it, ask it, check it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fmopt.cli import completion
from fmopt.cli.config_file import command_line
from fmopt.cli.options import Boards, Bundle, Clean, Columns, Data, Json, Seed, Task, Tokenizer, answer
from fmopt.cli.parsing import parse_choices, parse_columns, parse_counts, parse_seconds, read_lines
from fmopt.core import escaping
from fmopt.core.errors import BundleError, ConfigError
from fmopt.edge.files import json_line


def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Bundles, or models (run on every full-precision runtime).",
            autocompletion=completion.models_and_bundles,
        ),
    ],
    batch: Annotated[str, typer.Option("--batch", help="1,8")] = "1",
    length: Annotated[str, typer.Option("--length", help="32,128")] = "128",
    threads: Annotated[str, typer.Option("--threads", help="1,2")] = "1",
    matrix: Annotated[
        bool, typer.Option("--matrix", help="MLPerf's scenarios over all shapes, with a page; resumes when run again.")
    ] = False,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario", help="--matrix: some of single-stream,offline,server.", autocompletion=completion.scenarios
        ),
    ] = None,
    latency_limit: Annotated[
        str | None,
        typer.Option("--latency-limit", help="--matrix: of the server's p99, 50ms; else 10 medians of the reference."),
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", help="--matrix: begin no further cell after 10m.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="--matrix, --on: folder; fmopt-bench if left out.")
    ] = None,
    on: Boards = None,
    min_speedup: Annotated[
        str | None,
        typer.Option("--min-speedup", help="--on several boards: over the first bundle, 1.5x; 1x if left out."),
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option("--max-latency", help="--on several boards: of the median, 8ms.")
    ] = None,
    clean: Clean = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Time models and bundles in turn, in one process."""
    from fmopt.cli import console
    from fmopt.cli import output as cli_output
    from fmopt.evaluation.gate import parse_latency
    from fmopt.workflow.benchmark import suite
    from fmopt.workflow.benchmark.scenarios import SCENARIOS

    shapes = {
        "batch": parse_counts("batch", batch),
        "length": parse_counts("length", length),
        "threads": parse_counts("threads", threads),
    }
    if clean and not on:
        raise ConfigError("--clean goes with --on; add it, or leave --clean out")
    if not matrix:
        only: dict[str, object] = {"--scenario": scenario, "--latency-limit": latency_limit, "--time-limit": time_limit}
        only |= {} if on else {"--output": output}
        given = [name for name, value in only.items() if value is not None]
        if given:
            raise ConfigError(f"{given[0]} goes with --matrix; add it, or leave {given[0]} out")
    limits = {"min_speedup": min_speedup, "max_latency": max_latency}
    if on:
        bench_on_boards(on, models, matrix, output or Path("fmopt-bench"), clean, shapes, limits, seed, as_json)
        return
    refuse_limits(limits)
    if not matrix:
        with console.live_progress() as progress:
            got = suite.benchmark(models, **shapes, seed=seed, progress=progress)
        rows = [{"model": name, **latency.model_dump(mode="json")} for name, latency in got]
        answer(rows, as_json, lambda: cli_output.bench(got))
        return
    scenarios = SCENARIOS if scenario is None else parse_choices("scenario", scenario, SCENARIOS)
    limit_ms = None if latency_limit is None else parse_latency(latency_limit, "latency-limit")
    time_limit_s = None if time_limit is None else parse_seconds(time_limit)
    folder = output or Path("fmopt-bench")
    with console.live_progress() as progress:
        found = suite.benchmark_matrix(
            models,
            **shapes,
            out=folder,
            scenarios=scenarios,
            latency_limit_ms=limit_ms,
            time_limit_s=time_limit_s,
            seed=seed,
            command=command_line(),
            progress=progress,
        )
    answer(found.model_dump(mode="json"), as_json, lambda: cli_output.matrix(found, folder))


def bench_on_boards(
    on: list[str],
    models: list[str],
    matrix: bool,
    folder: Path,
    clean: bool,
    shapes: dict[str, list[int]],
    limits: dict[str, str | None],
    seed: int,
    as_json: bool,
) -> None:
    """A bundle's own benchmark on one board, or bundles in turn on each of several; then the exit code is the verdict's."""
    from fmopt.cli import console
    from fmopt.cli import output as cli_output
    from fmopt.evaluation import gate
    from fmopt.measurement.remote.inventory import is_fleet
    from fmopt.workflow.benchmark.fleet import benchmark_fleet

    if matrix:
        raise ConfigError("--matrix is for this machine; leave it out with --on")
    if not is_fleet(on):
        refuse_limits(limits)
        bench_on_board(on[0], models, folder, clean, shapes, as_json)
        return
    least, most = limits["min_speedup"], limits["max_latency"]
    with console.live_progress() as progress:
        found = benchmark_fleet(
            on,
            models,
            out=folder,
            min_speedup=None if least is None else gate.parse_speedup(least),
            max_latency_ms=None if most is None else gate.parse_latency(most),
            seed=seed,
            clean=clean,
            command=command_line(),
            progress=progress,
            **shapes,
        )
    answer(found.model_dump(mode="json"), as_json, lambda: cli_output.fleet(found, folder))
    raise typer.Exit(found.exit_code)


def refuse_limits(limits: dict[str, str | None]) -> None:
    """ConfigError for limits where nothing is judged."""
    for name, value in limits.items():
        if value is not None:
            word = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{word} goes with --on and several boards or an inventory; leave it out")


def bench_on_board(
    on: str, models: list[str], folder: Path, clean: bool, shapes: dict[str, list[int]], as_json: bool
) -> None:
    """A bundle's own benchmark on a board."""
    from fmopt.cli import console
    from fmopt.cli import output as cli_output
    from fmopt.workflow.benchmark.remote import benchmark_on

    if len(models) != 1:
        raise ConfigError(f"--on takes one bundle at a time; {len(models)} were named")
    command = command_line()
    with console.live_progress() as progress:
        found, rows = benchmark_on(on, models[0], out=folder, clean=clean, command=command, progress=progress, **shapes)
    answer(found.model_dump(mode="json"), as_json, lambda: cli_output.bench_on_board(found, rows, folder))


def evaluate(
    model: Annotated[str, typer.Argument(help="A model or a bundle.", autocompletion=completion.models_and_bundles)],
    data: Data = None,
    task: Task = None,
    tokenizer: Tokenizer = None,
    columns: Columns = None,
    split: Annotated[
        str, typer.Option("--split", autocompletion=completion.words("train", "validation", "test"))
    ] = "test",
    batch: Annotated[int, typer.Option("--batch", min=1)] = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Metrics of a model or bundle on labelled data."""
    from fmopt.cli import console
    from fmopt.cli import output as cli_output
    from fmopt.workflow import evaluate as workflow_evaluate

    with console.live_progress() as progress:
        got = workflow_evaluate.evaluate(
            model,
            data,
            task=task,
            tokenizer=tokenizer,
            columns=parse_columns(columns),
            split=split,
            batch=batch,
            seed=seed,
            progress=progress,
        )
    rows = [
        {
            "metric": name,
            "value": one.point,
            "low": one.low,
            "high": one.high,
            "items": one.items,
            "primary": one.primary,
        }
        for name, one in got.items()
    ]
    answer(rows, as_json, lambda: cli_output.metrics(rows))


def explain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE", help="A bundle's folder, or an .onnx file.", autocompletion=completion.bundles
        ),
    ],
    batch: Annotated[int, typer.Option("--batch", min=1)] = 1,
    length: Annotated[
        int | None,
        typer.Option("--length", min=1, help="Tokens; by default a bundle's own golden item of middle length."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="More than one are timed against fewer.")] = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Why a bundle is not faster here: where its time goes, and which option would change it."""
    from fmopt.cli import console
    from fmopt.cli import output as cli_output
    from fmopt.workflow import explain as workflow_explain

    with console.live_progress() as progress:
        found = workflow_explain.explain(
            model, batch=batch, length=length, threads=threads, seed=seed, progress=progress
        )
    answer(found.model_dump(mode="json"), as_json, lambda: cli_output.diagnosis(found))


def predict(
    bundle: Bundle,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; a pair as two texts with --pair. Of images and audio, files.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="One text, or one file's path, per line.")] = None,
    pair: Annotated[
        bool, typer.Option("--pair", help="The two texts are one pair (question and context, premise and hypothesis).")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Generation: tokens at most; the model's own number, else 64."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", min=0, help="Generation: of sampling; without it the likeliest is taken."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Generation: sample among so many tokens.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", min=0, max=1, help="Generation: sample among the likeliest of this probability together."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Generation and speech: of what is drawn.")
    ] = None,
    beams: Annotated[
        int | None, typer.Option("--beams", min=1, help="Generation: beam search over so many texts.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="Generation: end before this text; repeatable.")
    ] = None,
    speculation: Annotated[
        str | None,
        typer.Option(
            "--speculation",
            help="Generation: check several tokens at once that followed the newest ones earlier in the text, where the "
            'answer stays the same ("auto"), wherever the cache can be cut ("lookup"), or never ("off").',
            autocompletion=completion.words("auto", "lookup", "off"),
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Generation: each text is a message, put into the model's own chat template.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Speech: the WAV file to write, a folder for several texts.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Generation: print the text while it is made.")] = False,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Object detection: the least score of a box to tell; 0.5 if left out."),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help='Whisper: of the sound ("en", "english"); else found in the sound.')
    ] = None,
    speech_task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help='Whisper: "transcribe", or "translate" into English.',
            autocompletion=completion.words("transcribe", "translate"),
        ),
    ] = None,
    timestamps: Annotated[
        bool | None, typer.Option("--timestamps", help="Whisper: tell the time of every segment.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a bundle makes of texts, images or audio; one that generates text goes on from it."""
    from fmopt.exporters.bundles import bundle as bundles

    samples: list[Any] = list(texts or [])
    if file is not None:
        samples += read_lines(file)
    if pair and chat:
        raise ConfigError("--chat takes messages and --pair two texts; leave one of them out")
    if pair:
        if len(samples) != 2:
            raise ConfigError(f"--pair takes two texts; {len(samples)} were given")
        samples = [tuple(samples)]
    if not samples:
        raise ConfigError("nothing to predict; give texts or files, or --file with one per line")
    answers = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
            "beams": beams, "stop": tuple(stop) if stop else None, "speculation": speculation,
            "output": output, "threshold": threshold,
            "language": language, "task": speech_task, "timestamps": timestamps}  # fmt: skip
    options = {name: value for name, value in answers.items() if value is not None}
    model = bundles.load(bundle)
    if "speech" in model.pipeline and output is None:
        raise ConfigError("audio cannot be printed; say where it goes: -o out.wav")
    if chat:
        from fmopt.exporters.bundles.chat import chat_prompts

        samples = [*chat_prompts(bundle, model, samples)]
    if stream:
        if len(samples) != 1 or as_json:
            raise ConfigError("--stream prints one text as it is made; give one, and leave --json out")
        for piece in model.stream(samples[0], **options):
            print(escaping.terminal(piece), end="", flush=True)
        print()
        return
    got, problems = model.answers(samples, **options)
    answer(got, as_json, lambda: [print(json_line(one)) for one in got if one is not None])
    for problem in problems:
        print(f"error: {escaping.one_line(problem)}", file=sys.stderr)
    if problems:
        raise typer.Exit(2)


def verify(
    bundle: Bundle,
    key: Annotated[
        Path | None, typer.Option("--key", help="The public key (PEM) that must have signed it; see `fmopt sign`.")
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option("--trust", help="An issuer's certificate (PEM); one that it issued must have signed it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every file of a bundle against its hash, the golden items against the model, and who signed it."""
    from fmopt.edge.loading import require_trusted
    from fmopt.exporters.bundles import bundle as bundles

    if not bundles.is_bundle(bundle):
        raise BundleError(f"{bundle} is not a bundle: it has no fmopt.json; name a folder that `fmopt optimize` wrote")
    for path in (key, trust):
        if path is not None:
            require_trusted(bundle, path)
    problems = bundles.verify_bundle(bundle)
    text = "\n".join(problems) if problems else f"{bundle}: every file is as it was made"
    stream = sys.stderr if problems else sys.stdout
    answer({"bundle": str(bundle), "problems": problems}, as_json, lambda: print(escaping.terminal(text), file=stream))
    raise typer.Exit(2 if problems else 0)
