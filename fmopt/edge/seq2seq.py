"""Answers by an encoder and a decoder of a bundle: translations, made token by token.

The graph has two halves, which are opened one by one. The first takes whole texts (`input_ids`, `attention_mask`) and gives
`present.N.encoder.key` and `.value` [rows, heads, tokens, size], what the cross-attention of the decoder's layer N reads: made
once for a text. The second takes tokens that are new (`decoder_input_ids` [rows, tokens]), the texts' mask
(`encoder_attention_mask`), those keys and values as `past_key_values.N.encoder.…`, and those of the tokens before as
`past_key_values.N.decoder.…`, and gives `logits` [rows, tokens, vocabulary] and `present.N.decoder.…`.

A pipeline says: start (ids that every answer begins with), stop_ids, max_new_tokens, beams, length_penalty, suppress (ids that
never come), suppress_first (that never come first), prefix (of every text). Where there are any: first and last (an id that is
the first of every answer, the last of one that is too long), no_repeat (a run of so many tokens comes once), fewest (tokens
before one may end), early (beams end with the first that fill up).
A prediction is the ids of an answer, int64 (tokens,), without those of its start and end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import generation

NEW, SOURCE_MASK = "decoder_input_ids", "encoder_attention_mask"
TOKENS_OF_SOUNDS = 8
CROSS = ".encoder."  # in the names of what the first half gives


class Answers:
    """Answers that are made together, each to one of the texts in `inputs`; see `generation.Rows`, whose place it takes."""

    def __init__(self, runner: Any, inputs: Mapping[str, np.ndarray], pipeline: Mapping[str, Any], most: int):
        self.runner, self.pipeline, self.most, self.step = runner, pipeline, most, 0
        self.cross = generation.cache_of(runner.run(inputs))
        if "attention_mask" in inputs:
            self.cross[SOURCE_MASK] = inputs["attention_mask"]
        rows = len(next(iter(inputs.values())))
        self.ids = np.tile(np.array(pipeline["start"], dtype=np.int64), (rows, 1))
        self.kv_cache: dict[str, np.ndarray] = {}
        self.made = self.ids  # all tokens, those of the start among them

    def logits(self) -> np.ndarray:
        """Logits float32 [rows, vocabulary] after the tokens that were taken in."""
        outputs = self.runner.run({NEW: self.ids, **self.cross, **self.kv_cache})
        self.kv_cache = generation.cache_of(outputs)
        return np.asarray(outputs["logits"][:, -1], dtype=np.float32)

    def allowed(self, scores: np.ndarray) -> np.ndarray:
        """Scores [rows, vocabulary], -inf where a token may not come next."""
        forced = self.pipeline.get("first") if self.step == 0 else None
        if self.step == self.most - 1 and "last" in self.pipeline:
            forced = self.pipeline["last"]
        if forced is not None:
            scores = np.full_like(scores, -np.inf)
            scores[:, forced] = 0
            return scores
        banned = [*self.pipeline.get("suppress", ())]
        banned += self.pipeline.get("suppress_first", ()) if self.step == 0 else ()
        banned += self.pipeline["stop_ids"] if self.step < self.pipeline.get("fewest", 0) else []
        if banned or "no_repeat" in self.pipeline:
            scores = scores.copy()
            scores[:, banned] = -np.inf
        if "no_repeat" in self.pipeline:
            for row, made in enumerate(self.made.tolist()):
                scores[row, _would_repeat(made, self.pipeline["no_repeat"])] = -np.inf
        return scores

    def take(self, tokens: np.ndarray) -> None:
        """Append one token to each row."""
        self.ids = np.asarray(tokens, dtype=np.int64)[:, None]
        self.made = np.concatenate([self.made, self.ids], axis=1)
        self.step += 1

    def choose(self, rows: np.ndarray) -> None:
        """Go on with these rows, in this order, a row perhaps several times."""
        self.cross = {name: value[rows] for name, value in self.cross.items()}
        self.kv_cache = {name: value[rows] for name, value in self.kv_cache.items()}
        self.made = self.made[rows]


def _would_repeat(made: list[int], size: int) -> list[int]:
    """Tokens that would make the last `size` of a row ones that were there before (Paulus et al., 2017)."""
    tail = made[len(made) - size + 1 :]
    return [made[at + size - 1] for at in range(len(made) - size + 1) if made[at : at + size - 1] == tail]


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
    pipeline: Mapping[str, Any], runner: Any, inputs: Mapping[str, np.ndarray], wish: Any = None
) -> list[list[int]]:
    """The ids of an answer to each text of `inputs`, by the wish, or as the pipeline says."""
    wish = wish or usual(pipeline)
    rows = len(next(iter(inputs.values())))
    if wish.beams > 1:
        single = [{name: value[[row] * wish.beams] for name, value in inputs.items()} for row in range(rows)]
        most = wish.max_new_tokens
        return [generation.best(Answers(runner, one, pipeline, most), most, pipeline, wish) for one in single]
    found: list[list[int]] = [[] for _ in range(rows)]
    for tokens in steps(pipeline, runner, inputs, wish):
        for ids, token in zip(found, tokens, strict=True):
            if token is not None:
                ids.append(token)
    return found


def steps(
    pipeline: Mapping[str, Any], runner: Any, inputs: Mapping[str, np.ndarray], wish: Any
) -> Iterator[list[int | None]]:
    """The next token of every answer, None for one that has ended."""
    made = Answers(runner, inputs, pipeline, wish.max_new_tokens)
    return generation.going_on(made, [wish.max_new_tokens] * len(made.ids), pipeline, wish)


def usual(pipeline: Mapping[str, Any], **options: Any) -> Any:
    """A wish, as the pipeline says where nothing is wished."""
    beams = 1 if options.get("temperature") else pipeline.get("beams", 1)
    return generation.GenerationConfig(**{"max_new_tokens": pipeline["max_new_tokens"], "beams": beams, **options})


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
    return {"text": preprocessor.tokenizer.decode(ids).strip(), "tokens": len(ids)}


def answer(model: Any, samples: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
    """Answers for people, all made together: {"text", "tokens"}. `wishes` are fields of `generation.Wish`."""
    return decoded_answers(model, samples, encoded(model, samples), **options)


def decoded_answers(
    model: Any, samples: Sequence[Any], inputs: Mapping[str, np.ndarray], **options: Any
) -> list[dict[str, Any]]:
    """Answers to what is encoded already."""
    wish, decode = usual(model.pipeline, **options), _tokenizer(model).decode
    found = answers(model.pipeline, model.runner, inputs, wish)
    return [{"text": _until(decode(ids).strip(), wish.stop), "tokens": len(ids)} for ids in found]


def stream(model: Any, sample: Any, **options: Any) -> Iterator[str]:
    """The answer to one text, piece by piece as it is made; no beams."""
    return pieces(model, encoded(model, [sample]), **options)


def pieces(model: Any, inputs: Mapping[str, np.ndarray], **options: Any) -> Iterator[str]:
    """The answer to one row that is encoded already."""
    wish = usual(model.pipeline, **{"beams": 1, **options})
    if wish.beams > 1:
        raise ValueError("beam search knows the text only at its end; leave beams out to stream")
    speller = generation.Speller(_tokenizer(model), [], wish.stop)
    for (token,) in steps(model.pipeline, model.runner, inputs, wish):
        if piece := speller.take(int(token or 0)):
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


def _tokenizer(model: Any) -> Any:
    return getattr(model.preprocessor, "own", model.preprocessor).tokenizer


def _until(text: str, stop: Sequence[str]) -> str:
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]


# -------------------------------------------------------------------------------- what is timed, and the command


def work(runner: Any, inputs: Mapping[str, np.ndarray]) -> None:
    """What a latency is taken of: texts are read, and as many tokens are made as they have, whatever the tokens are."""
    made = Answers(runner, inputs, {"start": [0]}, 0)
    for _ in range(length_of(inputs)):
        made.take(made.logits().argmax(axis=1))


def length_of(inputs: Mapping[str, np.ndarray]) -> int:
    """Tokens of the texts in `inputs`; as many as some words have for sounds, which are not made of any."""
    return int(inputs["input_ids"].shape[1]) if "input_ids" in inputs else TOKENS_OF_SOUNDS


def timed(runner: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs of one step in the middle of an answer, to look into: one token, with half of the text's length before it."""
    made = Answers(runner, inputs, {"start": [0]}, 0)
    for _ in range(max(1, length_of(inputs) // 2)):
        made.take(made.logits().argmax(axis=1))
    return {NEW: made.ids, **made.cross, **made.kv_cache}


def add_arguments(parser: Any) -> None:
    """What `run.py predict` takes beside texts: as for generation, with the model's own length and beams."""
    generation.add_arguments(parser)
    parser.set_defaults(max_new_tokens=None, beams=None)


def options_of(asked: Any) -> dict[str, Any]:
    """The fields of `GenerationConfig` in parsed arguments that were given."""
    return {name: value for name, value in generation.options_of(asked).items() if value is not None}


# -------------------------------------------------------------------------------- two halves of one file


def halves(path: Path) -> list[bytes]:
    """The two halves of an ONNX file, each a model: what gives the cross-attention's keys and values, and what gives the rest.

    ONNX Runtime runs all of a graph, so each half is opened by itself. A file is read by protobuf's wire format: a model's
    field 7 is its graph; of a graph 1 are nodes, 5 initializers, 11 inputs, 12 outputs.
    """
    model = memoryview(Path(path).read_bytes())
    top = list(_fields(model))
    graph = next(value for number, _, value in top if number == 7)
    parts = [(number, whole, value) for number, whole, value in _fields(graph) if number != 13]  # 13: shapes inside
    outputs = {_text(value, 1) for number, _, value in parts if number == 12}
    first = {name for name in outputs if CROSS in name}
    found = []
    for wanted in (first, outputs - first):
        kept = b"".join(_needed(parts, wanted))
        others = b"".join(bytes(whole) for number, whole, _ in top if number != 7)
        found.append(others + b"\x3a" + _varint(len(kept)) + kept)
    return found


def split_openvino(openvino: Any, model: Any) -> list[Any]:
    """The same two halves of an openvino.Model."""
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
    fields = list(_fields(node))
    inputs, outputs = ([bytes(value).decode() for number, _, value in fields if number == side] for side in (1, 2))
    return inputs, outputs


def _text(message: memoryview, wanted: int) -> str:
    return next((bytes(value).decode() for number, _, value in _fields(message) if number == wanted), "")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, whole and content of every field of a message."""
    at = 0
    while at < len(message):
        begun = at
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == 2:
            size, at = _read_varint(message, at)
        elif kind == 0:
            size = _read_varint(message, at)[1] - at
        else:
            size = 8 if kind == 1 else 4
        yield key >> 3, message[begun : at + size], message[at : at + size]
        at += size


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
