"""Boxes: read, matched, ranked, told in words; and mean average precision, also on resamples."""

from __future__ import annotations

import numpy as np
import pytest

from fmopt.core import plugins
from fmopt.core.errors import DataError
from fmopt.core.media.images import png_file
from fmopt.edge import detection
from fmopt.evaluation.bootstrap import paired_drop
from fmopt.evaluation.metrics import METRICS
from tests.tasks.cases import by_name, metadata

TASK = plugins.find("tasks", "object-detection")
FACTS = metadata("object-detection", ["cell", "platelet"], modality="image", threshold=0.5)
PICTURE = png_file(np.zeros((50, 100, 3), dtype=np.uint8))  # 100 wide


def items_of(*boxes, classes=None):
    rows = [
        {"image": PICTURE, "boxes": part, "classes": classes[n] if classes else [0] * len(part)}
        for n, part in enumerate(boxes)
    ]
    return TASK.items(rows, FACTS)


def found(*rows):
    """(class, score, x1, y1, x2, y2) of each box."""
    return np.array(rows, dtype=np.float32).reshape(-1, 6)


def value(score):
    return float(METRICS[score.metric].of(score.array()))


def test_boxes_are_shares_or_pixels_and_become_pixels():
    (item,) = items_of([[0.1, 0.2, 0.5, 1.0]])
    np.testing.assert_allclose(item.label, [[0, 10, 10, 50, 50]])
    (item,) = items_of([[10, 10, 50, 50]])
    np.testing.assert_allclose(item.label, [[0, 10, 10, 50, 50]])
    (item,) = TASK.items([{"image": PICTURE, "boxes": [[1, 2, 3, 4]], "classes": ["platelet"]}], FACTS)
    assert item.label[0, 0] == 1
    (item,) = items_of([])
    assert item.label.shape == (0, 5)
    assert TASK.items([{"image": PICTURE}], FACTS)[0].label is None


@pytest.mark.parametrize(
    ("boxes", "classes", "reported"),
    [
        ([[10, 10, 5, 20]], [0], r"row 1: \[10.0, 10.0, 5.0, 20.0\] is no box"),
        (
            [[10, 10, 200, 20]],
            [0],
            r"row 1: the box \[10.0, 10.0, 200.0, 20.0\] lies outside of its image of 100 × 50",
        ),
        ([[1, 2, 3]], [0], "row 1: boxes are"),
        ([[1, 2, 3, 4]], [], "row 1 has 1 boxes and 0 classes"),
        ([[1, 2, 3, 4]], ["wheel"], "row 1 has the label 'wheel', which the model does not know"),
    ],
)
def test_boxes_that_are_none_are_refused(boxes, classes, reported):
    with pytest.raises(DataError, match=reported):
        TASK.items([{"image": PICTURE, "boxes": boxes, "classes": classes}], FACTS)


def test_average_precision_of_an_example_worked_by_hand():
    """Scores fall; hit, miss, hit of three true boxes: precision 1 and 2/3 at recall 1/3 and 2/3."""
    items = items_of([[0, 0, 10, 10], [20, 0, 30, 10]], [[0, 0, 10, 10]])
    got = [found([0, 0.9, 0, 0, 10, 10], [0, 0.8, 0, 1, 10, 10]), found([0, 0.7, 0, 0, 10, 9])]
    scores = by_name(TASK.scores(got, items, None, FACTS))
    # No platelet is true anywhere: its class has no part in the mean.
    assert value(scores["mAP@0.5"]) == pytest.approx(1 / 3 + 2 / 9)
    assert value(scores["F1 of boxes above 0.5"]) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    other = [got[0] * [1, 0.1, 1, 1, 1, 1], got[1]]
    assert value(by_name(TASK.scores(other, items, got, FACTS))["boxes as the baseline's"]) == pytest.approx(0.5)


def test_a_true_box_is_found_once_and_only_by_its_class():
    items = items_of([[0, 0, 10, 10], [0, 0, 10, 10]], classes=[[0, 1]])
    got = [found([1, 0.9, 0, 0, 10, 10], [1, 0.8, 0, 0, 10, 10], [0, 0.7, 0, 0, 10, 4])]
    scores = by_name(TASK.scores(got, items, None, FACTS))
    assert value(scores["mAP@0.5"]) == pytest.approx(0.5)  # the platelet whole, the cell not: 0.4 is shared
    assert scores["F1 of boxes above 0.5"].values == [[1, 2, 1]]


def ap_of_items(values, copies):
    """Average precision, written down as Pascal VOC defines it, of items repeated `copies` times."""
    classes = int(values[0, 0])
    areas = []
    for number in range(classes):
        rows, wanted = [], 0
        for row, count in zip(values, copies, strict=True):
            triples = [t for t in row[1 + classes :].reshape(-1, 3) if t[1] > 0 and t[0] == number]
            rows += [(t[1], t[2]) for t in triples for _ in range(count)]
            wanted += int(row[1 + number]) * count
        if not wanted:
            continue
        hits = np.array([hit for _, hit in sorted(rows, key=lambda r: -r[0])])
        if not len(hits):
            areas.append(0.0)
            continue
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        areas.append(sum(precision[i:].max() for i in np.flatnonzero(hits)) / wanted)
    return np.mean(areas) if areas else np.nan


def test_resamples_are_as_of_pictures_written_out():
    draw = np.random.default_rng(3)
    rows = []
    for _ in range(12):
        boxes = [[float(draw.integers(0, 2)), float(draw.random()), float(draw.integers(0, 2))] for _ in range(6)]
        rows.append([2.0, 4.0, 3.0, *np.concatenate(boxes[: draw.integers(0, 7)] or [[]])])
    from fmopt.core.results import Scores

    values = Scores(name="mAP@0.5", metric="mean_ap", values=rows).array()
    counts = draw.multinomial(12, [1 / 12] * 12, size=20)
    np.testing.assert_allclose(
        METRICS["mean_ap"].of(values, counts), [ap_of_items(values, row) for row in counts], atol=1e-12
    )


def test_a_drop_has_an_interval():
    items = items_of(*[[[0, 0, 10, 10], [20, 20, 40, 40]]] * 30)
    good = [found([0, 0.9, 0, 0, 10, 10], [0, 0.8, 20, 20, 40, 40])] * 30
    worse = [*good[:25], *[found([0, 0.9, 0, 0, 10, 10], [0, 0.8, 60, 20, 80, 40], [1, 0.7, 0, 0, 9, 9])] * 5]
    first, second = (by_name(TASK.scores(got, items, None, FACTS))["mAP@0.5"] for got in (good, worse))
    drop = paired_drop(first, second, resamples=500)
    assert drop.low < drop.point < drop.high
    assert drop.point == pytest.approx(1 - value(second))
    assert paired_drop(first, first).point == 0


def test_changes_name_what_came_and_went():
    items = items_of([[0, 0, 10, 10]], [[0, 0, 10, 10]])
    before = [found([0, 0.9, 0, 0, 10, 10])] * 2
    after = [found([0, 0.95, 0, 0, 10, 9]), found([0, 0.4, 0, 0, 10, 10], [1, 0.6, 50, 20, 60, 30])]
    (change,) = TASK.changes(after, items, before, FACTS)
    assert (change.item, change.before, change.after, change.label) == (1, "1 cell", "1 platelet", "1 cell")
    assert change.harm == pytest.approx(1)


def test_boxes_differ_by_scores_and_by_what_they_do_not_share():
    one = found([0, 0.9, 0, 0, 10, 10], [1, 0.02, 0, 0, 5, 5])
    assert detection.difference(one.tolist(), one) == 0
    assert detection.difference(one.tolist(), one[:1]) == pytest.approx(0.02)
    assert detection.difference(one[:1].tolist(), one) == pytest.approx(0.02)
    assert detection.difference([], one) == pytest.approx(0.9)
    moved = found([0, 0.8, 0, 0, 10, 9], [1, 0.02, 0, 0, 5, 5])
    assert detection.difference(one.tolist(), moved) == pytest.approx(0.1)
    assert detection.difference(one.tolist(), np.where(one == 10, 5, one)) == pytest.approx(0.9 * 0.75)
    assert detection.difference(found([0, np.nan, 0, 0, 1, 1]).tolist(), one) == float("inf")
