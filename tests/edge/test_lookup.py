"""Speculation by looking tokens up: whatever is proposed, the tokens are those of plain greedy decoding and of transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fmopt.edge.generation import GenerationConfig, Session, continuations
from fmopt.edge.kv_cache import PrefixCache, can_cut
from fmopt.edge.lookup import LONGEST, Gain, Index, leads
from fmopt.edge.runners import open_runner
from fmopt.passes.fuse_decoder import FuseDecoder
from tests.conftest import DECODERS, SENTENCES
from tests.models.wrappers.test_decoder import opened
from tests.torch_models import context_of

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
