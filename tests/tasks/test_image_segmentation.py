"""Maps of classes: read, judged pixel by pixel, told in words, and brought to the size of the image as torch does."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fmopt.core import plugins
from fmopt.core.errors import DataError
from fmopt.core.media.images import png_file
from fmopt.edge import segmentation, text
from fmopt.evaluation.metrics import METRICS
from fmopt.tasks.base import Item
from tests.tasks.cases import by_name, metadata

TASK = plugins.find("tasks", "image-segmentation")
FACTS = metadata("image-segmentation", ["background", "cell"], modality="image")


def items_of(*masks):
    return TASK.items([{"image": b"", "mask": png_file(np.asarray(mask, dtype=np.uint8))} for mask in masks], FACTS)


def value(score):
    return float(METRICS[score.metric].of(score.array()))


def test_pixels_are_counted_over_all_pictures_and_unknown_ones_are_not():
    items = items_of([[1, 1], [0, 0]], [[0, 255], [0, 1]])
    got = [np.array([[1, 0], [1, 0]]), np.array([[0, 1], [0, 1]])]
    scores = by_name(TASK.scores(got, items, None, FACTS))
    hits, false, missed = 2, 1, 1
    assert value(scores["Dice"]) == pytest.approx(2 * hits / (2 * hits + false + missed))
    assert value(scores["IoU"]) == pytest.approx(hits / (hits + false + missed))
    assert value(scores["pixel accuracy"]) == pytest.approx((2 / 4 + 3 / 3) / 2)
    assert by_name(TASK.scores(got, TASK.items([{"image": b""}] * 2, FACTS), got, FACTS))[
        "pixels as the baseline's"
    ].primary


def test_changes_say_what_was_there_and_the_worst_comes_with_its_harm():
    items = items_of([[1, 1], [0, 0]], [[0, 0], [0, 0]])
    before = [np.array([[1, 1], [0, 0]]), np.zeros((2, 2), dtype=int)]
    (change,) = TASK.changes([np.array([[1, 0], [0, 0]]), before[1]], items, before, FACTS)
    assert (change.item, change.before, change.after, change.label) == (0, "cell 50.0%", "cell 25.0%", "cell 50.0%")
    assert change.harm == pytest.approx(1 - 2 / 3)


def test_masks_that_cannot_be_judged_by_are_refused():
    with pytest.raises(DataError, match="row 1: mask has the class 2, which the model does not know; it has 2"):
        items_of([[2]])
    written = io.BytesIO()
    Image.new("RGB", (2, 2)).save(written, "PNG")
    with pytest.raises(DataError, match="row 1: mask is an image of mode RGB; a mask has one channel"):
        TASK.items([{"image": b"", "mask": written.getvalue()}], FACTS)


@pytest.mark.parametrize("size", [(8, 8), (13, 7), (3, 30)])
def test_maps_grow_as_by_torch(size):
    maps = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], size=size, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(segmentation.upsampled(maps, *size), wanted[0].numpy(), atol=1e-5)


def test_people_see_each_class_with_its_share_and_where_it_is():
    shown = text.present(dict(FACTS.pipeline), np.array([[1, 0], [1, 1]], dtype=np.uint8), b"")
    background = {"label": "background", "share": 0.25, "mask": [2, 1, 1]}  # as transformers' pipeline tells it too
    assert shown == {"size": [2, 2], "segments": [background, {"label": "cell", "share": 0.75, "mask": [0, 2, 1, 1]}]}
    assert segmentation.difference([[1, 0], [1, 1]], np.array([[1, 0], [0, 1]])) == 0.25
    assert segmentation.difference([[1, 0]], np.array([[1, 0], [0, 1]])) == float("inf")


def test_a_class_0_that_is_no_background_is_judged():
    """Of streets it is "road"; "background", and a class without a name, are of no interest."""
    wanted, got = np.array([[0, 0], [1, 1]], dtype=np.uint8), np.array([[0, 1], [1, 1]], dtype=np.uint8)
    for labels, dice in (["background", "cell"], 0.8), (["LABEL_0", "LABEL_1"], 0.8), (["road", "building"], 0.75):
        facts = metadata("image-segmentation", labels, modality="image")
        items = [Item(0, b"", wanted)]
        score = next(score for score in TASK.scores([got], items, None, facts) if score.primary)
        hits, false, missed = score.values[0]
        assert 2 * hits / (2 * hits + false + missed) == dice
