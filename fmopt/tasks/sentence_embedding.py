"""Sentence embedding: texts → vectors, judged by retrieval, by scored pairs, or by closeness to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.model import CheckpointFacts
from fmopt.results import Scores
from fmopt.tasks.base import Item

NEAREST = 10


class SentenceEmbedding:
    """Vectors whose cosine says how near two texts are."""

    name = "sentence-embedding"
    auto_class = "AutoModel"
    architectures = ("Model", "ForMaskedLM", "ForPreTraining")
    columns: Mapping[str, tuple[str, ...]] = {
        "query": ("query", "question", "anchor"),
        "document": ("document", "passage", "answer", "positive"),
        "sentence1": ("sentence1", "text1", "premise"),
        "sentence2": ("sentence2", "text2", "hypothesis"),
        "score": ("score", "similarity", "similarity_score"),
        "text": ("text", "sentence", "content"),
    }
    needed = (("query", "document"), ("sentence1", "sentence2"), ("text",))

    def items(self, rows: Sequence[Mapping[str, Any]], facts: CheckpointFacts) -> list[Item]:
        """Two items for a row of pairs, one for a plain text."""
        items = []
        for number, row in enumerate(rows):
            if "query" in row:
                items += [Item(number, row["query"], role="query"), Item(number, row["document"], role="document")]
            elif "sentence1" in row:
                label = row.get("score")
                items += [
                    Item(number, row["sentence1"], label, "first"),
                    Item(number, row["sentence2"], label, "second"),
                ]
            else:
                items.append(Item(number, row["text"]))
        return items

    def scores(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any] | None, facts: CheckpointFacts
    ) -> list[Scores]:
        """Retrieval (MRR@10, Recall), Spearman of scored pairs, and cosine to the baseline."""
        vectors = _unit(np.stack(predictions))
        found = []
        if items[0].role == "query":
            found = _retrieval(vectors, items)
        elif items[0].role == "first" and items[0].label is not None:
            found = [_pairs(vectors, items)]
        if baseline is not None:
            near = (vectors * _unit(np.stack(baseline))).sum(axis=1)
            found.append(
                Scores(
                    name="cosine to baseline",
                    metric="mean",
                    values=near[:, None].tolist(),
                    against_baseline=True,
                    primary=not found,
                )
            )
        return found


def _retrieval(vectors: np.ndarray, items: Sequence[Item]) -> list[Scores]:
    """Each query against all documents of the split; documents with the same text are one document."""
    queries = [i for i, item in enumerate(items) if item.role == "query"]
    documents = [i for i, item in enumerate(items) if item.role == "document"]
    first = {items[i].raw: i for i in reversed(documents)}
    unique = sorted(first.values())
    right = {items[i].row: first[items[i].raw] for i in documents}
    place = {index: column for column, index in enumerate(unique)}
    similar = vectors[queries] @ vectors[unique].T
    wanted = np.array([place[right[items[i].row]] for i in queries])
    own = similar[np.arange(len(queries)), wanted][:, None]
    rank = 1 + (similar > own).sum(axis=1)
    return [
        Scores(
            name="MRR@10",
            metric="mean",
            values=np.where(rank <= NEAREST, 1 / rank, 0.0)[:, None].tolist(),
            primary=True,
        ),
        Scores(name="Recall@1", metric="mean", values=(rank <= 1).astype(float)[:, None].tolist()),
        Scores(name="Recall@10", metric="mean", values=(rank <= NEAREST).astype(float)[:, None].tolist()),
    ]


def _pairs(vectors: np.ndarray, items: Sequence[Item]) -> Scores:
    cosine = (vectors[0::2] * vectors[1::2]).sum(axis=1)
    labels = [float(item.label) for item in items[0::2]]
    return Scores(name="Spearman", metric="spearman", values=np.column_stack([cosine, labels]).tolist(), primary=True)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


TASK = SentenceEmbedding()
