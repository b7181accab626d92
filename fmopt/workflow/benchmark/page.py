"""The page of a benchmark: a heat map for every scenario and thread count, all figures, and the same in Markdown.

It decides nothing. Every figure is the benchmark's; what is computed here is how to show it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmopt.core import formatting
from fmopt.core.results import Estimate
from fmopt.reports.html import write_page, write_text
from fmopt.workflow.benchmark.record import Benchmark, Cell, Offline, Place, Server, SingleStream, Variant
from fmopt.workflow.benchmark.scenarios import SCENARIOS, Scenario, quantile

FULL_COLOUR = 4.0  # a ratio of so much, or its inverse, has the full colour

LEADS: dict[Scenario, str] = {
    "single-stream": "One query of “batch” items after the other; the time that 90 % of them stay within (p90). "
    "All variants were called in turn, in random order.",
    "offline": "All items are there at once and are answered batch by batch without a pause: items per second.",
    "server": "Queries of one item arrive by chance (Poisson) and wait for one runner, which answers up to “batch” of "
    "them together: the most queries per second at which 99 % are answered within the limit.",
}
UNITS: dict[Scenario, str] = {"single-stream": "ms", "offline": "items/s", "server": "queries/s"}


@dataclass(frozen=True)
class Shade:
    """One variant in one cell, ready to draw."""

    row: str  # id of its line among all figures
    variant: Variant
    place: Place
    figure: str
    interval: str
    ratio: str  # empty where there is none
    ratio_interval: str
    note: str  # how it was measured, in a few words
    tone: str  # "faster", "slower", or "even": not distinguishable from the reference
    heat: float  # 0 to 1
    reference: bool
    best: bool
    disturbed: bool

    @property
    def tip(self) -> str:
        """What hovering says."""
        ratio = f"{self.ratio} the reference" + (f" ({self.ratio_interval})" if self.ratio_interval else "")
        lines = [
            self.variant.name,
            formatting.shape(self.place.batch, self.place.length, self.place.threads),
            self.figure + (f" ({self.interval})" if self.interval else ""),
            "this is the reference" if self.reference else ratio if self.ratio else "",
            self.note,
            "the machine was not quiet" if self.disturbed else "",
        ]
        return "\n".join(line for line in lines if line)


@dataclass(frozen=True)
class Column:
    """One shape of a heat map."""

    place: Place
    limit: str  # of the server's p99
    shades: dict[str, Shade]  # by variant; empty where the cell is not measured


@dataclass(frozen=True)
class HeatMap:
    """One scenario at one thread count."""

    scenario: Scenario
    threads: int
    columns: list[Column]


def write_benchmark(found: Benchmark, folder: Path) -> Path:
    """Write benchmark.json, benchmark.html and benchmark.md into a folder; returns the page's path."""
    found.save(folder)
    shown = view(found)
    write_text("benchmark.md.j2", shown, folder / "benchmark.md")
    return write_page("benchmark.html.j2", shown, folder / "benchmark.html", ("report.css", "benchmark.css"))


def view(found: Benchmark) -> dict[str, Any]:
    """What the templates see."""
    cells = {cell.place: cell for cell in found.cells}
    maps = [
        HeatMap(scenario, threads, [column(found, place, cells.get(place)) for place in sorted_places])
        for scenario in SCENARIOS
        for threads in sorted({place.threads for place in found.places})
        if (sorted_places := [p for p in found.places if (p.scenario, p.threads) == (scenario, threads)])
    ]
    return {
        "found": found,
        "maps": maps,
        "scenarios": [one for one in SCENARIOS if any(drawn.scenario == one for drawn in maps)],
        "leads": LEADS | {"server": " ".join([LEADS["server"], *_limits(found)])},
        "sentences": sentences(maps),
        "missing": len(found.places) - len(found.cells),
        "disturbed": [cell for cell in found.cells if cell.warnings],
        "against": against(found),
        "place_words": place_words,
    }


def column(found: Benchmark, place: Place, cell: Cell | None) -> Column:
    """One shape, every variant in it."""
    if cell is None:
        return Column(place, "", {})
    reference = cell.reference(found.variants)
    best = cell.best(one.name for one in found.variants)
    shades = {one.name: shade(found, cell, one, reference, best == one.name) for one in found.variants}
    limit = f"p99 ≤ {formatting.milliseconds(cell.measured.limit_ms)}" if isinstance(cell.measured, Server) else ""
    return Column(place, limit, shades)


def shade(found: Benchmark, cell: Cell, variant: Variant, reference: str, best: bool) -> Shade:
    """One variant at one place."""
    figure = cell.figure(variant.name)
    ratio = cell.measured.ratio(variant.name, reference)
    differs = ratio is not None and variant.name != reference and not ratio.low <= 1 <= ratio.high
    heat = 0.0
    if ratio is not None and differs:
        heat = min(1.0, abs(math.log(ratio.point)) / math.log(FULL_COLOUR))
    return Shade(
        row=f"f{found.places.index(cell.place)}-{found.variants.index(variant)}",
        variant=variant,
        place=cell.place,
        figure=_figure(cell.place.scenario, figure),
        interval=_interval(cell.place.scenario, figure),
        ratio=formatting.times(ratio) if ratio else "",
        ratio_interval=_times_interval(ratio) if variant.name != reference else "",
        note=_note(cell, variant.name),
        tone=("faster" if ratio.point > 1 else "slower") if ratio is not None and differs else "even",
        heat=round(heat, 3),
        reference=variant.name == reference,
        best=best,
        disturbed=bool(cell.warnings),
    )


def against(found: Benchmark) -> str:
    """What ratios are against, in words."""
    if any(one.full_precision for one in found.variants):
        return "the fastest full-precision variant of the column, by the same figure"
    return f"{found.variants[0].name}, the first one named: none runs in full precision"


def sentences(maps: list[HeatMap]) -> list[tuple[Scenario, str]]:
    """For every scenario, who is best how often and by how much."""
    said = []
    for scenario in SCENARIOS:
        columns = [one for drawn in maps if drawn.scenario == scenario for one in drawn.columns if one.shades]
        leaders = [shade for one in columns for shade in one.shades.values() if shade.best]
        if not leaders:
            continue
        name, times = Counter(shade.variant.name for shade in leaders).most_common(1)[0]
        ratios = [shade.ratio for shade in leaders if shade.variant.name == name and not shade.reference]
        by = ""
        if ratios:
            low, high = min(ratios, key=_times), max(ratios, key=_times)
            by = f", at {low} the reference" if low == high else f", at {low} to {high} the reference"
        where = f"in all {len(leaders)} cells" if times == len(leaders) else f"in {times} of {len(leaders)} cells"
        said.append((scenario, f"{name} is best {where if len(leaders) > 1 else 'in the one cell'}{by}"))
    return said


def place_words(place: Place) -> str:
    """`server, batch 8, 128 tokens, 1 thread`."""
    return f"{place.scenario}, {formatting.shape(place.batch, place.length, place.threads)}"


def _limits(found: Benchmark) -> list[str]:
    """Where the server's limits come from, in a sentence."""
    said = sorted({cell.measured.limit_words for cell in found.cells if isinstance(cell.measured, Server)})
    return [f"The limit is {' or '.join(said)}."] if said else []


def _figure(scenario: Scenario, got: Estimate | None) -> str:
    if got is None:
        return "none"
    if scenario == "single-stream":
        return formatting.milliseconds(got.point)
    return f"{formatting.number(got.point)}/s"


def _interval(scenario: Scenario, got: Estimate | None) -> str:
    if got is None:
        return ""
    high = f"{formatting.number(got.high)}" if math.isfinite(got.high) else "more"
    return f"{formatting.number(got.low)}–{high} {UNITS[scenario]}"


def _times_interval(ratio: Estimate | None) -> str:
    if ratio is None:
        return ""
    return formatting.times_interval(ratio) if math.isfinite(ratio.high) else f"{ratio.low:.2f} or more"


def _times(ratio: str) -> float:
    return float(ratio.rstrip("×"))


def _note(cell: Cell, name: str) -> str:
    """How a figure came about."""
    got = cell.measured
    if isinstance(got, SingleStream):
        ms = got.samples_ms[name]
        return (
            f"p90 of {len(ms):,} calls; median {formatting.milliseconds(quantile(ms, 0.5))}, "
            f"p99 {formatting.milliseconds(quantile(ms, 0.99))}"
        )
    if isinstance(got, Offline):
        each = f"{got.calls[name]:,} batch{'es' if got.calls[name] != 1 else ''}"
        return f"{len(got.bursts_ms[name])} bursts of {each}"
    loads = got.loads[name]
    if not loads:
        alone = formatting.milliseconds(quantile(got.service_ms[name][1], 0.5))
        return f"one item alone takes {alone}, more than the limit"
    kept = max((load for load in loads if load.met), key=lambda load: load.rate, default=None)
    said = f"{len(loads)} loads of {loads[0].queries:,} queries"
    if kept is None:
        return f"{said}; none kept the limit, down to {formatting.number(min(load.rate for load in loads))}/s"
    return f"{said}; p99 {formatting.milliseconds(kept.p99_ms)} at the highest rate that kept the limit"
