"""Sequential recommendation: which item of a catalogue comes next after those that someone took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.errors import DataError
from fmopt.core.model import CheckpointMetadata
from fmopt.core.results import Scores
from fmopt.edge.recommendation import SHOWN, Catalogue, read_catalogue, unseen
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column, labelled


class SequentialRecommendation(Task):
    """Scores over a catalogue, judged by the place of the item that was taken next among all that were not taken before.

    The whole catalogue is ranked: metrics of a few sampled items order models otherwise (Krichene and Rendle, On Sampled
    Metrics for Item Recommendation, 2020).
    """

    name = "sequential-recommendation"
    pipeline_tag = ""
    modality = "item"
    auto_class = "AutoModel"
    architectures = ("ForSequentialRecommendation",)
    columns: Mapping[str, tuple[str, ...]] = {
        "items": ("items", "sequence", "history", "item_ids"),
        "next": ("next", "next_item", "target"),
        "user": ("user", "user_id", "userid", "session", "session_id"),
        "item": ("item", "item_id", "itemid", "movie", "movie_id", "movieid", "product"),
        "time": ("timestamp", "time", "date"),
    }
    needed = (("items",), ("user", "item", "time"))
    output = Output.NEXT_ITEM
    usage = Usage('"AN ITEM; ANOTHER"', "what comes next after these (ids or titles)")
    label_is_optional = True  # what comes next in a history is its own label

    def items(self, rows: Sequence[Mapping[str, Any]], metadata: CheckpointMetadata) -> list[Item]:
        """One item a row, its label the network's number of the item taken next; DataError on an item that is not known."""
        catalogue = _catalogue(metadata)
        found = []
        for number, row in enumerate(rows):
            try:
                catalogue.numbers_of(row["items"])
                label = None if row.get("next") is None else catalogue.number(row["next"])
            except ValueError as error:
                raise DataError(f"row {number + 1}: {error}") from error
            found.append(Item(number, list(row["items"]), label))
        return found

    def scores(
        self,
        predictions: Sequence[Any],
        items: Sequence[Item],
        baseline: Sequence[Any] | None,
        metadata: CheckpointMetadata,
    ) -> list[Scores]:
        """HR@10 and NDCG@10 of the item taken next; how many of the baseline's ten items are still among the ten."""
        catalogue = _catalogue(metadata)
        found = []
        if labelled(items):
            places = [
                place_of(item.label, unseen(got, catalogue.numbers_of(item.sample)))
                for got, item in zip(predictions, items, strict=True)
            ]
            found = [
                Scores(name="HR@10", metric="mean", values=column(place <= SHOWN for place in places), primary=True),
                Scores(name="NDCG@10", metric="mean", values=column(gain(place) for place in places)),
            ]
        if baseline is not None:
            same = [
                len(set(_best(old, item, catalogue)) & set(_best(new, item, catalogue))) / SHOWN
                for old, new, item in zip(baseline, predictions, items, strict=True)
            ]
            name = "top 10 shared with baseline"
            found.append(
                Scores(name=name, metric="mean", values=column(same), against_baseline=True, primary=not found)
            )
        return found

    def changes(
        self, predictions: Sequence[Any], items: Sequence[Item], baseline: Sequence[Any], metadata: CheckpointMetadata
    ) -> list[Change]:
        """Histories after which another item comes first; those whose next item lost most first."""
        catalogue, found = _catalogue(metadata), []
        for index, (item, new, old) in enumerate(zip(items, predictions, baseline, strict=True)):
            before, after = (_best(one, item, catalogue)[0] for one in (old, new))
            if before != after:
                reference, harm = None, 0.0
                if item.label is not None:
                    seen = catalogue.numbers_of(item.sample)
                    was, now = (gain(place_of(item.label, unseen(one, seen))) for one in (old, new))
                    reference, harm = _title(catalogue, item.label), was - now
                text = "; ".join(_title(catalogue, number) for number in catalogue.numbers_of(item.sample)[-5:])
                found.append(
                    Change(index, _title(catalogue, before), _title(catalogue, after), harm, reference, f"… {text}")
                )
        return found


def place_of(item: int, scores: np.ndarray) -> int:
    """The place of an item (its number), the first being 1; others with the same score come before it. Without a place among
    those that can be recommended, because it was taken before, it is after all of them."""
    own = scores[item - 1]
    return int((scores >= own).sum()) if np.isfinite(own) else len(scores)


def gain(place: int) -> float:
    """What NDCG@10 gives the one item that is right at a place (Järvelin and Kekäläinen, 2002)."""
    return float(1 / np.log2(1 + place)) if place <= SHOWN else 0.0


def _best(prediction: np.ndarray, item: Item, catalogue: Catalogue) -> list[int]:
    order = np.argsort(-unseen(prediction, catalogue.numbers_of(item.sample)), kind="stable")
    return [int(place) + 1 for place in order[:SHOWN]]


def _title(catalogue: Catalogue, number: int) -> str:
    return catalogue.items[number - 1][1]


def _catalogue(metadata: CheckpointMetadata) -> Catalogue:
    try:
        return read_catalogue(metadata.folder)
    except ValueError as error:
        raise DataError(str(error)) from error


TASK = SequentialRecommendation()
