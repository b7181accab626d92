"""Answers by an encoder and a decoder of a bundle: translations, made token by token.

The graph has two parts, which are opened one by one. The first takes whole texts (`input_ids`, `attention_mask`) and gives
`present.N.encoder.key` and `.value` [rows, heads, tokens, size], what the cross-attention of the decoder's layer N reads: made
once for a text. The second takes tokens that are new (`decoder_input_ids` [rows, tokens]), the texts' mask
(`encoder_attention_mask`), those keys and values as `past_key_values.N.encoder.…`, and those of the tokens before as
`past_key_values.N.decoder.…`, and gives `logits` [rows, tokens, vocabulary] and `present.N.decoder.…`.

A pipeline says, by the names that generation_config.json has: decoder_start_token_ids (ids that every answer begins with),
eos_token_id (ids), max_new_tokens, num_beams, length_penalty, early_stopping, and the rules of decoding.py; max_target_positions
(tokens that the decoder has positions for, those of the start among them; none where it counts otherwise); prefix (of every
text). With language_ids the second id of the start stands for the one of these that the decoder finds likeliest.
A prediction is the ids of an answer, int64 (tokens,), without those of its start and end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import decoding, generation, kv_cache
from .files import wire_fields

NEW, SOURCE_MASK = "decoder_input_ids", "encoder_attention_mask"
TOKENS_OF_SOUNDS = 8
CROSS = ".encoder."  # in the names of what the first half gives


class Answers:
    """Answers that are made together, each to one of the texts behind `cross`; see `generation.Rows`, whose place it takes."""

    def __init__(
        self, runner: Any, cross: Mapping[str, np.ndarray], start: np.ndarray, rules: decoding.TokenRules | None = None
    ):
        self.runner, self.rules, self.cross = runner, rules, dict(cross)
        self.ids = np.asarray(start, dtype=np.int64)  # [rows, tokens]
        self.kv_cache: dict[str, np.ndarray] = {}
        self.texts: list[list[int]] = self.ids.tolist()  # all tokens, those of the start among them

    def logits(self) -> np.ndarray:
        """Logits float32 [rows, vocabulary] after the tokens that were taken in."""
        outputs = self.runner.run({NEW: self.ids, **self.cross, **self.kv_cache})
        self.kv_cache = kv_cache.cache_of(outputs)
        return np.asarray(outputs["logits"][:, -1], dtype=np.float32)

    def allowed(self, scores: np.ndarray) -> np.ndarray:
        """Scores [rows, vocabulary], changed by the rules of the pipeline, -inf where a token may not come next."""
        return scores if self.rules is None else self.rules(scores, self.texts)

    def take(self, tokens: np.ndarray) -> None:
        """Append one token to each row."""
        self.ids = np.asarray(tokens, dtype=np.int64)[:, None]
        for text, token in zip(self.texts, self.ids[:, 0].tolist(), strict=True):
            text.append(token)

    def choose(self, rows: np.ndarray) -> None:
        """Go on with these rows, in this order, a row perhaps several times."""
        self.cross = _rows(self.cross, rows)
        self.kv_cache = _rows(self.kv_cache, rows)
        self.texts = [list(self.texts[row]) for row in rows]


def encode(runner: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the decoder reads of the texts in `inputs`: keys and values of its cross-attention, and the texts' mask."""
    cross = kv_cache.cache_of(runner.run(inputs))
    if "attention_mask" in inputs:
        cross[SOURCE_MASK] = inputs["attention_mask"]
    return cross


def starts(pipeline: Mapping[str, Any], runner: Any, cross: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
    """Ids int64 [rows, n] that the answers begin with; a language that is to be found is found for each."""
    start = np.tile(np.array(pipeline["decoder_start_token_ids"], dtype=np.int64), (rows, 1))
    if pipeline.get("language_ids"):
        start[:, 1] = found_languages(pipeline["language_ids"], runner, cross, start[:, :1])
    return start


def found_languages(
    languages: Sequence[int], runner: Any, cross: Mapping[str, np.ndarray], first: np.ndarray
) -> np.ndarray:
    """The likeliest of the languages' ids after the first token [rows, 1] of every answer (Radford et al., 2022)."""
    logits = Answers(runner, cross, first).logits()
    return np.array(languages)[logits[:, languages].argmax(axis=1)]


def _rows(arrays: Mapping[str, np.ndarray], rows: np.ndarray | Sequence[int]) -> dict[str, np.ndarray]:
    return {name: value[rows] for name, value in arrays.items()}


# -------------------------------------------------------------------------------- samples → answers


def run(pipeline: Mapping[str, Any], runner: Any, batch: Any, most: int) -> dict[str, np.ndarray]:
    """Answers to the texts of a batch, at most `most` made together: "tokens" int64 [rows, tokens] and "lengths" [rows]."""
    rows = len(batch.owner)
    found: list[list[int]] = []
    for first in range(0, rows, most):
        found += answers(pipeline, runner, {name: value[first : first + most] for name, value in batch.inputs.items()})
    tokens = np.zeros((rows, max(map(len, found), default=0)), dtype=np.int64)
    for row, ids in enumerate(found):
        tokens[row, : len(ids)] = ids
    return {"tokens": tokens, "lengths": np.array([len(ids) for ids in found], dtype=np.int64)}


def answers(
    pipeline: Mapping[str, Any], runner: Any, inputs: Mapping[str, np.ndarray], config: Any = None
) -> list[list[int]]:
    """The ids of an answer to each text of `inputs`, by the config, or as the pipeline says."""
    return [made for _, made in with_starts(pipeline, runner, inputs, config)]


def with_starts(
    pipeline: Mapping[str, Any], runner: Any, inputs: Mapping[str, np.ndarray], config: Any = None
) -> list[tuple[list[int], list[int]]]:
    """As `answers`, with the ids that each begins with before its own."""
    cross = encode(runner, inputs)
    start = starts(pipeline, runner, cross, len(next(iter(inputs.values()))))
    made = decoded(pipeline, runner, cross, start, config or generation.usual(pipeline), sources=source_ids(inputs))
    return list(zip(start.tolist(), made, strict=True))


def decoded(
    pipeline: Mapping[str, Any],
    runner: Any,
    cross: Mapping[str, np.ndarray],
    start: np.ndarray,
    config: Any,
    *,
    sources: Sequence[Sequence[int]] | None = None,
    own: decoding.OwnRule | None = None,
) -> list[list[int]]:
    """The ids that go on from each row of `start` [rows, tokens], those that end it left out. See `decoding.TokenRules` for
    `sources` and `own`."""
    rows, begin = start.shape
    most = room(pipeline, begin, config)
    if config.beams > 1:
        found = []
        for row in range(rows):
            rules = decoding.TokenRules(pipeline, [begin], [most], [sources[row]] if sources else None, own)
            beams = [row] * config.beams
            made = Answers(runner, _rows(cross, beams), start[beams], rules)
            found.append(generation.best(made, most, pipeline, config))
        return found
    found = [[] for _ in range(rows)]
    for tokens in steps(pipeline, runner, cross, start, config, sources=sources, own=own):
        for ids, token in zip(found, tokens, strict=True):
            if token is not None:
                ids.append(token)
    return found


def steps(
    pipeline: Mapping[str, Any],
    runner: Any,
    cross: Mapping[str, np.ndarray],
    start: np.ndarray,
    config: Any,
    *,
    sources: Sequence[Sequence[int]] | None = None,
    own: decoding.OwnRule | None = None,
) -> Iterator[list[int | None]]:
    """The next token of every answer, None for one that has ended."""
    rows, begin = start.shape
    most = [room(pipeline, begin, config)] * rows
    rules = decoding.TokenRules(pipeline, [begin] * rows, most, sources, own)
    return generation.going_on(Answers(runner, cross, start, rules), most, pipeline, config)


def room(pipeline: Mapping[str, Any], begin: int, config: Any) -> int:
    """How many tokens an answer may have after those it begins with: as asked for, and as the decoder has positions."""
    positions = pipeline.get("max_target_positions")
    return max(1, min(config.max_new_tokens, positions - begin if positions else config.max_new_tokens))


def source_ids(inputs: Mapping[str, np.ndarray]) -> list[list[int]] | None:
    """The ids of every text in `inputs`, without padding; None where they are no texts."""
    if "input_ids" not in inputs:
        return None
    masks = inputs.get("attention_mask", np.ones_like(inputs["input_ids"]))
    return [ids[mask > 0].tolist() for ids, mask in zip(inputs["input_ids"], masks, strict=True)]


def postprocess(
    pipeline: Mapping[str, Any], outputs: Mapping[str, np.ndarray], batch: Any, samples: Sequence[Any]
) -> list[np.ndarray]:
    """The ids of every answer, int64 (tokens,)."""
    return [row[:length] for row, length in zip(outputs["tokens"], outputs["lengths"], strict=True)]


def difference(written: Any, got: Any) -> float:
    """The share of tokens of two answers that are not the same, place by place."""
    before, now = (np.asarray(one, dtype=np.int64).ravel() for one in (written, got))
    longest, both = max(len(before), len(now)), min(len(before), len(now))
    return 1 - float((before[:both] == now[:both]).sum()) / longest if longest else 0.0


def present(pipeline: Mapping[str, Any], prediction: np.ndarray, sample: Any, preprocessor: Any) -> dict[str, Any]:
    """An answer for people: {"text", "tokens"}."""
    ids = np.asarray(prediction, dtype=np.int64).tolist()
    tokenizer = getattr(preprocessor, "own", preprocessor).tokenizer
    spelling = decoding.Spelling(tokenizer, bool(pipeline.get("clean_up_tokenization_spaces")))
    return {"text": spelling.decode(ids).strip(), "tokens": len(ids)}


def answer(model: Any, samples: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
    """Answers for people, all made together: {"text", "tokens"}. `options` are fields of `generation.GenerationConfig`."""
    inputs = encoded(model, samples)
    config, spelling = generation.usual(model.pipeline, **options), decoding.spelling_of(model)
    found = answers(model.pipeline, model.runner, inputs, config)
    return [{"text": until(spelling.decode(ids).strip(), config.stop), "tokens": len(ids)} for ids in found]


def stream(model: Any, sample: Any, **options: Any) -> Iterator[str]:
    """The answer to one text, piece by piece as it is made; in one piece where the model searches with beams."""
    config = generation.streamed(model.pipeline, **options)
    if config.beams > 1:
        yield answer(model, [sample], **options)[0]["text"]
        return
    inputs = encoded(model, [sample])
    cross = encode(model.runner, inputs)
    start = starts(model.pipeline, model.runner, cross, 1)
    made = steps(model.pipeline, model.runner, cross, start, config, sources=source_ids(inputs))
    yield from pieces(model, (int(token or 0) for (token,) in made), config.stop)


def pieces(model: Any, tokens: Iterable[int], stop: Sequence[str]) -> Iterator[str]:
    """The text of tokens, piece by piece as they come."""
    speller = decoding.Speller(decoding.spelling_of(model), [], stop, trim=True)
    for token in tokens:
        if piece := speller.take(token):
            yield piece
        if speller.ended:
            return
    if rest := speller.rest():
        yield rest


def encoded(model: Any, samples: Sequence[Any]) -> dict[str, np.ndarray]:
    """The network's inputs of samples; ValueError for one that is no text."""
    for sample in samples:
        if not isinstance(sample, str):
            raise ValueError(f"a text is answered, not {type(sample).__name__}")
    return dict(model.preprocessor.encode(samples).inputs)


def until(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the stop strings."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]


# -------------------------------------------------------------------------------- what is timed, and the command


def work(runner: Any, inputs: Mapping[str, np.ndarray]) -> None:
    """What a latency is taken of: texts are read, and as many tokens are made as they have, whatever the tokens are."""
    _answered(runner, inputs, length_of(inputs))


def length_of(inputs: Mapping[str, np.ndarray]) -> int:
    """Tokens of the texts in `inputs`; as many as some words have for sounds, which are not made of any."""
    return int(inputs["input_ids"].shape[1]) if "input_ids" in inputs else TOKENS_OF_SOUNDS


def timed(runner: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs of one step in the middle of an answer, to look into: one token, with half of the text's length before it."""
    made = _answered(runner, inputs, max(1, length_of(inputs) // 2))
    return {NEW: made.ids, **made.cross, **made.kv_cache}


def _answered(runner: Any, inputs: Mapping[str, np.ndarray], tokens: int) -> Answers:
    start = np.zeros((len(next(iter(inputs.values()))), 1), dtype=np.int64)
    made = Answers(runner, encode(runner, inputs), start)
    for _ in range(tokens):
        made.take(made.logits().argmax(axis=1))
    return made


add_arguments, options_of = generation.add_arguments, generation.options_of


# -------------------------------------------------------------------------------- two parts of one file


def split_onnx(path: Path) -> list[bytes]:
    """The two parts of an ONNX file, each a model: what gives the cross-attention's keys and values, and what gives the rest.

    ONNX Runtime runs all of a graph, so each half is opened by itself. A file is read by protobuf's wire format: a model's
    field 7 is its graph; of a graph 1 are nodes, 5 initializers, 11 inputs, 12 outputs.
    """
    model = memoryview(Path(path).read_bytes())
    top = list(wire_fields(model))
    graph = next(value for number, _, value in top if number == 7)
    parts = [(number, whole, value) for number, whole, value in wire_fields(graph) if number != 13]  # 13: shapes inside
    outputs = {_text(value, 1) for number, _, value in parts if number == 12}
    first = {name for name in outputs if CROSS in name}
    found = []
    for wanted in (first, outputs - first):
        kept = b"".join(_needed(parts, wanted))
        others = b"".join(bytes(whole) for number, whole, _ in top if number != 7)
        found.append(others + b"\x3a" + _varint(len(kept)) + kept)
    return found


def split_openvino(openvino: Any, model: Any) -> list[Any]:
    """The same two parts of an openvino.Model."""
    first = [port for port in model.outputs if any(CROSS in name for name in port.names)]
    rest = [port for port in model.outputs if port not in first]
    found = []
    for wanted in (first, rest):
        results = [port.get_node() for port in wanted]
        reached, todo = set(), list(results)
        while todo:
            node = todo.pop()
            if node.get_name() not in reached:
                reached.add(node.get_name())
                todo += [node.input_value(at).get_node() for at in range(node.get_input_size())]
        taken = [one for one in model.get_parameters() if one.get_name() in reached]
        found.append(openvino.Model(results, taken, "half"))
    return found


def _needed(parts: Sequence[tuple[int, memoryview, memoryview]], wanted: set[str]) -> list[bytes]:
    """The parts of a graph that `wanted` outputs are made of, in order."""
    ports = {at: _ports(value) for at, (number, _, value) in enumerate(parts) if number == 1}
    makers = {name: at for at, (_, made) in ports.items() for name in made}
    needed: set[str] = set()
    todo, kept = list(wanted), set()
    while todo:
        name = todo.pop()
        if name in makers and makers[name] not in kept:
            kept.add(makers[name])
            todo += ports[makers[name]][0]
        needed.add(name)
    names = {12: 1, 5: 8, 11: 1}  # where an output, an initializer and an input have their names
    found = []
    for at, (number, whole, value) in enumerate(parts):
        known = wanted if number == 12 else needed
        if at in kept if number == 1 else number not in names or _text(value, names[number]) in known:
            found.append(bytes(whole))
    return found


def _ports(node: memoryview) -> tuple[list[str], list[str]]:
    """Names of the inputs and outputs of a node."""
    fields = list(wire_fields(node))
    inputs, outputs = ([bytes(value).decode() for number, _, value in fields if number == side] for side in (1, 2))
    return inputs, outputs


def _text(message: memoryview, wanted: int) -> str:
    return next((bytes(value).decode() for number, _, value in wire_fields(message) if number == wanted), "")


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
