"""What a sweep is asked for: a TOML file of models, targets and data, and how long to search in each cell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from fmopt.core.errors import ConfigError
from fmopt.core.plugins import did_you_mean
from fmopt.core.received import read_toml
from fmopt.core.results import Frozen
from fmopt.core.workload import Workload
from fmopt.evaluation.gate import Budget
from fmopt.workflow.job.request import Effort, Request

Objective = Literal["latency", "accuracy", "size"]
Sampler = Literal["tpe", "nsga2"]
BUDGET_KEYS = ("max_drop", "min_speedup", "max_latency", "max_size", "max_memory", "confidence", "accept_undecided")
NAME_LENGTH = 40  # characters that a part of a cell's name may have
# What may change from one call to the next in the same folder: more of the same search, not another one.
MAY_CHANGE = ("trials", "sampler", "minutes_per_cell", "cluster", "store")


class ModelEntry(Frozen):
    """A model, with what it needs beside the plan's lists: `data` of its own in place of the plan's."""

    model: str
    data: str | None = None
    task: str | None = None
    tokenizer: str | None = None
    columns: dict[str, str] | None = None


class SweepPlan(Frozen):
    """The cells of a sweep are all models × targets × data. Paths are those of the working directory."""

    models: tuple[ModelEntry, ...] = Field(min_length=1)
    targets: tuple[str, ...] = Field(("host",), min_length=1)
    data: tuple[str, ...] = ()  # none: a known model's own
    trials: int = Field(40, ge=1)  # recipes tried in each cell, those of the fixed plan among them
    sampler: Sampler = "tpe"
    objectives: tuple[Objective, ...] = Field(("latency", "accuracy", "size"), min_length=1)
    effort: Effort = "quick"
    minutes_per_cell: float | None = Field(None, gt=0)
    seed: int = Field(0, ge=0, lt=2**32)
    budget: Budget = Budget()
    workload: Workload = Workload()
    store: str | None = None
    cluster: str | None = None

    @field_validator("models", mode="before")
    @classmethod
    def _names_are_models(cls, given: Any) -> Any:
        return [{"model": one} if isinstance(one, str) else one for one in given] if isinstance(given, list) else given

    @field_validator("budget", mode="before")
    @classmethod
    def _in_words(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not set(given) <= set(BUDGET_KEYS):
            return given
        return Budget.parse(**{name: _word(value) for name, value in given.items()})

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, given: tuple[Objective, ...]) -> tuple[Objective, ...]:
        return tuple(dict.fromkeys(given))


class Place(Frozen):
    """One cell: a model for a target, on data. `name` is its folder."""

    name: str
    entry: ModelEntry
    target: str
    data: str | None


def read_plan(path: Path) -> SweepPlan:
    """A plan from a TOML file; ConfigError for what is not one, in a line that names the key.

    ```toml
    models = ["./reviews-bert", "minilm"]
    targets = ["host"]
    data = ["reviews.csv"]
    trials = 60
    [budget]
    max_drop = "1pt"
    ```
    """
    if not path.is_file():
        raise ConfigError(f"there is no plan {path}; docs/sweep.md shows one")
    return read_toml(path, "a plan of a sweep", lambda content: _plan(path, content))


def _plan(path: Path, content: Mapping[str, Any]) -> SweepPlan:
    if not content.get("models"):
        raise ConfigError(f'{path} names no models; give some: models = ["minilm"]')
    known: dict[str, tuple[str, ...]] = {
        "": tuple(SweepPlan.model_fields),
        "budget": BUDGET_KEYS,
        "workload": tuple(Workload.model_fields),
    }
    for table, keys in known.items():
        given = content if not table else content.get(table, {})
        for key in given if isinstance(given, dict) else ():
            if key not in keys:
                where = f" in [{table}]" if table else ""
                raise ConfigError(f"{path} has a key {key!r}{where} that a plan does not have{did_you_mean(key, keys)}")
    return SweepPlan(**content)


def places(plan: SweepPlan) -> list[Place]:
    """All cells, models first; those of one name get a number."""
    found: list[Place] = []
    for entry, target in product(plan.models, plan.targets):
        for data in (entry.data,) if entry.data is not None else plan.data or (None,):
            name = "-".join(_part(one) for one in (entry.model, target, data) if one is not None)
            same = sum(one.name == name or one.name.startswith(f"{name}~") for one in found)
            found.append(Place(name=f"{name}~{same + 1}" if same else name, entry=entry, target=target, data=data))
    return found


def request_of(plan: SweepPlan, place: Place, out: Path, command: str) -> Request:
    """What `optimize` would be asked for in a cell; all cells share their stages."""
    entry = place.entry
    return Request(
        model=entry.model,
        target=place.target,
        data=place.data,
        task=entry.task,
        tokenizer=entry.tokenizer,
        columns=entry.columns,
        effort=plan.effort,
        budget=plan.budget,
        workload=plan.workload,
        time_limit_s=None if plan.minutes_per_cell is None else 60 * plan.minutes_per_cell,
        seed=plan.seed,
        out=out / place.name,
        stages=out / "stages",
        store=plan.store,
        cluster=plan.cluster,
        command=command,
    )


def same_search(one: SweepPlan, other: SweepPlan) -> bool:
    """Whether one goes on with the search of the other: only how long, how, or where may differ."""
    return one.model_dump(exclude=set(MAY_CHANGE)) == other.model_dump(exclude=set(MAY_CHANGE))


def _part(text: str) -> str:
    """A model, target or data set as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", Path(text).name).strip("-.")[:NAME_LENGTH] or "unnamed"


def _word(value: Any) -> Any:
    """`8` where a text is wanted is what was meant by "8"."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool | float) else value
