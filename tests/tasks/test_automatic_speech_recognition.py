"""Recognition is judged by the words that differ, over all items together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmopt.core.errors import DataError
from fmopt.evaluation.metrics import METRICS
from fmopt.tasks.automatic_speech_recognition import TASK, edits, words_of
from fmopt.tasks.base import Item

SAID = ["one two three", "four", "it's five"]


def heard(*texts: str) -> list[dict[str, object]]:
    return [{"text": text, "score": 1.0} for text in texts]


def items(labels: list[str | None]) -> list[Item]:
    return [Item(number, b"", label) for number, label in enumerate(labels)]


def test_wer_counts_words_over_all_items():
    found = TASK.scores(heard("one two", "for", "It's five!"), items(SAID), None, None)
    assert [score.name for score in found if score.primary] == ["WER"]
    wer = METRICS["error_rate"].of(found[0].array())
    assert wer == pytest.approx(2 / 6)  # one word is missing, one is another
    assert found[1].name == "CER"
    assert METRICS["error_rate"].of(found[1].array()) == pytest.approx((6 + 1) / (13 + 4 + 9))


def test_resamples_weigh_items_by_their_words():
    values = np.array([[1.0, 4.0], [0.0, 1.0], [2.0, 1.0]])
    counts = np.array([[1, 1, 1], [0, 0, 2], [3, 0, 0]])
    np.testing.assert_allclose(METRICS["error_rate"].of(values, counts), [3 / 6, 4 / 2, 3 / 12])


def test_without_transcripts_the_baseline_is_what_was_said():
    found = TASK.scores(heard("one", "two"), items([None, None]), heard("one", "too"), None)
    primary = next(score for score in found if score.primary)
    assert (primary.name, primary.against_baseline) == ("WER to baseline", True)
    assert METRICS["error_rate"].of(primary.array()) == pytest.approx(0.5)


def test_changes_name_what_was_lost():
    changes = TASK.changes(heard("one two three", "five"), items(SAID[:2]), heard("one two three", "four"), None)
    assert [(change.item, change.before, change.after, change.harm) for change in changes] == [(1, "four", "five", 1.0)]


def test_a_class_number_is_no_transcript():
    with pytest.raises(DataError, match=r"labels\.json"):
        TASK.items([{"audio": b"", "transcript": 7}], None)


@given(st.text("ab ", max_size=8), st.text("ab ", max_size=8), st.text("ab ", max_size=8))
def test_edits_are_a_distance(first, second, third):
    assert edits(first, second) == edits(second, first)
    assert (edits(first, second) == 0) == (first == second)
    assert edits(first, third) <= edits(first, second) + edits(second, third)


def test_words_have_no_case_and_no_marks():
    assert words_of("It’s — FIVE, o'clock.") == ["it's", "five", "o'clock"]
