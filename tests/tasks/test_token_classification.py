from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities

from fmopt.core.errors import DataError
from fmopt.evaluation.metrics import METRICS
from fmopt.tasks.token_classification import TASK, spans
from tests.tasks.cases import by_name, metadata

NAMES = ["O", "B-per", "I-per", "B-creative-work", "I-creative-work"]
NER = metadata("token-classification", NAMES)
BIOES = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("a", "b"))]


def logits(tags, size=5):
    return np.eye(size, dtype=np.float32)[list(tags)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(BIOES) - 1), max_size=12))
def test_spans_are_seqevals(tags):
    assert spans(tags, BIOES) == set(get_entities([BIOES[tag] for tag in tags]))


sentences = st.lists(st.lists(st.tuples(*[st.integers(0, 4)] * 2), min_size=1, max_size=8), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(sentences)
def test_span_f1_is_seqevals(reported):
    true, guess = ([[pair[i] for pair in words] for words in reported] for i in (0, 1))
    items = TASK.items([{"tokens": ["w"] * len(tags), "tags": tags} for tags in true], NER)
    got = by_name(TASK.scores([logits(tags) for tags in guess], items, None, NER))["span F1"]
    named = [[[NAMES[tag] for tag in tags] for tags in part] for part in (true, guess)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = f1_score(*named)
    assert METRICS["micro_f1"].of(got.array()) == pytest.approx(wanted)


def test_tags_by_name_or_number_one_for_every_word():
    items = TASK.items([{"tokens": ["Ann", "Lee", "ran"], "tags": ["b-PER", 2, "O"]}], NER)
    assert (items[0].sample, items[0].label) == (["Ann", "Lee", "ran"], [1, 2, 0])
    with pytest.raises(DataError, match="row 1 has 2 words and 1 tags"):
        TASK.items([{"tokens": ["a", "b"], "tags": [0]}], NER)
    with pytest.raises(DataError, match="row 2 has the label 'B-place'"):
        TASK.items([{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a"], "tags": ["B-place"]}], NER)


def test_without_labels_the_baselines_entities_judge():
    items = TASK.items([{"text": "Ann Lee ran"}, {"text": "no one"}], NER)
    before, after = [logits([1, 2, 0]), logits([0, 0])], [logits([1, 0, 0]), logits([0, 1])]
    got = by_name(TASK.scores(after, items, before, NER))["span F1 against baseline"]
    assert (got.values, got.primary, got.against_baseline) == ([[0, 1, 1], [0, 1, 0]], True, True)


def test_parts_of_speech_are_judged_word_by_word():
    tagger = metadata("token-classification", ["NOUN", "VERB"])
    items = TASK.items([{"tokens": ["cats", "cats", "run"], "tags": ["NOUN", "NOUN", "VERB"]}], tagger)
    got = by_name(TASK.scores([logits([0, 1, 1], 2)], items, None, tagger))["word accuracy"]
    assert METRICS["micro_f1"].of(got.array()) == pytest.approx(2 / 3)


def test_labels_without_names_take_the_first_for_no_entity():
    bare = metadata("token-classification", ["LABEL_0", "LABEL_1"])
    items = TASK.items([{"tokens": ["a", "b", "c"], "tags": [0, 1, 1]}], bare)
    assert by_name(TASK.scores([logits([0, 1, 1], 2)], items, None, bare))["span F1"].values == [[1, 0, 0]]


def test_changes_show_entities():
    items = TASK.items([{"tokens": ["Ann", "Lee", "ran"], "tags": [1, 2, 0]}] * 2, NER)
    got = TASK.changes([logits([0, 0, 0]), logits([1, 2, 0])], items, [logits([1, 2, 0])] * 2, NER)
    assert [(c.item, c.before, c.after, c.harm, c.label) for c in got] == [
        (0, "per: Ann Lee", "none", 1.0, "per: Ann Lee")
    ]


def test_a_text_without_words_has_no_entities():
    items = TASK.items([{"text": " "}], NER)
    empty = [np.zeros((0, 5), dtype=np.float32)]
    assert by_name(TASK.scores(empty, items, empty, NER))["span F1 against baseline"].values == [[0, 0, 0]]
