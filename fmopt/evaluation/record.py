"""The record of a run: what was asked, tried, measured and decided. It is JSON, and all that a report reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, BeforeValidator, Field, ValidationError

from fmopt.core import formatting, notebook
from fmopt.core.errors import BundleError
from fmopt.core.received import record_bytes
from fmopt.core.results import (
    Circumstances,
    Estimate,
    Finding,
    Footprint,
    Frozen,
    Latency,
    OpTime,
    Outcome,
    Parity,
    Scores,
    UnderLoad,
    Verdict,
)
from fmopt.core.stages.store import write_whole
from fmopt.core.target import Target
from fmopt.core.workload import Workload
from fmopt.evaluation.gate import settle
from fmopt.evaluation.metrics import METRICS
from fmopt.models.structure import LayerMetadata

FILE = "record.json"


def _plain(value: Any) -> Any:
    # tuples become lists and paths become text right away, so that what is read back equals what was written
    return json.loads(json.dumps(value, default=str))


Json = Annotated[dict[str, Any], BeforeValidator(_plain)]


class RecipeLine(Frozen):
    """A recipe as a table shows it."""

    name: str
    runtime: str
    steps: list[str] = Field(default_factory=list)
    options: Json = Field(default_factory=dict)
    effort: str = "quick"
    precision: str = "fp32"  # the narrowest that computes: "fp32", "bf16", "int8", …


class Trial(Frozen):
    """One candidate or baseline and all that was found out about it. `drop` and `speedup` are against the reference."""

    recipe: RecipeLine
    status: Literal["measured", "stopped early", "failed", "refused"]
    reason: str = ""  # one line: why it lost, stopped, failed or was refused
    size_bytes: int | None = None
    scores: list[Scores] = Field(default_factory=list)  # on the validation split
    test_scores: list[Scores] = Field(default_factory=list)
    latency: Latency | None = None  # on the workload: what is judged
    end_to_end: Latency | None = None  # from input to answer at the items' own lengths, where the model alone is judged
    at_length: Latency | None = None  # the model alone at a stated length, beside a workload of the data's own items
    under_load: UnderLoad | None = None  # of a server workload
    footprint: Footprint | None = None
    parity: Parity | None = None
    drop: Estimate | None = None  # validation, in units of the metric: 0.01 is one point
    test_drop: Estimate | None = None
    test_confidence: float | None = None  # of the bounds of `test_drop`, where they are not the budget's
    speedup: Estimate | None = None  # 2.0 is twice as fast
    findings: list[Finding] = Field(default_factory=list)
    profile: list[OpTime] = Field(default_factory=list)
    layers: LayerMetadata = LayerMetadata()
    layer_bytes: dict[str, int] = Field(default_factory=dict)  # torch module -> bytes of its weights as stored
    seconds: dict[str, float] = Field(default_factory=dict)  # stage -> seconds
    predicted_ms: float | None = None  # by efficiency.py: never a measurement

    @property
    def name(self) -> str:
        """Its recipe's name."""
        return self.recipe.name

    @property
    def timings(self) -> list[tuple[str, Latency]]:
        """Everything that it was timed on, what is judged first, each with what the clock saw of it."""
        timed = [one for one in (self.latency, self.end_to_end, self.at_length) if one is not None]
        return [("from raw input to answer" if one.end_to_end else "the model alone", one) for one in timed]

    @property
    def title(self) -> str:
        """`INT8 on OpenVINO`."""
        return f"{formatting.precision(self.recipe.precision)} on {formatting.runtime(self.recipe.runtime)}"

    @property
    def p50(self) -> float | None:
        """Median milliseconds on what is judged; None when it was not timed."""
        return percentile(self.latency, 50)

    @property
    def final_drop(self) -> Estimate | None:
        """The drop it is judged by: on test where that was measured, else on validation."""
        return self.test_drop or self.drop

    @property
    def primary(self) -> Scores | None:
        """The metric it is judged by, on test where that was measured, else on validation."""
        return next((s for s in self.test_scores or self.scores if s.primary), None)


class Refused(Frozen):
    """A recipe that was not tried."""

    recipe: str
    reason: str


class Changed(Frozen):
    """An item whose prediction is another one now."""

    row: int
    text: str
    image: str | None = Field(
        None, validation_alias=AliasChoices("image", "picture"), pattern=r"^data:image/png;base64,[A-Za-z0-9+/=]+$"
    )  # of an item that is no text
    label: str | None = None
    baseline: str
    candidate: str


class AblationStep(Frozen):
    """The winner's network after one more of its passes, or before any."""

    name: str  # the passes that were added
    p50: float  # median milliseconds, all steps timed in turn
    size_bytes: int
    drop: Estimate  # on validation, against the reference


class Record(Frozen):
    """A whole run: what was asked for, every variant with its samples, and the verdict.

    >>> fmopt.Record.load(made).data["rows"]["test"] > 0
    True
    """

    fmopt: str  # version
    command: str
    model: Json  # title, model_type, task, parameters, bytes, digest, licence
    data: Json  # name, digest, rows (split -> number), columns, notes
    target: Target
    budget: Json
    effort: str
    workload: Workload | None = (
        None  # what is judged; None in records of before, whose latencies say it (see `judged_on`)
    )
    reference: str  # name of the fastest full-precision trial
    winner: str  # name of the trial that is shipped; may be the reference
    baselines: list[Trial]
    trials: list[Trial]
    refused: list[Refused] = Field(default_factory=list)
    verdict: Verdict
    changed: list[Changed] = Field(default_factory=list)
    waterfall: list[AblationStep] = Field(default_factory=list)  # what each pass of the winner gave
    circumstances: Circumstances
    stages: dict[str, float] = Field(default_factory=dict)  # stage -> seconds
    summary: str = ""

    @property
    def everything(self) -> list[Trial]:
        """Baselines, then candidates."""
        return [*self.baselines, *self.trials]

    @property
    def winning(self) -> Trial | None:
        """The trial that is shipped; None when nothing could be built."""
        return self.find(self.winner)

    @property
    def fastest_full_precision(self) -> Trial | None:
        """The trial that speedups are claimed against."""
        return self.find(self.reference)

    @property
    def judged_on(self) -> Workload:
        """The workload; that of a record made before there were any: the model alone, at the shape it was timed at."""
        if self.workload is not None:
            return self.workload
        around = self.circumstances
        return Workload(batch=around.batch, length=around.length, threads=around.threads, from_raw=False)

    @property
    def confidence(self) -> float:
        """Of the one-sided bounds."""
        return float(self.budget.get("confidence") or 0.95)

    @property
    def confidence_of_drop(self) -> float:
        """Of the bounds of the winner's drop: higher where its verdict was certain before all items of test were looked at."""
        winner = self.winning
        return (winner.test_confidence if winner is not None else None) or self.confidence

    def find(self, name: str) -> Trial | None:
        """The trial of that name."""
        return next((trial for trial in self.everything if trial.name == name), None)

    def _repr_html_(self) -> str:
        told = as_displayed(self)
        rows = [
            (
                f"{trial.name}{' (shipped)' if trial.name == self.winner else ''}\n{why_not(told, trial)}",
                formatting.milliseconds(latency_of(trial))
                + ("" if trial.latency or trial.predicted_ms is None else " predicted"),
                formatting.times(trial.speedup),
                formatting.MISSING if trial.final_drop is None else formatting.points(trial.final_drop.point),
                formatting.size(trial.size_bytes),
            )
            for trial in ordered(told)
        ]
        title = f"{self.model.get('title', 'model')} on {self.target.title}"
        columns = ("variant, and why not", "p50", "speedup", f"drop, {drop_unit(self)}", "size")
        return notebook.view(title, columns, rows, [self.summary]) + told.verdict._repr_html_()

    def save(self, path: Path) -> Path:
        """Write as JSON; the file is whole or not there. A folder gets `record.json`. StoreError when it cannot."""
        return write_whole(path / FILE if path.is_dir() else path, self.model_dump_json())

    @classmethod
    def load(cls, path: str | Path, *, lenient: bool = False) -> Record:
        """Read a file, or the `record.json` of a folder; BundleError when it is absent or damaged.

        With `lenient`, fields that this version does not know are passed over: another version's, or a script's own.
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise BundleError(f"there is no record at {path}; name a folder that `fmopt optimize` wrote")
        try:
            return cls.model_validate_json(record_bytes(path), extra="ignore" if lenient else None)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise BundleError(
                f"{path} is damaged at {where}: {first['msg']}; run `fmopt optimize` again, "
                "what is finished is not redone"
            ) from error


def drop_unit(record: Record) -> str:
    """The unit of a drop: "pt", points of a metric that ends at 1; "%" of what full precision has where it has no end."""
    return "pt" if _whole(record, test=False) is None and _whole(record, test=True) is None else "%"


def as_displayed(record: Record) -> Record:
    """The record as pages and tables show it: where drops are given in percent, they are shares of what full precision has
    instead of differences of the metric."""
    if drop_unit(record) == "pt":
        return record
    validation, test = _whole(record, test=False), _whole(record, test=True)
    judged = test if record.winning is not None and record.winning.test_drop is not None else validation
    checks = [
        check.model_copy(
            update={
                "unit": "%",
                "got": _share(check.got, judged),
                "limit": None if check.limit is None else check.limit / (judged or 1.0),
            }
        )
        if check.name.endswith("drop")
        else check
        for check in record.verdict.checks
    ]

    def given(trial: Trial) -> Trial:
        return trial.model_copy(
            update={"drop": _share(trial.drop, validation), "test_drop": _share(trial.test_drop, test)}
        )

    return record.model_copy(
        update={
            "baselines": [given(trial) for trial in record.baselines],
            "trials": [given(trial) for trial in record.trials],
            "verdict": Verdict(checks=checks),
            "waterfall": [step.model_copy(update={"drop": _share(step.drop, validation)}) for step in record.waterfall],
        }
    )


def endless(trial: Trial, *, test: bool = False) -> float | None:
    """What a trial has of a metric that has no end (perplexity); None for one that has, and where it was not judged."""
    primary = next((one for one in (trial.test_scores if test else trial.scores) if one.primary), None)
    if primary is None or METRICS[primary.metric].bounded:
        return None
    return value_of(primary) or None


def _whole(record: Record, *, test: bool) -> float | None:
    reference = record.fastest_full_precision
    return None if reference is None else endless(reference, test=test)


def _share(drop: Estimate | None, whole: float | None) -> Estimate | None:
    if drop is None or whole is None:
        return drop
    return Estimate(point=drop.point / whole, low=drop.low / whole, high=drop.high / whole)


def percentile(latency: Latency | None, q: float) -> float | None:
    """The q-th percentile (0 to 100) of the samples, in ms; None without samples."""
    if latency is None or not latency.samples_ms:
        return None
    return float(np.percentile(latency.samples_ms, q))


def latency_of(trial: Trial) -> float | None:
    """Its median, or the prediction where it could not be timed."""
    return trial.p50 if trial.p50 is not None else trial.predicted_ms


def role_of(record: Record, trial: Trial) -> str:
    """What a variant is in this record."""
    if trial.name == record.winner:
        return "winner"
    if trial.name == record.reference:
        return "reference"
    return "baseline" if trial in record.baselines else "candidate"


def ordered(record: Record) -> list[Trial]:
    """All variants as a table lists them: the shipped one, what was measured from fast to slow, then what was not."""
    states = ("measured", "stopped early", "failed", "refused")

    def key(trial: Trial) -> tuple[bool, int, float]:
        ms = latency_of(trial)
        return trial.name != record.winner, states.index(trial.status), float("inf") if ms is None else ms

    return sorted(record.everything, key=key)


def why_not(record: Record, trial: Trial) -> str:
    """Why a variant was not chosen, in one line: as the run said, else by comparison with the winner."""
    winner = record.winning
    if winner is not None and trial.name == winner.name:
        return ""
    if trial.reason or winner is None:
        return trial.reason
    ours, best = latency_of(trial), latency_of(winner)
    if ours is None or best is None:
        return "not timed"
    finding = f": {trial.findings[0].text}" if trial.findings else ""
    if ours >= best:
        return f"{ours / best:.2f}× as long as {winner.name}{finding}"
    return "faster, but not within the budget" if trial.drop else "faster, but its accuracy was not measured"


def verdict_words(record: Record) -> tuple[str, str]:
    """The word on the badge, and a sentence where the word alone would mislead."""
    outcome = record.verdict.outcome
    if not record.verdict.checks:
        return "NO LIMITS", "No limit was set, so there was nothing to pass or fail."
    accepts = bool(record.budget.get("accept_undecided"))
    if outcome is not settle(record.verdict, accept_undecided=accepts):
        note = "the measured values are within the budget, their intervals are not"
        return outcome.value, f"Accepted as undecided (--accept-undecided): {note}."
    return outcome.value, ""


def value_of(scores: Scores) -> float:
    """A metric's value over all its items."""
    return float(METRICS[scores.metric].of(scores.array(), None))


def summary_sentence(record: Record) -> str:
    """One paragraph in plain words: what is shipped, how fast, at what cost, and whether that was asked for."""
    record = as_displayed(record)
    winner, reference = record.winning, record.fastest_full_precision
    if winner is None:
        return f"Nothing could be built for {record.target.title}. {record.verdict.outcome}."
    parts = [_speed(record, winner, reference), _accuracy(record, winner), _size(winner, reference), _in_time(record)]
    return " ".join([*(part for part in parts if part), _decision(record.verdict)])


def _speed(record: Record, winner: Trial, reference: Trial | None) -> str:
    if winner.latency is None:
        known = (
            ""
            if winner.predicted_ms is None
            else (
                f"; a roofline model predicts {formatting.milliseconds(winner.predicted_ms)}, which is no measurement"
            )
        )
        return f"{winner.title} ({winner.name}) was built for {record.target.title}, which is not here{known}."
    at = record.judged_on.sentence()
    if record.workload is not None:
        at += f"; {_beside(winner.latency)}"
    if winner in record.baselines:
        tried = sum(trial.status in ("measured", "stopped early") for trial in record.trials)
        return (
            f"Nothing that was tried beats {_baseline(winner)} within the budget ({tried:,} "
            f"candidate{'s' if tried != 1 else ''} measured): leave the model as it is and run it by {winner.title}, "
            f"{formatting.milliseconds(winner.p50)} at the median ({at})."
        )
    if reference is None or winner.speedup is None:
        return f"{winner.title} ({winner.name}) takes {formatting.milliseconds(winner.p50)} at the median ({at})."
    return (
        f"{winner.title} ({winner.name}) is {formatting.times(winner.speedup)} "
        f"({formatting.times_interval(winner.speedup)}) as fast as {_baseline(reference, 'the fastest full-precision variant')} "
        f"({reference.title}): {formatting.milliseconds(reference.p50)} → {formatting.milliseconds(winner.p50)} "
        f"at the median ({at})."
    )


def _baseline(reference: Trial, full: str = "full precision") -> str:
    """What a claim is made against: a model that came quantized has nothing in full precision."""
    return full if reference.recipe.precision == "fp32" else "the graph as it was received"


def _beside(latency: Latency) -> str:
    """What stands beside a median: `p90 5.1 ms, p99 6.0 ms, 312 items per second`."""
    p90, p99 = (float(np.percentile(latency.samples_ms, q)) for q in (90, 99))
    rate = latency.batch * 1e3 * len(latency.samples_ms) / sum(latency.samples_ms)
    tails = f"p90 {formatting.milliseconds(p90)}, p99 {formatting.milliseconds(p99)}"
    return f"{tails}, {formatting.number(rate)} items per second"


def most_accurate_in_time(record: Record) -> Trial | None:
    """Of the variants that reach the speed asked for, the one that loses least on validation; None without such a wish."""
    wanted, most_ms = record.budget.get("min_speedup"), record.budget.get("max_latency_ms")
    if wanted is None and most_ms is None:
        return None
    reached = [
        trial for trial in record.trials
        if trial.drop is not None and trial.speedup is not None and trial.speedup.low >= (wanted or 0)
        and (trial.p50 or 0.0) <= (most_ms or float("inf"))
    ]  # fmt: skip
    return min(reached, key=lambda trial: trial.drop.point if trial.drop else 0.0, default=None)


def _in_time(record: Record) -> str:
    """Where what is shipped is not as fast as asked for: what could be had at that speed."""
    best = most_accurate_in_time(record)
    if best is None or best.name == record.winner or best.drop is None or best.speedup is None:
        return ""
    winner = record.winning
    if winner is not None and winner.p50 is not None and best.p50 is not None and winner.p50 <= best.p50:
        return ""
    return (
        f"At the speed asked for, {best.name} loses least: {formatting.points(best.drop.point)} {drop_unit(record)} on "
        f"validation at {formatting.times(best.speedup)}."
    )


def _accuracy(record: Record, winner: Trial) -> str:
    scores, drop = winner.primary, winner.final_drop
    if drop is None or winner.name == record.reference:
        return ""
    name = scores.name if scores else "The metric"
    # An error rate or a perplexity that gets worse rises.
    falls = scores is None or METRICS[scores.metric].higher_is_better
    worse, better = ("fell", "rose") if falls else ("rose", "fell")
    unit = drop_unit(record)
    if drop.point > 0:
        moved = f"{worse} by {formatting.points(drop.point)} {unit}"
    elif drop.point < 0:
        moved = f"{better} by {formatting.points(-drop.point)} {unit}"
    else:
        moved = "did not change"
    bound = (
        f"{'at most' if drop.point > 0 else f'and {worse} by at most'} {formatting.points(max(drop.high, 0.0))} {unit}"
    )
    over = f" over {len(scores.values):,} items" if scores else ""
    split = "test" if winner.test_drop else "validation"
    judge = (
        " (there are no labels, so it is judged by its likeness to the baseline)"
        if (scores and scores.against_baseline)
        else ""
    )
    sure = f"{formatting.confidence(record.confidence_of_drop)} confidence"
    return f"{name} {moved}, {bound} at {sure}{over} of the {split} split{judge}."


def _size(winner: Trial, reference: Trial | None) -> str:
    if winner.size_bytes is None or reference is None or reference.size_bytes is None or winner is reference:
        return ""
    return f"The files went from {formatting.size(reference.size_bytes)} to {formatting.size(winner.size_bytes)}."


def _decision(verdict: Verdict) -> str:
    if not verdict.checks:
        return "No limit was set, so there is no verdict."
    if verdict.outcome is Outcome.PASS:
        return "PASS: every check of the budget holds."
    deciding = [check for check in verdict.checks if check.outcome is verdict.outcome]
    said = "; ".join(f"{check.name} ({check.note})" if check.note else check.name for check in deciding)
    return f"{verdict.outcome}: {said}."
