"""Verbs that look: at records, checkpoints, targets and what is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fmopt.cli import completion
from fmopt.cli.options import Clean, Json, Model, On, Pickle, Task, Tokenizer, answer, one_board, record_path
from fmopt.core.errors import BundleError, ConfigError


def compare(
    records: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more records (JSON), folders of an optimization, or bundles.",
            autocompletion=completion.bundles,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Compare records or bundles with the first: the differences that matter come first."""
    from fmopt.cli import output as cli_output
    from fmopt.evaluation.comparison import compare as compare_records

    if len(records) < 2:
        raise ConfigError(f"only {records[0]} was named; compare takes two or more records or bundles")
    found = compare_records(*records)
    answer(found.model_dump(mode="json"), as_json, lambda: cli_output.comparison(found))


def inspect(
    model: Model,
    task: Task = None,
    tokenizer: Tokenizer = None,
    allow_pickle: Pickle = False,
    sbom: Annotated[
        bool, typer.Option("--sbom", help="Of a bundle: print its parts list (CycloneDX 1.6) and nothing else.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a checkpoint or an ONNX graph is: architecture, task, labels, size, and what fmopt can do with it."""
    if sbom:
        print(parts_list(Path(model)))
        return
    from fmopt.cli import output as cli_output
    from fmopt.models import checkpoint
    from fmopt.models.source import resolve

    source = resolve(model, tokenizer=tokenizer)
    if source.graph is not None:
        from fmopt.models.graphs.description import describe

        found = describe(source, task)
        known = {} if found.metadata is None else cli_output.checkpoint_data(found.metadata)
        answer(known | {"graph": found.data()}, as_json, lambda: cli_output.graph(found))
        return
    metadata = checkpoint.inspect(source, task or source.task, allow_pickle=allow_pickle)
    answer(cli_output.checkpoint_data(metadata), as_json, lambda: cli_output.metadata(metadata))


def parts_list(bundle: Path) -> str:
    """The parts list that a bundle carries, as one document; BundleError for one that has none."""
    from fmopt.edge.files import json_line, read_json
    from fmopt.exporters.bundles import bundle as bundles
    from fmopt.exporters.bundles.parts_list import SBOM

    if not bundles.is_bundle(bundle):
        raise BundleError(f"{bundle} is not a bundle: it has no fmopt.json")
    if SBOM not in bundles.checked(bundle)["files"]:
        raise BundleError(f"{bundle} has no {SBOM}: an older fmopt made it; make it again")
    return json_line(read_json(bundle, SBOM))


def report(
    output: Annotated[Path, typer.Argument(help="Folder of an optimization or of a benchmark.")],
    watch: Annotated[bool, typer.Option("--watch", help="Follow a running optimization until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Draw the report again from its record; with --watch, of a run that is under way."""
    from fmopt.edge.manifest import MANIFEST
    from fmopt.evaluation.record import Record
    from fmopt.evaluation.record_view import require_whole
    from fmopt.reports.html import write_markdown, write_report
    from fmopt.workflow.benchmark import record as benchmark_record
    from fmopt.workflow.benchmark.page import write_benchmark

    if watch:
        return watched(output, as_json)
    folder = output if output.is_dir() else output.parent
    if output.name == benchmark_record.FILE or (output / benchmark_record.FILE).is_file():
        page = write_benchmark(benchmark_record.Benchmark.load(output), folder)
        markdown = page.with_suffix(".md")
    else:
        if (folder / MANIFEST).is_file():
            require_whole(folder)
        record = Record.load(record_path(output))
        markdown = write_markdown(record, folder / "report.md")
        page = write_report(record, folder / "report.html")
    return answer({"html": str(page), "markdown": str(markdown)}, as_json, lambda: print(page))


def watched(output: Path, as_json: bool) -> None:
    """Follow a run; exit code 0 when it has ended well, 1 when it broke off, 130 when the user had seen enough."""
    from fmopt.cli import output as cli_output
    from fmopt.reports import watch as watching

    page = watching.Page(output)
    watching.look(output)  # what is no run is said in one line, before anything is drawn
    try:
        seen = cli_output.followed(watching.follow(output), page, aside=as_json)
    except KeyboardInterrupt:
        page.draw(watching.look(output))  # it may have ended since it was looked at
        print("fmopt: no longer watching; the run itself goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    ended = {"state": seen.state, "said": watching.sentence(seen), "html": str(output / "report.html")}
    if seen.record is not None:
        ended |= {"record": str(output / "record.json"), "verdict": seen.record.verdict.outcome.value}
    answer(ended, as_json, lambda: None)
    raise typer.Exit(0 if seen.state == "finished" else 1)


def history(
    paths: Annotated[list[Path], typer.Argument(help="Folders that hold records (record.json), or records.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write a page (HTML).")] = None,
    as_json: Json = False,
) -> None:
    """Records of a model over time, marked where they got worse; exit code 1 when the newest one is worse."""
    from fmopt.cli import output as cli_output
    from fmopt.evaluation import history as evaluation_history
    from fmopt.reports.history_page import write_history

    found = evaluation_history.history(*paths)
    if output is not None:
        write_history(found, output)
    answer(found.model_dump(mode="json"), as_json, lambda: cli_output.history(found))
    raise typer.Exit(int(found.regressed))


def check_tensorrt(
    graph: Annotated[Path, typer.Argument(help="An ONNX file, or a bundle that holds one.")],
    version: Annotated[int, typer.Option("--tensorrt", help="Major version: 10 or 11.")] = 11,
    as_json: Json = False,
) -> None:
    """Would TensorRT take this graph? Operators, types, opset and Q/DQ by its documentation; exit code 1 when not."""
    from fmopt.cli import output as cli_output
    from fmopt.exporters.tensorrt_check import check_file

    found = check_file(graph / "model.onnx" if graph.is_dir() else graph, tensorrt=version)
    answer(found.model_dump(mode="json"), as_json, lambda: cli_output.tensorrt_check(found))
    raise typer.Exit(int(bool(found.faults)))


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Print the commands that bring it; none is run.")] = False,
    as_json: Json = False,
) -> None:
    """What is installed and usable here, and what is missing."""
    from fmopt.cli import output as cli_output
    from fmopt.cli.doctor import examine

    found = examine()
    show = cli_output.fixes if fix else cli_output.doctor
    answer([line.model_dump(mode="json") for line in found], as_json, lambda: show(found))


def targets_list(as_json: Json = False) -> None:
    """Every known target."""
    from fmopt.cli import output as cli_output
    from fmopt.core.target import read_target, target_names

    known = [read_target(name) for name in target_names() if name != "host"]
    answer([t.model_dump(mode="json") for t in known], as_json, lambda: cli_output.targets(known))


def targets_show(
    name: Annotated[
        str, typer.Argument(help="A name of `fmopt targets list`, or a TOML file.", autocompletion=completion.targets)
    ],
    as_json: Json = False,
) -> None:
    """What is known of one target."""
    from fmopt.cli import output as cli_output
    from fmopt.measurement import host_probe

    target = host_probe.load_target(name)
    answer(target.model_dump(mode="json"), as_json, lambda: cli_output.target(target))


def targets_probe(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the target as TOML.")] = None,
    on: On = None,
    clean: Clean = False,
    as_json: Json = False,
) -> None:
    """Measure this machine, or a board --on ssh://…: ISA, cores, caches, bandwidth, arithmetic."""
    from fmopt.cli import console
    from fmopt.cli import output as cli_output
    from fmopt.measurement import host_probe

    if output is not None and output.exists():
        raise ConfigError(f"{output} exists; nothing was overwritten. Choose another name")
    address = one_board(on)
    if address is not None:
        from fmopt.measurement.remote.device_probe import probe_board
        from fmopt.measurement.remote.ssh import open_board

        with console.live_progress() as progress:
            board, place = open_board(address, progress)
            target = probe_board(board, place)
            if clean:
                board.clean()
    elif clean:
        raise ConfigError("--clean goes with --on; add it, or leave --clean out")
    else:
        target = host_probe.probe_host()
    if output is not None:
        host_probe.save_target(target, output)
    answer(target.model_dump(mode="json"), as_json, lambda: cli_output.target(target))
