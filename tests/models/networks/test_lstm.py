"""An LSTM language model end to end: its state takes the place of keys and values."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import fmopt
from fmopt.core import model as core_model
from fmopt.core import plugins
from fmopt.core.errors import ConfigError
from fmopt.edge.generation import GenerationConfig, continuations, likeliest, timed
from fmopt.edge.kv_cache import CACHE_PREFIX, can_cut
from fmopt.edge.loading import load as edge_load
from fmopt.edge.runners import open_runner
from fmopt.exporters.parity import graph as exporters_parity
from fmopt.measurement.host_probe import load_target
from fmopt.models import checkpoint, initialization
from fmopt.models.source import resolve
from fmopt.models.wrappers.decoder import TwoSteps
from tests.conftest import SENTENCES
from tests.torch_models import model_of, padded

TEXTS = [f"{one} and then {other}" for one in SENTENCES for other in SENTENCES]
ENTRY: dict[str, Any] = {
    "source": "config",
    "task": "text-generation",
    "config": {"model_type": "lstm", "hidden_size": 48, "num_hidden_layers": 2},
    "tokenizer": {"kind": "byte-bpe", "size": 340},
}
NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = initialization.write_untrained(ENTRY, TEXTS, tmp_path_factory.mktemp("lstm"), "tiny-lstm")
    model = model_of(home)
    with torch.no_grad():  # sharper than random weights are, so that the likeliest word is not a matter of rounding
        for weight in model.net.parameters():
            weight.mul_(4)
    net: Any = model.net
    net.save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fmopt.export(folder, tmp_path_factory.mktemp("bundle") / "lm")


def generated(net: Any, ids: list[int], **options: Any) -> list[int]:
    """What `generate` of transformers adds, without the token that ends it."""
    prompt = torch.tensor([ids])
    mask = torch.ones_like(prompt)
    with torch.inference_mode():
        made = net.generate(prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)[0]
    added: list[int] = made[len(ids) :].tolist()
    return added[: added.index(0)] if 0 in added else added


def test_the_bundle_gives_the_tokens_of_torch_one_by_one(folder: Path, bundle: Path) -> None:
    metadata = checkpoint.inspect(resolve(str(folder)))
    assert (metadata.task, metadata.model_type, metadata.layers, metadata.hidden_size) == (
        "text-generation",
        "lstm",
        2,
        48,
    )
    net = checkpoint.load(metadata).net
    loaded = edge_load(bundle, 1)
    prompts = [loaded.preprocessor.ids(text) for text in SENTENCES[:3]]
    assert len({len(prompt) for prompt in prompts}) > 1  # of different lengths, padded on the left in one batch
    assert not can_cut(
        loaded.runner
    )  # its state is of all tokens: nothing is proposed, and nothing left for the next prompt
    steps = list(continuations(loaded.runner, prompts, loaded.pipeline, GenerationConfig(max_new_tokens=NEW)))
    together = [[step[row] for step in steps if step[row] is not None] for row in range(len(prompts))]
    assert together == [generated(net, prompt) for prompt in prompts]
    assert len({token for row in together for token in row}) > 3
    config = GenerationConfig(max_new_tokens=NEW, beams=3)
    assert likeliest(loaded.runner, prompts[0], loaded.pipeline, config) == generated(net, prompts[0], num_beams=3)


def test_run_py_goes_on_without_torch(folder: Path, bundle: Path) -> None:
    block = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'fmopt')))"
    code = f"{block}; sys.path.insert(0, '.'); import run; sys.exit(run.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "predict", SENTENCES[0], "--max-new-tokens", str(NEW)]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=True)
    tokenizer = edge_load(bundle, 1).preprocessor
    ids = tokenizer.ids(SENTENCES[0])
    made = generated(checkpoint.load(checkpoint.inspect(resolve(str(folder)))).net, ids)
    whole = tokenizer.tokenizer.decode([*ids, *made])
    assert json.loads(done.stdout)["text"] == whole.removeprefix(tokenizer.tokenizer.decode(ids))


def test_a_text_in_two_parts_is_the_whole_text_and_the_state_does_not_grow(folder: Path, bundle: Path) -> None:
    model, loaded = model_of(folder), edge_load(bundle, 1)
    batch = dict(loaded.preprocessor.encode(SENTENCES[:4]).inputs)
    for runner in (loaded.runner, TwoSteps(loaded.runner)):
        parity = exporters_parity.check_parity(runner, model.net, [batch], 1e-3, outputs=["logits"])
        assert parity.passed, parity
    step = timed(loaded.runner, {name: value[:, :6] for name, value in batch.items()})
    assert step["input_ids"].shape == (4, 1)
    assert {name: value.shape for name, value in step.items() if name.startswith(CACHE_PREFIX)} == {
        f"{CACHE_PREFIX}{layer}.{kind}": (4, 1, 1, 48) for layer in (0, 1) for kind in ("key", "value")
    }


def test_int8_covers_the_layers_too(folder: Path, bundle: Path, tmp_path: Path) -> None:
    model, exact = model_of(folder), bundle / "model.onnx"
    graph = core_model.Graph("onnx", exact, ("input_ids",), ("logits",))
    ctx: Any = SimpleNamespace(target=load_target("host"))
    small = plugins.find("passes", "quantize_dynamic")().apply(graph, ctx, tmp_path).path
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert "DynamicQuantizeLSTM" in kinds
    assert "LSTM" not in kinds
    assert small.stat().st_size < 0.65 * exact.stat().st_size  # the table of words stays
    batch = padded(model)
    one, other = (open_runner("onnxruntime", path, {}, 1).run(batch)["logits"] for path in (exact, small))
    mask = batch["attention_mask"].astype(bool)
    assert np.corrcoef(one[mask].ravel(), other[mask].ravel())[0, 1] > 0.97


def test_what_would_narrow_no_layer_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NNCF narrows no layer of lstm; quantize_dynamic on ONNX Runtime does"):
        fmopt.export(folder, tmp_path / "narrow", format="openvino", precision="int8")
