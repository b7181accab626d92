from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from fmopt.core.errors import DataError
from fmopt.evaluation.metrics import METRICS
from fmopt.tasks.text_regression import TASK
from tests.tasks.cases import by_name, metadata

FACTS = metadata("text-regression")


def test_spearman_with_the_labels_and_with_the_baseline():
    rng = np.random.default_rng(1)
    labels, after, before = rng.integers(0, 6, 40) / 2, *rng.normal(size=(2, 40))
    items = TASK.items([{"text": "a", "text_pair": "b", "label": str(x)} for x in labels], FACTS)
    got = by_name(TASK.scores([np.array([x]) for x in after], items, [np.array([x]) for x in before], FACTS))
    assert got["Spearman"].primary
    assert METRICS["spearman"].of(got["Spearman"].array()) == pytest.approx(spearmanr(after, labels).statistic)
    fidelity = got["Spearman to baseline"]
    assert METRICS["spearman"].of(fidelity.array()) == pytest.approx(spearmanr(after, before).statistic)
    assert fidelity.against_baseline


def test_without_labels_the_baseline_judges():
    items = TASK.items([{"text": "a"}, {"text": "b"}], FACTS)
    got = by_name(TASK.scores([np.array([1.0]), np.array([2.0])], items, [np.array([3.0]), np.array([4.0])], FACTS))
    assert got["Spearman to baseline"].primary


@pytest.mark.parametrize(("label", "message"), [("high", "which is no number"), (float("inf"), "give a finite number")])
def test_a_score_is_a_finite_number(label, message):
    with pytest.raises(DataError, match=f"row 1 has the score .*{message}"):
        TASK.items([{"text": "a", "label": label}], FACTS)


def test_only_moves_worth_a_line_are_named():
    items = TASK.items([{"text": str(n), "label": n} for n in range(4)], FACTS)
    before = [np.array([x]) for x in (0.0, 1.0, 2.0, 10.0)]
    after = [np.array([x]) for x in (0.4, 1.6, 2.0, np.nan)]
    got = TASK.changes(after, items, before, FACTS)
    assert [(c.item, c.before, c.after, c.label) for c in got] == [
        (1, "1.000", "1.600", "1"),
        (3, "10.000", "nan", "3"),
    ]
    same = [np.array([1.0])] * 4
    assert TASK.changes(same, items, same, FACTS) == []
