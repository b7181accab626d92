"""What a teacher says of every text, kept on disk: asked once, not in every epoch and again for every student.

Kept in shards of consecutive examples, each a safetensors file that is renamed into place when whole, so that a kill
loses one of them at most; looked up by example, so that batches, epochs and processes take them in any order. They are
kept only where that is cheaper than asking again (`refusal`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fmopt.core.errors import PassError
from fmopt.core.formatting import percent, size
from fmopt.core.stages import seals
from fmopt.core.stages.store import write_whole
from fmopt.measurement.host_probe import versions
from fmopt.training import distributed
from fmopt.training.collation import Collator
from fmopt.training.examples import Example

TeacherTargets = dict[
    str, list[torch.Tensor]
]  # by kind, parts of one shape: [B, …], or [B, n, …] of kinds that are per token

HALF = frozenset({"hidden", "relations"})  # what is large; float16 is 8 times finer than the bfloat16 that trains
SHARD_TOKENS = 8192  # about 40 MB of MiniLM's states; what a kill loses at most
BATCH = 32  # examples that the teacher is asked about at a time
# A modest SSD writing; what lies in the page cache or on a better disk is read faster, a mistake on the safe side.
DISK_BYTES_PER_S = 200e6
LOOKUP_S = 50e-6  # to find and pad the rows of one example
SHARE_OF_FREE = 0.25  # of the disk's free space that may be taken
SHARE_OF_LIMIT = 0.2  # of a time limit that asking beforehand may take: how many epochs it leaves is not known
REPORT_SECONDS = 20.0  # seconds between two lines of progress
COST = "cost.json"
_VERSION = 1  # of what is kept


@dataclass(frozen=True)
class Cost:
    """What asking about one token takes, and what keeping the answer does."""

    seconds_per_token: float
    bytes_per_token: float
    bytes_per_text: float


@dataclass(frozen=True)
class Terms:
    """Within what outputs may be kept: `epochs` that will look them up, bytes on disk, the seconds of all training."""

    epochs: float
    room: float
    limit_s: float | None = None


def refusal(cost: Cost, texts: int, tokens: int, missing: float, terms: Terms) -> str | None:
    """Why it is better to ask the teacher in every epoch; None where keeping what it says is cheaper.

    `missing` is the share that is not on disk yet. Both ways are counted in seconds: asking as measured, reading and
    writing by their bytes.
    """
    nbytes = cost.bytes_per_token * tokens + cost.bytes_per_text * texts
    if nbytes > terms.room:
        return f"{size(nbytes)} on disk are more than the {size(terms.room)} that they may take"
    asking, moving = cost.seconds_per_token * tokens, nbytes / DISK_BYTES_PER_S
    beforehand = missing * (asking + moving)
    if beforehand + terms.epochs * (texts * LOOKUP_S + moving) >= terms.epochs * asking:
        return f"asking again takes less time than {size(nbytes)} on disk"
    if terms.limit_s is not None and missing * asking > SHARE_OF_LIMIT * terms.limit_s:
        return "asking about all texts beforehand would take too much of the time limit"
    return None


def outputs_key(teacher: str, examples: Iterable[Example], inputs: Sequence[str], about: Mapping[str, Any]) -> str:
    """sha256 over all that the outputs depend on: the teacher's digest, the token ids, what is kept of it and how made."""
    total = hashlib.sha256(repr((_VERSION, teacher, sorted(about.items()), sorted(versions().items()))).encode())
    for example in examples:
        for name in sorted(inputs):
            total.update(name.encode() + np.asarray(example[name]).tobytes())
    return total.hexdigest()


class TeacherOutputs:
    """What a teacher says of each of `examples`, in the shards of `folder`.

    `ask` says it of one padded batch. Kinds in `per_token` have a row for every token, the others one for every example.
    """

    def __init__(
        self, folder: Path, examples: Sequence[Example], collate: Collator, ask: Callable[[dict[str, Any]], TeacherTargets],
        per_token: frozenset[str],
    ) -> None:  # fmt: skip
        self.folder, self.examples, self.collate, self.ask, self.per_token = folder, examples, collate, ask, per_token
        self.lengths = np.array([len(example["input_ids"]) for example in examples])
        before = np.cumsum(self.lengths) - self.lengths  # tokens of the examples before each
        _, starts, self.shard_of = np.unique(before // SHARD_TOKENS, return_index=True, return_inverse=True)
        self.shards = [range(first, last) for first, last in pairwise([*starts.tolist(), len(examples)])]
        self.token_row = before - before[starts][self.shard_of]
        self.say: Callable[[str], None] = lambda line: None
        self.opened: dict[int, dict[str, torch.Tensor]] = {}

    def kept(self, terms: Terms, progress: Callable[[str], None], over: Callable[[], bool]) -> bool:
        """Whether they are kept, and then all of them are there; decided by the first process, made by all.

        PassError when `over` says that the time is up while the teacher is being asked.
        """
        self.say = progress
        reason = distributed.shared(None if distributed.follows() else self._refusal(terms))
        if reason is None:
            reason = self._fill(progress, over)
        if reason is None:
            nbytes = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
            progress(f"the teacher's outputs are read from disk ({size(nbytes)}): it is not asked in every epoch")
        elif terms.epochs > 1:
            progress(f"the teacher is asked in every epoch: {reason}")
        return reason is None

    def look_up(self, numbers: Sequence[int], mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """By kind [B, parts, …], or [B, n, parts, …] with zeros at padding, for a batch of examples by number.

        `mask` is bool [B, n], True on tokens that are no padding.
        """
        found = {}
        for kind in self._shard(int(self.shard_of[numbers[0]])):
            rows = torch.cat([self._rows(kind, number) for number in numbers])
            if kind in self.per_token:
                padded = rows.new_zeros((*mask.shape, *rows.shape[1:]))
                padded[mask] = rows
                rows = padded
            found[kind] = rows
        return found

    def targets(self, found: Mapping[str, torch.Tensor]) -> TeacherTargets:
        """What `look_up` found, as the teacher itself would say it, in float32."""
        return {k: list(rows.float().unbind(2 if k in self.per_token else 1)) for k, rows in found.items()}

    def _rows(self, kind: str, number: int) -> torch.Tensor:
        shard = int(self.shard_of[number])
        if kind in self.per_token:
            first, count = int(self.token_row[number]), int(self.lengths[number])
        else:
            first, count = number - self.shards[shard].start, 1
        return self._shard(shard)[kind][first : first + count]

    def _shard(self, shard: int) -> dict[str, torch.Tensor]:
        """The tensors of a shard, mapped into memory: read when used, and given back when memory is short."""
        if shard not in self.opened:
            with safe_open(self._path(shard), framework="pt") as stored:
                self.opened[shard] = {kind: stored.get_tensor(kind) for kind in stored.keys()}  # noqa: SIM118
        return self.opened[shard]

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05}.safetensors"

    def _missing(self) -> list[int]:
        return [shard for shard in range(len(self.shards)) if not seals.reusable(self._path(shard), self.say)]

    # -------------------------------------------------------------------------------------------- deciding and making

    def _refusal(self, terms: Terms) -> str | None:
        """`refusal` by what the first shard took; shards that will not be used are not left on disk."""
        if terms.room <= 0:
            return "nothing may be kept on disk"
        if terms.epochs <= 1 and not (self.folder / COST).is_file():
            return "each text is seen once"
        try:
            cost = self._cost()
        except (OSError, SafetensorError, OverflowError) as error:
            return _trouble(error)
        missing = self._missing()
        share = sum(self.lengths[self.shards[shard]].sum() for shard in missing) / self.lengths.sum()
        reason = refusal(cost, len(self.examples), int(self.lengths.sum()), float(share), terms)
        if reason and missing:
            self._forget()
        return reason

    def _cost(self) -> Cost:
        """As measured once on the first shard; the teacher is warmed up with a batch of it."""
        path = self.folder / COST
        if not seals.reusable(path, self.say):
            self.folder.mkdir(parents=True, exist_ok=True)
            items = self.shards[0]
            self.ask(self.collate([self.examples[number] for number in items[:BATCH]]))
            begun = time.monotonic()
            answers = self._answers(items)
            seconds = time.monotonic() - begun
            self._write(0, answers)
            tokens = int(self.lengths[items].sum())
            taken = {kind: rows.numel() * rows.element_size() for kind, rows in answers.items()}
            by_token = sum(count for kind, count in taken.items() if kind in self.per_token)
            cost = Cost(seconds / tokens, by_token / tokens, (sum(taken.values()) - by_token) / len(items))
            seals.seal(write_whole(path, json.dumps(asdict(cost))))
        return Cost(**json.loads(path.read_text()))

    def _fill(self, progress: Callable[[str], None], over: Callable[[], bool]) -> str | None:
        """Ask about what is not there yet, a shard in each process at a time; why that was given up, None when all is."""
        todo, world = distributed.shared(self._missing()), distributed.world()
        begun = targets = time.monotonic()
        for done in range(0, len(todo), world):
            if done and distributed.agreed(over()):
                there = percent(1 - (len(todo) - done) / len(self.shards))
                raise PassError(
                    f"the time limit was reached while the teacher was asked ({there} of the texts); "
                    "the same command goes on from there"
                )
            trouble = None
            try:
                for shard in todo[done : done + world][distributed.rank() :][:1]:
                    self._write(shard, self._answers(self.shards[shard]))
            except (OSError, SafetensorError, OverflowError) as error:
                trouble = _trouble(error)
            if not distributed.unanimous(trouble is None):
                if not distributed.follows():
                    self._forget()
                return trouble or "another process could not keep them"
            now = time.monotonic()
            if now - targets >= REPORT_SECONDS and done + world < len(todo):
                targets = now
                left = (now - begun) / (done + world) * (len(todo) - done - world)
                progress(f"asking the teacher: {percent(done / len(todo))} of the texts, {left / 60:.1f} min left")
        return None

    def _answers(self, items: range) -> dict[str, torch.Tensor]:
        """By kind [items or tokens, parts, …] in the order of `items`. OverflowError for what float16 does not hold."""
        rows: dict[str, dict[int, torch.Tensor]] = {}
        order = sorted(items, key=lambda number: -self.lengths[number])  # near lengths share a batch: less padding
        for numbers in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            batch = self.collate([self.examples[number] for number in numbers])
            mask = batch["attention_mask"].bool()
            for kind, parts in self.ask(batch).items():
                inside = kind in self.per_token
                packed = torch.stack([part[mask.to(part.device)] if inside else part for part in parts], dim=1)
                packed = packed.to(torch.float16 if kind in HALF else torch.float32).cpu()
                if not bool(packed.isfinite().all()):
                    raise OverflowError(f"{kind} beyond the range of float16")
                sizes = [int(self.lengths[number]) if inside else 1 for number in numbers]
                rows.setdefault(kind, {}).update(zip(numbers, packed.split(sizes), strict=True))
        return {kind: torch.cat([found[number] for number in items]) for kind, found in rows.items()}

    def _write(self, shard: int, answers: dict[str, torch.Tensor]) -> None:
        part = self.folder / f"{distributed.rank()}.part"
        save_file(answers, part)
        os.replace(part, self._path(shard))
        seals.seal(self._path(shard))

    def _forget(self) -> None:
        """Give the disk back; what asking costs stays known."""
        self.opened.clear()
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.part")]:
            seals.remove(path)


def room_on_disk(folder: Path, most: float) -> float:
    """Bytes that may be taken under `folder`: `most`, but no more than a quarter of what is free or taken by it already."""
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return min(most, SHARE_OF_FREE * shutil.disk_usage(folder.parent).free + there)


def _trouble(error: Exception) -> str:
    return f"they could not be kept ({error})"
