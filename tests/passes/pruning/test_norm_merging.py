"""The norms of emptied sublayers are taken on by those before them, and the network comes back from disk so."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fmopt.core.errors import CheckpointError
from fmopt.edge import runners
from fmopt.exporters import to_onnx
from fmopt.exporters.parity import graph as parity
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.models.structure import STRUCTURE, LayerWidths, Structure, save_checkpoint, structure_of
from fmopt.models.surgery.pruned_modules import MergedNorm, drop_layers, prune_layer
from fmopt.passes.distill import Distill
from fmopt.passes.distillation.objective import make_objective
from fmopt.passes.pruning.norm_merging import merge_norms
from tests.torch_models import items_of, model_of, outputs_of, padded

POST_NORM = ("bert", "distilbert", "mpnet")
HEADS, NEURONS = (0, 2), range(16)
SHAPES = {  # of two layers, and what is merged of each
    "attention of the first": ((((), NEURONS), (HEADS, NEURONS)), (("attention",), ())),
    "FFN, then attention": (((HEADS, ()), ((), NEURONS)), (("ffn",), ("attention",))),
    "a whole layer": (((HEADS, NEURONS), ((), ())), ((), ("attention", "ffn"))),
    "nothing": (((HEADS, NEURONS), (HEADS, NEURONS)), ((), ())),
}


def emptied(folder, shape, *, plain=False):
    """A network cut to `shape`; `plain`: one whose norms neither scale nor shift and whose output projections have no bias, so
    that a norm of a norm is that norm itself."""
    model = model_of(folder)
    torch.manual_seed(0)
    for name, module in model.net.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data.fill_(1.0) if plain else module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.fill_(0.0) if plain else module.bias.data.normal_(0, 0.2)
        elif isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(0, 0.2)
            if module.bias is not None and not (plain and "layer" in name):
                module.bias.data.normal_(0, 0.1)
    for layer, (heads, neurons) in zip(model.family.layers(model.net), shape, strict=True):
        prune_layer(model.net, layer, heads, neurons)
    return model


def norms(net):
    return sum(isinstance(module, torch.nn.LayerNorm) for module in net.modules())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_of_a_norm_is_one(tiny_checkpoint, family, shape):
    widths, merged = SHAPES[shape]
    model = emptied(tiny_checkpoint(family, "text-classification"), widths, plain=True)
    inputs, before = padded(model), norms(model.net)
    wanted = outputs_of(model, inputs)
    merge_norms(model.net, model.family, items_of(model))
    assert tuple(left.merged for left in structure_of(model.net, model.family).layers) == merged
    assert norms(model.net) == before - sum(map(len, merged))
    np.testing.assert_allclose(outputs_of(model, inputs), wanted, atol=1e-3)


@pytest.mark.parametrize("family", POST_NORM)
def test_what_stays_is_fitted_to_the_items(tiny_checkpoint, family):
    whole = emptied(tiny_checkpoint(family, "text-classification"), SHAPES["FFN, then attention"][0])
    inputs = padded(whole)
    wanted = outputs_of(whole, inputs)
    fitted, unfitted = copy.deepcopy(whole), copy.deepcopy(whole)
    merge_norms(fitted.net, fitted.family, items_of(whole))
    merge_norms(unfitted.net, unfitted.family, None)
    near, far = (np.abs(outputs_of(one, inputs) - wanted).max() for one in (fitted, unfitted))
    assert near < far / 4
    assert near < 0.1 * np.abs(wanted).max()
    again = copy.deepcopy(fitted)
    merge_norms(again.net, again.family, items_of(whole))
    assert np.array_equal(outputs_of(again, inputs), outputs_of(fitted, inputs))


@pytest.mark.parametrize("family", POST_NORM)
def test_it_comes_back_from_disk_and_is_exported(tiny_checkpoint, family, tmp_path):
    model = emptied(tiny_checkpoint(family, "text-classification"), SHAPES["FFN, then attention"][0])
    merge_norms(model.net, model.family, items_of(model))
    inputs = padded(model)
    folder = save_checkpoint(model, tmp_path / "pruned")
    again = checkpoint.load(checkpoint.inspect(resolve(str(folder))))
    assert np.array_equal(outputs_of(again, inputs), outputs_of(model, inputs))
    assert structure_of(again.net, again.family) == structure_of(model.net, model.family)
    graph = to_onnx.export_onnx(again, inputs, tmp_path / "graph")
    runner = runners.open_runner("onnxruntime", graph.path, {}, 1)
    assert parity.check_parity(runner, again.net, items_of(again), 1e-4, outputs=graph.outputs).passed


def test_pre_norm_layers_keep_theirs(tiny_checkpoint):
    model = model_of(tiny_checkpoint("gpt2"))
    first, *_ = model.family.layers(model.net)
    prune_layer(model.net, first, (0,), ())
    before = norms(model.net)
    merge_norms(model.net, model.family, None)
    assert norms(model.net) == before
    assert not any(isinstance(module, MergedNorm) for module in model.net.modules())


def test_a_layer_without_its_norms_can_be_dropped(tiny_checkpoint):
    model = emptied(tiny_checkpoint("bert"), SHAPES["attention of the first"][0])
    merge_norms(model.net, model.family, items_of(model))
    drop_layers(model, [0])
    assert [left.merged for left in structure_of(model.net, model.family).layers] == [()]


def test_states_that_mean_something_else_are_not_compared(tiny_checkpoint):
    folder = tiny_checkpoint("bert", "text-classification")
    teacher, student = model_of(folder), emptied(folder, SHAPES["FFN, then attention"][0])
    batch = {name: torch.from_numpy(value) for name, value in padded(teacher).items()}
    assert [pair[0] for pair in make_objective(student, teacher, Distill(), batch).layers] == [0, 1]
    merge_norms(student.net, student.family, items_of(student))
    assert [pair[0] for pair in make_objective(student, teacher, Distill(), batch).layers] == [1]


@pytest.mark.parametrize(("family", "heads"), [("bert", (0,)), ("modernbert", ())])
def test_a_record_that_merges_what_is_needed_is_refused(tiny_checkpoint, family, heads, tmp_path):
    folder = save_checkpoint(model_of(tiny_checkpoint(family)), tmp_path / "saved")
    wrong = Structure(layers=(LayerWidths(heads=(0,), ffn=8), LayerWidths(heads=heads, ffn=8, merged=("attention",))))
    (folder / STRUCTURE).write_text(wrong.model_dump_json())
    with pytest.raises(CheckpointError, match="merges a norm"):
        checkpoint.load(checkpoint.inspect(resolve(str(folder))))
