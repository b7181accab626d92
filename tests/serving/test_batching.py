"""Batches: every request has its own answers, whoever else asks; bad ones, late ones and too many are told so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from fmopt.core.errors import DataError
from fmopt.serving.batching import Batcher, OverloadError


class Echo:
    """Answers each sample by itself in upper case, and remembers its batches."""

    def __init__(self, hold: threading.Event | None = None) -> None:
        self.calls: list[list[str]] = []
        self.hold = hold

    def __call__(self, samples: Any, **options: Any) -> Any:
        self.calls.append(list(samples))
        if self.hold is not None:
            self.hold.wait(10)
        for number, sample in enumerate(samples, start=1):
            if sample == "bad":
                raise DataError(f"item {number}: it is bad")
        return [sample.upper() + options.get("end", "") for sample in samples]


def run(work: Callable[[Batcher, Echo], Any], **options: Any) -> tuple[Any, Echo]:
    hold = options.pop("hold", None)
    model = Echo(hold)
    batcher = Batcher(model, **options)
    try:
        return asyncio.run(work(batcher, model)), model
    finally:
        batcher.close()


def test_requests_that_wait_are_one_batch_and_each_has_its_own_answer() -> None:
    hold = threading.Event()

    async def work(batcher: Batcher, model: Echo) -> list[list[str]]:
        first = asyncio.create_task(batcher.answer(["one"], {}, 10))
        while not model.calls:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(batcher.answer([f"t{n}", f"u{n}"], {}, 10)) for n in range(5)]
        while batcher.depth < 11:
            await asyncio.sleep(0.01)
        hold.set()
        return [await task for task in (first, *others)]

    got, model = run(work, hold=hold, most=8)
    assert got == [["ONE"], *[[f"T{n}", f"U{n}"] for n in range(5)]]
    assert [len(call) for call in model.calls] == [1, 8, 2]


def test_many_threads_many_requests_none_lost_or_mixed() -> None:
    async def one(batcher: Batcher, number: int) -> bool:
        samples = [f"n{number}-{place}" for place in range(number % 5 + 1)]
        return await batcher.answer(samples, {}, 30) == [sample.upper() for sample in samples]

    async def work(batcher: Batcher, model: Echo) -> list[bool]:
        return await asyncio.gather(*(one(batcher, number) for number in range(3000)))

    got, model = run(work, workers=3, most=16, waiting=100_000)
    assert all(got)
    assert sum(map(len, model.calls)) == sum(number % 5 + 1 for number in range(3000))


def test_a_long_list_is_split_so_that_others_get_in_between() -> None:
    async def work(batcher: Batcher, model: Echo) -> list[str]:
        return await batcher.answer([str(n) for n in range(70)], {}, 10)

    got, model = run(work, most=32)
    assert got == [str(n) for n in range(70)]
    assert max(map(len, model.calls)) == 32


def test_only_the_request_with_a_bad_item_fails_and_the_item_is_numbered_in_it() -> None:
    hold = threading.Event()

    async def work(batcher: Batcher, model: Echo) -> list[Any]:
        begun = asyncio.create_task(batcher.answer(["one"], {}, 10))
        while not model.calls:
            await asyncio.sleep(0.01)
        tasks = [
            asyncio.create_task(batcher.answer(samples, {}, 10))
            for samples in (["a"], ["b", "bad"], ["c"], [*map(str, range(9)), "bad"])
        ]
        await asyncio.sleep(0.05)
        hold.set()
        return await asyncio.gather(begun, *tasks, return_exceptions=True)

    got, _ = run(work, hold=hold, most=8)
    assert (got[0], got[1], got[3]) == (["ONE"], ["A"], ["C"])
    assert str(got[2]) == "item 2: it is bad"
    assert str(got[4]) == "item 10: it is bad"


def test_other_options_are_another_batch() -> None:
    async def work(batcher: Batcher, model: Echo) -> Any:
        return await asyncio.gather(batcher.answer(["a"], {"end": "!"}, 9), batcher.answer(["b"], {"end": "?"}, 9))

    got, model = run(work)
    assert got == [["A!"], ["B?"]]
    assert all(len(call) == 1 for call in model.calls)


def test_too_many_and_too_late() -> None:
    hold = threading.Event()

    async def work(batcher: Batcher, model: Echo) -> float:
        late = asyncio.create_task(batcher.answer(["one"], {}, 0.2))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadError, match="1 items wait already"):
            await batcher.answer(["a", "b", "c"], {}, 1)
        dropped = asyncio.create_task(batcher.answer(["two"], {}, 0.2))
        with pytest.raises(TimeoutError):
            await late
        with pytest.raises(TimeoutError):
            await dropped
        hold.set()
        begun = time.monotonic()
        assert await batcher.answer(["three"], {}, 10) == ["THREE"]
        return time.monotonic() - begun

    _, model = run(work, hold=hold, waiting=3)
    assert not any("two" in call for call in model.calls)  # nobody waited for it any more
