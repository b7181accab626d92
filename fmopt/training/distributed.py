"""Training on several processes, as `accelerate launch` or `torchrun` start them: one of them runs the command, the
others wait, and train along whenever it trains.

Only the first process reads, measures and writes (but for what a teacher says, which all of them ask it and write down),
so a command means the same however many processes it is given.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from fmopt.core.errors import ConfigError, FmoptError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the first process may measure for hours between two trainings


def world() -> int:
    """How many processes train together; 1 where the environment does not say so in whole numbers, as launchers do."""
    size, place = (os.environ.get(name, "").strip() for name in ("WORLD_SIZE", "RANK"))
    return max(int(size), 1) if size.isdecimal() and (place.isdecimal() or not place) else 1


def rank() -> int:
    """Which of them this one is; 0 runs the command."""
    return int(os.environ.get("RANK", "").strip() or 0) if world() > 1 else 0


def require_connected_processes() -> None:
    """ConfigError where `accelerate launch --cpu` promised several processes and told none of the others: it sets where they
    would meet, and neither how many they are nor which one this is, so that each would run the whole command by itself."""
    on_cpus = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "t", "on")
    meet = "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ
    if on_cpus and meet and not os.environ.get("WORLD_SIZE"):
        raise ConfigError(
            "accelerate launch --cpu starts processes that do not know of each other, so that each would run this whole "
            "command; start them with torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:29500"
        )


def follows() -> bool:
    """Whether this process only trains along."""
    return rank() > 0


def together(here: Callable[[], T], there: Callable[..., Any], *arguments: Any) -> T:
    """`here()` in this process and `there(*arguments)` in the others, at once; what it returns here.

    `there` is a function of a module of fmopt. Arguments travel by pickle, from one process of this program to another.
    """
    if world() > 1:
        _share((there.__module__, there.__qualname__, arguments))
    return here()


def follow() -> None:
    """Train along until the first process has ended; what breaks here breaks there too, and is said there."""
    while (asked := _share(None)) is not None:
        module, name, arguments = asked
        with suppress(FmoptError):
            getattr(importlib.import_module(module), name)(*arguments)


def shared(value: T) -> T:
    """The first process's value, on all of them."""
    return _share(value) if world() > 1 else value  # type: ignore[no-any-return]


def agreed(decision: bool) -> bool:
    """The first process's decision, on all of them: clocks differ, and all must stop at the same step."""
    return shared(decision)


def unanimous(well: bool) -> bool:
    """Whether it went well on all of them; none goes on before the last one has said so."""
    if world() == 1:
        return well
    import torch
    import torch.distributed

    _join()
    votes = torch.tensor([int(well)])  # on the CPU, where gloo counts them
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN)
    return bool(votes.item())


def share_of(batch: int) -> int:
    """Examples of a batch that each process takes; ConfigError when they do not come out even."""
    if batch % world():
        raise ConfigError(
            f"a batch of {batch} cannot be shared evenly by {world()} processes; start another number of them"
        )
    return batch // world()


def dismiss() -> None:
    """Let the processes that wait end; the last thing that the first one does."""
    if world() > 1:
        _share(None)


def _join() -> None:
    """Meet the other processes, once."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)


def _share(task: Any) -> Any:
    """What the first process has to say, on all of them."""
    import torch
    import torch.distributed

    _join()
    box = [task]
    torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]
