"""What is judged: which inputs, how they come, on how many threads, and where the clock starts."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from fmopt.core.errors import ConfigError
from fmopt.core.results import Frozen

Arrival = Literal["single", "batch", "server"]
ARRIVALS: tuple[Arrival, ...] = ("single", "batch", "server")


class Workload(Frozen):
    """The use that a speed is claimed for. By default the data's own items at their own lengths, one at a time, each from
    the raw input (a text, a file's bytes) to its prediction.

    `length` states a synthetic shape instead: rows of exactly so many tokens, the model alone, comparable with other tools.
    `arrival` "single" is one call after another, "batch" answers `batch` items a call, "server" lets queries of one item
    arrive at `rate` per second and asks that 99 % are answered within `p99_ms`. ConfigError for what contradicts itself.

    >>> fmopt.Workload(length=128).from_raw
    False
    """

    arrival: Arrival = "single"
    length: int | None = None  # tokens of a synthetic shape; None: the data's own items
    batch: int = 1  # items of one call; of a server, the most that it answers together
    threads: int = 1
    from_raw: bool = True  # tokenizer and answer included; False: the model alone
    rate: float | None = None  # queries/s of a server
    p99_ms: float | None = None  # its limit
    also_length: int | None = None  # timed beside it at this length, for comparison only

    @model_validator(mode="before")
    @classmethod
    def _synthetic_rows_have_no_raw_input(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("length") is not None:
            return {**given, "from_raw": False}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        for name in ("batch", "length", "threads", "also_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name.replace('_', '-')} is {value}; it must be at least 1")
        for name, unit in (("rate", "queries per second"), ("p99_ms", "milliseconds")):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}; it is a positive number of {unit}")
        if self.arrival == "server" and (self.rate is None or self.p99_ms is None):
            raise ConfigError("a server workload needs a rate and a limit: --rate 200 --p99 20ms")
        if self.arrival == "server" and self.length is not None:
            raise ConfigError("a server is judged on the data's own items; leave --length out, or use --also-length")
        if self.arrival != "server" and (self.rate is not None or self.p99_ms is not None):
            raise ConfigError("--rate and --p99 describe a server; add --workload server, or leave them out")
        return self

    @property
    def own_items(self) -> bool:
        """Whether it is the data's own items that are timed, not a stated shape."""
        return self.length is None

    @property
    def items_per_call(self) -> int:
        """Items of one timed call: a server's queries are timed one by one, and under load at the end."""
        return 1 if self.arrival == "server" else self.batch

    def sentence(self) -> str:
        """What is judged, in words: `the data's own items one by one, from raw input to answer, 1 thread`."""
        threads = f"{self.threads:,} thread{'s' if self.threads != 1 else ''}"
        if self.length is not None:
            return f"batch {self.batch:,} of {self.length:,} tokens, a stated shape, the model alone, {threads}"
        how = {
            "single": "one by one" if self.batch == 1 else f"{self.batch:,} at once",
            "batch": f"{self.batch:,} at once",
            "server": f"arriving at {self.rate or 0:g} per second, 99 % answered within {self.p99_ms or 0:g} ms",
        }[self.arrival]
        where = "from raw input to answer" if self.from_raw else "the model alone"
        return f"the data's own items {how}, {where}, {threads}"
