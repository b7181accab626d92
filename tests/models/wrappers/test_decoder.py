"""Text generation: one graph scores and generates, token by token as transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fmopt.core import plugins
from fmopt.core.errors import CheckpointError
from fmopt.core.model import Graph
from fmopt.edge.decoding import Speller, Spelling, sampled
from fmopt.edge.generation import GenerationConfig, TextScores, continuations, likeliest
from fmopt.edge.loading import Model, run_batch
from fmopt.edge.runners import open_runner
from fmopt.edge.text import open_preprocessor, postprocess
from fmopt.exporters.parity import graph as exporters_parity
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from fmopt.models.wrappers.decoder import TwoSteps
from tests.conftest import DECODERS, SENTENCES, TinyCheckpoint
from tests.torch_models import items_of, model_of, padded

NEW = 12


@pytest.fixture(scope="module", params=DECODERS)
def exported(request: pytest.FixtureRequest, tiny_decoder: Any) -> Any:
    """A tiny decoder in PyTorch, and as an opened graph."""
    return opened(*tiny_decoder(request.param))


def opened(model: TorchModel, graph: Graph) -> Any:
    """The graph as a bundle would open it, beside its network."""
    runner = open_runner("onnxruntime", graph.path, {}, 1)
    pipeline = dict(model.metadata.pipeline)
    edge = Model({"pipeline": pipeline}, open_preprocessor(model.metadata.folder, pipeline), runner)
    return SimpleNamespace(torch=model, graph=graph, runner=runner, pipeline=pipeline, model=edge)


def generated(exported: Any, text: str, **options: Any) -> list[int]:
    """What `generate` of transformers adds to a text, without the token that ends it."""
    ids = torch.tensor([exported.model.preprocessor.ids(text)])
    with torch.inference_mode():
        made = exported.torch.net.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **options
        )
    added = made[0, ids.shape[1] :].tolist()
    stops = exported.pipeline["eos_token_id"]
    return added[: added.index(stops[0])] if stops[0] in added else added


def test_the_graph_agrees_with_torch_for_whole_texts_and_from_a_cache(exported: Any) -> None:
    batches = [padded(exported.torch), *items_of(exported.torch)[:2]]
    for runner in (exported.runner, TwoSteps(exported.runner)):
        parity = exporters_parity.check_parity(runner, exported.torch.net, batches, 1e-3, outputs=["logits"])
        assert parity.passed, parity


def test_greedy_and_beams_give_the_tokens_of_generate(exported: Any) -> None:
    texts = SENTENCES[:3]
    prompts = [exported.model.preprocessor.ids(text) for text in texts]
    steps = list(continuations(exported.runner, prompts, exported.pipeline, GenerationConfig(max_new_tokens=NEW)))
    together = [[step[row] for step in steps if step[row] is not None] for row in range(len(texts))]
    assert together == [generated(exported, text) for text in texts]  # prompts of different lengths, in one batch
    assert len({token for row in together for token in row}) > 3
    for text, prompt in zip(texts, prompts, strict=True):
        beams = likeliest(exported.runner, prompt, exported.pipeline, GenerationConfig(max_new_tokens=NEW, beams=3))
        assert beams == generated(exported, text, num_beams=3)


@pytest.fixture(scope="module")
def gpt2(tiny_decoder: Any) -> Model:
    return opened(*tiny_decoder("gpt2")).model


def test_scores_are_those_of_the_network_s_own_loss(gpt2: Model, tiny_checkpoint: TinyCheckpoint) -> None:
    model = model_of(tiny_checkpoint("gpt2", "text-generation"))
    batch = gpt2.preprocessor.encode(list(SENTENCES[:3]))
    found = postprocess(gpt2.pipeline, run_batch(gpt2.pipeline, gpt2.runner, batch, 3), batch, SENTENCES[:3])
    for text, prediction in zip(SENTENCES[:3], found, strict=True):
        ids = torch.tensor([gpt2.preprocessor.ids(text)])
        with torch.inference_mode():
            loss = float(model.net(input_ids=ids, labels=ids).loss)
        assert -TextScores.of(prediction).logs.mean() == pytest.approx(loss, abs=1e-4)
    task = plugins.find("tasks", "text-generation")
    items = task.items([{"text": text} for text in SENTENCES[:3]], model.metadata)
    scores = {score.name: score.array() for score in task.scores(found, items, found, model.metadata)}
    assert scores["perplexity"][:, 1].tolist() == [len(gpt2.preprocessor.ids(text)) - 1 for text in SENTENCES[:3]]
    assert scores["greedy agreement"].min() == 1
    assert abs(scores["KL to baseline"]).max() < 1e-6


def test_a_stop_string_ends_the_text_and_a_stream_gives_the_same_pieces(gpt2: Model) -> None:
    whole = gpt2("the cat sat", max_new_tokens=NEW)
    assert whole["tokens"] == NEW
    assert whole["ended"] == "length"
    stop = whole["text"][4:6]
    cut = gpt2("the cat sat", max_new_tokens=NEW, stop=(stop,))
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["ended"] == "stop"
    assert "".join(gpt2.stream("the cat sat", max_new_tokens=NEW)) == whole["text"]
    assert "".join(gpt2.stream("the cat sat", max_new_tokens=NEW, stop=(stop,))) == cut["text"]


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    letters = SimpleNamespace(
        decode=lambda ids: "".join("_abEND"[one] for one in ids), id_to_token=lambda one: "_abEND"[one]
    )
    speller = Speller(Spelling(letters), [0], ["END"])
    assert [speller.take(token) for token in (1, 3, 2, 3, 4)] == ["a", "", "Eb", "", ""]
    assert speller.rest() == "EN"


def test_sampling_keeps_to_top_k_and_top_p_and_to_its_seed() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.15, 0.1]])).repeat(4000, axis=0)
    draws = [np.random.default_rng(0)] * len(logits)
    shares = np.bincount(sampled(logits, GenerationConfig(temperature=1.0), draws), minlength=4) / 4000
    assert shares == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.03)
    assert set(sampled(logits, GenerationConfig(temperature=1.0, top_k=2), draws)) == {0, 1}
    assert set(sampled(logits, GenerationConfig(temperature=1.0, top_p=0.7), draws)) == {0, 1}
    assert set(sampled(logits, GenerationConfig(temperature=0.05), draws)) == {0}
    seeds = range(len(logits))
    first, second = (
        sampled(logits, GenerationConfig(temperature=1.0), [np.random.default_rng(seed) for seed in seeds])
        for _ in range(2)
    )
    assert (first == second).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; it is 0 (greedy) or more"),
        ({"top_p": 0.0}, "top_p is 0.0; it is above 0 and at most 1"),
        ({"beams": 2, "temperature": 1.0}, "beams is 2; it is 1 when temperature is above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it is at least 1"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_line(gpt2: Model, options: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said.replace("(", r"\(").replace(")", r"\)")):
        gpt2("the cat", **options)


def test_a_prompt_longer_than_the_context_is_one_line(gpt2: Model) -> None:
    with pytest.raises(Exception, match=r"the prompt has \d+ tokens and the model reads 64 in all; shorten it"):
        gpt2("the cat sat " * 40)


def test_text_ends_where_the_context_does(gpt2: Model) -> None:
    prompt = "the cat sat on the mat " * 6
    room = 64 - len(gpt2.preprocessor.ids(prompt))
    assert 0 < room < 64
    assert gpt2(prompt, max_new_tokens=100)["tokens"] <= room


def test_an_untrained_entry_says_how_to_train_it() -> None:
    with pytest.raises(CheckpointError, match="train it first: fmopt finetune gpt2-mini --data"):
        resolve("gpt2-mini")


def test_stop_ids_are_read_from_the_generation_config(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "gpt2"
    shutil.copytree(tiny_checkpoint("gpt2", "text-generation"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    assert model_of(folder).metadata.pipeline["eos_token_id"] == [3, 5]
