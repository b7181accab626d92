"""What the user asks for, as one checked value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from fmopt.core.errors import ConfigError
from fmopt.core.results import Frozen
from fmopt.evaluation.gate import Budget
from fmopt.measurement import host_probe


def make_request(
    model: str | Path,
    *,
    target: str,
    data: str | Path | None,
    task: str | None,
    columns: Mapping[str, str] | None,
    effort: Effort,
    training: Training | None,
    budget: Budget | None,
    batch: int,
    length: int | Literal["from-data"],
    threads: int | Literal["all"],
    recipe: str | Path | None,
    time_limit_s: float | None,
    seed: int,
    out: str | Path,
    fresh: bool,
    allow_pickle: bool,
    max_calibration_memory: int,
    on: str | None = None,
    clean: bool = False,
    command: str,
) -> Request:
    """The words of the call as a checked value."""
    for name, value in (("batch", batch), ("length", length), ("threads", threads)):
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if on is not None and threads == "all":
        raise ConfigError("--threads all is about this machine; with --on say how many of the board's cores")
    return Request(
        model=str(model),
        target=target,
        data=None if data is None else str(data),
        task=task,
        columns=dict(columns) if columns else None,
        effort=effort,
        training=training or Training(),
        budget=budget or Budget(),
        batch=batch,
        length=None if length == "from-data" else length,
        threads=host_probe.cores() if threads == "all" else threads,
        recipe=Path(recipe) if recipe else None,
        time_limit_s=time_limit_s,
        seed=seed,
        out=Path(out),
        fresh=fresh,
        allow_pickle=allow_pickle,
        max_calibration_memory=max_calibration_memory,
        on=on,
        clean=clean,
        command=command,
    )


Effort = Literal["quick", "standard", "max"]


STEPS, BATCH = 3_000, 32  # of a distillation at least: small data is seen more often, 3 to 30 times


class Training(Frozen):
    """What training effort "max" may use beside the data's train split."""

    teacher: str | None = None  # a checkpoint to learn from instead of the baseline
    unlabelled: str | None = None  # a file of texts without labels
    epochs: float | None = Field(None, gt=0)  # of each distillation; None: enough for `STEPS` steps

    def over(self, rows: int) -> Training:
        """With epochs that fit so many rows."""
        if self.epochs is not None:
            return self
        return self.model_copy(update={"epochs": float(min(max(math.ceil(STEPS * BATCH / max(rows, 1)), 3), 30))})


class Request(Frozen):
    """What the user asked for, in the words of the command."""

    model: str
    target: str = "host"
    data: str | None = None
    task: str | None = None
    columns: dict[str, str] | None = None
    effort: Effort = "quick"
    training: Training = Training()
    budget: Budget = Budget()
    batch: int = 1
    length: int | None = 128  # tokens; None: the data's own lengths
    threads: int = 1
    on: str | None = None  # ssh://… of the board that it is for and timed on
    clean: bool = False  # leave nothing there
    recipe: Path | None = None
    slower: tuple[float, ...] = ()  # speedups of its family that are made before it: trained pruning goes by them
    time_limit_s: float | None = None
    seed: int = 0
    out: Path = Path("fmopt-out")
    stages: Path | None = None  # where finished stages are kept; None: in `out`
    fresh: bool = False
    keep_stages: bool = False  # also those that nothing reads once the bundle is written
    allow_pickle: bool = False
    max_calibration_memory: int = 1 << 30
    command: str = ""

    @property
    def stages_folder(self) -> Path:
        """Where finished stages are kept."""
        return self.stages or self.out / "stages"
