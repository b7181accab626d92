"""Every family names real modules of the right shape, whatever head the network wears."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fmopt.core import plugins
from fmopt.models.families.base import find_family, parts
from fmopt.models.loading import load_network
from tests.conftest import FAMILIES, HEADS

HIDDEN, HEAD_COUNT, FFN = 32, 4, 64
DISTINCT_LAYERS = {"albert": 1}  # its two layers share one module
IDS = torch.tensor([[5, 9, 11, 7, 6, 8]])


def first_of(out):
    """A hidden state; MPNet's layers wrap theirs in a tuple."""
    return out[0] if isinstance(out, tuple) else out


@pytest.fixture(params=FAMILIES)
def family_name(request):
    return request.param


@pytest.mark.parametrize("task", ["sentence-embedding", "token-classification"])
def test_layers_name_modules_of_the_right_shape(tiny_checkpoint, family_name, task):
    net = load_network(tiny_checkpoint(family_name, task), HEADS[task])
    family = find_family(family_name)
    layers = family.layers(net)
    assert len(layers) == DISTINCT_LAYERS.get(family_name, 2)
    for layer in layers:
        attention, ffn = layer.attention, layer.ffn
        rows = 3 * HIDDEN if attention.fused else HIDDEN
        for name in (attention.query, attention.key, attention.value):
            assert net.get_submodule(name).weight.shape == (rows, HIDDEN)
        assert net.get_submodule(attention.output).weight.shape == (HIDDEN, HIDDEN)
        assert (attention.heads, attention.head_dim) == (HEAD_COUNT, HIDDEN // HEAD_COUNT)
        gated = 2 if family_name == "modernbert" else 1
        assert [net.get_submodule(name).out_features for name in ffn.widen] == [gated * FFN]
        assert net.get_submodule(ffn.narrow).weight.shape == (HIDDEN, FFN)
        assert ffn.width == FFN


def test_a_layers_output_is_the_networks_hidden_state(tiny_checkpoint, family_name):
    net = load_network(tiny_checkpoint(family_name, "sentence-embedding"), "AutoModel")
    seen = []
    for layer in find_family(family_name).layers(net):
        net.get_submodule(layer.name).register_forward_hook(lambda module, given, out: seen.append(first_of(out)))
    with torch.no_grad():
        states = net(IDS, output_hidden_states=True).hidden_states
    assert len(seen) == 2  # ALBERT's one module runs twice
    assert all(isinstance(out, torch.Tensor) and out.shape == (1, 6, HIDDEN) for out in seen)
    # ModernBERT norms what its last layer gives; all others hand it out as it is.
    assert torch.equal(seen[0], states[1])
    assert family_name == "modernbert" or torch.equal(seen[1], states[2])


def test_embeddings_are_tables_and_the_tokens_come_first(tiny_checkpoint, family_name):
    net = load_network(tiny_checkpoint(family_name, "text-classification"), HEADS["text-classification"])
    names = find_family(family_name).embeddings(net)
    tables = [net.get_submodule(name) for name in names]
    assert all(isinstance(table, torch.nn.Embedding) for table in tables)
    assert tables[0].num_embeddings == net.config.vocab_size
    assert len(tables) == (1 if family_name in ("deberta-v2", "modernbert") else 2)


def test_parts_are_the_linears_of_the_layers(tiny_checkpoint, family_name):
    net = load_network(tiny_checkpoint(family_name, "text-classification"), HEADS["text-classification"])
    names = {name for layer in find_family(family_name).layers(net) for name in parts(layer)}
    per_layer = 4 if family_name == "modernbert" else 6
    assert len(names) == per_layer * DISTINCT_LAYERS.get(family_name, 2)
    every = {name for name, module in net.named_modules() if isinstance(module, torch.nn.Linear)}
    assert names < every
    assert not any("classifier" in name for name in names)


def test_heads_and_width_follow_a_pruned_network(tiny_checkpoint):
    """Families read widths off the modules, not off the configuration, so that pruned networks stay readable."""
    net = load_network(tiny_checkpoint("bert", "sentence-embedding"), "AutoModel")
    net.encoder.layer[0].attention.output.dense = torch.nn.Linear(16, HIDDEN)
    net.encoder.layer[0].output.dense = torch.nn.Linear(24, HIDDEN)
    first, second = find_family("bert").layers(net)
    assert (first.attention.heads, first.ffn.width) == (2, 24)
    assert (second.attention.heads, second.ffn.width) == (4, 64)


def test_every_file_is_found_by_its_model_types():
    families = [plugins.find("families", name) for name in plugins.names("families")]
    types = [model_type for family in families for model_type in family.model_types]
    assert len(types) == len(set(types))
    assert set(FAMILIES) <= set(types)
    assert find_family("llama-of-the-future") is None


def test_families_load_without_torch():
    code = (
        "import sys; from fmopt.models.families.base import find_family; find_family('modernbert'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
