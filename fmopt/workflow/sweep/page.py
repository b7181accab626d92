"""The page of a sweep: for each target its cells, each with its Pareto front, what was chosen, and what it cost.

It decides nothing. Every figure is the sweep's; what is computed here is how to show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fmopt.core import formatting
from fmopt.core.errors import BundleError
from fmopt.evaluation.record import Record, as_displayed
from fmopt.reports.html import PLOT_SIZES, write_page
from fmopt.reports.plots import Scatter, scatter
from fmopt.workflow.sweep.one_clock import on_one_clock
from fmopt.workflow.sweep.record import Cell, Sweep, Tried

PAGE = "sweep.html"


@dataclass(frozen=True)
class Shown:
    """One cell, ready to draw."""

    number: int
    cell: Cell
    plots: list[tuple[str, Scatter]]  # by the width they are for; empty where nothing has both figures

    @property
    def badge(self) -> str:
        """The verdict in a word."""
        return self.cell.verdict.outcome.value if self.cell.verdict.checks else "no limit"

    @property
    def winner(self) -> Tried | None:
        """What is shipped."""
        return self.cell.find(self.cell.winner)

    @property
    def ended(self) -> list[Tried]:
        """Recipes that were not measured to the end."""
        return [one for one in self.cell.tried if one.status != "measured" and not one.baseline]

    @property
    def cost(self) -> str:
        """`34 recipes in 12 min 05 s: 20 measured, 14 stopped early`."""
        counts = [(self.cell.count(status), status) for status in ("measured", "stopped early", "failed", "refused")]
        total = sum(count for count, _ in counts)
        kinds = ", ".join(f"{count} {status}" for count, status in counts if count)
        return f"{total} recipe{'s' if total != 1 else ''} in {formatting.seconds(60 * self.cell.minutes)}: {kinds}"


def write_sweep(found: Sweep, folder: Path) -> Path:
    """Write sweep.json and sweep.html into a folder; returns the page's path."""
    found.save(folder)
    return write_page("sweep.html.j2", view(found, folder), folder / PAGE, ("report.css", "benchmark.css"))


def view(found: Sweep, folder: Path) -> dict[str, Any]:
    """What the template sees."""
    ordered = sorted(found.cells, key=lambda cell: found.plan.targets.index(cell.place.target))
    drawn = [Shown(number, cell, plots(cell, folder)) for number, cell in enumerate(ordered, 1)]
    return {
        "found": found,
        "targets": [(cells[0].cell.target, cells) for _, group in groupby(drawn, lambda one: one.cell.place.target)
                    if (cells := list(group))],
        "missing": [place.name for place in found.places if place not in {cell.place for cell in found.cells}
                    and place not in {failure.place for failure in found.failures}],
        "minutes": sum(cell.minutes for cell in found.cells),
    }  # fmt: skip


def plots(cell: Cell, folder: Path) -> list[tuple[str, Scatter]]:
    """Accuracy against latency from the cell's own record, wide and narrow; none where that is gone."""
    try:
        record = on_one_clock(as_displayed(Record.load(folder / cell.place.name)))
    except BundleError:
        return []
    measured = [trial for trial in record.everything if trial.drop is not None]
    drawn = [(kind, scatter(record, measured, *size)) for kind, size in PLOT_SIZES.items()]
    return [(kind, plot) for kind, plot in drawn if plot is not None]
