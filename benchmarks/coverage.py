"""The coverage table: what each application reached on real data, generated from the records in benchmarks/results.

    python benchmarks/coverage.py            # writes docs/coverage.md
    python benchmarks/coverage.py --check    # exit code 1 when it is not what the records give

Every number comes from a record that `fmopt optimize` wrote; a task without one is shown as "no run yet".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmopt.core import formatting
from fmopt.core.errors import BundleError
from fmopt.evaluation.gate import Drop
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.record import Record, Trial, as_displayed, drop_unit, value_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
HEAD = ("application", "task", "model", "data", "full precision", "shipped", "lost (bound)", "allowed", "speedup", "size",
        "verdict", "record")  # fmt: skip
NO_RUN = "no run yet"


@dataclass(frozen=True)
class Application:
    """What a task is used for; `data` names the sets that set it apart from another use of the same task."""

    name: str
    task: str
    data: tuple[str, ...] = ()


APPLICATIONS = (
    Application("language model", "text-generation"),
    Application("translation", "translation"),
    Application("summarization", "summarization"),
    Application("code generation", "text-generation", ("builtin:stdlib",)),
    Application("text classification", "text-classification"),
    Application("question answering", "question-answering"),
    Application("named entities", "token-classification"),
    Application("similarity", "text-regression"),
    Application("sentence embedding", "sentence-embedding"),
    Application("masked language model", "fill-mask"),
    Application("image classification", "image-classification"),
    Application("object detection", "object-detection"),
    Application("segmentation", "image-segmentation"),
    Application("speech recognition", "automatic-speech-recognition"),
    Application("audio classification", "audio-classification"),
    Application("speech synthesis", "text-to-audio"),
    Application("text-image", "zero-shot-image-classification"),
    Application("image embedding", "image-feature-extraction"),
    Application("recommendation", "sequential-recommendation"),
)


def records(folder: Path) -> dict[str, Record]:
    """The records in a folder by the names of their files; JSON files of other kinds are passed over."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.name] = Record.load(path, lenient=True)
        except BundleError:
            continue
    return found


def application_of(record: Record) -> Application:
    """What a record's model is for; a task that is not in APPLICATIONS is an application of its own."""
    task, data = str(record.model["task"]), str(record.data["name"])
    fitting = [one for one in APPLICATIONS if one.task == task and (not one.data or data in one.data)]
    return max(fitting, key=lambda one: len(one.data), default=Application(task, task))


def rows(found: Mapping[str, Record]) -> list[tuple[str, ...]]:
    """The cells of every record in the order of APPLICATIONS, and a row that says so where there is none."""
    of = {name: application_of(record) for name, record in found.items()}
    made: list[tuple[str, ...]] = []
    for application in dict.fromkeys((*APPLICATIONS, *of.values())):
        made += [cells(application, name, found[name]) for name in found if of[name] == application] or [
            (application.name, application.task, NO_RUN, *[""] * (len(HEAD) - 3))
        ]
    return made


def cells(application: Application, file: str, record: Record) -> tuple[str, ...]:
    """One record's cells. Where nothing beat full precision, what is shipped is that."""
    reported, unit = as_displayed(record), drop_unit(record)
    winner, reference = reported.winning, reported.fastest_full_precision
    changed = winner is not None and reference is not None and winner.name != reference.name
    lost, speedup, ratio = "", "", ""
    if winner is not None and reference is not None and changed:
        drop = winner.final_drop
        lost = "" if drop is None else f"{formatting.points(drop.point)} {unit} (≤ {formatting.points(drop.high)})"
        speedup = (
            f"{formatting.times(winner.speedup)} ({formatting.times_interval(winner.speedup)})"
            if winner.speedup
            else ""
        )
        ratio = f"{(reference.size_bytes or 0) / winner.size_bytes:.2f}× smaller" if winner.size_bytes else ""
    title, kind = str(record.model["title"]), str(record.model["model_type"])
    return (
        application.name, application.task, f"{title} ({kind})", str(record.data["name"]), judged(reference),
        f"{winner.title}: {judged(winner)}" if winner is not None and changed else "full precision",
        lost, allowed(record), speedup, ratio, record.verdict.outcome.value if record.verdict.checks else "no limits",
        f"[{file}](../{RESULTS}/{file})",
    )  # fmt: skip


def allowed(record: Record) -> str:
    """What the verdict let the metric lose."""
    drop = record.budget.get("max_drop")
    return str(Drop.model_validate(drop)) if drop else "anything"


def judged(trial: Trial | None) -> str:
    """The metric that a trial is judged by, with its value."""
    if trial is None or trial.primary is None:
        return formatting.MISSING
    bounded = METRICS[trial.primary.metric].bounded
    return f"{trial.primary.name} {formatting.score(value_of(trial.primary), bounded=bounded)}{' %' if bounded else ''}"


def page(lines: Sequence[Sequence[str]]) -> str:
    """The text of docs/coverage.md."""
    made = [HEAD, ["---"] * len(HEAD), *lines]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in made)
    return (
        "# Every application\n\nMade by `python benchmarks/coverage.py` from the records in "
        f"[benchmarks/results](../{RESULTS}); each says by which command it was made, on what machine, with every latency "
        "sample. Speedups are against the fastest full-precision variant, with intervals; a loss is on the test split, with the "
        f"bound that the verdict is about.\n\n{table}\n"
    )


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Write the page, or with --check say whether it is what the records give."""
    target = root / "docs" / "coverage.md"
    wanted = page(rows(records(root / RESULTS)))
    stale = not target.is_file() or target.read_text("utf8") != wanted
    if "--check" in arguments:
        if stale:
            print(f"{target.relative_to(root)} is not what the records give; run: python benchmarks/coverage.py")
        return int(stale)
    if stale:
        target.write_text(wanted, "utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
