"""Sentence embedding: texts → vectors, judged by retrieval, by scored pairs, or by closeness to the baseline.

Vectors are compared as the checkpoint says (cosine, dot product, distances), and with the baseline's always by cosine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column, labelled, number_label

NEAREST = 10
QUERIES_AT_ONCE = 512  # × documents of similarities in memory
SHOWN_COSINE = 0.02  # a pair whose similarity moved less, or a text that is nearer to the baseline, is not worth a line


class SentenceEmbedding(Task):
    """Vectors that say how near two texts are."""

    name = "sentence-embedding"
    pipeline_tag = "sentence-similarity"
    auto_class = "AutoModel"
    architectures: tuple[str, ...] = ("Model", "ForMaskedLM", "ForPreTraining")
    columns: Mapping[str, tuple[str, ...]] = {
        "query": ("query", "question", "anchor"),
        "document": ("document", "passage", "answer", "positive"),
        "sentence1": ("sentence1", "text1", "premise", "sentence_a"),
        "sentence2": ("sentence2", "text2", "hypothesis", "sentence_b"),
        "score": ("score", "similarity", "similarity_score", "relatedness_score"),
        "text": ("text", "sentence", "content", "query", "question", "document"),
    }
    needed: tuple[tuple[str, ...], ...] = (("sentence1", "sentence2"), ("query", "document"), ("text",))
    output = Output.VECTOR
    outputs = ("last_hidden_state",)
    usage = Usage('"a sentence"', "its vector")
    in_browser = True
    takes_any_encoder = True
    learns_labels = False  # a teacher says what vectors are to be

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """Two items for a row of pairs, one for a plain text; DataError on a score that is no number."""
        items = []
        for number, row in enumerate(rows):
            if "query" in row:
                items += [Item(number, row["query"], role="query"), Item(number, row["document"], role="document")]
            elif "sentence1" in row:
                label = number_label(row.get("score"), number)
                items += [
                    Item(number, row["sentence1"], label, "first"),
                    Item(number, row["sentence2"], label, "second"),
                ]
            else:
                items.append(Item(number, row["text"]))
        return items

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """Retrieval (MRR@10, Recall), Spearman of scored pairs, and always cosine to the baseline."""
        how = str(metadata.pipeline.get("similarity") or "cosine")
        vectors = np.stack(predictions).astype(np.float64)
        found = []
        if items[0].role == "query":
            found = _by_rank(_search(vectors, items, how).rank)
        elif items[0].role == "first" and labelled(items):
            pairs = np.column_stack([_of_pairs(vectors, how), [item.label for item in items[0::2]]])
            found = [Scores(name="Spearman", metric="spearman", values=pairs.tolist(), primary=True)]
        if baseline is not None:
            near = (unit(predictions) * unit(baseline)).sum(axis=1)
            found.append(
                Scores(
                    name="cosine to baseline", metric="mean", values=column(near),
                    against_baseline=True, primary=not found,
                )
            )  # fmt: skip
        return found

    def allows_subsets(self, items: Sequence[Item]) -> bool:
        """Not documents, which are found the more easily the fewer there are."""
        return items[0].role != "query"

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Queries that find another document first; pairs that are nearer or farther; texts far from the baseline."""
        after, before = unit(predictions), unit(baseline)
        if items[0].role == "query":
            how = str(metadata.pipeline.get("similarity") or "cosine")
            ours, theirs = (np.stack(side).astype(np.float64) for side in (predictions, baseline))
            return _found_others(_search(ours, items, how), _search(theirs, items, how), items)
        if items[0].role == "first":
            new, old = _of_pairs(after, "cosine"), _of_pairs(before, "cosine")
            return [
                Change(
                    2 * i, f"cosine {old[i]:.3f}", f"cosine {new[i]:.3f}", float(abs(new[i] - old[i])),
                    _label_text(items[2 * i]), f"{items[2 * i].sample!s} | {items[2 * i + 1].sample!s}",
                )
                for i in np.flatnonzero(~(np.abs(new - old) < SHOWN_COSINE)).tolist()  # NaN is a change
            ]  # fmt: skip
        near = (after * before).sum(axis=1)
        return [
            Change(i, "", f"cosine to baseline {near[i]:.3f}", float(1 - near[i]))
            for i in np.flatnonzero(~(near > 1 - SHOWN_COSINE)).tolist()
        ]


@dataclass(frozen=True)
class _Search:
    """What every query found."""

    queries: list[int]  # indices of items
    rank: np.ndarray  # (queries,) place of the right document, from 1
    first: list[int]  # index of the item found first


def similarities(queries: np.ndarray, documents: np.ndarray, how: str) -> np.ndarray:
    """How near each query (n, d) is to each document (m, d), as sentence-transformers' similarity_fn_name says: (n, m); of
    distances the negative, so that more is nearer."""
    if how == "cosine":
        return np.asarray(unit([*queries]) @ unit([*documents]).T)
    if how == "dot":
        return np.asarray(queries @ documents.T)
    from scipy.spatial.distance import cdist

    return np.asarray(-cdist(queries, documents, {"euclidean": "euclidean", "manhattan": "cityblock"}[how]))


def _search(vectors: np.ndarray, items: Sequence[Item], how: str) -> _Search:
    """Each query against all documents of the items.

    Documents with the same text are one document. What another row names as the right document of the same query is no
    wrong answer and is left out. Of documents that are equally near the right one comes last: a model that sees no
    difference must not be praised.
    """
    queries = [i for i, item in enumerate(items) if item.role == "query"]
    place: dict[Any, int] = {}  # text -> column
    documents: list[int] = []
    right: dict[int, int] = {}  # row -> column
    for index, item in enumerate(items):
        if item.role == "document":
            if item.sample not in place:
                place[item.sample] = len(documents)
                documents.append(index)
            right[item.row] = place[item.sample]
    accepted: defaultdict[Any, set[int]] = defaultdict(set)  # query text -> columns
    for index in queries:
        accepted[items[index].sample].add(right[items[index].row])
    ranks, firsts = [], []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = queries[start : start + QUERIES_AT_ONCE]
        similar = similarities(vectors[part], vectors[documents], how)  # (queries, documents)
        for row, index in zip(similar, part, strict=True):
            own = right[items[index].row]
            row[list(accepted[items[index].sample] - {own})] = -np.inf
            ranks.append(len(row) - int((row < row[own]).sum()))  # counted so that NaN ranks last
            firsts.append(documents[int(np.argmax(row))])
    return _Search(queries, np.array(ranks), firsts)


def _by_rank(rank: np.ndarray) -> list[Scores]:
    return [
        Scores(
            name=f"MRR@{NEAREST}", metric="mean", values=column(np.where(rank <= NEAREST, 1 / rank, 0)), primary=True
        ),
        Scores(name="Recall@1", metric="mean", values=column(rank <= 1)),
        Scores(name=f"Recall@{NEAREST}", metric="mean", values=column(rank <= NEAREST)),
    ]


def _found_others(after: _Search, before: _Search, items: Sequence[Item]) -> list[Change]:
    reference = {item.row: str(item.sample) for item in items if item.role == "document"}
    found = []
    for at, index in enumerate(after.queries):
        old, new = before.first[at], after.first[at]
        if old != new:
            shown = [f"right one at {s.rank[at]}; first: {items[i].sample!s}" for i, s in ((old, before), (new, after))]
            harm = float(1 / before.rank[at] - 1 / after.rank[at])
            found.append(Change(index, shown[0], shown[1], harm, reference[items[index].row]))
    return found


def _of_pairs(vectors: np.ndarray, how: str) -> np.ndarray:
    """How near the two vectors of each pair are, (n,)."""
    pairs = zip(vectors[0::2], vectors[1::2], strict=True)
    return np.array([similarities(first[None], second[None], how)[0, 0] for first, second in pairs])


def _label_text(item: Item) -> str | None:
    return None if item.label is None else f"{item.label:g}"


def unit(predictions: Sequence[Any]) -> np.ndarray:
    """Vectors float64 [items, dim] of length one; what is nothing stays so."""
    vectors = np.stack(predictions).astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


TASK = SentenceEmbedding()
