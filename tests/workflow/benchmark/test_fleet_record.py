"""Verdicts of a fleet: what passes where, and what one for all follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from fmopt.core.results import Outcome
from fmopt.workflow.benchmark.fleet_record import BoardResult, FleetBenchmark
from fmopt.workflow.benchmark.record import Cell, Place, SingleStream, Variant

PLACE = Place(scenario="single-stream", batch=1, length=16, threads=1)


def board(name: str, **medians: float) -> BoardResult:
    """A board where bundles take so many milliseconds, give or take a percent."""
    draw = np.random.default_rng(0)
    samples = {bundle: list(draw.normal(ms, ms / 100, 200)) for bundle, ms in medians.items()}
    cell = Cell(place=PLACE, measured=SingleStream(samples_ms=samples))
    return BoardResult(name=name, address=f"ssh://{name}", state="measured", cells=[cell])


def lost(name: str) -> BoardResult:
    return BoardResult(name=name, address=f"ssh://{name}", state="lost", reason="nobody answers")


def fleet(boards: list[BoardResult], *names: str, require: int | None = None, **limits: float | None) -> FleetBenchmark:
    variants = [
        Variant(name=name, runtime="onnxruntime", precision="fp32", size_bytes=1, digest=name) for name in names
    ]
    given = {"min_speedup": None, "max_latency_ms": None, **limits}
    return FleetBenchmark(
        fmopt="0", command="", variants=variants, places=[PLACE], require=require or len(boards), boards=boards,
        seed=0, date="", **given,
    ).judged()  # fmt: skip


def test_it_passes_on_nine_of_ten() -> None:
    boards = [board(f"b{number}", base=10, small=5) for number in range(9)] + [board("slow", base=10, small=11)]
    whole = fleet(boards, "base", "small", min_speedup=1.0)
    (verdict,) = whole.verdicts
    assert (verdict.outcome, verdict.passed, whole.exit_code, whole.best) == (Outcome.FAIL, 9, 1, None)
    said = whole.sentences()
    assert said[0] == "FAIL small passes on 9 of 10"
    assert said[1].startswith("FAIL on slow: speedup 0.9")
    assert verdict.worst_board == "slow"
    enough = fleet(boards, "base", "small", min_speedup=1.0, require=9)
    assert (enough.verdicts[0].outcome, enough.exit_code, enough.best) == (Outcome.PASS, 0, "small")
    assert enough.sentences()[0] == "PASS small passes on 9 of 10, 9 have to"


def test_a_lost_board_never_passes() -> None:
    boards = [board("a", base=10, small=5), board("b", base=10, small=5), lost("c")]
    found = fleet(boards, "base", "small", min_speedup=1.0)
    assert (found.verdicts[0].outcome, found.exit_code) == (Outcome.UNMEASURED, 4)
    assert found.sentences()[:2] == ["2 of 3 boards answered", "board c was lost: nobody answers"]
    assert fleet(boards, "base", "small", min_speedup=1.0, require=2).verdicts[0].outcome is Outcome.PASS
    assert fleet([lost("a")], "one", max_latency_ms=1.0).exit_code == 4


def test_the_best_is_that_of_the_worst_board() -> None:
    boards = [board("a", base=10, steady=6, moody=2), board("b", base=10, steady=6, moody=9)]
    assert fleet(boards, "base", "steady", "moody", min_speedup=1.0).best == "steady"


def test_a_bundle_that_does_not_fit_or_answers_otherwise_fails_there() -> None:
    unfit = board("old", base=10).model_copy(update={"refused": {"small": "it lacks dotprod"}})
    other = board("odd", base=10, small=5).model_copy(update={"differs": {"small": "golden predictions differ"}})
    found = fleet([unfit, other], "base", "small", min_speedup=1.0)
    assert found.verdicts[0].outcome is Outcome.FAIL
    assert found.sentences()[1:3] == [
        "FAIL on old: runs there: it lacks dotprod",
        "FAIL on odd: golden items: golden predictions differ",
    ]
    alone = board("old", small=5).model_copy(update={"refused": {"base": "it lacks dotprod"}})
    assert fleet([alone], "base", "small", min_speedup=1.0).sentences()[1] == (
        "UNMEASURED on old: speedup: base does not run there: it lacks dotprod"
    )


@pytest.mark.parametrize(("limit", "outcome"), [(20.0, Outcome.PASS), (5.0, Outcome.FAIL), (None, Outcome.UNMEASURED)])
def test_one_bundle_alone_is_held_to_a_time(limit: float | None, outcome: Outcome) -> None:
    found = fleet([board("a", one=10)], "one", max_latency_ms=limit)
    assert found.verdicts[0].outcome is outcome
    assert FleetBenchmark.model_validate_json(found.model_dump_json()) == found
