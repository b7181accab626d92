"""What a sweep found: a cell for each model, target and data, and every recipe that was tried there. It is JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from fmopt.core.errors import BundleError, first_fault
from fmopt.core.received import record_bytes
from fmopt.core.results import Estimate, Frozen, HostFacts, Verdict
from fmopt.core.stages.store import write_whole
from fmopt.workflow.sweep.plan import Place, SweepPlan

FILE = "sweep.json"


class Tried(Frozen):
    """One recipe in one cell; its drop is in the cell's unit."""

    name: str
    runtime: str
    precision: str
    steps: list[str]
    status: Literal["measured", "stopped early", "failed", "refused"]
    reason: str = ""
    planned: bool = False  # whether the fixed plan has it
    baseline: bool = False
    front: bool = False  # no other is at least as good in latency, accuracy and size, and better in one
    p50_ms: float | None = (
        None  # on the reference's clock (see `on_one_clock`), or, where the device is not here, predicted
    )
    speedup: Estimate | None = None
    drop: Estimate | None = None  # on validation
    size_bytes: int | None = None


class Cell(Frozen):
    """One model for one target on one data set: what was tried, chosen and judged."""

    place: Place
    title: str  # of the model
    target: str
    data: str
    unit: str  # of drops: "pt" or "%"
    reference: str  # the fastest full-precision variant
    winner: str
    planned: (
        str | None
    )  # what the fixed plan alone would have chosen among its candidates; None: none of them kept its accuracy
    ahead: Estimate | None  # how many times as fast as that the winner is; None where they are one, or were not timed
    verdict: Verdict
    test_drop: Estimate | None  # of the winner, which alone was asked for the test split
    speedup: Estimate | None
    looked_at: int  # recipes, beyond the plan's, that the winner was chosen from
    sentence: str  # what the sweep found beside the fixed plan
    tried: list[Tried]
    minutes: float  # of all runs of it
    predicted: bool = False  # times are predictions: the device is not here
    warnings: list[str] = Field(default_factory=list)

    def find(self, name: str) -> Tried | None:
        """The recipe of that name."""
        return next((one for one in self.tried if one.name == name), None)

    @property
    def front(self) -> list[Tried]:
        """The Pareto front, fastest first."""
        return sorted((one for one in self.tried if one.front), key=lambda one: one.p50_ms or 0.0)

    def count(self, status: str) -> int:
        """How many recipes, baselines aside, came to that."""
        return sum(one.status == status for one in self.tried if not one.baseline)


class Failure(Frozen):
    """A cell that came to nothing, and why."""

    place: Place
    reason: str


class Sweep(Frozen):
    """The whole of it; the only thing its page reads."""

    fmopt: str
    command: str
    plan: SweepPlan
    places: list[Place]  # all that was asked for, in order
    cells: list[Cell]  # those that are done
    failures: list[Failure] = Field(default_factory=list)
    host: HostFacts
    versions: dict[str, str]
    date: str

    def save(self, folder: Path) -> Path:
        """Write as JSON; it is whole or not there. StoreError when it cannot be written."""
        return write_whole(folder / FILE, self.model_dump_json())

    @classmethod
    def load(cls, folder: Path) -> Sweep:
        """Read the `sweep.json` of a folder; BundleError when it is absent or damaged."""
        path = folder / FILE
        if not path.is_file():
            raise BundleError(f"there is no sweep at {path}; name a folder that `fmopt sweep` wrote")
        try:
            return cls.model_validate_json(record_bytes(path))
        except ValidationError as error:
            raise BundleError(
                f"{path} is damaged at {first_fault(error)}; remove it, trials are kept beside it"
            ) from error
