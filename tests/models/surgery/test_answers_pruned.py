"""Networks of an encoder and a decoder lose heads, neurons and layers in both: the cut one computes what the masked one did,
comes back from disk, and its graph answers token by token as torch does, whatever is left of each layer's caches."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fmopt
from fmopt.core.errors import CheckpointError, PassError
from fmopt.edge.generation import usual
from fmopt.edge.runners import ENCODER_DECODER, open_runner
from fmopt.edge.seq2seq import NEW, answers
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import to_onnx
from fmopt.exporters.parity import graph as parity
from fmopt.models import checkpoint
from fmopt.models.families.base import find_family
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from fmopt.models.structure import STRUCTURE, save_checkpoint, structure_of
from fmopt.models.surgery.pruned_modules import drop_layers, least_heads, prune_layer
from fmopt.models.wrappers.seq2seq import AsEncoderDecoder, with_answer
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.torch_models import model_of

FAMILIES = ("t5", "bart", "marian")
ALL, MOST = range(4), range(64)
# of both layers of the encoder, then of the decoder: heads, neurons, and heads across
SHAPES = {
    "narrow": (((1,), range(0, 64, 2), ()), ((0, 3), range(5, 21), ()),
               ((2,), range(9), (0, 1)), ((0, 1, 3), MOST, (3,))),
    "no attention": ((ALL, range(40), ()), ((), MOST, ()), ((0, 2), range(3, 30), (2,)), ((), range(16), ())),
    "hollow": (((2,), (), ()), ((), (), ()), ((1,), (), ALL), ((0, 3), range(8), ())),
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> TorchModel:
    return two_and_two(tiny_checkpoint, request.param)


def two_and_two(tiny_checkpoint: TinyCheckpoint, family: str) -> TorchModel:
    """A lively network of `family` with two layers in each stack."""
    loaded = model_of(tiny_checkpoint(family, "translation"), "translation")
    config: Any = loaded.net.config
    for name in ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"):
        if hasattr(config, name):
            setattr(config, name, 2)
    torch.manual_seed(5)
    loaded.net = type(loaded.net)(config).eval()
    for name, value in loaded.net.named_parameters():
        if value.ndim < 2 or "relative" in name:
            value.data.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
        elif "layer" in name or "block" in name:
            value.data.normal_(0.0, 0.4)
    return loaded


def asked(model: TorchModel) -> dict[str, np.ndarray]:
    """Texts of different lengths, each with an answer."""
    preprocessor = open_preprocessor(model.metadata.folder, dict(model.metadata.pipeline))
    encoded = dict(preprocessor.encode(list(SENTENCES[:3])).inputs)
    return with_answer(encoded, model.metadata.pipeline["decoder_start_token_ids"], int(model.net.config.vocab_size))


def said(model: TorchModel, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return parity.torch_outputs(model.net, inputs, ["logits"])["logits"]


def masked(model: TorchModel, shape: Any) -> TorchModel:
    """A copy whose removed heads and neurons are there, but reach nothing."""
    model = copy.deepcopy(model)
    for layer, (heads, neurons, cross) in zip(model.family.layers(model.net), shape, strict=True):
        kept = [(layer.ffn.narrow, list(neurons))]
        kept += [
            (block.output, [head * block.width + column for head in left for column in range(block.width)])
            for block, left in zip(layer.attentions, (heads, cross), strict=False)
        ]
        for name, columns in kept:
            weight = model.net.get_submodule(name).weight
            keep = torch.zeros(weight.shape[1])
            keep[columns] = 1
            weight.data *= keep
    return model


def cut(model: TorchModel, shape: Any) -> TorchModel:
    for layer, (heads, neurons, cross) in zip(model.family.layers(model.net), shape, strict=True):
        prune_layer(model.net, layer, heads, neurons, cross)
    return model


def test_both_stacks_are_known(model: TorchModel) -> None:
    layers = model.family.layers(model.net)
    assert [layer.stack for layer in layers] == ["encoder", "encoder", "decoder", "decoder"]
    assert [[block.heads for block in layer.attentions] for layer in layers] == [[4], [4], [4, 4], [4, 4]]
    assert [layer.ffn.width for layer in layers] == [64] * 4
    first = int(model.metadata.model_type == "t5")  # it makes the bias of all
    assert least_heads(model.net, model.family) == ((first,), (0,), (1, 1), (0, 0))


@pytest.mark.parametrize("shape", SHAPES)
def test_pruning_equals_masking(model: TorchModel, shape: str) -> None:
    inputs = asked(model)
    whole, wanted = said(model, inputs), said(masked(model, SHAPES[shape]), inputs)
    before = sum(value.numel() for value in model.net.parameters())
    cut(model, SHAPES[shape])
    np.testing.assert_allclose(said(model, inputs), wanted, atol=1e-3 * np.abs(wanted).max())
    assert np.abs(wanted - whole).max() > 1e-1 * np.abs(whole).max()
    assert sum(value.numel() for value in model.net.parameters()) < before
    left = structure_of(model.net, model.family).layers
    assert [(one.heads, one.ffn, one.cross) for one in left] == [
        (tuple(heads), len(neurons), tuple(cross)) for heads, neurons, cross in SHAPES[shape]
    ]


@pytest.mark.parametrize("kind", ["mbart", "m2m_100", "pegasus", "mt5"])
def test_networks_built_alike_are_pruned_alike(tiny_checkpoint: TinyCheckpoint, kind: str) -> None:
    import transformers

    loaded = two_and_two(tiny_checkpoint, "t5" if kind == "mt5" else "bart")
    known = loaded.net.config.to_dict()
    sizes = {name: value for name, value in known.items() if name not in ("model_type", "architectures")}
    torch.manual_seed(5)
    net = transformers.AutoModelForSeq2SeqLM.from_config(transformers.AutoConfig.for_model(kind, **sizes)).eval()
    for name, value in net.named_parameters():
        if "layers" in name or "block" in name:
            value.data.normal_(float("norm" in name and "weight" in name), 0.3)
    model = replace(loaded, net=net, family=find_family(kind))
    inputs = asked(model)
    for shape in SHAPES.values():
        narrow, wanted = cut(copy.deepcopy(model), shape), said(masked(model, shape), inputs)
        np.testing.assert_allclose(said(narrow, inputs), wanted, atol=1e-3 * np.abs(wanted).max())
        assert np.abs(said(model, inputs) - wanted).max() > 1e-2


@pytest.mark.parametrize("shape", ["narrow", "hollow"])
def test_it_comes_back_from_disk_and_answers_token_by_token(model: TorchModel, tmp_path: Path, shape: str) -> None:
    """Saved, loaded, exported with caches of its own shapes for each layer, by whole answers, greedily and by beams."""
    cut(model, SHAPES[shape])
    inputs = asked(model)
    folder = save_checkpoint(model, tmp_path / "pruned")
    wanted = said(model, inputs)
    net = fmopt.load_model(folder, task="translation")
    assert np.array_equal(parity.torch_outputs(net, inputs, ["logits"])["logits"], wanted)
    again = checkpoint.load(checkpoint.inspect(resolve(str(folder)), "translation"))
    assert structure_of(again.net, again.family) == structure_of(model.net, model.family)

    graph = to_onnx.export_onnx(again, inputs, tmp_path / "graph")
    runner = open_runner("onnxruntime", graph.path, {ENCODER_DECODER: True}, 1)
    judged = AsEncoderDecoder(runner)
    assert parity.check_parity(judged, again.net, [inputs], 1e-2, outputs=["logits"]).passed
    pipeline = dict(again.metadata.pipeline)
    texts = {name: value for name, value in inputs.items() if name != NEW}
    given = {name: torch.from_numpy(value) for name, value in texts.items()}
    stop = pipeline["eos_token_id"][0]
    for beams in (1, 3):
        with torch.inference_mode():
            made = net.generate(**given, max_new_tokens=8, do_sample=False, num_beams=beams)[:, 1:].tolist()
        reported = [ids[: ids.index(stop)] if stop in ids else ids for ids in made]
        assert answers(pipeline, runner, texts, usual(pipeline, max_new_tokens=8, beams=beams)) == reported
    assert len({token for row in reported for token in row}) > 1
    net.train()(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.sum().backward()


def test_a_wrong_graph_is_traced_to_its_layer(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    for number in (1, 3):
        model = two_and_two(tiny_checkpoint, "marian")
        inputs = asked(model)
        graph = to_onnx.export_onnx(model, inputs, tmp_path / str(number))
        assert parity.first_divergence(graph, model, inputs, 1e-1) == "the head"
        layer = model.family.layers(model.net)[number]
        model.net.get_submodule(layer.ffn.narrow).weight.data *= 1.5
        assert parity.first_divergence(graph, model, inputs, 1e-1) == layer.name


def test_dropping_a_layer_equals_skipping_it(model: TorchModel, tmp_path: Path) -> None:
    inputs, t5 = asked(model), model.metadata.model_type == "t5"
    for number in (1, 3):
        whole, skipped = copy.deepcopy(model), copy.deepcopy(model)
        layer: Any = skipped.net.get_submodule(skipped.family.layers(skipped.net)[number].name)
        # T5's hands on the biases that it was given
        layer.forward = lambda hidden, *args, **kwargs: (hidden, args[1], args[4]) if t5 else hidden
        drop_layers(whole, [number])
        np.testing.assert_allclose(said(whole, inputs), said(skipped, inputs), atol=1e-4)
        again = checkpoint.load(
            checkpoint.inspect(resolve(str(save_checkpoint(whole, tmp_path / str(number)))), "translation")
        )
        assert [one.stack for one in again.family.layers(again.net)].count("encoder") == (1 if number == 1 else 2)
        np.testing.assert_allclose(said(again, inputs), said(whole, inputs), atol=1e-5)
        assert again.metadata.layers == 3
        texts = {name: torch.from_numpy(value) for name, value in inputs.items() if name != NEW}
        for net in (whole.net, again.net):
            made = net.generate(**texts, max_new_tokens=4, do_sample=False, num_beams=2)
            assert made.shape[0] == 3
        with pytest.raises(PassError, match="at least one must stay in each stack"):
            drop_layers(whole, [0 if number == 1 else 2])


@pytest.mark.parametrize("kind", ["BartForSequenceClassification", "BartForQuestionAnswering", "T5ForSequenceClassification",
                                  "T5EncoderModel"])  # fmt: skip
def test_networks_that_do_not_answer_lose_heads_and_layers_too(tiny_checkpoint: TinyCheckpoint, kind: str) -> None:
    import transformers

    loaded = two_and_two(tiny_checkpoint, "t5" if kind.startswith("T5") else "bart")
    torch.manual_seed(5)
    net = getattr(transformers, kind)(loaded.net.config).eval()
    model = replace(loaded, net=net)
    stop = int(net.config.eos_token_id)
    ids = torch.tensor([[5, 6, 7, 8, stop], [9, 10, 11, 12, stop]])
    count = len(model.family.layers(net))
    assert count == (2 if kind == "T5EncoderModel" else 4)
    t5 = int(kind.startswith("T5"))
    assert [sum(least) for least in least_heads(net, model.family)] == [t5, 0, t5, 0][:count]
    shape = [(range(1), range(8), range(1)), ((), range(8), ()), (range(1), range(8), range(1)), (range(2), (), ())]
    cut(model, shape[:count])
    with torch.inference_mode():
        found = net(input_ids=ids)
        assert all(bool(value.isfinite().all()) for value in found.values() if isinstance(value, torch.Tensor))
    if kind.startswith("Bart"):  # whose decoder keeps keys and values here too
        drop_layers(model, [2])
        with torch.inference_mode():
            net(input_ids=ids)


def test_what_holds_the_rest_together_is_refused(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    model = two_and_two(tiny_checkpoint, "t5")
    for number in (0, 2):
        with pytest.raises(PassError, match=rf"layer {number} of t5 is built unlike the others"):
            drop_layers(model, [number])
    with pytest.raises(PassError, match="makes the bias of all layers for positions; one of its heads must stay"):
        prune_layer(model.net, model.family.layers(model.net)[0], (), MOST)
    model = two_and_two(tiny_checkpoint, "bart")
    cut(model, SHAPES["hollow"])
    with pytest.raises(PassError, match="would have no attention"):
        drop_layers(model, [2])  # the other one looks at no text
    folder = save_checkpoint(model, tmp_path / "pruned")
    record = (folder / STRUCTURE).read_text()
    (folder / STRUCTURE).write_text(record.replace('"cross": [\n    0,', '"cross": [\n    7,'))
    assert (folder / STRUCTURE).read_text() != record
    with pytest.raises(CheckpointError, match="wants more heads or neurons than"):
        fmopt.load_model(folder, task="translation")
