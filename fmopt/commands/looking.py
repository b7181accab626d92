"""Verbs that look: at records, checkpoints, targets and what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmopt.commands.words import Json, Model, Pickle, Task, answer, record_path
from fmopt.errors import ConfigError


def compare(a: Path, b: Path, as_json: Json = False) -> None:
    """Compare two records or bundles: the differences that matter first."""
    from fmopt import present
    from fmopt.compare import compare as compare_records
    from fmopt.record import Record

    rows = compare_records(Record.load(record_path(a)), Record.load(record_path(b)))
    answer(rows.model_dump(mode="json"), as_json, lambda: present.comparison(rows))


def inspect(model: Model, task: Task = None, allow_pickle: Pickle = False, as_json: Json = False) -> None:
    """What a checkpoint is: architecture, task, labels, size, and what fmopt can do with it."""
    from fmopt import checkpoint, present
    from fmopt.source import resolve

    source = resolve(model)
    facts = checkpoint.inspect(source, task or source.task, allow_pickle=allow_pickle)
    answer(present.facts_data(facts), as_json, lambda: present.facts(facts))


def report(
    output: Annotated[Path, typer.Argument(help="Folder of an optimization or of a benchmark.")], as_json: Json = False
) -> None:
    """Draw the report again from its record."""
    from fmopt import bench_record
    from fmopt.bench_report import write_benchmark
    from fmopt.record import Record
    from fmopt.report import write_markdown, write_report

    folder = output if output.is_dir() else output.parent
    if output.name == bench_record.FILE or (output / bench_record.FILE).is_file():
        page = write_benchmark(bench_record.Benchmark.load(output), folder)
        markdown = page.with_suffix(".md")
    else:
        record = Record.load(record_path(output))
        markdown = write_markdown(record, folder / "report.md")
        page = write_report(record, folder / "report.html")
    answer({"html": str(page), "markdown": str(markdown)}, as_json, lambda: print(page))


def doctor(as_json: Json = False) -> None:
    """What is installed and usable here, and what is missing."""
    from fmopt import present
    from fmopt.doctor import examine

    found = examine()
    answer([line.model_dump(mode="json") for line in found], as_json, lambda: present.doctor(found))


def targets_list(as_json: Json = False) -> None:
    """Every known target."""
    from fmopt import present
    from fmopt.target import read_target, target_names

    known = [read_target(name) for name in target_names() if name != "host"]
    answer([t.model_dump(mode="json") for t in known], as_json, lambda: present.targets(known))


def targets_show(name: str, as_json: Json = False) -> None:
    """One target's facts."""
    from fmopt import present, probe

    target = probe.load_target(name)
    answer(target.model_dump(mode="json"), as_json, lambda: present.target(target))


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
