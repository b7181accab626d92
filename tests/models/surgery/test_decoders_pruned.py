"""Networks that generate lose heads, neurons and layers: the cut one computes what the masked one did, comes back from disk,
and its graph goes on with a text token by token as torch does, whatever is left of each layer's cache."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fmopt
from fmopt.core.errors import PassError
from fmopt.edge.generation import GenerationConfig, continuations
from fmopt.edge.runners import open_runner
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import to_onnx
from fmopt.exporters.parity import graph as parity
from fmopt.models import checkpoint
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from fmopt.models.structure import save_checkpoint, structure_of
from fmopt.models.surgery.pruned_modules import drop_layers, least_heads, prune_layer
from fmopt.models.wrappers.decoder import TwoSteps
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.torch_models import items_of, model_of, outputs_of, padded

GROUPED, PLAIN = ("llama", "qwen2", "mistral", "qwen3", "gemma"), ("gpt2", "opt", "gpt_neox", "phi")
FAMILIES = {**dict.fromkeys(PLAIN, 4), **dict.fromkeys(GROUPED, 2)}  # heads of keys and values; 4 of queries
SHAPES = {  # heads or groups, and neurons, that each of the three layers keeps
    "narrow": (((0,), range(0, 64, 2)), ((1,), range(5, 21)), ((0, 1), range(64))),
    "no attention": (((1,), range(64)), ((), range(40)), ((0, 1), range(3, 30))),
    "hollow": (((0, 1), ()), ((), ()), ((1,), range(8))),
}
NEW = 10


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> TorchModel:
    return three_layers(tiny_checkpoint, request.param)


def three_layers(tiny_checkpoint: TinyCheckpoint, family: str) -> TorchModel:
    """A lively network of `family` with a third layer, which is the first one's copy."""
    loaded = model_of(tiny_checkpoint(family, "text-generation"))
    net: Any = loaded.net
    net.config.num_hidden_layers = 3
    if getattr(net.config, "layer_types", None):
        net.config.layer_types = ["full_attention"] * 3
    torch.manual_seed(3)
    loaded.net = type(net)(net.config).eval()
    for name, value in loaded.net.named_parameters():
        value.data.normal_(1.0 if "norm" in name or "ln_" in name else 0.0, 0.3)
    return loaded


def masked(model: TorchModel, shape: Any) -> TorchModel:
    """A copy whose removed heads and neurons are there, but reach nothing."""
    model = copy.deepcopy(model)
    for layer, (heads, neurons) in zip(model.family.layers(model.net), shape, strict=True):
        block = layer.attention
        kept = [head * block.width + feature for head in heads for feature in range(block.width)]
        for name, columns in ((block.output, kept), (layer.ffn.narrow, list(neurons))):
            module = model.net.get_submodule(name)
            into = 1 if isinstance(module, torch.nn.Linear) else 0  # GPT-2 keeps its weights the other way round
            keep = torch.zeros(module.weight.shape[into])
            keep[columns] = 1
            module.weight.data *= keep if into else keep[:, None]
    return model


def cut(model: TorchModel, shape: Any) -> TorchModel:
    for layer, (heads, neurons) in zip(model.family.layers(model.net), shape, strict=True):
        prune_layer(model.net, layer, heads, neurons)
    return model


def reported(net: Any, prompt: list[int]) -> list[int]:
    """What torch's own generate adds."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        made = net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    added = made[0, len(prompt) :].tolist()
    end = net.config.eos_token_id
    return added[: added.index(end)] if end in added else added


def test_groups_of_heads_are_counted_and_one_must_stay_in_the_first_layer(model: TorchModel) -> None:
    blocks = [layer.attention for layer in model.family.layers(model.net)]
    kind = model.metadata.model_type
    assert [(block.heads, block.queries) for block in blocks] == [(FAMILIES[kind], 4 // FAMILIES[kind])] * 3
    assert [block.width * block.heads for block in blocks] == [
        model.net.config.num_attention_heads * blocks[0].head_dim
    ] * 3
    assert least_heads(model.net, model.family) == ((1,), (0,), (0,))


@pytest.mark.parametrize("shape", SHAPES)
def test_pruning_equals_masking(model: TorchModel, shape: str) -> None:
    inputs = padded(model)
    whole, wanted = outputs_of(model, inputs), outputs_of(masked(model, SHAPES[shape]), inputs)
    before = sum(value.numel() for value in model.net.parameters())
    cut(model, SHAPES[shape])
    seen = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(outputs_of(model, inputs)[seen], wanted[seen], atol=2e-4)
    assert np.abs(wanted - whole)[seen].max() > 1e-1
    assert sum(value.numel() for value in model.net.parameters()) < before
    assert [(len(left.heads), left.ffn) for left in structure_of(model.net, model.family).layers] == [
        (len(heads), len(neurons)) for heads, neurons in SHAPES[shape]
    ]


def test_it_comes_back_from_disk_and_generates_token_by_token(model: TorchModel, tmp_path: Path) -> None:
    """Saved, loaded, exported with a cache of its own shape for each layer, by whole texts, in two steps and greedily."""
    cut(model, SHAPES["hollow"])
    inputs = padded(model)
    folder = save_checkpoint(model, tmp_path / "pruned")
    net = fmopt.load_model(folder)
    wanted = outputs_of(model, inputs)
    assert np.array_equal(parity.torch_outputs(net, inputs, ["logits"])["logits"], wanted)
    again = checkpoint.load(checkpoint.inspect(resolve(str(folder))))
    assert structure_of(again.net, again.family) == structure_of(model.net, model.family)

    graph = to_onnx.export_onnx(again, inputs, tmp_path / "graph")
    runner = open_runner("onnxruntime", graph.path, {}, 1)
    heads = {name: shape[1] for name, shape in runner.kv_cache.items()}
    every = FAMILIES[model.metadata.model_type]
    first = min(2, every)
    assert heads == {
        f"past_key_values.{layer}.{kind}": (first, 1)[layer] for layer in (0, 1) for kind in ("key", "value")
    }
    batches = [inputs, *items_of(again)[:2]]
    for judged in (runner, TwoSteps(runner)):
        assert parity.check_parity(judged, again.net, batches, 5e-3, outputs=["logits"]).passed

    preprocessor = open_preprocessor(again.metadata.folder, dict(again.metadata.pipeline))
    said = []
    for text in SENTENCES[:3]:
        prompt = preprocessor.ids(text)
        steps = list(continuations(runner, [prompt], again.metadata.pipeline, GenerationConfig(max_new_tokens=NEW)))
        said += [step[0] for step in steps]
        assert [step[0] for step in steps] == reported(net, prompt)
    assert len(set(said)) > 1

    net.train()(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.sum().backward()


def test_a_wrong_graph_is_traced_to_its_layer(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    model = three_layers(tiny_checkpoint, "gpt2")
    inputs = padded(model)
    graph = to_onnx.export_onnx(model, inputs, tmp_path / "graph")
    layer = model.family.layers(model.net)[1]
    model.net.get_submodule(layer.ffn.narrow).weight.data *= 1.5
    assert parity.first_divergence(graph, model, inputs, 1e-2) == layer.name


def test_dropping_a_layer_equals_skipping_it_and_caches_have_no_gap(model: TorchModel, tmp_path: Path) -> None:
    inputs = padded(model)
    skipped = copy.deepcopy(model)
    middle = skipped.net.get_submodule(skipped.family.layers(skipped.net)[1].name)
    middle.forward = lambda hidden, *args, **kwargs: hidden  # type: ignore[method-assign]
    wanted = outputs_of(skipped, inputs)
    drop_layers(model, [1])
    np.testing.assert_allclose(outputs_of(model, inputs), wanted, atol=1e-5)
    again = checkpoint.load(checkpoint.inspect(resolve(str(save_checkpoint(model, tmp_path / "two")))))
    assert again.metadata.layers == 2
    np.testing.assert_allclose(outputs_of(again, inputs), wanted, atol=1e-5)
    prompt = open_preprocessor(again.metadata.folder, dict(again.metadata.pipeline)).ids(SENTENCES[0])
    assert reported(model.net, prompt) == reported(again.net, prompt)


def test_what_a_cache_needs_is_refused(tiny_checkpoint: TinyCheckpoint) -> None:
    model = three_layers(tiny_checkpoint, "gpt2")
    cut(model, SHAPES["no attention"])
    with pytest.raises(PassError, match="would have no attention"):
        drop_layers(model, [0, 2])
    model.net.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(PassError, match="scales its attention by its number"):
        drop_layers(model, [1])
    mixed = three_layers(tiny_checkpoint, "qwen2")
    mixed.net.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    assert least_heads(mixed.net, mixed.family) == ((1,), (1,), (1,))


def test_a_classifier_built_on_a_decoder_keeps_no_cache(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    import transformers

    folder = tmp_path / "classifier"
    shutil.copytree(tiny_checkpoint("llama", "text-generation"), folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    net = transformers.LlamaForSequenceClassification(config)
    from fmopt.models.families.base import find_family

    assert least_heads(net, find_family("llama")) == ((0,), (0,))
