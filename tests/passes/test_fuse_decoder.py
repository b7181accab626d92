"""A decoder's graph fused: the same tokens as transformers gives, in place or not, whatever the padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from fmopt.core.model import Graph
from fmopt.edge.generation import GenerationConfig, continuations, likeliest, timed
from fmopt.edge.kv_cache import cache_of
from fmopt.edge.loading import Model
from fmopt.edge.runners import open_runner
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import to_onnx
from fmopt.exporters.onnx_graph import read_onnx, write_onnx
from fmopt.exporters.parity import graph as exporters_parity
from fmopt.models.wrappers.decoder import TwoSteps
from fmopt.passes.fuse_decoder import FuseDecoder
from fmopt.passes.quantize_weights import QuantizeWeights
from tests.conftest import DECODERS, SENTENCES, TinyCheckpoint
from tests.models.wrappers.test_decoder import NEW, generated, opened
from tests.torch_models import context_of, model_of, padded


def fused(graph: Graph, model: Any, out: Path) -> Graph:
    """The graph after the step."""
    return FuseDecoder().apply(graph, context_of(model), out)


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest, tiny_decoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny decoder, fused in fp32, beside its network."""
    model, graph = tiny_decoder(request.param)
    return opened(model, fused(graph, model, tmp_path_factory.mktemp("fused")))


def test_tokens_are_those_of_generate_and_the_cache_stays_where_it_lies(decoder: Any) -> None:
    texts = SENTENCES[:3]
    prompts = [decoder.model.preprocessor.ids(text) for text in texts]
    assert decoder.runner.appends
    steps = list(continuations(decoder.runner, prompts, decoder.pipeline, GenerationConfig(max_new_tokens=NEW)))
    together = [[step[row] for step in steps if step[row] is not None] for row in range(len(texts))]
    assert together == [generated(decoder, text) for text in texts]  # prompts of different lengths, in one batch
    beams = likeliest(decoder.runner, prompts[0], decoder.pipeline, GenerationConfig(max_new_tokens=NEW, beams=3))
    assert beams == generated(decoder, texts[0], num_beams=3)


def test_it_still_scores_whole_texts_and_goes_on_from_a_cache_of_its_own_length(decoder: Any) -> None:
    for runner in (decoder.runner, TwoSteps(decoder.runner)):
        batches = [padded(decoder.torch)] if runner is decoder.runner else []
        batches += [dict(decoder.model.preprocessor.encode([text]).inputs) for text in SENTENCES[:2]]
        parity = exporters_parity.check_parity(runner, decoder.torch.net, batches, 1e-3, outputs=["logits"])
        assert parity.passed, parity


def test_a_step_appends_to_the_very_buffers_and_gives_only_the_logits_asked_for(decoder: Any) -> None:
    inputs = dict(decoder.model.preprocessor.encode(SENTENCES[:1]).inputs)
    whole = decoder.runner.run(inputs)["logits"]
    call = timed(decoder.runner, inputs)
    buffers = {name: value for name, value in call.items() if name.startswith("past_")}
    out = decoder.runner.run(call)
    assert all(cache_of(out)[name] is value for name, value in buffers.items())
    assert np.abs(out["logits"][:, -1] - whole[:, -1]).max() < 1e-3
    last = decoder.runner.run({**inputs, "first_logits": np.array([-1])})["logits"]
    assert last.shape == (1, 1, whole.shape[2])
    assert np.abs(last[:, 0] - whole[:, -1]).max() < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_of_narrow_weights_are_merged_without_changing_them(
    tiny_decoder: Any, tmp_path: Path, family: str, bits: int
) -> None:
    model, graph = tiny_decoder(family)
    narrow = QuantizeWeights(bits=bits, block=32).apply(graph, context_of(model), tmp_path / "narrow")
    made = fused(narrow, model, tmp_path / "fused")
    kinds = [node.op_type for node in read_onnx(made.path).graph.node]
    assert kinds.count("MatMulNBits") == 2 * 4 + 1  # of each layer: q, k and v together, what comes out, the FFN's two
    assert "Softmax" not in kinds
    before, after = (opened(model, one) for one in (narrow, made))
    prompts = [before.model.preprocessor.ids(text) for text in SENTENCES[:2]]
    config = GenerationConfig(max_new_tokens=NEW)
    assert list(continuations(before.runner, prompts, before.pipeline, config)) == list(
        continuations(after.runner, prompts, after.pipeline, config)
    )


def test_heads_of_sixteen_are_turned_by_the_operator_itself(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    source = tiny_checkpoint("llama", "text-generation")
    settings = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = transformers.AutoConfig.from_pretrained(source)
    for name, value in settings.items():
        setattr(config, name, value)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    model = model_of(folder)
    made = fused(to_onnx.export_onnx(model, padded(model), tmp_path / "plain"), model, tmp_path / "fused")
    nodes = [node for node in read_onnx(made.path).graph.node if node.op_type == "GroupQueryAttention"]
    assert all(any(one.name == "do_rotary" and one.i for one in node.attribute) for node in nodes)
    exported = opened(model, made)
    prompts = [exported.model.preprocessor.ids(text) for text in SENTENCES[:2]]
    steps = list(continuations(exported.runner, prompts, exported.pipeline, GenerationConfig(max_new_tokens=NEW)))
    assert [[step[row] for step in steps] for row in range(2)] == [generated(exported, text) for text in SENTENCES[:2]]


def test_attention_of_another_kind_is_left_alone(tiny_decoder: Any, tmp_path: Path) -> None:
    model, graph = tiny_decoder("gpt2")
    proto = read_onnx(graph.path)
    node = next(node for node in proto.graph.node if node.op_type == "Softmax")
    node.op_type = "Hardmax"
    del node.attribute[:]
    strange = replace(graph, path=write_onnx(proto, tmp_path / "strange" / "model.onnx"))
    before, after = opened(model, strange), opened(model, fused(strange, model, tmp_path / "fused"))
    assert not after.runner.appends
    prompts = [before.model.preprocessor.ids(text) for text in SENTENCES[:2]]
    config = GenerationConfig(max_new_tokens=NEW)
    assert list(continuations(before.runner, prompts, before.pipeline, config)) == list(
        continuations(after.runner, prompts, after.pipeline, config)
    )


def test_a_bundle_s_own_file_opens_it_too(decoder: Any) -> None:
    runner = open_runner("onnxruntime", decoder.graph.path, {}, 1)
    pipeline = decoder.pipeline
    model = Model({"pipeline": pipeline}, open_preprocessor(decoder.torch.metadata.folder, pipeline), runner)
    assert model(SENTENCES[0], max_new_tokens=3) == decoder.model(SENTENCES[0], max_new_tokens=3)
