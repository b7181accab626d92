"""Records as terminal tables: the variants and the verdict of one, one that is being made, several side by side or over time."""

from __future__ import annotations

from string import ascii_uppercase as LETTERS

from rich.console import Group as Stack
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from fmopt.cli.console import table_of
from fmopt.core import formatting
from fmopt.core.results import Outcome
from fmopt.evaluation.comparison import Comparison
from fmopt.evaluation.history import Group, day, place
from fmopt.evaluation.record import (
    Record,
    Trial,
    as_displayed,
    drop_unit,
    latency_of,
    ordered,
    percentile,
    verdict_words,
    why_not,
)
from fmopt.reports.watch import Seen, sentence, time_words
from fmopt.workflow.sweep.record import Sweep

STYLES = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.UNDECIDED: "yellow", Outcome.UNMEASURED: "bright_black"}


def trial_table(record: Record) -> Table:
    """All variants, the shipped one first, as in the report."""
    record = as_displayed(record)
    table = table_of()
    table.add_column("variant, and why not", overflow="fold", min_width=24)
    for name in ("p50", "p99", "speedup", f"drop, {drop_unit(record)}", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    for trial in ordered(record):
        winner, reference = trial.name == record.winner, trial.name == record.reference
        marks = [
            word
            for word, holds in (
                ("shipped", winner),
                ("reference", reference),
                (trial.status, trial.status != "measured"),
            )
            if holds
        ]
        shown = latency_of(trial)
        ms = formatting.milliseconds(shown) + ("" if trial.latency or shown is None else "\npredicted")
        table.add_row(
            Text(trial.name + (f" ({', '.join(marks)})" if marks else "")).append(
                f"\n  {why}" if (why := why_not(record, trial)) else "", style="not bold dim"
            ),
            ms,
            formatting.milliseconds(percentile(trial.latency, 99)),
            formatting.times(trial.speedup),
            _drop_cell(trial),
            formatting.size(trial.size_bytes),
            style="bold" if winner else "",
        )
    return table


def verdict_panel(record: Record) -> Panel:
    """The verdict, the summary, and a line for each check and warning."""
    word, note = verdict_words(record)
    style = STYLES[record.verdict.outcome] if record.verdict.checks else "bright_black"
    lines: list[Text] = [Text(record.summary)]
    for check in as_displayed(record).verdict.checks:
        got = formatting.quantity(check.got.point if check.got else None, check)
        interval = f" ({formatting.check_interval(check)})" if formatting.check_interval(check) else ""
        line = Text(f"{check.outcome.value:<10} ", style=STYLES[check.outcome])
        limit = "" if check.limit is None else f", limit {formatting.quantity(check.limit, check)}"
        line.append(f"{check.name}: {got}{interval}{limit}", style="default")
        lines.append(line)
    lines += [Text(extra, style="yellow") for extra in (note, *record.circumstances.warnings) if extra]
    return Panel(
        Stack(*lines), title=f"[bold]{escape(word)}[/bold]", border_style=style, title_align="left", expand=False
    )


def _drop_cell(trial: Trial) -> str:
    drop = trial.final_drop
    return formatting.MISSING if drop is None else f"{formatting.points(drop.point)}\n≤ {formatting.points(drop.high)}"


def running_table(seen: Seen, now: float) -> Stack:
    """A run that is followed: where it is, and its variants so far; what waits is named below them."""
    lines: list[Text | Table] = []
    if seen.so_far is not None:
        record, waiting = seen.so_far.record, seen.so_far.waiting
        lines.append(Text(f"{record.model.get('title', 'model')} on {record.target.title}", style="bold"))
        lines.append(trial_table(record))
        if waiting:
            lines.append(Text(f"waiting: {', '.join(waiting)}", style="dim"))
    stage = seen.stage
    if seen.state == "running" and stage is not None:
        count = f" {stage.done} of {stage.total}" if stage.total > 1 else ""
        lines.append(Text(f"{stage.text}{count}", style="bold"))
        bar = Table.grid(padding=(0, 2))
        gone = Text(time_words(stage, now), style="dim")
        bar.add_row(ProgressBar(total=max(stage.total, 1), completed=stage.done, width=40), gone)
        lines.append(bar)
        if stage.said:
            lines.append(Text(f"last said: {stage.said}", style="dim"))
    else:
        lines.append(Text(sentence(seen), style="red"))
    return Stack(*lines)


def comparison_table(found: Comparison) -> Stack:
    """One column per record; changes against the first beside the values of two, under those of more. What matters first."""
    letters, two = LETTERS[: len(found.titles)], len(found.titles) == 2
    table = table_of()
    for name in ("", *letters, *(["change"] if two else [])):
        table.add_column(name, overflow="fold", justify="right" if two and name in ("A", "B") else "left")
    matters = sum(row.matters for row in found.rows)
    for number, row in enumerate(found.rows):
        if number == 0:
            table.add_row(Text("differences that matter" if matters else "no difference that matters", style="bold"))
        if number == matters and matters:
            table.add_row(Text("the rest", style="bold"))
        cells = [Text(cell.shown, style="bold" if cell.matters else "") for cell in row.cells]
        changes = [Text(cell.change, style="" if cell.matters else "dim") for cell in row.cells]
        if two:
            table.add_row(Text(row.what), *cells, changes[1])
        else:
            table.add_row(Text(row.what), *(under(*pair) for pair in zip(cells, changes, strict=True)))
    titles = [Text(f"{letter}  {title}") for letter, title in zip(letters, found.titles, strict=True)]
    return Stack(*titles, table, *(Text(f"note: {caveat}") for caveat in found.caveats))


def history_table(group: Group) -> Stack:
    """Records of one model over time; what got worse, and what differs from the record before, under each."""
    table = table_of()
    table.add_column("date, and what is worse or other than before", overflow="fold", min_width=24)
    for name in ("p50", "speedup", "metric", "size"):
        table.add_column(name, justify="right", overflow="fold")
    for entry in group.entries:
        marked = "▼ " if entry.regressed else "▽ " if entry.regressions else ""
        words = Text(f"{marked}{day(entry.date)}  {entry.verdict}", style="red" if entry.regressed else "")
        words.append(f"\n  {entry.shipped}, fmopt {entry.fmopt}", style="dim")
        for found in entry.regressions:
            why = f"; {found.explained}" if found.explained else ""
            said = f"\n  {found.what}: {found.change} against {found.than}, {day(found.date)}{why}"
            words.append(said, style="yellow" if found.explained else "red")
        for line in entry.differs:
            words.append(f"\n  {line}", style="dim")
        latency = entry.latency
        bounds = f"\n{formatting.number(latency.low)}–{formatting.number(latency.high)}" if latency else ""
        table.add_row(
            words,
            Text(formatting.milliseconds(latency.point if latency else None) + bounds),
            Text(f"{formatting.times(entry.speedup)}\n{formatting.times_interval(entry.speedup)}".strip()),
            Text(f"{formatting.score(entry.value)}\n{entry.metric}".strip()),
            formatting.size(entry.size_bytes),
        )
    return Stack(Text(group.title, style="bold"), Text(place(group)), table)


def under(shown: Text, change: Text) -> Text:
    """A value with its change on the next line."""
    return shown.append_text(Text("\n").append_text(change)) if change else shown


def sweep_table(found: Sweep) -> Table:
    """What each cell of a sweep came to."""
    right = (Column(name, justify="right", no_wrap=True) for name in ("speedup", "drop", "size", "cost"))
    table = table_of(Column("cell and recipe", min_width=20), *right, "verdict")
    for cell in found.cells:
        winner, outcome = cell.find(cell.winner), cell.verdict.outcome
        table.add_row(
            f"{cell.place.name}\n  {cell.winner}",
            formatting.times(cell.speedup),
            formatting.MISSING if cell.test_drop is None else f"{formatting.points(cell.test_drop.point)} {cell.unit}",
            formatting.size(winner.size_bytes if winner else None),
            formatting.seconds(60 * cell.minutes),
            Text(outcome.value if cell.verdict.checks else "no limit", style=STYLES[outcome]),
        )
    return table
