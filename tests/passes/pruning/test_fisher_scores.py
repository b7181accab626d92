"""Fisher masks: the entries are what the definition says, a unit that does nothing has none, nothing is left changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmopt.passes.pruning.fisher_scores import mask_fisher
from fmopt.passes.pruning.obs_scores import by_importance, sublayers
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.torch_models import items_of, model_of, outputs_of

TASKS = ("sentence-embedding", "text-classification", "text-regression", "token-classification", "question-answering",
         "fill-mask")  # fmt: skip


def test_entries_are_the_expected_squared_gradients(tiny_checkpoint: TinyCheckpoint):
    # of a number with unit variance: the squared derivative of the number by the mask, here by finite differences
    model = model_of(tiny_checkpoint("bert", "text-regression"))
    parts, item = sublayers(model.net, model.family), items_of(model)[0]
    got = mask_fisher(model, parts, [item] * 600)
    for part, entries in zip(parts, got, strict=True):
        weight = model.net.get_submodule(part.output).weight
        for unit in (0, part.units - 1):
            columns, step = part.columns([unit]), 1e-2
            values = []
            for sign in (-1, 1):
                kept = weight.data.clone()
                weight.data[:, columns] *= 1 + sign * step
                values.append(float(outputs_of(model, item).item()))
                weight.data = kept
            derivative = (values[1] - values[0]) / (2 * step)
            assert float(entries[unit]) == pytest.approx(derivative**2, rel=0.25, abs=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_a_unit_without_effect_goes_first(tiny_checkpoint: TinyCheckpoint, task: str):
    model = model_of(tiny_checkpoint("bert", task), task)
    texts = tuple((text, text) for text in SENTENCES) if task == "question-answering" else SENTENCES
    if task == "fill-mask":
        texts = tuple(f"[MASK] {text}" for text in SENTENCES)
    parts, items = sublayers(model.net, model.family), items_of(model, texts)
    before = outputs_of(model, items[0])
    with torch.no_grad():
        for part in parts:
            model.net.get_submodule(part.output).weight[:, part.columns([2])] = 0
    silenced = outputs_of(model, items[0])
    found = by_importance(mask_fisher(model, parts, items))
    assert all(removal.order[0] == 2 and removal.errors[1] == 0 for removal in found)
    assert sum(removal.error(0) for removal in found) == pytest.approx(1)
    assert all(list(removal.errors) == sorted(removal.errors) for removal in found)
    np.testing.assert_array_equal(outputs_of(model, items[0]), silenced)
    assert not np.array_equal(before, silenced)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.net.parameters())
