"""A network that reads images is pruned and distilled as one that reads texts is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmopt.edge.text import open_preprocessor
from fmopt.exporters.parity.graph import torch_outputs
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.models.structure import load_layer_metadata, save_checkpoint
from fmopt.models.surgery.pruned_modules import prune_layer
from fmopt.passes.base import Context
from fmopt.passes.distill import Distill
from fmopt.passes.pruning.fisher_scores import mask_fisher
from fmopt.passes.pruning.obs_scores import sublayers
from fmopt.tasks.image_classification import TASK
from fmopt.training.examples import known_examples
from tests.torch_models import target
from tests.vision_models import image, picture_rows, write_vision


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vision(tmp_path_factory.mktemp("vit") / "tiny-vit", "vit")


def loaded(folder):
    return checkpoint.load(checkpoint.inspect(resolve(str(folder))))


def inputs_of(metadata, samples):
    return dict(open_preprocessor(metadata.folder, dict(metadata.pipeline)).encode(samples).inputs)


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
@pytest.mark.parametrize("heads", [(0, 2), ()])
def test_a_pruned_network_computes_what_it_did_with_heads_and_neurons_masked(tmp_path, family, heads):
    model = loaded(write_vision(tmp_path / family, family))
    batch = inputs_of(model.metadata, [image(1), image(2)])
    layer = model.family.layers(model.net)[0]
    output, narrow = (model.net.get_submodule(name) for name in (layer.attention.output, layer.ffn.narrow))
    gone_heads = [head * 8 + feature for head in range(4) if head not in heads for feature in range(8)]
    with torch.no_grad():
        output.weight[:, gone_heads] = 0
        narrow.weight[:, 40:] = 0
    wanted = torch_outputs(model.net, batch, ["logits"])["logits"]
    prune_layer(model.net, layer, heads, range(40))
    np.testing.assert_allclose(torch_outputs(model.net, batch, ["logits"])["logits"], wanted, atol=1e-5)
    again = load_layer_metadata(checkpoint.inspect(resolve(str(save_checkpoint(model, tmp_path / "saved")))))
    np.testing.assert_allclose(torch_outputs(again.net, batch, ["logits"])["logits"], wanted, atol=1e-5)


def test_every_head_and_neuron_has_its_share_of_the_answer(folder):
    model = loaded(folder)
    parts = sublayers(model.net, model.family)
    found = mask_fisher(model, parts, [inputs_of(model.metadata, [image(seed)]) for seed in range(4)])
    assert [len(one) for one in found] == [4, 64, 4, 64]
    assert all(bool((one > 0).any()) for one in found)


def test_a_pruned_network_learns_from_the_whole_one(folder, tmp_path):
    """Pictures with and without labels; the student's answers come nearer to the teacher's."""
    teacher, student = loaded(folder), loaded(folder)
    for layer in student.family.layers(student.net):
        prune_layer(student.net, layer, (0, 1), range(16))
    rows = picture_rows(40)
    for row in rows[::4]:
        del row["label"]
    preprocessor = open_preprocessor(folder, dict(student.metadata.pipeline))
    items = TASK.items([{"label": None, **row} for row in rows], student.metadata)
    batch = inputs_of(student.metadata, [row["image"] for row in rows])

    def gap():
        ours, theirs = (torch_outputs(one.net.eval(), batch, ["logits"])["logits"] for one in (student, teacher))
        return float(np.abs(ours - theirs).mean())

    before = gap()
    context = Context(
        metadata=student.metadata, target=target(), calibration=lambda: iter(()), scratch=tmp_path,
        examples=lambda: known_examples(preprocessor, student.metadata, items, rows), teacher=lambda asked: loaded(folder),
    )  # fmt: skip
    student = Distill(epochs=12.0, batch_size=8, learning_rate=2e-3, bf16=False).apply(student, context)
    assert gap() < 0.6 * before
