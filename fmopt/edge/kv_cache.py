"""The cache of keys and values of texts that go on: its ports, its room, and graphs that keep it themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .runners import OnnxRuntimeRunner, mixes_rows, rounds_activations

CACHE_PREFIX, PRESENT = "past_key_values.", "present."
# Where a graph has this input, logits come from there on; 0, all of them, if it is not given.
FIRST_LOGITS = "first_logits"
HELD = "held"  # what stands for a cache that the graph itself keeps
LEAST_SHARED = 8  # tokens that a text begins with as the last one did, for which its cache is taken
MOST_LEFT_BYTES = 256 << 20  # of a cache that is left between calls
LEFT_OVER = 16  # so many tokens of steps that are taken again and again may stay behind a mask


class Kept:
    """What a text left in a graph that keeps it itself: a request, and how many tokens that has taken in."""

    def __init__(self, request: Any):
        self.request, self.taken = request, 0
        self.repeating = False  # the same step is taken again and again
        self.moved = False  # rows went on from others

    @property
    def bytes(self) -> int:
        """What its keys and values take."""
        return sum(int(state.state.get_byte_size()) for state in self.request.query_state())


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
        self.runner, self.rounds_activations = runner, runner.rounds_activations
        # Keys and values that are put back are rounded anew.
        self.rounds = runner.properties.get("KV_CACHE_PRECISION") != "f32"

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


# -------------------------------------------------------------------------------- a cache that is cut, and left for later


def can_cut(runner: Any) -> bool:
    """Whether the last tokens can be taken out of a cache again, and the rest go on as if they had never been there: not of a
    recurrent network, whose state is of all tokens, nor where a call takes scales from all tokens that it has."""
    if mixes_rows(runner):
        return False
    if isinstance(runner, Stateful):
        return not runner.rounds
    shapes = getattr(runner, "kv_cache", None) or {}
    return bool(shapes) and not any(isinstance(shape[2], int) for shape in shapes.values())


def cut(kv_cache: Mapping[str, np.ndarray], tokens: int, room: int = 0) -> dict[str, np.ndarray]:
    """The cache of the first tokens. Arrays with `room` for as many tokens or more stay as they are: the mask says how many are
    in them."""
    if CACHE_PREFIX + HELD in kv_cache:
        held = kv_cache[CACHE_PREFIX + HELD].copy()
        held[:, 1] = tokens
        return {CACHE_PREFIX + HELD: held}
    return {name: value if 0 < room <= value.shape[2] else value[:, :, :tokens] for name, value in kv_cache.items()}


def can_share(runner: Any) -> bool:
    """Whether what a prompt leaves serves another that begins alike, without changing what that gives. ONNX Runtime computes
    the same for a token in any call for two or more; other runtimes the same but for last bits."""
    return can_cut(runner) and (isinstance(runner, OnnxRuntimeRunner) or not rounds_activations(runner))


class PrefixCache:
    """What the last prompt of a bundle left, for one that begins alike: its tokens and their keys and values, for one text at a
    time, of `MOST_LEFT_BYTES` at most. Several threads may ask at once; who comes second begins anew. There is no lock: a text
    that nobody goes on with leaves its cache whenever it is freed, perhaps in the middle of a call here.

    Two tokens at least are read anew, for a call for one adds up in another order (see lookup.py); so tokens of an answer,
    which were made one by one, are no part of what is left.
    """

    def __init__(self) -> None:
        self._left: deque[tuple[list[int], dict[str, np.ndarray]]] = deque(maxlen=1)

    def take(
        self, ids: Sequence[int], room: Mapping[str, np.ndarray], tokens: int
    ) -> tuple[dict[str, np.ndarray], int]:
        """A cache for a text, and how many of its tokens are in it: all but the last two at most. `room` is an empty cache for so
        many `tokens`, where the runner appends to one; it is given back with 0 when no text began like this one."""
        try:
            left, kept = self._left.pop()
        except IndexError:
            return dict(room), 0
        shared = _shared(left, ids)
        if shared < LEAST_SHARED:
            return dict(room), 0
        if not room or CACHE_PREFIX + HELD in kept:
            return cut(kept, shared), shared
        if all(value.shape[2] >= tokens for value in kept.values()):
            return dict(kept), shared
        for name, value in room.items():
            value[:, :, :shared] = kept[name][:, :, :shared]
        return dict(room), shared

    def leave(self, ids: Sequence[int], kv_cache: Mapping[str, np.ndarray]) -> None:
        """Keep the cache of these tokens for a later text; nobody else goes on from it."""
        if size_of(kv_cache) <= MOST_LEFT_BYTES:
            self._left.append((list(ids), {name: _alone(value) for name, value in kv_cache.items()}))


def size_of(kv_cache: Mapping[str, np.ndarray]) -> int:
    """Bytes of a cache, wherever it lies."""
    held: Any = kv_cache.get(CACHE_PREFIX + HELD)
    if held is not None:
        return int(held.kept.bytes)
    return sum(value.nbytes for value in kv_cache.values())


def _alone(value: np.ndarray) -> np.ndarray:
    """An array without what it was cut from, which would be kept as well."""
    return value.copy() if value.base is not None and getattr(value.base, "nbytes", 0) > value.nbytes else value


def _shared(left: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens two texts begin with alike, the last two of `ids` left out."""
    most = max(0, min(len(left), len(ids) - 2))
    return next((at for at in range(most) if left[at] != ids[at]), most)
