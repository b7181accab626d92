"""Lossless speculation for greedy decoding: what followed the newest tokens earlier in a text is checked in one call.

Prompt lookup decoding (Saxena, 2023) is speculative decoding (Leviathan et al., 2023) whose draft is the text itself: prompt and
answer so far. The newest n tokens (n = 3, else 2, else 1) are looked up where they were last, the tokens that followed there go
through the network behind the newest one, and as many of them stay as greedy decoding itself takes, rules and all; the cache is
cut back to these. A call for several tokens pays where a token costs less there than in a call of its own, and where guesses
come true: both are measured while texts are made (`Gain`), and nothing is proposed where it would lose time.

What a call for several tokens computes differs in its last bits from what calls for one compute, for sums have another order.
So a choice whose best two scores are closer than `LEAD` is made again, by a call for one token, and the first proposal of a
bundle is a test: nothing more is proposed where its scores are further from those of a call for one than `NOISE`. Graphs that
round activations to 8 bits make of a last bit far more than that. The clock decides how many calls there are, not which token
comes; what stays open is a choice that lies within the rounding of keys and values which calls for several have made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from .host import ForkSafeLock

NEWEST = (3, 2, 1)  # so many tokens are looked up, the most first
LONGEST = 8  # tokens before a guess that count as alike; what is longer is as sure
SIZES = (1, 2, 3, 4, 6, 8, 12, 16)  # tokens that are proposed at once
LEAD = 1e-3  # of the best score before the second, of scores or relative to their size, that rounding does not turn

NOISE = LEAD / 4  # that scores of a call for several tokens may be from those of a call for one, relative to their size

FORGETS = 0.97  # the weight of guesses at each later one
GUESSED = 4.0  # so many guesses weighs what is believed before there are any: that n of n + 2 come true after n alike
COST = 0.25  # of a proposed token, in calls for one, before it was measured
WORTH = 1.03  # tokens that are expected for the time of one
ALLOWANCE, MOST_CREDIT = (
    0.02,
    4.0,
)  # time that may be lost for each token made, in calls for one; and what can be saved up of it
RETRY = 64  # guesses not proposed before a cost is measured again; twice as many each time
SAMPLES = {1: 15, 2: 5}  # times that are kept of calls for one token and for several


class Index:
    """Where the newest tokens of a text were before. `text` may grow between calls."""

    def __init__(self, text: list[int]):
        self.text = text
        self._known = 1  # tokens before this place are behind no n-gram, or behind one that is known
        self._places: dict[tuple[int, ...], int] = {}

    def find(self) -> tuple[int, int] | None:
        """(place of the token that followed the newest tokens when they were there last, how many are alike, up to `LONGEST`)."""
        text = self.text
        end = len(text)
        for place in range(self._known, end):
            for count in NEWEST:
                if count <= place:
                    self._places[tuple(text[place - count : place])] = place
        self._known = max(self._known, end)
        for count in NEWEST:
            found = self._places.get(tuple(text[end - count :])) if count <= end else None
            if found is not None:
                while count < min(LONGEST, found) and text[found - count - 1] == text[end - count - 1]:
                    count += 1
                return found, count
        return None

    def following(self, place: int, count: int) -> list[int]:
        """So many tokens from a place on; behind the end of the text it goes on as it did from there: what repeats goes round."""
        span = self.text[place : place + count]
        return (span * -(-count // len(span)))[:count]


class Gain:
    """What proposing brings and costs, learned from guesses and calls, in units of a call for one token.

    A guess is checked by the token that really comes, also where it was not proposed, so that what it is worth is known at any
    time. Several threads may use one at once.
    """

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self.right = [GUESSED * length / (length + 2) for length in range(LONGEST + 1)]  # by how many tokens were alike
        self.seen = [GUESSED] * (LONGEST + 1)
        self.seconds: deque[float] = deque(maxlen=SAMPLES[1])  # of calls for one token
        self.costs: dict[int, deque[float]] = {}  # of calls with so many proposed tokens
        self.exact: bool | None = (
            None  # whether calls for several tokens give the scores of calls for one; not known yet
        )
        self.credit = 1.0
        self.declined, self.retry = 0, RETRY
        self._last: deque[tuple[int, int, float]] = deque()  # of texts that ended, not yet counted

    def note(self, alike: int, right: bool) -> None:
        """A token came where so many before it were alike, and it was the guess or not."""
        with self._lock:
            self.right[alike] = FORGETS * self.right[alike] + right
            self.seen[alike] = FORGETS * self.seen[alike] + 1

    def took(self, seconds: float) -> None:
        """So long took a call for one token."""
        with self._lock:
            self.seconds.append(seconds)
            self.credit = min(MOST_CREDIT, self.credit + ALLOWANCE)

    def checked(self, proposed: int, accepted: int, seconds: float) -> None:
        """So long took a call with so many proposed tokens, of which some came true."""
        with self._lock:
            self._count(proposed, accepted, seconds)

    def ended(self, proposed: int, accepted: int, seconds: float) -> None:
        """The same of a text's last call. A text that nobody goes on with ends whenever it is freed, perhaps in a thread that has
        the lock: it is counted later."""
        self._last.append((proposed, accepted, seconds))

    def _count(self, proposed: int, accepted: int, seconds: float) -> None:
        cost = seconds / median(self.seconds)
        known = self.costs.setdefault(proposed, deque(maxlen=SAMPLES[2]))
        if len(known) == 1:  # the first of its size prepared what the others find
            known[0] = min(known[0], cost)
        known.append(cost)
        gained = 1 + accepted
        self.credit = min(MOST_CREDIT, self.credit + gained - cost + ALLOWANCE * gained)

    def choose(self, alike: int, most: int) -> int:
        """How many tokens to propose, at most so many, where so many before them are alike; 0 where it does not pay."""
        with self._lock:
            while self._last:
                self._count(*self._last.popleft())
            if len(self.seconds) < 3 or self.credit < 0:
                return 0
            best, value, chance, expected, done = 0, WORTH, 1.0, 1.0, 0
            for size in SIZES:
                if size > most:
                    break
                while done < size:
                    length = min(alike + done, LONGEST)
                    chance *= self.right[length] / self.seen[length]
                    expected, done = expected + chance, done + 1
                worth = expected / self._cost(size)
                if worth > value:
                    best, value = size, worth
            if best:
                self.declined, self.retry = 0, RETRY
                return best
            self.declined += 1
            if self.declined < self.retry or most < 1 or not self.costs:
                return 0
            # What was slow once may have been so for another reason.
            self.declined, self.retry = 0, self.retry * 2
            return min((size for size in self.costs if size <= most), default=0)

    def _cost(self, proposed: int) -> float:
        """Of a call with so many proposed tokens: as measured, else on the line through the nearest that was."""
        known = self.costs.get(proposed)
        if known:
            return median(known)
        if not self.costs:
            return 1 + COST * proposed
        nearest = min(self.costs, key=lambda size: abs(size - proposed))
        return max(1.0, 1 + (median(self.costs[nearest]) - 1) * proposed / nearest)


class LookupRows:
    """One text that goes on greedily, with tokens proposed ahead: takes the place of `generation.Rows`, which it uses.

    `room`: tokens that may be made. `lossless`: nothing is proposed where scores turn out to be others than
    those of `rows` alone.
    """

    def __init__(
        self, rows: Any, room: int, gain: Gain, *, lossless: bool = True, clock: Callable[[], float] = perf_counter
    ):
        self.rows, self.room, self.gain, self.lossless, self.clock = rows, room, gain, lossless, clock
        self.text: list[int] = rows.texts[0]
        self.index = Index(self.text)
        self.guess: tuple[int, int] | None = None  # a token, and how many before it are alike
        self.ready: deque[np.ndarray] = deque()  # logits after the proposed tokens, for as long as these come true
        self.ahead: deque[int] = deque()  # proposed tokens that are taken in already
        self.several = False  # whether the last logits are of a call for several tokens
        self.begun = False
        self.call = (0, 0.0)  # of the last such call: tokens proposed, and seconds

    def logits(self) -> np.ndarray:
        """Logits float32 [1, vocabulary] after the tokens that were taken in."""
        found = self.index.find() if self.begun else None
        self.guess = (self.text[found[0]], found[1]) if found else None
        if self.ready:
            return self.ready.popleft()
        silent = self.lossless and self.gain.exact is False
        count = self.gain.choose(found[1], self.room - 1) if found and not silent else 0
        if found and count:
            proposed = self.index.following(found[0], count)
            if not self.lossless or self.gain.exact:
                return self._checked(proposed)
            return self._tested(proposed)
        start = self.clock()
        logits: np.ndarray = self.rows.logits()
        if self.begun:  # the first call reads the prompt
            self.gain.took(self.clock() - start)
        self.several, self.begun = False, True
        return logits

    def _checked(self, proposed: list[int]) -> np.ndarray:
        """Logits after the newest token; those after the proposed ones are kept for later."""
        made, seconds = self._several(proposed)
        self.call = (len(proposed), seconds)
        self.several, self.ahead = True, deque(proposed)
        self.ready.extend(made[at : at + 1] for at in range(1, len(made)))
        return made[:1]

    def _tested(self, proposed: list[int]) -> np.ndarray:
        """The same by a call for one token, after one for several, which is forgotten, told whether both give the same."""
        newest = self.rows.ids
        made, seconds = self._several(proposed)
        self.rows.forget(len(proposed) + 1)
        self.gain.checked(len(proposed), 0, seconds)
        self.rows.ids, self.rows.new = newest, np.ones_like(newest)
        logits: np.ndarray = self.rows.logits()
        gap = float(np.abs(made[0] - logits[0]).max())
        self.gain.exact = gap <= NOISE * max(1.0, float(np.abs(logits).max()))
        self.several = False
        return logits

    def _several(self, proposed: list[int]) -> tuple[np.ndarray, float]:
        """Logits [1 + proposed, vocabulary] after the newest token and each proposed one, and the seconds that they took."""
        start = self.clock()
        self.rows.ids = np.concatenate([self.rows.ids, np.array([proposed], dtype=np.int64)], axis=1)
        self.rows.new = np.ones_like(self.rows.ids)
        made: np.ndarray = self.rows.all_logits()[0]
        return made, self.clock() - start

    def allowed(self, scores: np.ndarray) -> np.ndarray:
        """Scores [1, vocabulary], changed by the rules of the pipeline; made again where the best of them hardly leads."""
        ruled: np.ndarray = self.rows.allowed(scores)
        if not self.several or leads(ruled[0]):
            return ruled
        self._settle(len(self.ahead) + 1)
        self.rows.ids = np.array([self.text[-1:]], dtype=np.int64)
        self.rows.new = np.ones_like(self.rows.ids)
        self.several = False
        again: np.ndarray = self.rows.allowed(self.rows.logits())
        return again

    def take(self, tokens: np.ndarray) -> None:
        """Append one token; what was proposed instead of it is forgotten."""
        token = int(tokens[0])
        if self.guess is not None:
            self.gain.note(self.guess[1], token == self.guess[0])
        self.room -= 1
        if self.ahead and self.ahead[0] == token:
            self.ahead.popleft()
            self.text.append(token)
            return
        self._settle(len(self.ahead))
        self.rows.take(tokens)

    def end(self) -> None:
        """Keep account of the last call too; nothing more is made."""
        proposed, seconds = self.call
        if proposed:
            self.gain.ended(proposed, proposed - len(self.ahead), seconds)
            self.call = (0, 0.0)

    def _settle(self, wrong: int) -> None:
        """Forget the last tokens that were taken in, and keep account of the call that they are of."""
        proposed, seconds = self.call
        left, start = len(self.ahead), self.clock()
        self.ready.clear()
        self.ahead.clear()
        if wrong:
            self.rows.forget(wrong)
        if proposed:
            self.gain.checked(proposed, proposed - left, seconds + self.clock() - start)
            self.call = (0, 0.0)


def leads(scores: np.ndarray) -> bool:
    """Whether the best of scores (vocabulary,) is clearly before the second."""
    best = int(scores.argmax())
    top = scores[best]
    second = max(scores[:best].max(initial=-np.inf), scores[best + 1 :].max(initial=-np.inf))
    return bool(np.isfinite(top) and top - second > LEAD * max(1.0, abs(float(top))))
