"""Dropping layers: the idle one goes first, in every family, and what is left is a network like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from fmopt.core.errors import ConfigError, PassError
from fmopt.models.loading import TorchModel, load_network
from fmopt.passes.drop_layers import DropLayers
from tests.conftest import FAMILIES, HEADS, tiny_config, write_tokenizer
from tests.torch_models import context_of, model_of, outputs_of, padded, target

LAYERS = 4


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """`deep(family)`: folder of a tiny checkpoint with four layers."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(f"deep-{family}")
        config = tiny_config(family, write_tokenizer(folder, family), "sentence-embedding")
        settings = {**config.to_dict(), "num_hidden_layers": LAYERS}
        settings.pop("layer_types", None)
        if family == "distilbert":
            settings["n_layers"] = LAYERS
        config = transformers.AutoConfig.for_model(**{**settings, "model_type": family})
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).eval().save_pretrained(folder)
        return folder

    return make


def idle(model: TorchModel, number: int) -> None:
    """Make one layer hand on nearly what it gets: its projections give zeros."""
    layer = model.family.layers(model.net)[number]
    for name in (layer.attention.output, layer.ffn.narrow):
        linear = model.net.get_submodule(name)
        with torch.no_grad():
            linear.weight.zero_()
            if linear.bias is not None:
                linear.bias.zero_()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "albert"])
def test_the_idle_layer_goes(deep, tmp_path, family):
    model = model_of(deep(family))
    idle(model, 2)
    before, inputs = outputs_of(model, padded(model)), padded(model)
    said: list[str] = []
    done = DropLayers().apply(model, replace(context_of(model), progress=said.append))
    assert done.history == ("drop_layers(2)",)
    assert len(model.family.layers(done.net)) == done.net.config.num_hidden_layers == LAYERS - 1
    # What an idle post-norm layer does is to norm what is normed already.
    np.testing.assert_allclose(outputs_of(done, inputs), before, atol=1e-3)
    assert said[-1].startswith("dropped layer 2: the outputs moved by ")
    done.net.save_pretrained(tmp_path)
    again = replace(done, net=load_network(tmp_path, HEADS["sentence-embedding"]))
    np.testing.assert_allclose(outputs_of(again, inputs), outputs_of(done, inputs), atol=1e-6)


def test_layers_go_one_after_the_other(deep):
    model = model_of(deep("bert"))
    idle(model, 1)
    idle(model, 3)
    before = outputs_of(model, padded(model))
    done = DropLayers(count=2).apply(model, context_of(model))
    assert done.history == ("drop_layers(1, 3)",)
    np.testing.assert_allclose(outputs_of(done, padded(done)), before, atol=1e-3)


def test_a_first_layer_of_its_own_kind_stays(deep):
    model = model_of(deep("modernbert"))
    idle(model, 0)
    done = DropLayers(count=3).apply(model, context_of(model))
    assert done.history == ("drop_layers(1, 2, 3)",)
    with pytest.raises(PassError, match="at least one must stay"):
        DropLayers().apply(done, context_of(done))


def test_refusals(tiny_checkpoint):
    albert, bert = (model_of(tiny_checkpoint(name)).metadata for name in ("albert", "bert"))
    assert "share one set of weights" in DropLayers().refusal(albert, target())
    assert DropLayers(count=1).refusal(bert, target()) is None
    assert "at least one stays, so 2 cannot be dropped" in DropLayers(count=2).refusal(bert, target())
    assert "does not know" in DropLayers().refusal(replace(bert, model_type="mamba"), target())
    with pytest.raises(ConfigError, match="count is 0"):
        DropLayers(count=0)
    model = model_of(tiny_checkpoint("bert"))
    with pytest.raises(PassError, match="no calibration items"):
        DropLayers().apply(model, replace(context_of(model), calibration=lambda: iter(())))
