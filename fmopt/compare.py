"""Two records side by side, judged by the gate's statistics on raw samples; and a record as terminal tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fmopt import gate, wording
from fmopt.record import Record, Trial, latency_of, ordered, percentile, value_of, verdict_words, why_not
from fmopt.results import Estimate, Frozen, Latency, Outcome, Scores

# Two runs are not timed in turn, so a difference within what a quiet machine shows from day to day is not called one.
NOISE = 0.03
MEMORY_NOISE = 0.05
STYLES = {Outcome.PASS: "green", Outcome.FAIL: "red", Outcome.UNDECIDED: "yellow", Outcome.UNMEASURED: "bright_black"}


class Difference(Frozen):
    """One line of a comparison."""

    what: str
    a: str
    b: str
    change: str = ""  # in words, with its interval where there are raw samples
    estimate: Estimate | None = (
        None  # a ratio for times (above 1: b is faster), a drop in units of the metric for accuracy
    )
    matters: bool = False


class Comparison(Frozen):
    """What is different between two records, what matters first, and what makes them hard to compare."""

    a: str
    b: str
    rows: list[Difference]
    caveats: list[str]


def compare(a: Record, b: Record) -> Comparison:
    """Everything that both records know, differences that matter first. A record's shipped variant stands for it."""
    confidence = max(a.confidence, b.confidence)
    one, two = a.winning, b.winning
    rows = [
        _words("verdict", a.verdict.outcome.value, b.verdict.outcome.value),
        _words("shipped variant", a.winner, b.winner),
    ]
    if one and two:
        rows += [
            _times("latency, shipped", one.latency, two.latency, confidence),
            _times("end to end, shipped", one.end_to_end, two.end_to_end, confidence),
            _accuracy(a, b, one, two, confidence),
            _amount("size", one.size_bytes, two.size_bytes, 0.01, wording.size),
            _amount("peak memory", _memory(one), _memory(two), MEMORY_NOISE, wording.megabytes),
        ]
    for trial in a.everything:
        other = b.find(trial.name)
        if other is not None and not (trial is one and other is two):
            rows.append(_times(f"latency, {trial.name}", trial.latency, other.latency, confidence))
    names = [{t.name for t in record.everything} for record in (a, b)]
    rows += [Difference(what=f"variant {name}", a="tried", b=wording.MISSING) for name in sorted(names[0] - names[1])]
    rows += [Difference(what=f"variant {name}", a=wording.MISSING, b="tried") for name in sorted(names[1] - names[0])]
    return Comparison(a=title(a), b=title(b), rows=sorted(rows, key=lambda row: not row.matters), caveats=caveats(a, b))


def title(record: Record) -> str:
    """What a record is called beside another one."""
    return f"{record.model.get('title', 'model')} on {record.target.title}, {record.circumstances.date}"


def caveats(a: Record, b: Record) -> list[str]:
    """Circumstances that differ, so that a difference may not be the models'."""
    found = []
    for what, one, two in (
        ("model", a.model.get("digest"), b.model.get("digest")),
        ("data", a.data.get("digest"), b.data.get("digest")),
        ("target", a.target.name, b.target.name),
    ):
        if one != two:
            found.append(f"the {what} is not the same")
    found += _differing("", a.circumstances.host, b.circumstances.host)
    found += _differing("version of ", a.circumstances.versions, b.circumstances.versions)
    found.append(
        "the two were timed in different runs, not in turn: "
        f"differences under {wording.percent(NOISE)} are not called differences"
    )
    return found


def render_text(found: Comparison) -> str:
    """A comparison as plain text, 100 characters wide or less where names allow."""
    lines = [f"A  {found.a}", f"B  {found.b}", ""]
    cells = [("what", "A", "B", "change")] + [(row.what, row.a, row.b, row.change) for row in found.rows]
    wide = [max(len(line[i]) for line in cells) for i in range(3)]
    matters = [row for row in found.rows if row.matters]
    for number, line in enumerate(cells):
        if number == 1 and matters:
            lines.append("differences that matter")
        if number == len(matters) + 1:
            lines.append("the rest" if matters else "no difference that matters")
        lines.append(
            "  ".join(["  " + line[0].ljust(wide[0]), line[1].rjust(wide[1]), line[2].rjust(wide[2]), line[3]]).rstrip()
        )
    return "\n".join([*lines, "", *(f"note: {caveat}" for caveat in found.caveats)])


def trial_table(record: Record) -> Table:
    """All variants, the shipped one first, as in the report."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    table.add_column("variant, and why not", overflow="fold", min_width=24)
    for name in ("p50", "p99", "speedup", "drop, pt", "size"):
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
        ms = wording.milliseconds(shown) + ("" if trial.latency or shown is None else " predicted")
        table.add_row(
            Text(trial.name + (f" ({', '.join(marks)})" if marks else "")).append(
                f"\n  {why}" if (why := why_not(record, trial)) else "", style="not bold dim"
            ),
            ms,
            wording.milliseconds(percentile(trial.latency, 99)),
            wording.times(trial.speedup),
            _drop_cell(trial),
            wording.size(trial.size_bytes),
            style="bold" if winner else "",
        )
    return table


def verdict_panel(record: Record) -> Panel:
    """The verdict, the summary, and a line for each check and warning."""
    word, note = verdict_words(record)
    style = STYLES[record.verdict.outcome] if record.verdict.checks else "bright_black"
    lines: list[Text] = [Text(record.summary)]
    for check in record.verdict.checks:
        got = wording.quantity(check.got.point if check.got else None, check)
        interval = f" ({wording.check_interval(check)})" if wording.check_interval(check) else ""
        line = Text(f"{check.outcome.value:<10} ", style=STYLES[check.outcome])
        line.append(f"{check.name}: {got}{interval}, limit {wording.quantity(check.limit, check)}", style="default")
        lines.append(line)
    lines += [Text(extra, style="yellow") for extra in (note, *record.circumstances.warnings) if extra]
    return Panel(
        Group(*lines), title=f"[bold]{escape(word)}[/bold]", border_style=style, title_align="left", expand=False
    )


def _words(what: str, a: str, b: str) -> Difference:
    return Difference(what=what, a=a, b=b, change="" if a == b else "changed", matters=a != b)


def _times(what: str, a: Latency | None, b: Latency | None, confidence: float) -> Difference:
    """Median against median with the interval of their ratio, if they are of one shape."""
    row = Difference(what=what, a=wording.milliseconds(percentile(a, 50)), b=wording.milliseconds(percentile(b, 50)))
    if a is None or b is None or not a.samples_ms or not b.samples_ms:
        return row
    if (a.batch, a.length, a.threads) != (b.batch, b.length, b.threads):
        return row.model_copy(
            update={
                "change": f"not comparable: {wording.shape(a.batch, a.length, a.threads)} and "
                f"{wording.shape(b.batch, b.length, b.threads)}"
            }
        )
    ratio = gate.speedup(a, b, confidence=confidence)
    matters = ratio.low > 1 + NOISE or ratio.high < 1 / (1 + NOISE)
    slower = ratio.point < 1
    shown = Estimate(point=1 / ratio.point, low=1 / ratio.high, high=1 / max(ratio.low, 1e-9)) if slower else ratio
    change = f"B is {wording.times(shown)} ({wording.times_interval(shown)}) {'as slow' if slower else 'as fast'}"
    return row.model_copy(
        update={"estimate": ratio, "matters": matters, "change": change if matters else f"same within noise: {change}"}
    )


def _accuracy(a: Record, b: Record, one: Trial, two: Trial, confidence: float) -> Difference:
    """The metric both are judged by; paired item by item where the items are the same."""
    first, second = _same_metric(one, two)
    if first is None or second is None:
        return Difference(what="accuracy, shipped", a=wording.MISSING, b=wording.MISSING, change="no metric in common")
    row = Difference(what=f"{first.name}, shipped", a=wording.score(value_of(first)), b=wording.score(value_of(second)))
    if a.data.get("digest") != b.data.get("digest") or len(first.values) != len(second.values):
        return row.model_copy(update={"change": "not comparable: other items"})
    drop = gate.paired_drop(first, second, confidence=confidence)
    matters = drop.low > 0 or drop.high < 0
    moved = f"{'loses' if drop.point >= 0 else 'gains'} {wording.points(abs(drop.point))} pt"
    change = f"B {moved} (drop {wording.points_interval(drop)})"
    return row.model_copy(
        update={"estimate": drop, "matters": matters, "change": change if matters else f"not significant: {change}"}
    )


def _same_metric(one: Trial, two: Trial) -> tuple[Scores | None, Scores | None]:
    for split in ("test_scores", "scores"):
        pair = [next((s for s in getattr(trial, split) if s.primary), None) for trial in (one, two)]
        if pair[0] and pair[1] and pair[0].name == pair[1].name:
            return pair[0], pair[1]
    return None, None


def _amount(what: str, a: float | None, b: float | None, noise: float, words: Any) -> Difference:
    if a is None or b is None or not a:
        return Difference(what=what, a=words(a), b=words(b))
    share = b / a - 1
    return Difference(
        what=what,
        a=words(a),
        b=words(b),
        matters=abs(share) > noise,
        change=f"{'+' if share > 0 else '−'}{wording.percent(abs(share))}" if abs(share) > 1e-9 else "",
    )


def _memory(trial: Trial) -> float | None:
    return trial.footprint.peak_memory_mb if trial.footprint else None


def _differing(prefix: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    keys: Sequence[str] = sorted({*a, *b})
    return [
        f"{prefix}{key}: {a.get(key, wording.MISSING)} in A, {b.get(key, wording.MISSING)} in B"
        for key in keys
        if a.get(key) != b.get(key)
    ]


def _drop_cell(trial: Trial) -> str:
    drop = trial.final_drop
    return wording.MISSING if drop is None else f"{wording.points(drop.point)} (≤ {wording.points(drop.high)})"
