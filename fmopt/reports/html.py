"""The report: one page that a record is drawn into, whole without a network, and the same in Markdown.

It decides nothing. Every figure is the record's; what is computed here is how to show it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fmopt.core import escaping, formatting
from fmopt.core.results import Estimate, Latency, Scores
from fmopt.core.stages.store import write_whole
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.record import (
    Record,
    Trial,
    as_displayed,
    drop_unit,
    ordered,
    percentile,
    role_of,
    value_of,
    verdict_words,
    why_not,
)
from fmopt.reports.latency_lanes import lanes
from fmopt.reports.layer_table import layer_table
from fmopt.reports.plots import on_front, scatter
from fmopt.reports.profile import Spent, layer_of, spent_by_kind
from fmopt.reports.roofline import LISTED, points_of, roof_plot
from fmopt.reports.waterfall import falls

_TEMPLATES = Path(__file__).with_name("templates")
TEXT_SHOWN = 400  # characters of a changed item's text
PLOT_SIZES = {"wide": (960, 440), "narrow": (380, 400)}  # px; a page shows the one that its width has room for
CHANGED_OPEN = 10  # changed items that are seen without a click


@dataclass(frozen=True)
class Row:
    """One line of the table of all variants."""

    number: int
    trial: Trial
    role: str
    why: str  # empty for the winner
    front: bool  # no other is at once as fast, as accurate and as small


@dataclass(frozen=True)
class Metric:
    """One metric before and after."""

    name: str
    split: str
    items: int
    before: str
    after: str
    change: str
    primary: bool
    against_baseline: bool


@dataclass(frozen=True)
class Unfinished:
    """What the page of a record so far says in place of a verdict."""

    word: str  # on the badge
    refresh: int | None  # seconds after which a browser loads the page again


def write_report(record: Record, path: Path, unfinished: Unfinished | None = None) -> Path:
    """Write the page; returns its path. One file, no network, no dependence on where it lies."""
    path = path / "report.html" if path.is_dir() else path
    return write_page("report.html.j2", view(record) | _instead(unfinished), path)


def write_markdown(record: Record, path: Path) -> Path:
    """The same in Markdown, without plots; returns its path."""
    path = path / "report.md" if path.is_dir() else path
    return write_text("report.md.j2", view(record), path)


def write_page(template: str, shown: dict[str, Any], path: Path, styles: Sequence[str] = ("report.css",)) -> Path:
    """Draw an HTML template with the house's style and script in it."""
    script = _TEMPLATES.joinpath("report.js").read_text(encoding="utf-8")
    style = "".join(_TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in styles)
    # the only script that may run is this one, whatever a text of the data set contains
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {"script": Markup(script), "script_digest": Markup(digest), "style": Markup(style)}
    return write_whole(path, _environment(html=True).get_template(template).render(**shown, **parts))


def write_text(template: str, shown: dict[str, Any], path: Path) -> Path:
    """Draw a template of plain text."""
    return write_whole(path, text_of(template, shown))


def text_of(template: str, shown: dict[str, Any]) -> str:
    """A template of plain text, drawn."""
    return _environment(html=False).get_template(template).render(**shown)


def view(record: Record) -> dict[str, Any]:
    """What the templates see."""
    record = as_displayed(record)
    rows = numbered(record)
    trials = [row.trial for row in rows]
    winner, reference = record.winning, record.fastest_full_precision
    pair = [t for t in (reference, winner) if t is not None]
    word, note = verdict_words(record)
    fallen, points = falls(record), points_of(record)
    found = {
        "record": record,
        "rows": rows,
        "winner": winner,
        "reference": reference,
        "pair": pair[:1] if reference is winner else pair,
        "badge_word": word,
        "badge_note": note,
        "plots": [(kind, scatter(record, trials, *size)) for kind, size in PLOT_SIZES.items()],
        "lanes": lanes(record, trials),
        "drop_unit": drop_unit(record),
        "metrics": metrics(reference, winner),
        "tiles": tiles(record),
        "kinds": spent_by_kind(reference, winner),
        "layers": layer_table(record, points),
        "points": points,
        "listed": LISTED,
        "roofs": [(kind, plot) for kind, size in PLOT_SIZES.items() if (plot := roof_plot(record, points, *size))],
        "changed_open": CHANGED_OPEN,
        "falls": fallen,
        "passes": list(zip(*(fall.bars for fall in fallen), strict=True)),
        "precisions": sorted({t.recipe.precision for t in trials}),
        "findings": [(t, t.findings) for t in trials if t.findings],
    }
    return found | {"sections": _sections(found)} | _facts_of(record)


def numbered(record: Record) -> list[Row]:
    """The lines of the table of all variants."""
    front = on_front(record.everything)
    return [
        Row(i, t, role_of(record, t), why_not(record, t), t.name in front) for i, t in enumerate(ordered(record), 1)
    ]


def tiles(record: Record) -> list[tuple[str, str, str]]:
    """The figures at the top: name, value, what it was before."""
    winner, reference = record.winning, record.fastest_full_precision
    if winner is None:
        return []
    found = []
    if winner.speedup and winner is not reference:
        found.append(("speedup", formatting.times(winner.speedup), formatting.times_interval(winner.speedup)))
    if winner.latency:
        found.append(("latency, median", formatting.milliseconds(winner.p50), _was(reference, winner, "p50")))
    elif winner.predicted_ms is not None:
        found.append(("latency, predicted", formatting.milliseconds(winner.predicted_ms), "not measured"))
    if winner.final_drop and winner is not reference:
        found.append(
            (
                "accuracy drop",
                f"{formatting.points(winner.final_drop.point)} {drop_unit(record)}",
                f"at most {formatting.points(winner.final_drop.high)} {drop_unit(record)} "
                f"at {formatting.confidence(record.confidence_of_drop)}",
            )
        )
    if winner.size_bytes is not None:
        found.append(("size", formatting.size(winner.size_bytes), _was(reference, winner, "size_bytes")))
    if winner.footprint:
        found.append(
            ("peak memory", formatting.megabytes(winner.footprint.peak_memory_mb), _was(reference, winner, "footprint"))
        )
    return found


def metrics(reference: Trial | None, winner: Trial | None) -> list[Metric]:
    """Every metric of the winner beside the reference's, on test and on validation."""
    found = []
    for split in ("test", "validation"):
        before = {s.name: s for s in _scores(reference, split)}
        for scores in _scores(winner, split):
            base = value_of(before[scores.name]) if scores.name in before else None
            bounded, value = METRICS[scores.metric].bounded, value_of(scores)
            found.append(
                Metric(
                    scores.name,
                    split,
                    len(scores.values),
                    formatting.score(base, bounded=bounded),
                    formatting.score(value, bounded=bounded),
                    formatting.change(base, value, bounded=bounded),
                    scores.primary,
                    scores.against_baseline,
                )
            )
    return found


def budget_words(budget: dict[str, Any]) -> list[tuple[str, str]]:
    """What was asked for, as the user wrote it; parts left out are not listed."""
    words = []
    for name, value in budget.items():
        if value is None or value is False:
            continue
        label = name.removesuffix("_ms").removesuffix("_mb").replace("_", " ")
        if isinstance(value, dict):
            text = f"{value.get('amount', 0):g} {value.get('unit', '')}"
        elif name.endswith("_ms"):
            text = formatting.milliseconds(value)
        elif name.endswith("_mb"):
            text = formatting.megabytes(value)
        elif name == "min_speedup":
            text = f"{value:g}×"
        else:
            text = formatting.percent(value) if name == "confidence" else _shown(value)
        words.append((label, text))
    return words


def _environment(*, html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=html,
        finalize=_shown_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ms": formatting.milliseconds,
        "bytes": formatting.size,
        "mb": formatting.megabytes,
        "pt": formatting.points,
        "score": formatting.score,
        "times": formatting.times,
        "times_interval": formatting.times_interval,
        "points_interval": formatting.points_interval,
        "percent": formatting.percent,
        "seconds": formatting.seconds,
        "number": formatting.number,
        "runtime": formatting.runtime,
        "precision": formatting.precision,
        "quantity": formatting.quantity,
        "check_interval": formatting.check_interval,
        "shown": _shown,
        "cut": _cut,
        "day": _day,
        "tokens": formatting.tokens,
        "cell": escaping.markdown,
        "fenced": escaping.fenced,
        "signed": _signed,
        "details": _details,
        "small": _small,
        "layer_id": _layer_id,
        "of": _of,
    }
    environment.globals |= {"percentile": percentile, "shape": _shape, "top_of": _top_of, "nothing": formatting.MISSING}
    return environment


def _shown_text(value: Any) -> Any:
    """What a template shows of a text: no control characters, on no kind of page."""
    return escaping.terminal(value) if type(value) is str else value


def _instead(unfinished: Unfinished | None) -> dict[str, Any]:
    if unfinished is None:
        return {"unfinished": None}
    return {"unfinished": unfinished, "badge_word": unfinished.word, "badge_note": ""}


def _was(reference: Trial | None, winner: Trial, what: str) -> str:
    before = getattr(reference, what) if reference is not None and reference is not winner else None
    if before is None:
        return ""
    words = {
        "p50": formatting.milliseconds,
        "size_bytes": formatting.size,
        "footprint": lambda f: formatting.megabytes(f.peak_memory_mb),
    }
    return f"was {words[what](before)}"


def _sections(found: dict[str, Any]) -> list[tuple[str, str]]:
    record = found["record"]
    possible = [
        ("checks", "Checks", True),
        ("plot", "Accuracy, latency and size", found["plots"][0][1]),
        ("variants", "All variants", True),
        ("latency", "Latency", found["lanes"]),
        ("passes", "What each pass gave", found["falls"]),
        ("accuracy", "Accuracy", found["metrics"]),
        ("changed", "Changed items", record.changed and found["metrics"]),
        ("time", "Where the time goes", found["kinds"] or found["findings"]),
        ("layers", "Layer by layer", found["layers"]),
        ("roofline", "Roofline", found["roofs"]),
        ("refused", "Refused", record.refused),
        ("circumstances", "Circumstances", True),
        ("reproduce", "Reproduce", True),
    ]
    return [(place, name) for place, name, there in possible if there]


def _facts_of(record: Record) -> dict[str, list[tuple[str, str]]]:
    model = {**record.model, "bytes": None, "size": formatting.size(record.model.get("bytes"))}
    target = record.target.model_dump(exclude={"name", "present", "gops_scope"})
    around = record.circumstances
    run = {
        "judged on": record.judged_on.sentence(),
        "effort": record.effort,
        "seed": around.seed,
        "date": around.date,
        "stages": ", ".join(f"{k} {formatting.seconds(v)}" for k, v in record.stages.items()),
        "total": formatting.seconds(sum(record.stages.values())) if record.stages else None,
    }
    if target["gops"]:
        target["gops"] = {f"{k} (per {record.target.gops_scope})": v for k, v in target["gops"].items()}
    return {
        "model_details": _details(model),
        "target_details": _details(target),
        "run_details": _details(run),
        "budget": budget_words(record.budget),
    }


def _top_of(spent: Sequence[Spent]) -> float:
    return max((max(s.before, s.after) for s in spent), default=0) or 1.0


def _scores(trial: Trial | None, split: str) -> Sequence[Scores]:
    if trial is None:
        return []
    return trial.test_scores if split == "test" else trial.scores


def _shape(latency: Latency) -> str:
    return formatting.shape(latency.batch, latency.length, latency.threads)


def _shown(value: Any) -> str:
    """A value of unknown type as text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: formatting.MISSING}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,g}"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_shown(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_shown(v) for v in value)
    return str(value)


def _details(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Details as words; empty ones are left out."""
    return [(_label(str(k)), _shown(v)) for k, v in metadata.items() if v not in (None, "", [], (), {})]


def _label(name: str) -> str:
    for suffix, unit in (("_gbs", "GB/s"), ("_gb", "GB"), ("_mb", "MB"), ("_kb", "kB"), ("_ms", "ms")):
        if name.endswith(suffix):
            return f"{name.removesuffix(suffix).replace('_', ' ')}, {unit}"
    return {"gops": "10⁹ operations/s"}.get(name, name.replace("_", " "))


def _signed(estimate: Estimate | None) -> str:
    return formatting.MISSING if estimate is None else formatting.points(estimate.point)


def _small(value: float | None) -> str:
    """A figure that may be of any size: two digits that matter."""
    return formatting.MISSING if value is None else f"{value:.2g}".replace("-", "−")


def _layer_id(module: str) -> str:
    """Of the line of a module in the table of layers."""
    return "l-" + "-".join(layer_of(module).split())


def _of(left: tuple[int, int] | None) -> str:
    """`4 of 12`."""
    return formatting.MISSING if left is None else f"{left[0]:,} of {left[1]:,}"


def _day(date: str) -> str:
    """An ISO date and time as people write it; in UTC, as the run wrote it."""
    return date[:16].replace("T", " ") + (" UTC" if date.endswith(("+00:00", "Z")) else "")


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN].rstrip() + " …"
