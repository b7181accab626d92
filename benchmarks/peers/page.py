"""Draw every committed comparison of peers: results/peers.html, one page that needs no network, and results/peers.md.

.venv/bin/python benchmarks/peers/page.py [RESULTS]
"""

from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path
from typing import Any

import table
from comparison import ONNX_RUNTIME_FP32, Comparison, read_all
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from page_plot import plot

import fmopt
from fmopt.core import formatting
from fmopt.core.results import Estimate

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
SIZES = (("wide", 960, 400), ("narrow", 380, 380))


def main() -> int:
    """The command line; 1 when there is nothing to draw."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    found = read_all(folder)
    if not found:
        print(f"{folder} holds no peers-*.json; make one: benchmarks/peers/all.sh banking77", file=sys.stderr)
        return 1
    parts = ["# Peers side by side\n\nThe same as a page: [peers.html](peers.html).\n"]
    for name, text in (
        ("peers.md", "\n".join(parts + [table.markdown(each) for each in found])),
        ("peers.html", html(found)),
    ):
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)
    return 0


def html(found: list[Comparison]) -> str:
    """The page, in the language of fmopt's report: its style sheet, its script, no other file."""
    templates = Path(fmopt.__file__).parent / "reports" / "templates"
    script, style = (templates.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    # the only script that may run is this one, whatever a message of a peer contains
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "ms": formatting.milliseconds, "bytes": formatting.size, "pt": formatting.points, "score": formatting.score,
        "times": formatting.times, "times_interval": formatting.times_interval, "points_interval": formatting.points_interval,
        "number": formatting.number, "runtime": formatting.runtime, "minutes": _minutes,
    }  # fmt: skip
    environment.globals |= {
        "nothing": formatting.MISSING, "onnx_runtime": ONNX_RUNTIME_FP32, "has_interval": _interval
    }  # fmt: skip
    sections = [
        {"id": f"c{number}", "c": each, "plots": [(kind, plot(each, *size)) for kind, *size in SIZES],
         "shape": formatting.shape(*(each.document[part] for part in ("batch", "length", "threads"))),
         "versions": _versions(each)}
        for number, each in enumerate(found, 1)
    ]  # fmt: skip
    return environment.get_template("page.html.j2").render(
        sections=sections, script=Markup(script), script_digest=Markup(digest), style=Markup(style)
    )


def _versions(found: Comparison) -> list[tuple[str, str]]:
    """What every peer was made with."""
    reported: dict[str, str] = {}
    for row in found.document["rows"]:
        versions: dict[str, Any] = row["made"].get("versions") or {}
        reported.setdefault(row["made"]["peer"], ", ".join(f"{name} {version}" for name, version in versions.items()))
    here = found.document["versions"]
    opened = ", ".join(f"{name} {version}" for name, version in here.items() if version)
    return [("all opened with", opened), *((peer, text) for peer, text in sorted(reported.items()) if text)]


def _minutes(value: float | None) -> str:
    return formatting.MISSING if value is None else formatting.seconds(60 * value)


def _interval(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.low != estimate.high


if __name__ == "__main__":
    raise SystemExit(main())
