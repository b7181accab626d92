"""Requests that wait are answered together: whatever has come while the model was busy is its next batch.

This is dynamic batching as Triton and TorchServe have it, without a fixed size: under low load a request is answered at once
and alone, under high load batches grow by themselves. Within a batch `Bundle` puts texts of like length together, under its
budget of tokens, and keeps what must not be mixed apart.
"""

from __future__ import annotations

import asyncio
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fmopt.core.errors import DataError, FmoptError


class Answers(Protocol):
    """What answers a list of samples: an opened bundle."""

    def __call__(self, sample: Any, **options: Any) -> Any:
        """One answer for each sample of a list, in their order."""


class OverloadError(FmoptError):
    """More waits than may."""


@dataclass
class Job:
    """Some samples of one request."""

    samples: Sequence[Any]
    options: Mapping[str, Any]
    done: Callable[[list[Any] | None, Exception | None], None]
    first: int = 0  # place of its first sample in the request
    begun: float = field(default_factory=time.monotonic)
    given_up: bool = False  # nobody waits for the answer any more

    def like(self, other: Job) -> bool:
        """Whether both may be answered by one call."""
        return self.options == other.options


class Batcher:
    """Threads that answer jobs, each of them several at once.

    `most` samples are in one call, `waiting` may wait in all, and a worker that got a job waits `delay_s` seconds for others.
    """

    def __init__(
        self,
        model: Answers,
        *,
        workers: int = 1,
        most: int = 32,
        waiting: int = 1024,
        delay_s: float = 0.0,
        seen: Callable[[int, float], None] = lambda samples, seconds: None,
    ):
        self.model, self.most, self.waiting, self.delay_s, self.seen = model, most, waiting, delay_s, seen
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._left: Job | None = None  # taken, and not for the batch that was being made
        self._count, self._taking = 0, threading.Lock()
        self._counting = threading.Lock()
        self._threads = [threading.Thread(target=self._work, name=f"batch-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Samples that wait or are being answered."""
        return self._count

    async def answer(self, samples: Sequence[Any], options: Mapping[str, Any], timeout_s: float) -> list[Any]:
        """The answers to the samples of one request, in their order.

        Raises OverloadError when too many wait, TimeoutError after `timeout_s`, and what the model says of a bad sample.
        """
        self._enter(len(samples))
        loop, jobs, waited = asyncio.get_running_loop(), [], []
        for start in range(0, len(samples), self.most):  # so that a long list lets others in between
            future: asyncio.Future[list[Any]] = loop.create_future()
            job = Job(samples[start : start + self.most], options, _teller(loop, future), start)
            jobs.append(job)
            waited.append(future)
            self._jobs.put(job)
        try:
            async with asyncio.timeout(timeout_s):
                parts = await asyncio.gather(*waited)
        finally:
            for job in jobs:
                job.given_up = True
        return [one for part in parts for one in part]

    def close(self) -> None:
        """End the threads, once what waits is answered."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _enter(self, count: int) -> None:
        with self._counting:
            if self._count and self._count + count > self.waiting:
                raise OverloadError(f"{self._count} items wait already; try again later")
            self._count += count

    def _work(self) -> None:
        while True:
            with self._taking:  # one worker gathers a batch at a time, so that others do not split it
                jobs = self._next()
            if jobs is None:
                return
            wanted = [job for job in jobs if not job.given_up]
            if wanted:
                self._answer(wanted)
            with self._counting:
                self._count -= sum(len(job.samples) for job in jobs)

    def _next(self) -> list[Job] | None:
        """The jobs of a batch; None when there is nothing more to do."""
        first, self._left = self._left or self._jobs.get(), None
        if first is None:
            return None
        jobs, count, until = [first], len(first.samples), first.begun + self.delay_s
        while count < self.most:
            try:
                wait = until - time.monotonic()
                job = self._jobs.get(timeout=wait) if wait > 0 else self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            if count + len(job.samples) > self.most or not job.like(first):
                self._left = job
                break
            jobs.append(job)
            count += len(job.samples)
        return jobs

    def _answer(self, jobs: Sequence[Job]) -> None:
        samples, begun = [sample for job in jobs for sample in job.samples], time.monotonic()
        try:
            answers = self.model(samples, **jobs[0].options)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].done(None, _numbered(error, jobs[0].first))
                return
            for job in jobs:  # one of them is bad; the others have their answers all the same
                self._answer([job])
            return
        self.seen(len(samples), time.monotonic() - begun)
        place = 0
        for job in jobs:
            job.done(answers[place : place + len(job.samples)], None)
            place += len(job.samples)


def _numbered(error: Exception, first: int) -> Exception:
    """What is wrong with an item, by its number in the whole request."""
    found = re.match(r"item (\d+)(: .*)", str(error), re.DOTALL)
    if found is None or not first or not isinstance(error, DataError):
        return error
    return DataError(f"item {int(found[1]) + first}{found[2]}")


def _teller(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[list[Any]]
) -> Callable[[list[Any] | None, Exception | None], None]:
    """What a thread calls with the answers to a job, or why there are none."""

    def settle(answers: list[Any] | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answers or [])

    return lambda answers, error: _from_thread(loop, lambda: settle(answers, error))


def _from_thread(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():  # a server that was stopped hears no more
        loop.call_soon_threadsafe(call)
