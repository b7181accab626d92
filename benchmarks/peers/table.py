"""The Markdown table of a comparison, drawn from its JSON alone: `table.py RESULT.json` prints it again."""

from __future__ import annotations

import sys
from pathlib import Path

from comparison import ONNX_RUNTIME_FP32, Comparison, Row, read

from fmopt.core import formatting
from fmopt.core.results import Estimate


def markdown(found: Comparison) -> str:
    """Circumstances, the table fastest first, and what failed with its message."""
    metric = f"{found.metric} (drop, pt)" if found.metric else "metric"
    head = (
        f"| variant | median ms (90 % interval) | p90 ms | × fastest full precision | × ONNX Runtime fp32 | {metric} "
        "| MB | minutes | lines |\n|---|---|---|---|---|---|---|---|---|"
    )
    lines = [*heading(found), "", head, *(line_of(row, found) for row in found.rows)]
    if found.fastest_full:
        lines += ["", f"Fastest full precision: {found.fastest_full}."]
    failed = [(failure.name, failure.error) for failure in found.failures]
    failed += [(row.name, row.error) for row in found.rows if row.error]
    if failed:
        lines += ["", "What a peer could not do, with its own message:", "", *[f"- {name}: {e}" for name, e in failed]]
    return "\n".join(lines) + "\n"


def heading(found: Comparison) -> list[str]:
    """Where, when and how."""
    document = found.document
    host, versions = document["host"], document["versions"]
    drops = f"drops against PyTorch fp32 ({formatting.score(found.reference)})" if found.reference is not None else ""
    scored = f"{found.items:,} of {found.items_of:,}" if found.items < found.items_of else f"all {found.items:,}"
    lines = [
        f"## {found.title}: {found.task}",
        "",
        f"{formatting.shape(document['batch'], document['length'], document['threads'])}; {scored} test items; {drops}; "
        f"{document['date'][:10]}; {host['cpu']}, {', '.join(host['isa'])}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + f"; seed {document['seed']}. Raw samples: `{found.file}`.",
        "",
        f"    {document['command']}",
    ]
    return lines + [f"\n**Warning:** {warning}." for warning in document["warnings"]]


def line_of(row: Row, found: Comparison) -> str:
    """One line of the table."""
    cells = [
        row.name,
        interval(row.median),
        f"{row.p90:.2f}",
        interval(row.speedup, itself=row.name == found.fastest_full),
        interval(row.over_onnx_runtime, itself=row.name == ONNX_RUNTIME_FP32),
        scored(row),
        f"{row.size_bytes / 1e6:.1f}",
        minutes(row),
        formatting.MISSING if row.lines is None else str(row.lines),
    ]
    return f"| {' | '.join(cells)} |"


def interval(got: Estimate | None, *, itself: bool = False) -> str:
    """A ratio or a time with its bounds; 1 where it is compared with itself."""
    if got is None:
        return "1" if itself else formatting.MISSING
    return f"{got.point:.2f} ({got.low:.2f} – {got.high:.2f})"


def minutes(row: Row) -> str:
    """To make it: of wall clock, or of the processor where others kept the machine busy."""
    if row.minutes is None:
        return formatting.MISSING
    return f"{row.minutes:.2f}" if row.cpu_minutes is None else f"{row.cpu_minutes:.2f} CPU"


def scored(row: Row) -> str:
    """The metric in percent, and the drop in points with its bounds where items were kept."""
    if row.value is None or row.drop is None:
        return formatting.MISSING
    drop = formatting.points(row.drop.point)
    if row.drop.low != row.drop.high:
        drop += f"; {formatting.points_interval(row.drop)}"
    return f"{formatting.score(row.value)} ({drop})"


if __name__ == "__main__":
    print(markdown(read(Path(sys.argv[1]))))
