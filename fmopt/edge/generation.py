"""Text generation of a bundle: how likely a text is, and how one goes on, by a graph with a cache of keys and values.

One graph does both. It takes the tokens that are new (`input_ids` [rows, tokens]), the mask of all tokens so far, and the
keys and values of those before, `past_key_values.N.key` and `.value` [rows, heads, past, size], and gives `logits`
[rows, tokens, vocabulary] and `present.N.key` and `.value`, the cache of the next call. A whole text with an empty cache is
scored; a prompt with an empty cache and then one token at a time is generation. A runner fills an empty cache in by itself.
A recurrent network's cache is its state, [rows, 1, 1, size], which begins as zeros: of an LSTM `key` is h and `value` is c.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .decoding import Speller, TokenRules, log_softmax, sampled, spelling_of
from .host import PerProcess
from .kv_cache import (
    CACHE_PREFIX,
    FIRST_LOGITS,
    HELD,
    PrefixCache,
    Stateful,
    cache_of,
    can_cut,
    can_share,
    cut,
    room_for,
)
from .lookup import Gain, LookupRows
from .runners import rounds_activations

AUTO, LOOKUP, OFF = SPECULATION = "auto", "lookup", "off"
NEW_TOKENS = 64  # made when the caller names no number


# -------------------------------------------------------------------------------- how likely a text is


@dataclass(frozen=True)
class TextScores:
    """What a model thinks of a text: of every token but the first, given those before it, and of the token after the last."""

    logs: np.ndarray  # float32 (tokens - 1,): log-probability of each token
    greedy: np.ndarray  # int64 (tokens - 1,): the token that the model thought likeliest there
    following: np.ndarray  # float32 (vocabulary,): log-probabilities after the text

    @classmethod
    def of(cls, prediction: np.ndarray) -> TextScores:
        """The scores in a prediction of `postprocess`."""
        count = int(prediction[0])
        logs, greedy, following = np.split(prediction[1:], [count, 2 * count])
        return cls(logs, greedy.astype(np.int64), following)

    def flat(self) -> np.ndarray:
        """One float32 vector: how many tokens are scored, then the three parts."""
        parts = (np.array([len(self.logs)]), self.logs, self.greedy, self.following)
        return np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])


def run(pipeline: Mapping[str, Any], runner: Any, batch: Any, most: int) -> dict[str, np.ndarray]:
    """Logits of the texts of a batch, at most `most` at once. What a graph keeps itself may be rounded: there the second half of
    a text is scored by what was kept of the first."""
    scored = in_two_steps if isinstance(runner, Stateful) else (lambda one, inputs: one.run(inputs))
    parts = [
        scored(runner, {name: value[first : first + most] for name, value in batch.inputs.items()})["logits"]
        for first in range(0, len(batch.owner), most)
    ]
    return {"logits": np.concatenate(parts)}


def postprocess(
    pipeline: Mapping[str, Any], outputs: Mapping[str, np.ndarray], batch: Any, samples: Sequence[Any]
) -> list[np.ndarray]:
    """The `TextScores` of every sample, flat."""
    found = []
    for logits, ids, mask in zip(outputs["logits"], batch.inputs["input_ids"], batch.mask.astype(bool), strict=True):
        logits, ids = np.asarray(logits[mask], dtype=np.float32), ids[mask]
        logs = log_softmax(logits)
        chosen = logs[np.arange(len(ids) - 1), ids[1:]]
        found.append(TextScores(chosen, logits[:-1].argmax(axis=1), logs[-1]).flat())
    return found


def difference(written: Any, got: Any) -> float:
    """Largest difference of two predictions' log-probabilities; which token was the likeliest follows from them."""
    before, now = (TextScores.of(np.asarray(one, dtype=np.float32)) for one in (written, got))
    if before.logs.shape != now.logs.shape or before.following.shape != now.following.shape:
        return float("inf")
    gap = np.abs(np.concatenate([before.logs - now.logs, before.following - now.following]))
    return float("inf") if np.isnan(gap).any() else float(gap.max(initial=0.0))


def present(pipeline: Mapping[str, Any], prediction: np.ndarray, sample: Any, preprocessor: Any) -> dict[str, Any]:
    """A text's scores for people: {"tokens", "log_likelihood", "perplexity"}; perplexity is None for a single token."""
    logs = TextScores.of(prediction).logs.astype(np.float64)
    perplexity = float(np.exp(-logs.mean())) if len(logs) else None
    return {"tokens": len(logs) + 1, "log_likelihood": float(logs.sum()), "perplexity": perplexity}


# -------------------------------------------------------------------------------- how a text goes on


@dataclass(frozen=True)
class GenerationConfig:
    """How a text is to go on; ValueError for a value that makes no sense."""

    max_new_tokens: int = NEW_TOKENS
    max_total_tokens: int | None = None  # of prompt and answer
    temperature: float = 0.0  # 0: always the likeliest token (greedy), or the likeliest text of `beams`
    top_k: int = 0  # sample among so many tokens; 0: among all
    top_p: float = 1.0  # sample among the likeliest tokens that together have this probability (Holtzman et al., 2020)
    seed: int = 0
    beams: int = 1
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    # Of greedy decoding, one text at a time (see lookup.py): "auto" where the tokens stay the same, "lookup" also where the
    # graph rounds activations, so that a token may be another one that is nearly as likely, or "off".
    speculation: str = AUTO
    prefix_cache: bool = True  # whether a text that begins like the last one goes on from its cache

    def __post_init__(self) -> None:
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("beams", self.beams >= 1, "at least 1"),
            ("beams", self.beams == 1 or self.temperature == 0, "1 when temperature is above 0"),
            ("stop", all(self.stop), "texts that are not empty"),
            ("speculation", self.speculation in SPECULATION, " or ".join(SPECULATION)),
        )
        for name, right, rule in checks:
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is {rule}")


def usual(pipeline: Mapping[str, Any], **options: Any) -> GenerationConfig:
    """How a text goes on where the caller says nothing else: as the pipeline says, which has it from the checkpoint. ValueError
    for an option that there is none of."""
    unknown = set(options) - {field.name for field in fields(GenerationConfig)}
    if unknown:
        raise ValueError(f"{pipeline['task']} takes no {', '.join(sorted(unknown))}")
    beams = 1 if options.get("temperature") else int(pipeline.get("num_beams", 1))
    length = {name: pipeline[name] for name in ("max_new_tokens", "max_total_tokens") if name in pipeline}
    if "max_total_tokens" in length:
        length = {"max_new_tokens": length["max_total_tokens"]} | length
    if options.get("max_new_tokens") is not None:
        length = {}
    said = {"speculation": pipeline["speculation"]} if "speculation" in pipeline else {}
    return GenerationConfig(**{"beams": beams, **said, **length, **options})


def room_of(prompt: Sequence[int], pipeline: Mapping[str, Any], config: GenerationConfig) -> int:
    """How many tokens may come after a prompt: as many as are asked for and as the network has positions for."""
    total = min(int(pipeline["max_length"]), config.max_total_tokens or int(pipeline["max_length"]))
    return max(1, min(config.max_new_tokens, total - len(prompt)))


class Rows:
    """Texts that go on together: the mask of their tokens so far, and the cache of the next call."""

    def __init__(
        self,
        runner: Any,
        prompts: Sequence[Sequence[int]],
        pad: int,
        most: int,
        rules: TokenRules | None = None,
        prefixes: PrefixCache | None = None,
    ):
        """`most`: tokens that may be made. `prefixes`: what one text may go on from."""
        self.runner, self.rules = runner, rules
        self.texts = [list(prompt) for prompt in prompts]  # all tokens, those of the prompts among them
        width = max(map(len, prompts))
        self.ids = np.full((len(prompts), width), pad, dtype=np.int64)
        self.mask = np.zeros((len(prompts), 0), dtype=np.int64)
        self.kv_cache: dict[str, np.ndarray] = room_for(runner, len(prompts), width + most)
        self.most = width + most if self.kv_cache else 0  # tokens that a cache has room for which lies in buffers
        self.new = np.zeros_like(self.ids)
        for row, prompt in enumerate(prompts):  # on the left, so that all go on at the same place
            self.ids[row, width - len(prompt) :], self.new[row, width - len(prompt) :] = prompt, 1
        if prefixes is not None:
            self.kv_cache, shared = prefixes.take(self.texts[0], self.kv_cache, self.most)
            self.ids, self.new = self.ids[:, shared:], self.new[:, shared:]
            self.mask = np.ones((1, shared), dtype=np.int64)

    def logits(self) -> np.ndarray:
        """Logits float32 [rows, vocabulary] after the tokens that were taken in."""
        return self._run(-1)[:, -1]

    def all_logits(self) -> np.ndarray:
        """Logits float32 [rows, tokens, vocabulary] after each of the tokens that are taken in now."""
        return self._run(0)

    def forget(self, tokens: int) -> None:
        """Take the last tokens out again that were taken in."""
        self.mask = self.mask[:, : self.mask.shape[1] - tokens]
        self.kv_cache = cut(self.kv_cache, self.mask.shape[1], self.most)

    def _run(self, first: int) -> np.ndarray:
        before = self.mask.sum(axis=1, keepdims=True)
        self.mask = np.concatenate([self.mask, self.new], axis=1)
        positions = np.maximum(before + self.new.cumsum(axis=1) - 1, 0)
        inputs = {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": positions, **self.kv_cache}
        inputs[FIRST_LOGITS] = np.array([first])
        outputs = self.runner.run(inputs)
        self.kv_cache = cache_of(outputs)
        return np.asarray(outputs["logits"], dtype=np.float32)

    def allowed(self, scores: np.ndarray) -> np.ndarray:
        """Scores [rows, vocabulary], changed by the rules of the pipeline, -inf where a token may not come next."""
        return scores if self.rules is None else self.rules(scores, self.texts)

    def take(self, tokens: np.ndarray) -> None:
        """Append one token to each row."""
        self.ids = np.asarray(tokens, dtype=np.int64)[:, None]
        self.new = np.ones_like(self.ids)
        for text, token in zip(self.texts, self.ids[:, 0].tolist(), strict=True):
            text.append(token)

    def choose(self, rows: np.ndarray) -> None:
        """Go on with these rows, in this order, a row perhaps several times."""
        self.mask = self.mask[rows]
        self.texts = [list(self.texts[row]) for row in rows]
        self.kv_cache = {name: value[rows] for name, value in self.kv_cache.items()}


class Session:
    """What calls of one bundle leave for the next: the cache of the last text, and what proposing tokens brought."""

    def __init__(self) -> None:
        self.prefixes, self.gain = PrefixCache(), Gain()


def session_of(model: Any) -> Session:
    """That of an opened bundle, in this process."""
    kept: PerProcess[Session] = model.between_calls.setdefault("generation", PerProcess(Session))
    return kept.get()


def continuations(
    runner: Any,
    prompts: Sequence[Sequence[int]],
    pipeline: Mapping[str, Any],
    config: GenerationConfig,
    session: Session | None = None,
) -> Iterator[list[int | None]]:
    """The next token of every prompt, step by step; None for one that has ended. Token by token as `generate` of
    transformers where nothing is sampled. One prompt alone goes on from what earlier ones left in `session`."""
    room = [room_of(prompt, pipeline, config) for prompt in prompts]
    rules = TokenRules(pipeline, [len(prompt) for prompt in prompts], room, prompts)
    alone = len(prompts) == 1 and can_cut(runner)
    prefixes = session.prefixes if session is not None and alone and config.prefix_cache and can_share(runner) else None
    rows = Rows(runner, prompts, int(pipeline["padding"]["id"]), max(room), rules, prefixes)
    speculates = config.speculation == LOOKUP or (config.speculation == AUTO and not rounds_activations(runner))
    if alone and speculates and config.temperature == 0:
        gain = session.gain if session is not None else Gain()
        made: Any = LookupRows(rows, room[0], gain, lossless=config.speculation == AUTO)
    else:
        made = rows
    try:
        yield from going_on(made, room, pipeline, config)
    except GeneratorExit:
        raise
    except BaseException:
        prefixes = None  # nobody knows what is in the cache
        raise
    finally:
        if made is not rows:
            made.end()
        if prefixes is not None and rows.mask.shape[1] >= len(prompts[0]):
            rows.forget(rows.mask.shape[1] - len(prompts[0]))
            prefixes.leave(prompts[0], rows.kv_cache)


def going_on(
    rows: Any, room: Sequence[int], pipeline: Mapping[str, Any], config: GenerationConfig
) -> Iterator[list[int | None]]:
    """The next token of every row of `rows` (`Rows`, or what takes its place), at most as many as it has `room` for."""
    stops, words = list(pipeline.get("eos_token_id", ())), list(pipeline.get("kept_eos_token_id", ()))
    pad = int(pipeline["padding"]["id"])
    draws = [
        np.random.default_rng(config.seed) for _ in room
    ]  # one a row: what is drawn for it depends on no other row
    ended = np.zeros(len(room), dtype=bool)
    for step in range(max(room)):
        logits = rows.allowed(rows.logits())
        tokens = logits.argmax(axis=1) if config.temperature == 0 else sampled(logits, config, draws)
        ended |= np.array([step >= most for most in room])
        silent = ended | (np.isin(tokens, stops) & ~np.isin(tokens, words))  # an end that is a word is said, too
        if not silent.all():
            yield [None if over else int(token) for over, token in zip(silent, tokens, strict=True)]
        ended |= np.isin(tokens, stops)
        if ended.all():
            return
        rows.take(np.where(ended, pad, tokens))


def likeliest(runner: Any, prompt: Sequence[int], pipeline: Mapping[str, Any], config: GenerationConfig) -> list[int]:
    """The tokens that beam search adds to one prompt, as `generate` of transformers finds them."""
    most = room_of(prompt, pipeline, config)
    rules = TokenRules(pipeline, [len(prompt)], [most], [prompt])
    rows = Rows(runner, [prompt] * config.beams, int(pipeline["padding"]["id"]), most, rules)
    return best(rows, most, pipeline, config)


def best(rows: Any, most: int, pipeline: Mapping[str, Any], config: GenerationConfig) -> list[int]:
    """The tokens of the best of beams that begin as equal `rows`, at most so many: those of the best sum of log-probabilities
    over their number to the power of `length_penalty`."""
    stops, width = list(pipeline.get("eos_token_id", ())), config.beams
    penalty, early = float(pipeline.get("length_penalty", 1.0)), pipeline.get("early_stopping", False)
    texts: list[list[int]] = [[] for _ in range(width)]
    scores = np.array([0.0] + [-1e9] * (width - 1), dtype=np.float32)  # one beam at first, for all are the same
    done: list[tuple[float, list[int]]] = []
    for length in range(1, most + 1):
        totals = rows.allowed(log_softmax(rows.logits())) + scores[:, None]
        first = np.argsort(-totals, axis=None, kind="stable")[: max(2, 1 + len(stops)) * width]
        beams, tokens = np.unravel_index(first, totals.shape)
        values = totals.ravel()[first]
        ends = np.isin(tokens, stops) | (length == most)
        done += [
            (float(values[at]) / length**penalty, [*texts[beams[at]], int(tokens[at])])
            for at in np.flatnonzero(ends[:width])
        ]
        done = sorted(done, key=lambda one: -one[0])[:width]
        going = np.flatnonzero(~ends)[:width]
        # What a beam can still reach is judged by the length it has now; with "never", by the longest that helps it.
        reached = most if early == "never" and penalty > 0 else length
        full = len(done) == width
        if not len(going) or (full and early is True) or (full and values[going[0]] / reached**penalty <= done[-1][0]):
            break
        texts = [[*texts[beams[at]], int(tokens[at])] for at in going]
        scores = values[going]
        rows.choose(beams[going])
        rows.take(tokens[going])
    found = done[0][1] if done else texts[0]
    silent = set(stops) - set(pipeline.get("kept_eos_token_id", ()))
    return found[:-1] if found and found[-1] in silent else found


# -------------------------------------------------------------------------------- samples → answers


def answer(model: Any, samples: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
    """How each text goes on: {"text", "tokens", "ended"}, "ended" being "stop" (a stop string or an end token) or "length".

    `options` are fields of `GenerationConfig`. Prompts go through the graph together. ValueError for a prompt that leaves no
    room.
    """
    config = usual(model.pipeline, **options)
    prompts = [prompt_ids(model, sample) for sample in samples]
    spellers = [Speller(spelling_of(model), prompt, config.stop) for prompt in prompts]
    if config.beams > 1:
        for speller, prompt in zip(spellers, prompts, strict=True):
            speller.tokens = likeliest(model.runner, prompt, model.pipeline, config)
    else:
        for tokens in continuations(model.runner, prompts, model.pipeline, config, session_of(model)):
            for speller, token in zip(spellers, tokens, strict=True):
                if token is not None and not speller.ended:
                    speller.tokens.append(token)
                    if config.stop:
                        speller.text()
            if all(speller.ended or token is None for speller, token in zip(spellers, tokens, strict=True)):
                break
    return [_answer(speller, config, model.pipeline) for speller in spellers]


def _answer(speller: Speller, config: GenerationConfig, pipeline: Mapping[str, Any]) -> dict[str, Any]:
    text = speller.text()
    full = len(speller.tokens) >= room_of(speller.prompt, pipeline, config) and not speller.ended
    return {"text": text, "tokens": len(speller.tokens), "ended": "length" if full else "stop"}


def stream(model: Any, sample: Any, **options: Any) -> Generator[str, None, str]:
    """The continuation of one text, piece by piece as it is made; in one piece where the model searches with beams. Returns how
    it ended, as `answer` has it."""
    config = streamed(model.pipeline, **options)
    if config.beams > 1:
        (whole,) = answer(model, [sample], **options)
        yield whole["text"]
        return str(whole["ended"])
    prompt = prompt_ids(model, sample)
    speller = Speller(spelling_of(model), prompt, config.stop)
    for (token,) in continuations(model.runner, [prompt], model.pipeline, config, session_of(model)):
        piece = speller.take(int(token or 0))
        if piece:
            yield piece
        if speller.ended:
            return "stop"
    if rest := speller.rest():
        yield rest
    return str(_answer(speller, config, model.pipeline)["ended"])


def streamed(pipeline: Mapping[str, Any], **options: Any) -> GenerationConfig:
    """How a text that is streamed goes on; ValueError when beams are asked for, whose text is known only at its end."""
    if options.get("beams", 1) > 1:
        raise ValueError("beam search knows the text only at its end; leave beams out to stream")
    return usual(pipeline, **options)


def prompt_ids(model: Any, sample: Any) -> list[int]:
    """Token ids of a prompt; ValueError when it is no text, or fills the context."""
    limit = int(model.pipeline["max_length"])
    if not isinstance(sample, str):
        raise ValueError(f"a prompt is a text, not {type(sample).__name__}")
    ids = model.preprocessor.ids(sample, most=limit)
    if not ids:
        raise ValueError("the prompt is empty, and this model's tokenizer begins a text with no token of its own")
    if len(ids) >= limit:
        raise ValueError(f"the prompt has {len(ids)} tokens and the model reads {limit} in all; shorten it")
    return ids


# -------------------------------------------------------------------------------- what is timed, and the command


def timed(runner: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs of one step of decoding: the last token of `inputs`, with all before it as the cache."""
    if inputs["input_ids"].shape[1] < 2:
        return dict(inputs)
    before = {name: value[:, :-1] for name, value in inputs.items()}
    before |= room_for(runner, *inputs["input_ids"].shape)
    last = {name: value if name == "attention_mask" else value[:, -1:] for name, value in inputs.items()}
    kv_cache: dict[str, Any] = cache_of(runner.run(before))
    if (
        CACHE_PREFIX + HELD in kv_cache
    ):  # forgetting takes longer than many a step: what it adds may stay for a while, masked
        kv_cache[CACHE_PREFIX + HELD].kept.repeating = True
    return last | kv_cache


def soonest(model: Any, samples: Sequence[Any]) -> list[int | None]:
    """The first token that goes on with each text, cut where the context ends: what the time to first token is taken of."""
    room = int(model.pipeline["max_length"]) - 1
    prompts = [model.preprocessor.ids(sample)[:room] for sample in samples]
    return next(
        continuations(model.runner, prompts, model.pipeline, GenerationConfig(max_new_tokens=1)), [None] * len(prompts)
    )


def in_two_steps(runner: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits of whole texts as generation gets them: the second half by the cache that the first half left."""
    half = inputs["input_ids"].shape[1] // 2
    if not half:
        return {"logits": runner.run(inputs)["logits"]}
    first = runner.run({name: value[:, :half] for name, value in inputs.items()})
    rest = {name: value if name == "attention_mask" else value[:, half:] for name, value in inputs.items()}
    second = runner.run(rest | cache_of(first))
    return {"logits": np.concatenate([first["logits"], second["logits"]], axis=1)}


def add_arguments(parser: Any) -> None:
    """What `run.py predict` takes beside prompts."""
    length = f"tokens to make at most (the model's own number, else {NEW_TOKENS})"
    parser.add_argument("--max-new-tokens", type=int, help=length)
    parser.add_argument("--temperature", type=float, default=0.0, help="of sampling; 0 takes the likeliest (0)")
    parser.add_argument("--top-k", type=int, default=0, help="sample among so many tokens; 0: all (0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest of this probability (1)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (0)")
    parser.add_argument("--beams", type=int, help="beam search over so many texts (the model's own number, else 1)")
    speculation = (
        "check several tokens at once that followed the newest ones before: where the answer stays the same (auto)"
    )
    parser.add_argument("--speculation", choices=SPECULATION, help=speculation)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--stream", action="store_true", help="print the text while it is made")


def options_of(asked: Any) -> dict[str, Any]:
    """The fields of `GenerationConfig` in parsed arguments that were given."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "beams", "speculation")
    given = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    return {**given, "stop": tuple(asked.stop)}
