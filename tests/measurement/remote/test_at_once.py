"""Boards side by side: one that is lost is tried again, within limits, and what the others found is kept."""

from __future__ import annotations

import threading

import pytest

from fmopt.core.errors import BoardError, UnmeasuredError
from fmopt.measurement.remote.at_once import at_once
from fmopt.measurement.remote.ssh import NotReachedError


def test_all_at_once() -> None:
    meet = threading.Barrier(3, timeout=5)  # broken unless all three run at the same time
    found = at_once({name: lambda: meet.wait() >= 0 for name in "abc"}, print, pause_s=0)
    assert [(name, one.state, one.value) for name, one in found.items()] == [(name, "measured", True) for name in "abc"]


def test_a_board_that_was_lost_is_found_again() -> None:
    said: list[str] = []
    tried: list[int] = []

    def flaky() -> int:
        tried.append(1)
        if len(tried) < 2:
            raise UnmeasuredError("the line was cut")
        return 7

    found = at_once({"flaky": flaky, "steady": lambda: 1}, said.append, pause_s=0.01)
    assert (found["flaky"].state, found["flaky"].value, found["steady"].value) == ("measured", 7, 1)
    assert said == ["flaky is lost (the line was cut); it is tried again in 0 s"]


def test_a_board_that_stays_away_is_tried_once_more_when_it_is_alone_and_often_while_others_work() -> None:
    tried: list[int] = []

    def away() -> int:
        tried.append(1)
        raise NotReachedError("nobody answers")

    found = at_once({"away": away, "steady": lambda: 1}, lambda line: None, pause_s=0.05)
    assert (found["away"].state, found["away"].reason, found["steady"].state) == ("lost", "nobody answers", "measured")
    assert len(tried) in (2, 3)
    tried.clear()
    done = threading.Event()
    busy = {"away": away, "long": lambda: done.wait(0.5)}
    assert at_once(busy, lambda line: None, tries=4, pause_s=0.01)["away"].state == "lost"
    assert len(tried) == 4


def test_a_board_that_cannot_be_used_is_not_tried_again_and_a_fault_of_ours_ends_all() -> None:
    def full() -> int:
        raise BoardError("its disk is full")

    said: list[str] = []
    assert at_once({"full": full}, said.append, pause_s=0)["full"].state == "refused"
    assert said == []

    def broken() -> int:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        at_once({"broken": broken}, print, pause_s=0)
