"""What a benchmark on several boards found: each board's samples, figures and verdict, and the fleet's. It is JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from fmopt.core import formatting
from fmopt.core.results import Check, Estimate, Frozen, HostFacts, Latency, Outcome, Verdict
from fmopt.core.stages.store import write_whole
from fmopt.evaluation import bootstrap
from fmopt.evaluation.gate import EXIT_CODES, Budget, judge
from fmopt.workflow.benchmark.record import Cell, Place, SingleStream, Variant

FILE = "fleet.json"
# Of several candidates the command's exit code is that of the one that came nearest to a pass.
NEAREST = (Outcome.PASS, Outcome.UNDECIDED, Outcome.UNMEASURED, Outcome.FAIL)


class BoardResult(Frozen):
    """One board: what was measured there, or why nothing was."""

    name: str
    address: str
    state: Literal["measured", "lost", "refused"]
    reason: str = ""  # why it was lost or refused
    host: HostFacts = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    refused: dict[str, str] = Field(default_factory=dict)  # variant → why it is not timed there
    differs: dict[str, str] = Field(default_factory=dict)  # variant → how its golden items differ there; "" as judged
    cells: list[Cell] = Field(default_factory=list)

    def timed_everywhere(self, name: str) -> bool:
        """Whether a variant was timed there at every place."""
        return bool(self.cells) and all(name in _timed(cell) for cell in self.cells)


class Figure(Frozen):
    """One variant on one board at one place. Medians, with one-sided bounds at 95 %."""

    board: str
    variant: str
    place: Place
    median_ms: Estimate
    speedup: Estimate | None  # over the reference, timed in turn on the same board; None for the reference


class FleetVerdict(Frozen):
    """One candidate on all boards."""

    variant: str
    outcome: Outcome
    boards: dict[str, Verdict]  # by board
    worst_board: str | None = None  # where its speedup is least, of those where it was timed
    worst_speedup: Estimate | None = None

    @property
    def passed(self) -> int:
        """On how many boards it passes."""
        return sum(verdict.outcome is Outcome.PASS for verdict in self.boards.values())


class FleetBenchmark(Frozen):
    """The whole of it; the only thing its page reads."""

    fmopt: str
    command: str
    variants: list[Variant]  # the first is the reference where there are several
    places: list[Place]
    require: int  # boards that have to pass
    min_speedup: float | None
    max_latency_ms: float | None
    boards: list[BoardResult]
    figures: list[Figure] = Field(default_factory=list)
    verdicts: list[FleetVerdict] = Field(default_factory=list)
    best: str | None = None  # the candidate that passes and whose least speedup is the largest
    seed: int
    date: str

    def judged(self) -> FleetBenchmark:
        """With the figures and verdicts that follow from the samples."""
        figures = [one for board in self.boards for one in _figures(self, board)]
        verdicts = [_fleet_verdict(self, name, figures) for name in self.candidates]
        passing = [one for one in verdicts if one.outcome is Outcome.PASS]
        best = max(passing, key=lambda one: one.worst_speedup.point if one.worst_speedup else 1.0, default=None)
        return self.model_copy(
            update={"figures": figures, "verdicts": verdicts, "best": best.variant if best else None}
        )

    @property
    def candidates(self) -> list[str]:
        """What is judged: all but the reference; one bundle alone is judged itself."""
        names = [one.name for one in self.variants]
        return names[1:] or names

    @property
    def exit_code(self) -> int:
        """That of the candidate that came nearest to a pass (see evaluation/gate.py)."""
        return EXIT_CODES[min((one.outcome for one in self.verdicts), key=NEAREST.index)]

    def sentences(self) -> list[str]:
        """What there is to say, in lines: boards that did not answer, and each candidate's verdict with those that failed."""
        missing = [board for board in self.boards if board.state != "measured"]
        said = []
        if missing:
            there = len(self.boards) - len(missing)
            said.append(f"{there} of {len(self.boards)} boards answered")
            words = {"lost": "was lost", "refused": "cannot be used"}
            said += [f"board {board.name} {words[board.state]}: {board.reason}" for board in missing]
        for verdict in self.verdicts:
            least = "" if self.require == len(self.boards) else f", {self.require} have to"
            said.append(
                f"{verdict.outcome.value} {verdict.variant} passes on {verdict.passed} of {len(self.boards)}{least}"
            )
            said += [
                f"{one.outcome.value} on {board}: {why(one)}"
                for board, one in verdict.boards.items()
                if one.outcome is not Outcome.PASS
            ]
            if verdict.worst_speedup is not None:
                said.append(
                    f"{verdict.variant} is least fast on {verdict.worst_board}: {_times(verdict.worst_speedup)}"
                )
        if len(self.candidates) > 1 and self.best is not None:
            said.append(f"best on its worst board: {self.best}")
        return said

    def save(self, folder: Path) -> Path:
        """Write as JSON into a folder; it is whole or not there. StoreError when it cannot be written."""
        return write_whole(folder / FILE, self.model_dump_json())


def why(verdict: Verdict) -> str:
    """What a verdict that is no pass is for."""
    decisive = [check for check in verdict.checks if check.outcome is verdict.outcome]
    return "; ".join(map(_words, decisive)) or "nothing was asked of it: give --max-latency, or a reference"


def _words(check: Check) -> str:
    if check.got is None or check.limit is None:
        return f"{check.name}: {check.note}" if check.note else f"{check.name} was not measured"
    bound = "at least" if check.name == "speedup" else "at most"
    got, limit = (formatting.quantity(value, check) for value in (check.got.point, check.limit))
    return f"{check.name} {got} ({formatting.check_interval(check)}), {bound} {limit}" + (
        f" [{check.note}]" if check.note else ""
    )


def _times(speedup: Estimate) -> str:
    return f"{formatting.times(speedup)} ({formatting.times_interval(speedup)})"


def _figures(found: FleetBenchmark, board: BoardResult) -> list[Figure]:
    """Medians and speedups of all that was timed on a board."""
    reference = found.variants[0].name
    made = []
    for cell in board.cells:
        timed = {name: _latency(cell, name) for name in _timed(cell)}
        for name, latency in timed.items():
            both = name != reference and reference in timed
            speedup = bootstrap.speedup(timed[reference], latency, seed=found.seed) if both else None
            median = bootstrap.median_latency(latency, seed=found.seed)
            made.append(Figure(board=board.name, variant=name, place=cell.place, median_ms=median, speedup=speedup))
    return made


def _timed(cell: Cell) -> list[str]:
    assert isinstance(cell.measured, SingleStream)
    return [name for name, samples in cell.measured.samples_ms.items() if samples]


def _latency(cell: Cell, name: str) -> Latency:
    assert isinstance(cell.measured, SingleStream)
    place = cell.place
    samples = cell.measured.samples_ms[name]
    return Latency(samples_ms=samples, batch=place.batch, length=place.length, threads=place.threads)


def _fleet_verdict(found: FleetBenchmark, name: str, figures: Sequence[Figure]) -> FleetVerdict:
    mine = [one for one in figures if one.variant == name]
    boards = {
        board.name: _board_verdict(found, board, name, [one for one in mine if one.board == board.name])
        for board in found.boards
    }
    compared = [(one.board, one.speedup) for one in mine if one.speedup is not None]
    worst = min(compared, key=lambda one: one[1].point, default=(None, None))
    return FleetVerdict(
        variant=name,
        outcome=_outcome([verdict.outcome for verdict in boards.values()], found.require),
        boards=boards,
        worst_board=worst[0],
        worst_speedup=worst[1],
    )


def _outcome(boards: Sequence[Outcome], require: int) -> Outcome:
    """PASS when as many as have to pass do; FAIL when they could not even if all that is open did; else what is open."""
    passed, undecided, unmeasured = (
        sum(one is outcome for one in boards) for outcome in (Outcome.PASS, Outcome.UNDECIDED, Outcome.UNMEASURED)
    )
    if passed >= require:
        return Outcome.PASS
    if passed + undecided + unmeasured < require:
        return Outcome.FAIL
    return Outcome.UNDECIDED if passed + undecided >= require else Outcome.UNMEASURED


def _board_verdict(found: FleetBenchmark, board: BoardResult, name: str, figures: Sequence[Figure]) -> Verdict:
    """Every check of one candidate on one board, at each place; what was not measured there never passes."""
    if board.state != "measured":
        return Verdict(checks=[Check(name="board", outcome=Outcome.UNMEASURED, note=f"{board.state}: {board.reason}")])
    if name in board.refused:
        return Verdict(checks=[Check(name="runs there", outcome=Outcome.FAIL, note=board.refused[name])])
    checks = []
    if name in board.differs:
        outcome = Outcome.FAIL if board.differs[name] else Outcome.PASS
        checks.append(Check(name="golden items", outcome=outcome, note=board.differs[name]))
    reference = found.variants[0].name
    without = f"{reference} does not run there: {board.refused[reference]}" if reference in board.refused else ""
    budget = Budget(max_drop=None, min_speedup=found.min_speedup, max_latency_ms=found.max_latency_ms)
    at = {one.place: one for one in figures}
    for place in found.places:
        figure = at.get(place)
        verdict = judge(
            budget, drop=None, baseline_metric=0.0, speedup=None if figure is None else figure.speedup,
            latency_ms=None if figure is None else figure.median_ms, size_mb=None, memory_mb=None, device_present=True,
            items_changed=0, n=0,
        )  # fmt: skip
        where = formatting.shape(place.batch, place.length, place.threads) if len(found.places) > 1 else ""
        for check in verdict.checks:
            note = without if without and check.name == "speedup" else check.note
            checks.append(check.model_copy(update={"note": "; ".join(part for part in (where, note) if part)}))
    return Verdict(checks=checks)
