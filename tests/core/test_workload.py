"""What is judged: said in words, and refused where it contradicts itself."""

from __future__ import annotations

import pytest

from fmopt.core.errors import ConfigError
from fmopt.core.workload import Workload


def test_by_default_it_is_what_users_run() -> None:
    usual = Workload()
    assert usual.own_items
    assert usual.from_raw
    assert usual.sentence() == "the data's own items one by one, from raw input to answer, 1 thread"


def test_a_stated_shape_says_so_and_is_the_model_alone() -> None:
    shape = Workload(length=128, threads=2)
    assert not shape.from_raw
    assert shape.sentence() == "batch 1 of 128 tokens, a stated shape, the model alone, 2 threads"
    assert Workload.model_validate_json(shape.model_dump_json()) == shape


def test_batches_and_servers_say_how_items_come() -> None:
    assert "8 at once" in Workload(arrival="batch", batch=8).sentence()
    server = Workload(arrival="server", rate=200, p99_ms=20, batch=4)
    assert "arriving at 200 per second, 99 % answered within 20 ms" in server.sentence()
    assert server.items_per_call == 1  # timed one by one; together only under load


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"threads": -1}, "threads is -1; it must be at least 1"),
        ({"also_length": 0}, "also-length is 0; it must be at least 1"),
        ({"arrival": "server", "rate": 5.0}, "needs a rate and a limit"),
        ({"arrival": "server", "rate": 0.0, "p99_ms": 5.0}, "a positive number of queries per second"),
        ({"arrival": "server", "rate": 5.0, "p99_ms": float("inf")}, "a positive number of milliseconds"),
        ({"arrival": "server", "rate": 5.0, "p99_ms": 5.0, "length": 128}, "leave --length out"),
        ({"rate": 5.0}, "--rate and --p99 describe a server"),
    ],
)
def test_contradictions_are_refused_in_one_line(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Workload(**given)
    assert "\n" not in str(error.value)
