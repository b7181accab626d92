"""Labels of training rows: names in order, both halves of every entity, several labels a row, none that no class has."""

from __future__ import annotations

import numpy as np
import pytest

from fmopt.tasks.base import Item, Unseen, find_task
from fmopt.training.examples import IGNORED, _class_example, _classes_example


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        (["O", "B-city", "B-day", "I-day"], ["O", "B-city", "B-day", "I-city", "I-day"]),
        (["O", "I-city", "B-day"], ["O", "B-city", "B-day", "I-city", "I-day"]),
        (["O", "B-city", "B-day"], ["O", "B-city", "B-day"]),  # a scheme without I-
        (["NOUN", "VERB"], ["NOUN", "VERB"]),
    ],
)
def test_both_halves_of_every_entity_are_classes(tags, wanted):
    rows = [{"tokens": ["a"], "tags": [tag]} for tag in tags]
    assert find_task("token-classification").label_names(rows) == wanted


def test_classes_of_rows_with_several_labels():
    rows = [{"text": "a", "label": ["toxic", "spam"]}, {"text": "b", "label": []}, {"text": "c", "label": ["insult"]}]
    assert find_task("text-classification").label_names(rows) == ["insult", "spam", "toxic"]


def test_a_label_without_a_class_teaches_nothing():
    assert _class_example(None, 0, Item(0, "a", Unseen("rare")), {})["labels"] == IGNORED
    assert _class_example(None, 0, Item(0, "a", 2), {})["labels"] == 2
    several = _classes_example(3, None, 0, Item(0, "a", [1, Unseen("rare")]), {})
    np.testing.assert_array_equal(several["labels"], [0, 1, 0])
