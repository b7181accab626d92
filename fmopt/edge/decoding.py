"""Decoding: which token may come next, which of them comes, and how tokens are spelled.

Scores are changed as the logits processors of transformers change them, in the same order.

A pipeline says what holds by the names that generation_config.json has; a rule whose name is missing does nothing:
    sequence_bias [[ids, bias], …]; bad_words_ids [ids, …]; suppress_tokens and begin_suppress_tokens (ids)
    repetition_penalty, encoder_repetition_penalty; no_repeat_ngram_size, encoder_no_repeat_ngram_size
    eos_token_id (ids); min_length (of prompt and answer), min_new_tokens; exponential_decay_length_penalty [begin, factor]
    forced_bos_token_id (an id), forced_eos_token_id (ids)
    remove_invalid_values, renormalize_logits (true)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .parts import closer

NAMES = (
    "sequence_bias", "encoder_repetition_penalty", "repetition_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "renormalize_logits",
)  # fmt: skip

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token of sentencepiece's byte fallback

Ids = Sequence[int]
OwnRule = Callable[[np.ndarray, Ids], None]  # scores of one row, changed in place, and what the answer has so far


class TokenRules:
    """The rules of a pipeline for rows that go on together.

    `begins`: tokens of each row that are there before the first is made; `room`: how many it can have at most;
    `sources`: the ids that the row is an answer to, where it is one to a text; `own`: a rule that comes after the others.
    """

    def __init__(
        self,
        pipeline: Mapping[str, Any],
        begins: Ids,
        room: Ids,
        sources: Sequence[Ids] | None = None,
        own: OwnRule | None = None,
    ):
        self.rules = {name: pipeline[name] for name in NAMES if pipeline.get(name) not in (None, False, [], ())}
        self.ends = list(pipeline.get("eos_token_id") or ())
        self.begins, self.room, self.sources, self.own = list(begins), list(room), sources, own

    def __call__(self, scores: np.ndarray, texts: Sequence[list[int]]) -> np.ndarray:
        """Scores float32 [rows, vocabulary] after the tokens of `texts`, -inf where a token may not come next."""
        if not self.rules and self.own is None:
            return scores
        scores = scores.copy()
        for row, text in enumerate(texts):
            # Rows of one text are its beams: they begin alike.
            at = min(row, len(self.begins) - 1)
            source = self.sources[min(row, len(self.sources) - 1)] if self.sources else None
            self._bias(scores[row], text, source)
            self._length(scores[row], text, self.begins[at], self.room[at])
            self._suppress(scores[row], text, self.begins[at])
            if self.own is not None:
                self.own(scores[row], text[self.begins[at] :])
        if "renormalize_logits" in self.rules:
            scores = log_softmax(scores)
        return scores

    def _bias(self, scores: np.ndarray, text: list[int], source: Ids | None) -> None:
        """What depends on the tokens that are there already."""
        rules = self.rules
        biased = {tuple(ids): bias for ids, bias in rules.get("sequence_bias", ())}
        for ids, bias in biased.items():
            if _follows(text, ids[:-1]):
                scores[ids[-1]] += bias
        if source is not None and "encoder_repetition_penalty" in rules:
            _penalize(scores, source, 1 / rules["encoder_repetition_penalty"])
        if "repetition_penalty" in rules:
            _penalize(scores, text, rules["repetition_penalty"])
        if "no_repeat_ngram_size" in rules:
            scores[repeating(text, text, rules["no_repeat_ngram_size"])] = -np.inf
        if source is not None and "encoder_no_repeat_ngram_size" in rules:
            scores[repeating(text, source, rules["encoder_no_repeat_ngram_size"])] = -np.inf
        for ids in rules.get("bad_words_ids", ()):
            if _follows(text, ids[:-1]) and not (len(ids) == 1 and ids[0] in self.ends):
                scores[ids[-1]] = -np.inf

    def _length(self, scores: np.ndarray, text: list[int], begin: int, room: int) -> None:
        """What depends on how long the text is."""
        rules, made = self.rules, len(text) - begin
        least = rules["min_new_tokens"] if "min_new_tokens" in rules else rules.get("min_length", 0) - begin
        if made < least:
            scores[self.ends] = -np.inf
        if len(text) == 1 and "forced_bos_token_id" in rules:
            _force(scores, [rules["forced_bos_token_id"]])
        if made == room - 1 and "forced_eos_token_id" in rules:
            _force(scores, rules["forced_eos_token_id"])
        if "remove_invalid_values" in rules:
            np.nan_to_num(scores, copy=False)
        if "exponential_decay_length_penalty" in rules:
            first, factor = rules["exponential_decay_length_penalty"]
            if made > first:
                ends = scores[self.ends]
                gain = np.where(np.isfinite(ends), np.abs(ends) * np.float32(factor ** (made - first) - 1), 0)
                scores[self.ends] = ends + gain

    def _suppress(self, scores: np.ndarray, text: list[int], begin: int) -> None:
        if "suppress_tokens" in self.rules:
            scores[self.rules["suppress_tokens"]] = -np.inf
        # A token that is forced is no beginning.
        first = begin + 1 if begin == 1 and "forced_bos_token_id" in self.rules else begin
        if len(text) == first and "begin_suppress_tokens" in self.rules:
            scores[self.rules["begin_suppress_tokens"]] = -np.inf


def repeating(text: list[int], other: Ids, size: int) -> list[int]:
    """Tokens that would make the last `size` of a text ones that are in the other (Paulus et al., 2017)."""
    tail, other = text[len(text) - size + 1 :], list(other)
    if len(text) < size - 1:
        return []
    return [other[at + size - 1] for at in range(len(other) - size + 1) if other[at : at + size - 1] == tail]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities float32 over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _follows(text: list[int], ids: Ids) -> bool:
    """Whether a text ends with these ids."""
    return not ids or text[-len(ids) :] == list(ids)


def _penalize(scores: np.ndarray, ids: Ids, penalty: float) -> None:
    """Scores of tokens that were there come down (Keskar et al., 2019), in place."""
    known = np.unique(np.asarray(ids, dtype=np.int64))
    known = known[known < len(scores)]
    old = scores[known]
    scores[known] = np.where(old < 0, old * np.float32(penalty), old / np.float32(penalty))


def _force(scores: np.ndarray, ids: Ids) -> None:
    scores[:] = -np.inf
    scores[list(ids)] = 0


# -------------------------------------------------------------------------------- which token comes


def sampled(logits: np.ndarray, config: Any, draws: Sequence[np.random.Generator]) -> np.ndarray:
    """One token id for each row of logits, drawn as the `GenerationConfig` says."""
    logs = log_softmax(logits.astype(np.float64) / config.temperature)
    order = np.argsort(-logs, axis=1, kind="stable")
    shares = np.exp(np.take_along_axis(logs, order, axis=1))
    before = shares.cumsum(axis=1) - shares
    left = before < config.top_p  # the one that passes the limit is among them, as in transformers
    if config.top_k:
        left[:, config.top_k :] = False
    shares = np.where(left, shares, 0).cumsum(axis=1)
    chance = np.array([[draw.random()] for draw in draws])  # one a row: what is drawn for it depends on no other
    place = (shares <= chance * shares[:, -1:]).sum(axis=1)
    return np.take_along_axis(order, place[:, None], axis=1)[:, 0]


# -------------------------------------------------------------------------------- tokens → text


class Spelling:
    """A tokenizer's way from ids to a text, blanks before marks taken out where its checkpoint asks for that."""

    def __init__(self, tokenizer: Any, clean: bool = False):
        self.tokenizer, self.clean = tokenizer, clean

    def decode(self, ids: Ids) -> str:
        """The text of ids, without special tokens."""
        text: str = self.tokenizer.decode(list(ids))
        return closer(text) if self.clean else text

    def settled(self, ids: Ids) -> int:
        """How many of the first ids are spelled as they will stay whatever comes: bytes of a run (sentencepiece's byte
        fallback) become characters together, and none of them when the run turns out to be no text."""
        count = len(ids)
        while count and BYTE.fullmatch(self.tokenizer.id_to_token(ids[count - 1]) or ""):
            count -= 1
        return count


def spelling_of(model: Any) -> Spelling:
    """How the tokenizer of an opened bundle spells."""
    preprocessor = getattr(model.preprocessor, "own", model.preprocessor)
    return Spelling(preprocessor.tokenizer, bool(model.pipeline.get("clean_up_tokenization_spaces")))


class Speller:
    """Spells a continuation while it grows, and finds where a stop string ends it. With `trim`, blanks around it are left out."""

    def __init__(self, spelling: Spelling, prompt: Ids, stop: Sequence[str], *, trim: bool = False):
        self.spelling, self.trim = spelling, trim
        self.prompt, self.stop = list(prompt), stop
        self.before = len(spelling.decode(self.prompt))
        self.tokens: list[int] = []
        self.said = 0  # characters already handed out
        self.ended = False

    def text(self, count: int | None = None) -> str:
        """The continuation so far, or that of its first `count` tokens, up to a stop string."""
        whole = self.spelling.decode([*self.prompt, *self.tokens[:count]])[self.before :]
        whole = whole.strip() if self.trim else whole
        places = [place for place in (whole.find(one) for one in self.stop) if place >= 0]
        self.ended = bool(places)
        return whole[: min(places)] if places else whole

    def take(self, token: int) -> str:
        """What is certainly new in the text with one more token: no part of a character, nothing that may begin a stop string."""
        self.tokens.append(token)
        text = self.text(self.spelling.settled(self.tokens))
        if not self.ended:
            text = text.rstrip("\ufffd")
            text = text[: len(text) - max((_overlap(text, one) for one in self.stop), default=0)]
            if self.spelling.clean:  # what a mark may still be drawn to, and one drawn to it
                text = " ".join(text.split(" ")[:-2])
            text = text.rstrip() if self.trim else text
        return self._new(text)

    def rest(self) -> str:
        """What was held back."""
        return self._new(self.text())

    def _new(self, text: str) -> str:
        new, self.said = text[self.said :], max(self.said, len(text))
        return new


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
