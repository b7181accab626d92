from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from fmopt.core.errors import DataError
from fmopt.evaluation.metrics import METRICS
from fmopt.tasks import sentence_embedding
from fmopt.tasks.sentence_embedding import TASK
from tests.tasks.cases import by_name, metadata

FACTS = metadata("sentence-embedding")


def retrieval(pairs):
    return TASK.items([{"query": query, "document": document} for query, document in pairs], FACTS)


def columns(vectors, items):
    got = by_name(TASK.scores([np.array(v, dtype=np.float32) for v in vectors], items, None, FACTS))
    return {name: [value for (value,) in score.values] for name, score in got.items()}


def test_ranks_of_the_right_document():
    items = retrieval([("q0", "d0"), ("q1", "d1"), ("q2", "d2")])
    # q0 → d0 first; q1 → d2, d1; q2 → d0, d1, d2
    got = columns([[1, 0], [3, 0], [1, 1.2], [0, 3], [1, 0.1], [2, 2]], items)
    got2 = columns([[1, 0], [1, 0], [0, 1], [0.1, 1], [1, 0], [-1, 0]], items)
    assert got["MRR@10"] == [1, 1 / 2, 1 / 2]
    assert (got["Recall@1"], got["Recall@10"]) == ([1, 0, 0], [1, 1, 1])
    assert got2["MRR@10"] == [1, 1, 1 / 3]


@pytest.mark.parametrize("at_once", [3, 512])
def test_retrieval_equals_a_plain_sort(at_once, monkeypatch):
    monkeypatch.setattr(sentence_embedding, "QUERIES_AT_ONCE", at_once)
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(80, 6))
    got = columns(vectors, retrieval([(f"q{n}", f"d{n}") for n in range(40)]))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(unit[0::2] @ unit[1::2].T), axis=1)
    rank = 1 + np.argmax(order == np.arange(40)[:, None], axis=1)
    assert got["MRR@10"] == pytest.approx(np.where(rank <= 10, 1 / rank, 0).tolist())
    assert got["Recall@10"] == (rank <= 10).astype(float).tolist()
    assert 0 < sum(got["Recall@10"]) < 40


def test_documents_with_the_same_text_are_one():
    items = retrieval([("q0", "same"), ("q1", "same"), ("q2", "other")])
    got = columns([[1, 0], [1, 0], [1, 0.1], [1, 0], [0, 1], [0, 1]], items)
    assert got["MRR@10"] == [1, 1, 1]


def test_another_right_document_of_the_same_query_is_no_wrong_answer():
    items = retrieval([("q", "d0"), ("q", "d1"), ("x", "d2")])
    got = columns([[1, 0], [1, 0.5], [1, 0], [1, 0.1], [0, 1], [0, 1]], items)
    assert got["MRR@10"] == [1, 1, 1]


def test_a_model_that_sees_no_difference_or_gives_no_numbers_finds_nothing_first():
    items = retrieval([(f"q{n}", f"d{n}") for n in range(4)])
    assert columns(np.ones((8, 3)), items)["MRR@10"] == [1 / 4] * 4
    assert columns(np.full((8, 3), np.nan), items)["Recall@1"] == [0] * 4


def test_scored_pairs_are_judged_by_spearman_of_their_cosines():
    rng = np.random.default_rng(3)
    vectors, labels = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(0, 6, 30)
    items = TASK.items([{"sentence1": "a", "sentence2": "b", "score": float(x)} for x in labels], FACTS)
    got = by_name(TASK.scores(list(vectors), items, list(vectors), FACTS))
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(vectors[0::2], vectors[1::2], strict=True)]
    assert got["Spearman"].primary
    assert METRICS["spearman"].of(got["Spearman"].array()) == pytest.approx(spearmanr(cosine, labels).statistic)
    assert not got["cosine to baseline"].primary
    assert METRICS["mean"].of(got["cosine to baseline"].array()) == pytest.approx(1)
    with pytest.raises(DataError, match="row 1 has the score 'good', which is no number"):
        TASK.items([{"sentence1": "a", "sentence2": "b", "score": "good"}], FACTS)


@pytest.mark.parametrize("row", [{"text": "a"}, {"sentence1": "a", "sentence2": "b"}])
def test_without_labels_the_cosine_to_the_baseline_judges(row):
    items = TASK.items([row], FACTS)
    before, after = [np.array([1.0, 0])] * len(items), [np.array([2.0, 2.0])] * len(items)
    got = by_name(TASK.scores(after, items, before, FACTS))["cosine to baseline"]
    np.testing.assert_allclose(got.array(), np.sqrt(0.5))
    assert got.primary
    assert got.against_baseline


def test_changes_of_retrieval_name_what_is_found_first_now():
    items = retrieval([("q0", "d0"), ("q1", "d1")])
    before = [np.array(v) for v in ([1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0])]
    after = [np.array(v) for v in ([1.0, 0], [0, 1.0], [0, 1.0], [0.1, 1.0])]
    got = TASK.changes(after, items, before, FACTS)
    assert [(c.item, c.before, c.after, c.harm, c.label) for c in got] == [
        (0, "right one at 1; first: d0", "right one at 2; first: d1", 0.5, "d0"),
        (2, "right one at 1; first: d1", "right one at 2; first: d0", 0.5, "d1"),
    ]


def test_changes_of_pairs_and_texts():
    pairs = TASK.items([{"sentence1": "a", "sentence2": "b", "score": 3}] * 2, FACTS)
    before = [np.array([1.0, 0])] * 4
    after = [np.array([1.0, 0]), np.array([0, 1.0]), np.array([1.0, 0]), np.array([1.0, 0.01])]
    got = TASK.changes(after, pairs, before, FACTS)
    assert [(c.item, c.before, c.after, c.label, c.text) for c in got] == [
        (0, "cosine 1.000", "cosine 0.000", "3", "a | b")
    ]
    texts = TASK.items([{"text": "a"}, {"text": "b"}], FACTS)
    got = TASK.changes(after[:2], texts, before[:2], FACTS)
    assert [(c.item, c.after) for c in got] == [(1, "cosine to baseline 0.000")]
