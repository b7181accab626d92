from __future__ import annotations

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from sklearn.metrics import accuracy_score, f1_score

from fmopt.core.errors import DataError
from fmopt.evaluation.metrics import METRICS
from fmopt.tasks.text_classification import TASK
from tests.tasks.cases import by_name, metadata

NLI = metadata("text-classification", ["entailment", "neutral", "contradiction"])
TOPICS = metadata("text-classification", ["Card arrival", "lost_card", "cash"], multi_label=True)


def rows(labels):
    return [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]


def value(score):
    return METRICS[score.metric].of(score.array())


def test_labels_are_found_by_name_number_and_numbers_as_text():
    items = TASK.items(rows([0, "NEUTRAL", " contradiction", "2", 1.0, np.int8(1)]), NLI)
    assert [item.label for item in items] == [0, 1, 2, 2, 1, 1]
    spelled = metadata("text-classification", ["Card arrival", "lost_card"])
    assert [i.label for i in TASK.items(rows(["card_arrival", "LOST-CARD"]), spelled)] == [0, 1]


def test_a_name_that_looks_like_a_number_comes_first():
    stars = metadata("text-classification", ["1", "2", "3"])
    assert [item.label for item in TASK.items(rows(["1", "3", 0]), stars)] == [0, 2, 0]


@pytest.mark.parametrize("label", ["maybe", 3, -1, 0.5, "3"])
def test_an_unknown_label_names_its_row_and_what_there_is(label):
    with pytest.raises(DataError, match=r"row 2 has the label .*; it has 3: entailment, neutral, contradiction"):
        TASK.items(rows([0, label]), NLI)


def test_a_pair_of_texts_is_one_item():
    items = TASK.items([{"text": "a", "text_pair": "b", "label": 1}, {"text": "a", "text_pair": "", "label": 1}], NLI)
    assert [item.sample for item in items] == [("a", "b"), ("a", "")]


def test_scores_equal_scikit_learns():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 50)
    logits, before = rng.normal(size=(2, 50, 3)).astype(np.float32)
    items = TASK.items(rows(true.tolist()), NLI)
    got = by_name(TASK.scores(list(logits), items, list(before), NLI))
    guess = logits.argmax(axis=1)
    assert value(got["accuracy"]) == pytest.approx(accuracy_score(true, guess))
    assert got["accuracy"].primary
    assert value(got["macro F1"]) == pytest.approx(f1_score(true, guess, average="macro"))
    assert value(got["agreement with baseline"]) == pytest.approx((guess == before.argmax(axis=1)).mean())
    wanted = rel_entr(softmax(before, axis=1), softmax(logits, axis=1)).sum(axis=1)
    np.testing.assert_allclose(got["KL to baseline"].array()[:, 0], wanted, rtol=1e-4, atol=1e-6)
    assert not METRICS[got["KL to baseline"].metric].higher_is_better


def test_without_labels_it_is_judged_by_agreement():
    items = TASK.items([{"text": "a"}, {"text": "b"}], NLI)
    before, after = [np.array([2.0, 1, 0]), np.array([0.0, 1, 0])], [np.array([2.0, 1, 0]), np.array([0, 1, 1.5])]
    got = by_name(TASK.scores(after, items, before, NLI))
    assert got["agreement with baseline"].values == [[1.0], [0.0]]
    assert got["agreement with baseline"].primary
    assert got["agreement with baseline"].against_baseline
    assert TASK.scores(after, items, None, NLI) == []


def test_several_labels_at_once():
    items = TASK.items(rows([["cash", "lost card"], "[]", "cash, Card Arrival", [1]]), TOPICS)
    assert [item.label for item in items] == [[1, 2], [], [0, 2], [1]]
    logits = np.array([[-1, 2, 3], [-1, -1, -1], [1, 1, -1], [-1, 5, -1]], dtype=np.float32)
    got = by_name(TASK.scores(list(logits), items, list(-logits), TOPICS))
    wanted = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]])
    assert value(got["micro F1"]) == pytest.approx(f1_score(wanted, logits > 0, average="micro"))
    assert got["all labels right"].values == [[1.0], [1.0], [0.0], [1.0]]
    assert value(got["agreement with baseline"]) == 0
    assert (got["KL to baseline"].array() > 0).all()


def test_changes_are_named_with_their_harm():
    items = TASK.items(rows(["neutral", "neutral", "neutral", "neutral"]), NLI)
    one = np.eye(3)
    before, after = [one[1], one[0], one[0], one[1]], [one[2], one[1], one[2], one[1]]
    got = TASK.changes(after, items, before, NLI)
    assert [(c.item, c.before, c.after, c.harm, c.label) for c in got] == [
        (0, "neutral", "contradiction", 1.0, "neutral"),
        (1, "entailment", "neutral", -1.0, "neutral"),
        (2, "entailment", "contradiction", 0.0, "neutral"),
    ]
    several = TASK.changes([np.array([1.0, 1, -1])], TASK.items(rows([["cash"]]), TOPICS), [np.full(3, -1.0)], TOPICS)
    assert [(c.before, c.after, c.label) for c in several] == [("none", "Card arrival, lost_card", "cash")]
