"""The table of a comparison, drawn from its JSON alone: `table.py RESULT.json` prints it again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fmopt import bootstrap
from fmopt.results import Estimate, Latency

ONNX_RUNTIME_FP32 = "optimum_onnx fp32"
HEAD = (
    "| variant | median ms (90 % interval) | p90 ms | × fastest full precision | × ONNX Runtime fp32 "
    "| cosine mean (min) | STS-B ρ (pt to fp32) | MB | minutes | lines |\n|---|---|---|---|---|---|---|---|---|---|"
)


def markdown(document: dict[str, Any], raw: str) -> str:
    """The whole page: circumstances, the table fastest first, and what failed with its message."""
    rows = sorted((row for row in document["rows"] if row["samples_ms"]), key=median)
    full = next((row for row in rows if row["full_precision"]), None)
    common = next((row for row in rows if row["name"] == ONNX_RUNTIME_FP32), None)
    lines = [*heading(document, raw), "", HEAD]
    lines += [line_of(row, document, full, common) for row in rows]
    if full is not None:
        lines += ["", f"Fastest full precision: {full['name']}."]
    failed = [row for row in document["rows"] if not row["samples_ms"]]
    if failed:
        lines += ["", "Not measured:", "", *[f"- {row['name']}: {row['error']}" for row in failed]]
    return "\n".join(lines) + "\n"


def heading(document: dict[str, Any], raw: str) -> list[str]:
    """Where, when and how."""
    host, versions = document["host"], document["versions"]
    lines = [
        "# Peers side by side",
        "",
        f"{document['model']['title']}, batch {document['batch']}, {document['length']} real tokens, "
        f"{document['threads']} thread(s); {document['date'][:10]}; {host['cpu']}, {', '.join(host['isa'])}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + f"; seed {document['seed']}. Raw samples: `{raw}`.",
        "",
        f"    {document['command']}",
    ]
    return lines + [f"\n**Warning:** {warning}." for warning in document["warnings"]]


def line_of(row: dict[str, Any], document: dict[str, Any], full: dict | None, common: dict | None) -> str:
    """One line of the table."""
    mid = bootstrap.median_latency(latency(row, document))
    accuracy, made = row["accuracy"], row["made"]
    cells = [
        row["name"],
        f"{mid.point:.2f} ({mid.low:.2f} – {mid.high:.2f})",
        f"{np.percentile(row['samples_ms'], 90):.2f}",
        faster(full, row, document),
        faster(common, row, document),
        f"{accuracy['cosine_mean']:.4f} ({accuracy['cosine_min']:.3f})" if accuracy else "–",
        f"{100 * accuracy['stsb_spearman']:.2f} ({accuracy['stsb_points_from_fp32']:+.2f})" if accuracy else "–",
        f"{row['size_bytes'] / 1e6:.1f}",
        "–" if made.get("minutes") is None else f"{made['minutes']:.2f}",
        "–" if made.get("lines") is None else str(made["lines"]),
    ]
    return f"| {' | '.join(cells)} |"


def faster(slow: dict[str, Any] | None, row: dict[str, Any], document: dict[str, Any]) -> str:
    """How many times faster than `slow`, with its interval."""
    if slow is None:
        return "–"
    if slow is row:
        return "1"
    got: Estimate = bootstrap.speedup(latency(slow, document), latency(row, document))
    return f"{got.point:.2f} ({got.low:.2f} – {got.high:.2f})"


def latency(row: dict[str, Any], document: dict[str, Any]) -> Latency:
    """The samples of a row, with their circumstances."""
    shape = {key: document[key] for key in ("batch", "length", "threads")}
    return Latency(samples_ms=row["samples_ms"], **shape)


def median(row: dict[str, Any]) -> float:
    """Milliseconds."""
    return float(np.median(row["samples_ms"]))


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[1]).name))
