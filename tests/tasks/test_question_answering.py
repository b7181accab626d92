from __future__ import annotations

import pytest

from fmopt.evaluation.metrics import METRICS
from fmopt.tasks.question_answering import TASK, normalized, word_f1
from tests.tasks.cases import by_name, metadata

FACTS = metadata("question-answering")


def items(*reported):
    return TASK.items([{"question": "who?", "context": "c", "answers": answers} for answers in reported], FACTS)


def said(*texts):
    return [{"text": text, "start": 0, "end": len(text), "score": 1.0} for text in texts]


@pytest.mark.parametrize(
    ("got", "wanted", "f1"),
    [
        ("the  Panthers'", "Panthers", 1.0),  # articles, punctuation and blanks do not count
        ("A panther, an eagle!", "Panther Eagle", 1.0),
        ("24 interceptions (in 2015)", "in 2015 24", 6 / 7),  # 3 shared of 4 and of 3
        ("fox fox dog", "fox fox fox", 2 / 3),  # words count as often as both have them
        ("theatre", "atre", 0.0),  # "the" inside a word is none
        ("", "", 1.0),
        ("the", "", 1.0),
        ("fox", "", 0.0),
    ],
)
def test_words_are_compared_as_by_the_squad_script(got, wanted, f1):
    assert word_f1(got, wanted) == pytest.approx(f1)
    assert word_f1(wanted, got) == pytest.approx(f1)
    assert (normalized(got) == normalized(wanted)) == (f1 == 1.0)


def test_the_best_of_the_accepted_answers_counts():
    asked = items(["red fox", "the fox"], [], ["blue"], {"text": ["Fox!"], "answer_start": [3]}, "fox")
    got = by_name(TASK.scores(said("fox", "", "a fox", "fox", "red fox"), asked, None, FACTS))
    assert got["F1"].primary
    assert got["exact match"].values == [[1], [1], [0], [1], [0]]
    assert [value for (value,) in got["F1"].values] == pytest.approx([1, 1, 0, 1, 2 / 3])


def test_an_answer_where_there_is_none_is_wrong():
    got = by_name(TASK.scores(said("fox", ""), items([], ["fox"]), None, FACTS))
    assert got["F1"].values == got["exact match"].values == [[0], [0]]


def test_without_labels_the_baselines_answer_judges():
    asked = TASK.items([{"question": "q", "context": "c"}] * 2, FACTS)
    got = by_name(TASK.scores(said("red fox", ""), asked, said("fox", ""), FACTS))["F1 against baseline"]
    assert [value for (value,) in got.values] == pytest.approx([2 / 3, 1])
    assert (got.primary, METRICS[got.metric].higher_is_better) == (True, True)


def test_changes_say_what_was_lost():
    got = TASK.changes(said("fox", "", "y"), items(["fox"], ["fox", "fox"], []), said("fox", "a fox", ""), FACTS)
    assert [(c.item, c.before, c.after, c.harm, c.label) for c in got] == [
        (1, "a fox", "(no answer)", 1.0, "fox"),
        (2, "(no answer)", "y", 1.0, "(no answer)"),
    ]
