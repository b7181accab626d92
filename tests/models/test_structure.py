"""A cut network computes what the masked one did, for every family, and survives saving, reloading and export."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch

import fmopt
from fmopt.core.errors import CheckpointError, PassError
from fmopt.edge import runners
from fmopt.exporters import to_onnx
from fmopt.exporters.parity import graph as exporters_parity
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.models.structure import STRUCTURE, LayerWidths, Structure, save_checkpoint, structure_of
from fmopt.models.surgery.pruned_modules import drop_layers, prune_layer, require_cuttable
from fmopt.passes.quantize_static import QuantizeStatic
from tests.conftest import FAMILIES
from tests.torch_models import context_of, items_of, model_of, outputs_of, padded

CUTTABLE = tuple(family for family in FAMILIES if family != "albert")
SHAPES = {  # heads and neurons kept in each of the two layers
    "narrow": (((0, 2, 3), range(0, 64, 2)), ((1,), range(5, 21))),
    "no attention": (((), range(64)), ((0, 3), range(40))),
    "no FFN": (((1, 2), ()), ((0, 1, 2, 3), range(7, 15))),
    "hollow": (((), ()), ((2,), range(8))),
}


@pytest.fixture(params=CUTTABLE)
def family(request):
    return request.param


def masked(model, shape):
    """A copy whose removed heads and neurons are there, but reach nothing."""
    model = copy.deepcopy(model)
    for layer, (heads, neurons) in zip(model.family.layers(model.net), shape, strict=True):
        block = layer.attention
        kept = [head * block.head_dim + i for head in heads for i in range(block.head_dim)]
        for name, columns in ((block.output, kept), (layer.ffn.narrow, list(neurons))):
            weight = model.net.get_submodule(name).weight
            keep = torch.zeros(weight.shape[1])
            keep[columns] = 1
            weight.data *= keep
    return model


def lively(model):
    """Weights and biases large enough for every part to be seen in the outputs, as in a trained network."""
    torch.manual_seed(1)
    for module in model.net.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(0, 0.3)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.3)
    return model


def cut(model, shape):
    for layer, (heads, neurons) in zip(model.family.layers(model.net), shape, strict=True):
        prune_layer(model.net, layer, heads, neurons)
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_pruning_equals_masking(tiny_checkpoint, family, shape):
    model = lively(model_of(tiny_checkpoint(family, "text-classification")))
    inputs = padded(model)
    wanted = outputs_of(masked(model, SHAPES[shape]), inputs)
    whole = outputs_of(model, inputs)
    before = sum(value.numel() for value in model.net.parameters())
    cut(model, SHAPES[shape])
    np.testing.assert_allclose(outputs_of(model, inputs), wanted, atol=1e-5)
    assert np.abs(wanted - whole).max() > 1e-2
    assert sum(value.numel() for value in model.net.parameters()) < before
    layers = model.family.layers(model.net)
    assert [(layer.attention.heads, layer.ffn.width) for layer in layers] == [
        (len(heads), len(neurons)) for heads, neurons in SHAPES[shape]
    ]


def test_pruning_twice_counts_heads_as_they_were_trained(tiny_checkpoint, family):
    model = lively(model_of(tiny_checkpoint(family, "text-classification")))
    inputs = padded(model)
    wanted = outputs_of(masked(model, (((2,), range(64)), ((0, 3), range(64)))), inputs)
    cut(model, (((0, 2, 3), range(64)), ((0, 1, 3), range(64))))
    cut(model, (((1,), range(64)), ((0, 2), range(64))))
    np.testing.assert_allclose(outputs_of(model, inputs), wanted, atol=1e-5)
    assert [left.heads for left in structure_of(model.net, model.family).layers] == [(2,), (0, 3)]


def test_reloading_and_exporting_keep_the_numbers(tiny_checkpoint, family, tmp_path):
    model = cut(lively(model_of(tiny_checkpoint(family, "text-classification"))), SHAPES["hollow"])
    inputs = padded(model)
    wanted = outputs_of(model, inputs)
    folder = save_checkpoint(model, tmp_path / "pruned")
    again = checkpoint.load(checkpoint.inspect(resolve(str(folder))))
    assert np.array_equal(outputs_of(again, inputs), wanted)
    assert type(again.net) is type(model.net)
    assert again.metadata.pipeline == model.metadata.pipeline
    assert structure_of(again.net, again.family) == structure_of(model.net, model.family)

    net = fmopt.load_model(folder)
    assert np.array_equal(exporters_parity.torch_outputs(net, inputs, ["logits"])["logits"], wanted)
    net.train()(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.sum().backward()

    graph = to_onnx.export_onnx(again, inputs, tmp_path / "graph")
    runner = runners.open_runner("onnxruntime", graph.path, {}, 1)
    parity = exporters_parity.check_parity(runner, again.net, items_of(again), 1e-4, outputs=graph.outputs)
    assert parity.passed


def test_a_pruned_embedding_model_keeps_its_pooling_and_quantizes(tiny_checkpoint, family, tmp_path):
    model = cut(model_of(tiny_checkpoint(family)), SHAPES["hollow"])
    folder = save_checkpoint(model, tmp_path / "pruned")
    again = checkpoint.load(checkpoint.inspect(resolve(str(folder))))
    assert again.metadata.pipeline == model.metadata.pipeline
    wanted = outputs_of(again, padded(again))
    quantized = QuantizeStatic().apply(again, context_of(again))
    got = outputs_of(quantized, padded(again))
    assert np.vdot(got, wanted) / np.linalg.norm(got) / np.linalg.norm(wanted) > 0.99


def test_dropping_a_layer_equals_skipping_it(tiny_checkpoint, family, tmp_path):
    model = lively(model_of(tiny_checkpoint(family, "text-classification")))
    inputs = padded(model)
    skipped = copy.deepcopy(model)
    last = skipped.net.get_submodule(skipped.family.layers(skipped.net)[1].name)
    kind = tuple if family in ("mpnet", "deberta-v2") else torch.Tensor
    last.forward = lambda hidden, *args, **kwargs: (hidden, None) if kind is tuple else hidden
    wanted = outputs_of(skipped, inputs)
    drop_layers(model, [1])
    np.testing.assert_allclose(outputs_of(model, inputs), wanted, atol=1e-6)
    folder = save_checkpoint(model, tmp_path / "pruned")
    again = checkpoint.load(checkpoint.inspect(resolve(str(folder))))
    assert again.metadata.layers == 1
    np.testing.assert_allclose(outputs_of(again, inputs), wanted, atol=1e-6)
    with pytest.raises(PassError, match="at least one must stay"):
        drop_layers(model, [0])


def test_the_first_layer_of_modernbert_stays(tiny_checkpoint):
    model = model_of(tiny_checkpoint("modernbert"))
    with pytest.raises(PassError, match="built unlike the others"):
        drop_layers(model, [0])


def test_shared_layers_and_unknown_ones_are_refused(tiny_checkpoint):
    model = model_of(tiny_checkpoint("albert"))
    with pytest.raises(PassError, match="share one set of weights"):
        require_cuttable(model)
    model.family = None
    with pytest.raises(PassError, match="no known layers"):
        require_cuttable(model)


def test_a_record_that_does_not_fit_is_refused(tiny_checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint("bert"), folder)
    (folder / STRUCTURE).write_text(json.dumps({"version": 2, "layers": []}))
    with pytest.raises(CheckpointError, match="version"):
        checkpoint.inspect(resolve(str(folder)))
    three = Structure(layers=(LayerWidths(heads=(0,), ffn=8),) * 3)
    (folder / STRUCTURE).write_text(three.model_dump_json())
    with pytest.raises(CheckpointError, match="describes 3 layers and the network has 2"):
        checkpoint.load(checkpoint.inspect(resolve(str(folder))))
    wide = Structure(layers=(LayerWidths(heads=(0, 4), ffn=8),) * 2)
    (folder / STRUCTURE).write_text(wide.model_dump_json())
    with pytest.raises(CheckpointError, match="more heads or neurons"):
        checkpoint.load(checkpoint.inspect(resolve(str(folder))))


def test_the_record_decides_the_digest(tiny_checkpoint, tmp_path):
    folder = save_checkpoint(model_of(tiny_checkpoint("bert")), tmp_path / "whole")
    whole = checkpoint.inspect(resolve(str(folder))).digest
    (folder / STRUCTURE).write_text((folder / STRUCTURE).read_text() + " ")
    assert checkpoint.inspect(resolve(str(folder))).digest != whole
