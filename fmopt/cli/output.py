"""What a person reads in the terminal at the end: tables on stdout. Numbers are worded by core/formatting.py."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from fmopt.cli.console import PlainConsole, out, show, table_of
from fmopt.cli.doctor import Line
from fmopt.cli.tables import (
    STYLES,
    comparison_table,
    history_table,
    running_table,
    sweep_table,
    trial_table,
    verdict_panel,
)
from fmopt.core import escaping, formatting
from fmopt.core.model import CheckpointMetadata, static_shape, takes_length
from fmopt.core.results import Latency
from fmopt.core.target import Target
from fmopt.evaluation.comparison import Comparison
from fmopt.evaluation.history import History
from fmopt.evaluation.record import Record, as_displayed, drop_unit
from fmopt.exporters.bundles.bundle import script_of
from fmopt.exporters.tensorrt_check import Checked
from fmopt.measurement.roofline.diagnosis import Diagnosis
from fmopt.models.graphs.description import Description
from fmopt.models.vocabulary import Trimmed
from fmopt.reports.check_reports import in_words
from fmopt.reports.watch import Page, Seen
from fmopt.workflow.benchmark.fleet_record import FleetBenchmark
from fmopt.workflow.benchmark.page import view
from fmopt.workflow.benchmark.record import Benchmark
from fmopt.workflow.regressions import Regressions
from fmopt.workflow.search.plan import Plan
from fmopt.workflow.sweep.record import Sweep

SHOWN = 12  # rows of a table that --json gives in full


def record(found: Record, folder: Path) -> None:
    """The verdict, the candidates, and where things are."""
    out.print(verdict_panel(found))
    show(trial_table(found))
    script = folder / script_of(folder)
    verify = f"python {shlex.quote(escaping.one_line(script))} verify"
    out.print(f"bundle  {folder}\nreport  {folder / 'report.html'}\ntry     {verify}", markup=False)


def followed(looks: Iterable[Seen], page: Page, *, aside: bool) -> Seen:
    """Draw a run again and again until it has ended; the last look. `aside`: on stderr, because stdout takes JSON."""
    console = PlainConsole(stderr=True) if aside else out
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for seen in looks:
            page.draw(seen)
            live.update(running_table(seen, time.time()), refresh=True)
    if seen.record is not None and not aside:
        record(seen.record, page.out)
    elif seen.record is None:
        console.print(running_table(seen, time.time()))
    return seen


def family(speedups: Sequence[float], records: Sequence[Record], folder: Path) -> None:
    """One line per bundle of a family."""
    units = sorted({drop_unit(found) for found in records})
    right = (
        Column(name, justify="right", no_wrap=True) for name in ("p50", "speedup", f"drop, {'/'.join(units)}", "size")
    )
    table = table_of(Column("bundle", min_width=24), "asked for", *right)
    for asked, found in zip(speedups, map(as_displayed, records), strict=True):
        trial = found.winning
        assert trial is not None  # every run ships something
        drop = trial.final_drop
        table.add_row(
            f"{folder / f'{asked:g}x'}\n  {trial.name}: {found.verdict.outcome.value}", f"{asked:g}×",
            formatting.milliseconds(trial.p50), formatting.times(trial.speedup), 
            formatting.points(drop.point) if drop else formatting.MISSING, formatting.size(trial.size_bytes),
        )  # fmt: skip
    show(table)


def plan(found: Plan) -> None:
    """Candidates in order, refusals with reasons, what it would take."""
    table = table_of("#", "candidate", "runtime", "passes", title="would be tried, in this order")
    for number, recipe in enumerate((*found.baselines, *found.candidates), 1):
        table.add_row(str(number), recipe.name, recipe.runtime, " → ".join(map(str, recipe.steps)) or "as it is")
    show(table)
    for line in found.later:
        out.print(f"then {line}", markup=False)
    for refusal in found.refused:
        out.print(f"refused {refusal.recipe}: {refusal.reason}", markup=False)
    need = found.estimates
    out.print(f"estimated: {need.minutes:g} minutes, {need.ram_gb:g} GB RAM, {need.disk_gb:g} GB disk")


def bench(found: Sequence[tuple[str, Latency]]) -> None:
    """Percentiles per model, shape and threads; ratios against the first model of the same shape."""
    right = (Column(name, justify="right", no_wrap=True) for name in ("p50", "p90", "p99", "ratio"))
    table = table_of(Column("model", min_width=24), *right)
    first: dict[tuple[int, int | None, int], float] = {}
    for name, latency in found:
        p50, p90, p99 = np.percentile(latency.samples_ms, [50, 90, 99])
        base = first.setdefault((latency.batch, latency.length, latency.threads), float(p50))
        table.add_row(
            f"{name}\n  {formatting.shape(latency.batch, latency.length, latency.threads)}; {len(latency.samples_ms)} samples",
            *map(formatting.milliseconds, (p50, p90, p99)), f"{base / p50:.2f}×",
        )  # fmt: skip
    show(table)


def bench_on_board(found: Benchmark, rows: Sequence[tuple[str, Latency]], folder: Path) -> None:
    """What a board is, a bundle's percentiles there, and where the page is."""
    runtime = " ".join(f"{name} {version}" for name, version in found.versions.items())
    out.print(f"{found.host['cpu']} ({found.host['arch']}, {found.host['cores']} cores), {runtime}", markup=False)
    bench([(f"{name}{', sample to answer' if latency.end_to_end else ''}", latency) for name, latency in rows])
    for warning in dict.fromkeys(warning for cell in found.cells for warning in cell.warnings):
        out.print(f"warning: {warning}", markup=False)
    out.print(f"page    {folder / 'benchmark.html'}", markup=False)


def fleet(found: FleetBenchmark, folder: Path) -> None:
    """Each bundle on each board, the verdict of each and of all, and where the page is."""
    right = (Column(name, justify="right", no_wrap=True) for name in ("median", "speedup"))
    table = table_of(Column("bundle", min_width=24), *right)
    for one in found.figures:
        at = formatting.shape(one.place.batch, one.place.length, one.place.threads)
        low, high = (formatting.milliseconds(bound) for bound in (one.median_ms.low, one.median_ms.high))
        speedup = f"{formatting.times(one.speedup)}\n{formatting.times_interval(one.speedup)}" if one.speedup else ""
        median = f"{formatting.milliseconds(one.median_ms.point)}\n{low} to {high}"
        table.add_row(f"{one.variant}\n  {one.board}: {at}", median, speedup)
    show(table)
    for line in found.sentences():
        out.print(line, markup=False)
    out.print(f"page    {folder / 'fleet.md'}", markup=False)


def matrix(found: Benchmark, folder: Path) -> None:
    """One table per scenario and thread count, and where the page is."""
    shown = view(found)
    for drawn in shown["maps"]:
        title = f"{drawn.scenario}, {drawn.threads} thread{'s' if drawn.threads != 1 else ''}"
        table = table_of("variant", title=title)
        for column in drawn.columns:
            table.add_column(f"{column.place.batch} × {column.place.length or formatting.MISSING}", justify="right")
        for variant in found.variants:
            shades = [column.shades.get(variant.name) for column in drawn.columns]
            table.add_row(
                variant.name,
                *(f"{s.ratio or formatting.MISSING} {s.figure}" if s else formatting.MISSING for s in shades),
            )
        show(table)
    if shown["missing"]:
        left = f"{shown['missing']} of {len(found.places)} cells are not measured: {found.stopped}"
        out.print(f"{left}; the same command goes on", markup=False)
    if shown["disturbed"]:
        out.print(f"the machine was not quiet in {len(shown['disturbed'])} cells; the page says how", markup=False)
    out.print(f"times are against {shown['against']}\npage    {folder / 'benchmark.html'}", markup=False)


def sweep(found: Sweep, folder: Path) -> None:
    """A line for each cell, what was found there beside the fixed plan, and where the page is."""
    if found.cells:
        show(sweep_table(found))
    for cell in found.cells:
        out.print(f"{cell.place.name}: {cell.sentence}", markup=False)
    for failure in found.failures:
        out.print(f"{failure.place.name} failed: {failure.reason}", markup=False)
    out.print(f"page    {folder / 'sweep.html'}", markup=False)


def metrics(rows: Sequence[dict[str, Any]]) -> None:
    """One line per metric."""
    table = table_of("metric", "value", "95 % interval", "items")
    for row in rows:
        interval = f"{row['low']:.4f} to {row['high']:.4f}"
        table.add_row(row["metric"], f"{row['value']:.4f}", interval, str(row["items"]))
    show(table)


def diagnosis(found: Diagnosis) -> None:
    """Findings first, then the tables they come from: kinds of operators, layers under the roof, threads."""
    at = found.circumstances
    shape = formatting.shape(at.batch, at.length, at.threads)
    heading = f"{found.model}: {formatting.milliseconds(found.p50_ms)} on {formatting.runtime(found.runtime)}, {shape}"
    out.print(heading, markup=False)
    if found.findings:
        table = table_of(Column("of the time", justify="right"), "why it is not faster", "what would change it")
        for finding in found.findings:
            table.add_row(formatting.percent(finding.share), finding.text, finding.remedy)
        show(table)
    else:
        out.print("nothing to see: no sort of overhead takes a tenth of the time")
    show(_kinds_table(found))
    if found.layers and found.roof:
        show(_layers_table(found))
    for timed in found.threads:
        gained = f" ({formatting.times(timed.speedup)} as fast, {formatting.times_interval(timed.speedup)})"
        out.print(
            f"{timed.threads} thread{'s' if timed.threads != 1 else ''}: {formatting.milliseconds(timed.p50_ms)}"
            f"{gained if timed.threads != at.threads else ''}",
            markup=False,
        )
    for warning in at.warnings:
        out.print(f"note: {warning}", markup=False)


def _kinds_table(found: Diagnosis) -> Table:
    right = (Column(name, justify="right", no_wrap=True) for name in ("count", "ms", "share"))
    table = table_of("operators", "of the sort", "in", *right, title="time by kind of operator")
    for kind in found.kinds[:SHOWN]:
        precision = formatting.precision(kind.precision) or formatting.MISSING
        numbers = (str(kind.operators), formatting.number(kind.ms), formatting.percent(kind.share))
        table.add_row(kind.kind, kind.group, precision, *numbers)
    return table


def _layers_table(found: Diagnosis) -> Table:
    assert found.roof is not None
    ceilings = ", ".join(f"{name} {gops:.0f}" for name, gops in found.roof.gops.items())
    title = f"layers under the roof: {ceilings} GOPS and {found.roof.bandwidth_gbs:.0f} GB/s, measured here"
    right = (Column(name, justify="right") for name in ("share", "operations\nper byte", "GOPS", "of its\nceiling"))
    table = table_of(Column("layer", min_width=26), *right, "bound by", title=title)
    for point in found.layers[:SHOWN]:
        table.add_row(
            f"{point.layer}\n  {point.group} {formatting.precision(point.precision)}".rstrip(),
            formatting.percent(point.share), formatting.number(point.intensity), formatting.number(point.gops),
            formatting.percent(point.of_roof) if point.of_roof <= 1 else "over (cached)", point.bound,
        )  # fmt: skip
    if len(found.layers) > SHOWN:
        table.caption = f"the {SHOWN} longest of {len(found.layers)}; --json gives all"
    return table


def comparison(found: Comparison) -> None:
    """Differences that matter first."""
    show(comparison_table(found))


def regressions(found: Regressions) -> None:
    """Each check with what came of it, and what makes the two hard to compare."""
    out.print(Text(f"B: {found.candidate}\nheld to A: {found.reference}"), soft_wrap=True)
    for one in found.verdict.checks:
        came = in_words(one)
        out.print(
            Text(f"{one.outcome.value:<10} {one.name}{f': {came}' if came else ''}", style=STYLES[one.outcome]),
            soft_wrap=True,
        )
    for caveat in found.caveats:
        out.print(Text(f"  {caveat}"), soft_wrap=True)


def pushed(found: Mapping[str, Any]) -> None:
    """Where a bundle is now, and what its card says."""
    place = found.get("commit") or found.get("folder") or f"run {found['run_id']}, {found['artifact_uri']}"
    out.print(Text(f"{found['files']} files at {place}"), soft_wrap=True)
    if found.get("version"):
        out.print(Text(f"registered as version {found['version']}"), soft_wrap=True)
    out.print(Text(f"the model card says {found['verdict']}, licence {found['license']}"), soft_wrap=True)


def history(found: History) -> None:
    """Every group, the oldest record first, and what was skipped."""
    for group in found.groups:
        show(history_table(group))
    for line in found.skipped:
        out.print(f"skipped: {line}", markup=False)
    marks = "▼ worse than an earlier record by more than noise; ▽ so too, but explained, which does not count"
    out.print(marks, markup=False)


def trimmed(found: Trimmed) -> None:
    """What trimming a vocabulary gave."""
    table = table_of(title=str(found.folder))
    for name in ("", "before", "after"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("tokens", f"{found.tokens_before:,}", f"{found.tokens:,}")
    table.add_row("weights", f"{found.bytes_before / 1e6:,.1f} MB", f"{found.bytes / 1e6:,.1f} MB")
    table.add_row("tokenizer and weights read in", f"{found.load_ms_before:.0f} ms", f"{found.load_ms:.0f} ms")
    show(table)
    out.print("The texts give the same tokens as before; other words are spelled in more tokens.")


def checkpoint_data(found: CheckpointMetadata) -> dict[str, Any]:
    """A checkpoint's metadata as JSON-able data."""
    data = dataclasses.asdict(found)
    del data["config"]
    return data | {"pipeline": dict(found.pipeline)}


def metadata(found: CheckpointMetadata) -> None:
    """What a checkpoint is."""
    table = table_of(show_header=False, title=found.source.title)
    labels = found.pipeline.get("labels") or []
    rows = {
        "architecture": f"{found.architecture or 'no head'} ({found.model_type})",
        "task": found.task,
        "layers": f"{found.layers} × {found.hidden_size}",
        "parameters": f"{found.parameters:,}",
        "weights": f"{found.weight_bytes / 1e6:,.1f} MB",
        "takes": "; ".join([", ".join(found.pipeline["inputs"]), *_size(found.pipeline)]),
        "labels": f"{len(labels)}: {', '.join(labels[:8])}{' …' if len(labels) > 8 else ''}" if labels else "none",
        "folder": str(found.folder),
        "licence": found.source.licence or "not stated",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    show(table)


def graph(found: Description) -> None:
    """What an ONNX graph is, then what is known of its task."""
    table = table_of(show_header=False, title=found.summary.path.name)
    for name, value in found.rows().items():
        table.add_row(name, value)
    show(table)
    if found.metadata is not None:
        metadata(found.metadata)


def _size(pipeline: Mapping[str, Any]) -> list[str]:
    """How large an input is, as far as that is known."""
    if takes_length(pipeline):
        return [f"at most {pipeline['max_length']} tokens"]
    shape = static_shape(pipeline, 1, None)
    return [" × ".join(map(str, shape[1:]))] if shape else []


def targets(known: Sequence[Target]) -> None:
    """One line per target."""
    right = (Column(name, justify="right", no_wrap=True) for name in ("cores", "memory", "GB/s"))
    wide = (Column(name, min_width=len("onnxruntime")) for name in ("precisions", "runtimes"))
    table = table_of("target", *right, *wide)
    for target in known:
        table.add_row(
            f"{target.name}\n  {target.title}",
            str(target.cores),
            f"{target.memory_gb:g} GB",
            f"{target.bandwidth_gbs:g}" if target.bandwidth_gbs else formatting.MISSING,
            " ".join(target.precisions),
            " ".join(target.runtimes),
        )
    show(table)


def target(found: Target) -> None:
    """Everything known of one target."""
    table = table_of(show_header=False, title=found.name)
    for name, value in found.model_dump(mode="json").items():
        if value not in (None, [], {}):
            table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    show(table)


def tensorrt_check(found: Checked) -> None:
    """What TensorRT would not take of a graph, faults first; nodes that share one trouble share a line."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for one in found.findings:
        alike.setdefault((one.level, one.operator, one.text), []).append(one.node)
    for (level, operator, text), nodes in alike.items():
        named = ", ".join(node for node in nodes[:SHOWN] if node)
        more = f" and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
        out.print(f"{level}: {operator}: {text}" + (f": {named}{more}" if named else ""), markup=False)
    faults, slow = len(found.faults), sum(one.level == "slow" for one in found.findings)
    out.print(
        f"{found.nodes} nodes against the support matrix of {found.matrix}, opsets of TensorRT {found.tensorrt}: "
        f"{faults} fault{'' if faults == 1 else 's'}, {slow} slow; no engine was built",
        markup=False,
    )


def doctor(lines: Sequence[Line]) -> None:
    """One line per thing looked at."""
    table = table_of("", "what", "detail")
    marks = {"ok": Text("✓", "green"), "missing": Text("✗", "red"), "warning": Text("!", "yellow")}
    for line in lines:
        table.add_row(marks[line.state], line.what, line.detail)
    show(table)
    if any(line.fix for line in lines):
        out.print("fmopt doctor --fix prints the commands that bring what is missing")


def fixes(lines: Sequence[Line]) -> None:
    """Commands to copy into a shell, each with what it is for; plain and unbroken, so that they can also be piped into one."""
    for line in lines:
        if line.fix:
            print(escaping.terminal("\n".join([f"# {line.what}: {line.detail}", *line.fix])))
    if not any(line.fix for line in lines):
        print("# nothing is missing")
