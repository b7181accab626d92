"""Speculation by looking tokens up: whatever is proposed, the tokens are those of plain greedy decoding and of transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fmopt.edge import kv_cache
from fmopt.edge.generation import GenerationConfig, Rows, Session, continuations, usual
from fmopt.edge.host import cache_folder
from fmopt.edge.kv_cache import PrefixCache, can_cut
from fmopt.edge.lookup import LONGEST, Gain, Index, leads
from fmopt.exporters import to_onnx
from fmopt.passes.fuse_decoder import FuseDecoder
from fmopt.passes.quantize_dynamic import QuantizeDynamic
from fmopt.passes.quantize_weights import QuantizeWeights
from tests.conftest import DECODERS, SENTENCES
from tests.models.wrappers.test_decoder import opened
from tests.torch_models import context_of, model_of

NEW = 24
TEXTS = (*SENTENCES[:2], "the cat sat on the mat and the cat sat on the mat and the cat", "a b a b a b a b")
RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "suppress_tokens": {"suppress_tokens": list(range(20, 60)), "begin_suppress_tokens": [61, 62]},
    "min_new_tokens": {"min_new_tokens": 20},
    "forced_eos_token_id": {"forced_eos_token_id": [2]},
    "bad_words_ids": {"bad_words_ids": [[40], [30, 31]]},
}


class Eager(Gain):
    """Proposes whenever something was found, and each time another number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.accepted, self.proposed = count(), 0, 0

    def choose(self, alike: int, most: int) -> int:
        return min(1 + next(self.number) % 7, most)

    def took(self, seconds: float) -> None:
        pass

    def checked(self, proposed: int, accepted: int, seconds: float) -> None:
        self.proposed, self.accepted = self.proposed + proposed, self.accepted + accepted

    ended = checked


def answers_known(monkeypatch: pytest.MonkeyPatch, prompt: list[int], answer: list[int]) -> None:
    """Proposals are the answer itself with every fifth token another: a network with random weights seldom repeats itself."""
    told = [*prompt, *(token if number % 5 else (token + 1) % 300 for number, token in enumerate(answer, start=1))]
    monkeypatch.setattr(Index, "find", lambda self: (len(self.text) - 1, 1))
    monkeypatch.setattr(Index, "following", lambda self, place, most: (told[len(self.text) :] + [3] * most)[:most])


@pytest.fixture(scope="module", params=[(family, fused) for family in DECODERS for fused in (False, True)], ids=str)
def decoder(request: pytest.FixtureRequest, tiny_decoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny decoder beside its network, as exported and with fused attention."""
    family, fused = request.param
    model, graph = tiny_decoder(family)
    if fused:
        graph = FuseDecoder().apply(graph, context_of(model), tmp_path_factory.mktemp("fused"))
    return opened(model, graph)


def tokens(made: Iterator[list[int | None]]) -> list[int]:
    """The tokens of one text."""
    return [int(token) for (token,) in made if token is not None]


def both(one: Any, prompt: list[int], pipeline: dict[str, Any], new: int = NEW) -> tuple[list[int], list[int], Eager]:
    """The tokens of a prompt without and with proposals, and what became of these."""
    session, eager = Session(), Eager()
    session.gain = eager
    off = GenerationConfig(max_new_tokens=new, speculation="off")
    plain = tokens(continuations(one.runner, [prompt], pipeline, off))
    return plain, tokens(continuations(one.runner, [prompt], pipeline, GenerationConfig(new), session)), eager


def generate(one: Any, prompt: list[int], **options: Any) -> list[int]:
    """What `generate` of transformers adds, without the token that ends it."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        made = one.torch.net.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **options
        )
    added = made[0, ids.shape[1] :].tolist()
    stop = one.pipeline["eos_token_id"][0]
    return added[: added.index(stop)] if stop in added else added


def test_proposals_never_change_the_tokens(decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proposed = accepted = 0
    for text in TEXTS:
        prompt = decoder.model.preprocessor.ids(text)[:40]
        plain, ahead, eager = both(decoder, prompt, decoder.pipeline)
        assert ahead == plain == generate(decoder, prompt)
        assert eager.exact is not False
        with monkeypatch.context() as told:
            answers_known(told, prompt, plain)
            _, ahead, eager = both(decoder, prompt, decoder.pipeline)
        assert ahead == plain
        proposed, accepted = proposed + eager.proposed, accepted + eager.accepted
    assert 0 < accepted < proposed  # some came true and some did not


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rules_hold_for_every_accepted_token(
    tiny_decoder: Any, family: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = opened(*tiny_decoder(family))
    proposed = accepted = 0
    for text in TEXTS[1:]:
        prompt = one.model.preprocessor.ids(text)[:40]
        pipeline = {**one.pipeline, **RULES[rule]}
        plain, ahead, _ = both(one, prompt, pipeline)
        assert ahead == plain == generate(one, prompt, **RULES[rule])
        with monkeypatch.context() as told:
            answers_known(told, prompt, plain)
            _, ahead, eager = both(one, prompt, pipeline)
        assert ahead == plain
        proposed, accepted = proposed + eager.proposed, accepted + eager.accepted
    assert 0 < accepted < proposed


# ------------------------------------------------------------------------- where it is off, and when it pays


def test_the_first_proposal_is_a_test_and_nothing_is_proposed_where_scores_differ(tiny_decoder: Any) -> None:
    one = opened(*tiny_decoder("gpt2"))
    session, run = Session(), one.runner.run
    session.gain = Eager()
    prompt = one.model.preprocessor.ids(TEXTS[2])
    one.runner.run = lambda inputs: coarse(run(inputs), inputs["input_ids"].shape[1])
    plain = tokens(continuations(one.runner, [prompt], one.pipeline, GenerationConfig(NEW, speculation="off")))
    assert tokens(continuations(one.runner, [prompt], one.pipeline, GenerationConfig(NEW), session)) == plain
    assert session.gain.exact is False
    proposed = session.gain.proposed
    assert proposed <= 7  # that of the test
    assert tokens(continuations(one.runner, [prompt], one.pipeline, GenerationConfig(NEW), session)) == plain
    assert session.gain.proposed == proposed
    tokens(continuations(one.runner, [prompt], one.pipeline, GenerationConfig(NEW, speculation="lookup"), session))
    assert session.gain.proposed > proposed  # asked for by name


def coarse(outputs: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The outputs as of a runtime that computes several tokens in fewer bits."""
    return {**outputs, "logits": np.round(outputs["logits"])} if count > 1 else outputs


@pytest.mark.parametrize("bits", [4, 8])
def test_graphs_that_round_activations_propose_only_when_asked(tiny_decoder: Any, tmp_path: Path, bits: int) -> None:
    model, graph = tiny_decoder("llama")
    one = opened(model, QuantizeWeights(bits=bits, block=32).apply(graph, context_of(model), tmp_path))
    assert can_cut(one.runner)
    assert one.runner.rounds_activations
    prompt = one.model.preprocessor.ids(TEXTS[2])
    plain, ahead, eager = both(one, prompt, one.pipeline)
    assert (ahead, eager.proposed) == (plain, 0)
    session = Session()
    session.gain = Eager()
    config = GenerationConfig(max_new_tokens=NEW, speculation="lookup")
    assert tokens(continuations(one.runner, [prompt], one.pipeline, config, session))
    assert session.gain.proposed


def test_what_takes_scales_from_all_tokens_is_not_cut(tiny_decoder: Any, tmp_path: Path) -> None:
    model, graph = tiny_decoder("gpt2")
    one = opened(model, QuantizeDynamic().apply(graph, context_of(model), tmp_path))
    assert not can_cut(one.runner)
    assert both(one, one.model.preprocessor.ids(TEXTS[2]), one.pipeline)[2].proposed == 0


def test_sampling_beams_and_several_texts_propose_nothing(tiny_decoder: Any) -> None:
    one = opened(*tiny_decoder("gpt2"))
    one.model.between_calls["generation"] = SimpleNamespace(get=lambda: session)
    session = Session()
    session.gain = Eager()
    for options in ({"temperature": 1.0}, {"beams": 2}, {"speculation": "off"}):
        one.model(TEXTS[2], max_new_tokens=NEW, **options)
    one.model([TEXTS[2], TEXTS[2]], max_new_tokens=NEW)
    assert session.gain.proposed == 0
    one.model(TEXTS[2], max_new_tokens=NEW)
    assert session.gain.proposed


def test_a_setting_that_there_is_none_of_is_one_line(tiny_decoder: Any) -> None:
    one = opened(*tiny_decoder("gpt2"))
    with pytest.raises(Exception, match="speculation is 'fast'; it is auto or lookup or off"):
        one.model("the cat", speculation="fast")
    one.pipeline["speculation"] = "off"
    assert usual(one.pipeline).speculation == "off"
    assert usual(one.pipeline, speculation="lookup").speculation == "lookup"


def test_what_followed_the_newest_tokens_last_is_found_and_goes_round() -> None:
    text = [5, 1, 2, 3, 9, 1, 2, 3, 8, 7, 2, 3]
    index = Index(text)
    assert index.find() == (8, 2)  # 2 3 were followed by 8 the last time
    assert index.following(8, 3) == [8, 7, 2]
    text += [8]
    assert index.find() == (9, 3)
    assert index.following(9, 6) == [7, 2, 3, 8, 7, 2]
    text += [6]
    assert index.find() is None


def test_proposing_stops_where_it_costs_more_than_it_brings_and_begins_again_where_it_pays() -> None:
    gain = Gain()
    for _ in range(5):
        gain.took(1.0)
    for _ in range(30):  # guesses seldom come true
        gain.note(3, False)
        gain.note(4, False)
    assert gain.choose(3, 50) == 0
    for _ in range(60):
        gain.note(3, True)
        gain.note(4, True)
        gain.note(LONGEST, True)
    assert gain.choose(3, 50) > 0
    for size in (1, 2, 3, 4, 6, 8, 12, 16):
        gain.checked(size, size, 1.2 * (size + 1))  # a token costs more there than alone
    assert gain.choose(LONGEST, 50) == 0  # too much was lost
    gain.credit = 1.0
    again = next(number for number in range(1, 100) if gain.choose(LONGEST, 50))
    assert again == 64  # costs are looked at again now and then, ever more seldom
    assert next(number for number in range(1, 200) if gain.choose(LONGEST, 50)) == 128


def test_no_more_time_is_lost_than_may_be() -> None:
    """Guesses that look good and never come true: what is lost stays below a few calls and a fiftieth."""
    gain, spent = Gain(), 0.0
    for _ in range(1000):
        gain.right = [one * 0.95 for one in gain.seen]
        size = gain.choose(LONGEST, 50)
        seconds = 1 + 0.5 * size
        spent += seconds
        if size:
            gain.checked(size, 0, seconds)
        else:
            gain.took(1.0)
    assert spent < 1.03 * 1000 + 10


def test_a_lead_is_told_from_rounding() -> None:
    assert leads(np.array([1.0, 1.1, -np.inf]))
    assert not leads(np.array([1.0, 1.0005, 0.0]))
    assert not leads(np.array([100.0, 100.05, 0.0]))  # relative to their size
    assert leads(np.array([0.0, -np.inf, -np.inf]))  # forced
    assert not leads(np.full(3, -np.inf))


# ------------------------------------------------------------------------- what is left for the next call


def reads(runner: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens every call of a runner takes in."""
    found: list[int] = []
    run = runner.run
    monkeypatch.setattr(runner, "run", lambda inputs: (found.append(inputs["input_ids"].shape[1]), run(inputs))[1])
    return found


def test_a_prompt_that_begins_like_the_last_one_reads_only_the_rest(
    decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = decoder.model.preprocessor.ids(TEXTS[2])[:30]
    prompts = (first, [*first[:20], 30, 31, 32, 33], first, first[:6], first)
    session, config = Session(), GenerationConfig(max_new_tokens=4, speculation="off")
    alone = [tokens(continuations(decoder.runner, [ids], decoder.pipeline, config)) for ids in prompts]
    read = reads(decoder.runner, monkeypatch)
    lengths = []
    for ids, answer in zip(prompts, alone, strict=True):
        at = len(read)
        assert tokens(continuations(decoder.runner, [ids], decoder.pipeline, config, session)) == answer
        lengths.append(read[at])
    # what begins alike, at least two tokens read anew; too little is alike for the last two
    assert lengths == [len(first), 4, len(first) - 20, 6, len(first)]


def test_scores_after_what_was_left_are_those_of_a_fresh_prompt_bit_for_bit(tiny_decoder: Any, tmp_path: Path) -> None:
    model, graph = tiny_decoder("llama")
    narrow = QuantizeWeights(bits=8, block=32).apply(graph, context_of(model), tmp_path / "narrow")
    one = opened(model, FuseDecoder().apply(narrow, context_of(model), tmp_path / "fused"))
    ids = one.model.preprocessor.ids(TEXTS[2])[:30]
    whole = Rows(one.runner, [ids], 0, 8).logits()
    prefixes = PrefixCache()
    before = Rows(one.runner, [ids[:20]], 0, 4)  # a smaller buffer, which has no room for the second
    before.logits()
    prefixes.leave(ids[:20], before.kv_cache)
    after = Rows(one.runner, [ids], 0, 8, prefixes=prefixes)
    assert after.ids.shape[1] == len(ids) - 20
    assert np.array_equal(after.logits(), whole)


def test_nothing_is_left_that_is_too_large_or_not_wanted(tiny_decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = opened(*tiny_decoder("gpt2"))
    read = reads(one.runner, monkeypatch)
    whole = len(one.model.preprocessor.ids(TEXTS[2]))
    for options in ({"prefix_cache": False}, {}, {}):
        one.model(TEXTS[2], max_new_tokens=1, **options)
    assert read == [whole, whole, 2]
    monkeypatch.setattr(kv_cache, "MOST_LEFT_BYTES", 1000)
    for _ in range(2):
        one.model(TEXTS[2], max_new_tokens=1)
    assert read[3:] == [2, whole]


def test_a_cache_is_left_without_what_it_was_cut_from() -> None:
    prefixes, ids = PrefixCache(), list(range(40))
    whole = {"past_key_values.0.key": np.ones((1, 2, 4000, 8), np.float32)}
    prefixes.leave(ids, kv_cache.cut(whole, 40))
    kept, shared = prefixes.take([*ids, 1, 2], {}, 0)
    assert shared == 40
    (array,) = kept.values()
    assert array.shape[2] == 40
    assert (array.base if array.base is not None else array).nbytes == array.nbytes
    assert prefixes.take([*ids, 1, 2], {}, 0) == ({}, 0)  # one text alone goes on from it


def test_a_text_may_end_in_the_middle_of_a_call() -> None:
    """As one in a reference cycle does: the garbage collector ends it in whichever thread it runs."""
    gain = Gain()
    for _ in range(3):
        gain.took(1.0)
    with gain._lock:
        gain.ended(4, 4, 2.0)
    assert gain.costs == {}
    gain.choose(3, 8)
    assert list(gain.costs[4]) == [2.0]


def test_threads_share_what_is_left_and_answer_as_each_alone(decoder: Any) -> None:
    prompts = [f"{TEXTS[2]} {end}" for end in ("and", "the dog ran", "over a hill", "mat")]
    options = {"max_new_tokens": 8, "prefix_cache": False, "speculation": "off"}
    alone = [decoder.model(prompt, **options)["text"] for prompt in prompts]
    found: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        order = [(number + step) % len(prompts) for step in range(8)]
        found[number] = [decoder.model(prompts[at], max_new_tokens=8)["text"] for at in order]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [alone[(number + step) % len(prompts)] for step in range(8)] for number in range(4)}


# ------------------------------------------------------------------------- several stop strings


def test_several_stop_strings_end_where_the_first_of_them_is_in_the_text(decoder: Any) -> None:
    whole = decoder.model(TEXTS[2], max_new_tokens=NEW, speculation="off")["text"]
    later, sooner = whole[len(whole) // 2 :][:3], whole[4:7]
    for stop in ((later, sooner), (sooner, later), ("not in it", later)):
        wanted = whole[: min(place for place in map(whole.find, stop) if place >= 0)]
        for speculation in ("auto", "off"):
            options = {"max_new_tokens": NEW, "stop": stop, "speculation": speculation}
            assert decoder.model(TEXTS[2], **options)["text"] == wanted
            assert "".join(decoder.model.stream(TEXTS[2], **options)) == wanted
    assert decoder.model(TEXTS[2], max_new_tokens=NEW, stop=(later, sooner))["ended"] == "stop"


# ------------------------------------------------------------------------- real weights

SMOLLM2 = cache_folder() / "real-models" / "smollm2-135m"
QUESTION = "Q: What did Ada write?\nText: Ada wrote the first program for the engine. The engine was never built.\nA: Ada wrote"
CODE = "def area(width, height):\n    return width * height\n\ndef volume(width, height, depth):\n    return width *"


@pytest.mark.real
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="smollm2-135m is not in the cache folder")
def test_smollm2_writes_the_same_and_as_transformers_does(tmp_path: Path) -> None:
    model = model_of(SMOLLM2)
    one = opened(model, to_onnx.export_onnx(model, {}, tmp_path))
    accepted = []
    for text in (QUESTION, CODE, "Once upon a time"):
        plain, ahead, eager = both(one, one.model.preprocessor.ids(text), one.pipeline)
        assert ahead == plain == generate(one, one.model.preprocessor.ids(text))
        accepted.append(eager.accepted)
    assert sum(accepted) > 0, accepted
