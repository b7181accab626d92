"""Which texts a report shows as changed, and by how much they were harmed."""

from __future__ import annotations

import pytest

from fmopt.tasks.summarization import rouge_l
from fmopt.tasks.translation import changed_texts, sentence_chrf


def test_a_lost_translation_harms_and_a_found_one_does_the_opposite() -> None:
    before, after = ["ein Hund rennt", "ein Baum", "gleich"], ["der Stuhl", "eine Katze", "gleich"]
    lost, found = changed_texts(before, after, [["ein Hund rennt"], ["eine Katze"], ["gleich"]], sentence_chrf)
    assert (lost.item, lost.before, lost.after, lost.label) == (0, "ein Hund rennt", "der Stuhl", "ein Hund rennt")
    assert lost.harm > 0.8
    assert (found.item, found.harm) == (1, pytest.approx(sentence_chrf("ein Baum", "eine Katze") - 1))


def test_the_summary_that_fits_best_is_what_a_text_is_held_against() -> None:
    wanted = [["a cat sat", "dogs ran far"]]
    (change,) = changed_texts(["a cat sat"], ["dogs ran far"], wanted, rouge_l)
    assert change.harm == 0
    (change,) = changed_texts(["a cat sat"], ["birds sing"], wanted, rouge_l)
    assert change.harm == 1


def test_without_a_label_nothing_is_harmed() -> None:
    (change,) = changed_texts(["a"], ["b"], [[]], rouge_l)
    assert (change.harm, change.label) == (0, None)
