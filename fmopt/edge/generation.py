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

CACHE_PREFIX, PRESENT = "past_key_values.", "present."
FIRST_LOGITS = (
    "first_logits"  # where a graph has this input, logits come from there on; 0, all of them, if it is not given
)
NEW_TOKENS = 64  # made when the caller names no number
HELD = "held"  # what stands for a cache that the graph itself keeps
LEFT_OVER = 16  # so many tokens of steps that are taken again and again may stay behind a mask


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

    def __post_init__(self) -> None:
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("beams", self.beams >= 1, "at least 1"),
            ("beams", self.beams == 1 or self.temperature == 0, "1 when temperature is above 0"),
            ("stop", all(self.stop), "texts that are not empty"),
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
    return GenerationConfig(**{"beams": beams, **length, **options})


def room_of(prompt: Sequence[int], pipeline: Mapping[str, Any], config: GenerationConfig) -> int:
    """How many tokens may come after a prompt: as many as are asked for and as the network has positions for."""
    total = min(int(pipeline["max_length"]), config.max_total_tokens or int(pipeline["max_length"]))
    return max(1, min(config.max_new_tokens, total - len(prompt)))


class Rows:
    """Texts that go on together: the mask of their tokens so far, and the cache of the next call."""

    def __init__(
        self, runner: Any, prompts: Sequence[Sequence[int]], pad: int, most: int, rules: TokenRules | None = None
    ):
        self.runner, self.rules = runner, rules
        self.texts = [list(prompt) for prompt in prompts]  # all tokens, those of the prompts among them
        width = max(map(len, prompts))
        self.ids = np.full((len(prompts), width), pad, dtype=np.int64)
        self.mask = np.zeros((len(prompts), 0), dtype=np.int64)
        self.kv_cache: dict[str, np.ndarray] = room_for(runner, len(prompts), width + most)
        self.new = np.zeros_like(self.ids)
        for row, prompt in enumerate(prompts):  # on the left, so that all go on at the same place
            self.ids[row, width - len(prompt) :], self.new[row, width - len(prompt) :] = prompt, 1

    def logits(self) -> np.ndarray:
        """Logits float32 [rows, vocabulary] after the tokens that were taken in."""
        before = self.mask.sum(axis=1, keepdims=True)
        self.mask = np.concatenate([self.mask, self.new], axis=1)
        positions = np.maximum(before + self.new.cumsum(axis=1) - 1, 0)
        inputs = {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": positions, **self.kv_cache}
        inputs[FIRST_LOGITS] = np.array([-1])
        outputs = self.runner.run(inputs)
        self.kv_cache = cache_of(outputs)
        return np.asarray(outputs["logits"][:, -1], dtype=np.float32)

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


class Kept:
    """What a text left in a graph that keeps it itself: a request, and how many tokens that has taken in."""

    def __init__(self, request: Any):
        self.request, self.taken = request, 0
        self.repeating = False  # the same step is taken again and again
        self.moved = False  # rows went on from others


class Held(np.ndarray):
    """int64 [rows, 2], which stands for a cache: the row that each row goes on from, and after how many tokens. The request
    behind it lives as long as a cache of it does."""

    kept: Any

    def __array_finalize__(self, source: Any) -> None:
        self.kept = getattr(source, "kept", None)

    @classmethod
    def of(cls, kept: Kept, rows: int, tokens: int) -> Held:
        """All rows of a request, each to go on from itself."""
        held = np.stack([np.arange(rows), np.full(rows, tokens)], axis=1).view(cls)
        held.kept = kept
        return held


class Stateful:
    """An OpenVINO graph that keeps keys and values itself, used as the others are: `runner` has opened it, and a `Held` is
    passed around where they pass arrays."""

    def __init__(self, runner: Any):
        self.runner = runner

    def room(self, rows: int, tokens: int) -> dict[str, np.ndarray]:
        """The cache of so many rows that have no token yet."""
        return {CACHE_PREFIX + HELD: Held.of(Kept(self.runner.new_request()), rows, 0)}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. An earlier cache than the last one of its request goes on too, and what came after is forgotten;
        ValueError when rows went on from others since."""
        ids = inputs["input_ids"]
        held: Any = inputs.get(CACHE_PREFIX + HELD)
        if held is None:
            held = self.room(len(ids), 0)[CACHE_PREFIX + HELD]
        kept, tokens = held.kept, int(held[0, 1])
        over = kept.taken - tokens
        if over and kept.moved:
            raise ValueError("rows went on from others since; begin the text again")
        if over and (not kept.repeating or over >= LEFT_OVER):
            shorten(kept.request, tokens)
            over = 0
        mask = np.insert(inputs["attention_mask"], [tokens] * over, 0, axis=1) if over else inputs["attention_mask"]
        rows = np.asarray(held[:, 0])
        outputs = self.runner.infer({**inputs, "attention_mask": mask, "beam_idx": rows}, kept.request)
        kept.taken = tokens + over + ids.shape[1]
        kept.moved |= not np.array_equal(rows, np.arange(len(rows)))
        # What was masked lies between: from such a step nothing goes on.
        return outputs if over else {**outputs, PRESENT + HELD: Held.of(kept, len(ids), kept.taken)}

    def close(self) -> None:
        """Give back memory and threads."""
        self.runner.close()


def shorten(request: Any, tokens: int) -> None:
    """Forget all tokens but the first ones."""
    if not tokens:
        request.reset_state()
        return
    for state in request.query_state():
        tensor = state.state
        state.state = type(tensor)(np.ascontiguousarray(tensor.data[:, :, :tokens]))


def room_for(runner: Any, rows: int, tokens: int) -> dict[str, np.ndarray]:
    """An empty cache with room for so many tokens of so many rows, where the runner can append to it; else nothing."""
    return dict(runner.room(rows, tokens)) if hasattr(runner, "room") else {}


def cache_of(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The cache of the next call, from the outputs of one."""
    return {
        CACHE_PREFIX + name.removeprefix(PRESENT): value for name, value in outputs.items() if name.startswith(PRESENT)
    }


def continuations(
    runner: Any, prompts: Sequence[Sequence[int]], pipeline: Mapping[str, Any], config: GenerationConfig
) -> Iterator[list[int | None]]:
    """The next token of every prompt, step by step; None for one that has ended. Token by token as `generate` of
    transformers where nothing is sampled."""
    room = [room_of(prompt, pipeline, config) for prompt in prompts]
    rules = TokenRules(pipeline, [len(prompt) for prompt in prompts], room, prompts)
    return going_on(Rows(runner, prompts, int(pipeline["padding"]["id"]), max(room), rules), room, pipeline, config)


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
        for tokens in continuations(model.runner, prompts, model.pipeline, config):
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
    for (token,) in continuations(model.runner, [prompt], model.pipeline, config):
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
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--stream", action="store_true", help="print the text while it is made")


def options_of(asked: Any) -> dict[str, Any]:
    """The fields of `GenerationConfig` in parsed arguments that were given."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "beams")
    given = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    return {**given, "stop": tuple(asked.stop)}
