"""Plain results: what was scored, timed and decided. Everything here is JSON and holds raw values, not summaries."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from fmopt.core import formatting, notebook

# measurement.host_probe.host_fingerprint(), also one that was received
HostFacts = dict[str, str | int | float | list[str] | None]


class Frozen(BaseModel):
    """A value: immutable, no unknown fields."""

    # JSON has no infinity, and the bound of a ratio can be infinite: it is written as the string "Infinity"
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Outcome(StrEnum):
    """What a check came to. UNMEASURED never counts as a pass."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"
    UNMEASURED = "UNMEASURED"


class Estimate(Frozen):
    """A number with its interval. For a one-sided bound, `low` or `high` is that bound and the other the mirror one."""

    point: float
    low: float
    high: float


class MetricValue(Estimate):
    """A metric on some items: its value with a two-sided interval."""

    items: int
    primary: bool = False  # the one that judges


class Scores(Frozen):
    """One metric on one split: a row of numbers for every item, from which the metric is computed (see metrics.py).

    `metric` is the name of a formula in `metrics.METRICS` ("mean", "micro_f1", "spearman", "perplexity", …); `name` is what
    people call it ("accuracy", "MRR@10"). `values` is n items × k columns; of an image's boxes each row has as many as
    there are boxes, and shorter rows count as filled up with 0.
    """

    name: str
    metric: str
    values: list[list[float]]
    primary: bool = False  # the one the budget's drop is judged by
    against_baseline: bool = False  # a fidelity: computed against the baseline's own predictions, not labels

    def array(self, width: int = 0) -> np.ndarray:
        """The values as float64, shape (n, k), at least `width` columns."""
        widest = max(width, *map(len, self.values)) if self.values else width
        if all(len(row) == widest for row in self.values):
            return np.asarray(self.values, dtype=np.float64).reshape(len(self.values), -1)
        return np.array([row + [0.0] * (widest - len(row)) for row in self.values], dtype=np.float64)

    def paired(self, other: Scores) -> tuple[np.ndarray, np.ndarray]:
        """The values of both, equally wide."""
        ours, theirs = self.array(), other.array()
        return self.array(theirs.shape[1]), other.array(ours.shape[1])


class Latency(Frozen):
    """Raw samples of one runner at one shape, taken in turn with the others of its round."""

    samples_ms: list[float]
    batch: int
    length: int | None  # None: the data's own lengths
    threads: int
    end_to_end: bool = False  # True: tokenizer and post-processing included


class UnderLoad(Frozen):
    """Queries that arrived at a rate, each timed from its arrival to its answer."""

    rate: float  # queries/s that were asked for
    limit_ms: float  # that 99 % of them are to keep
    samples_ms: list[float]  # fewer than there were queries where the limit was certain to be missed
    met: bool
    highest_rate: float  # at which the limit was kept, as far as was tried; 0 where at none


class Footprint(Frozen):
    """Peak memory and load time, measured in a fresh process that only serves the artifact."""

    peak_memory_mb: float
    load_ms: float


class Check(Frozen):
    """One line of the budget and what came of it."""

    name: str  # "accuracy drop", "speedup", "latency", "size", "memory"
    outcome: Outcome
    limit: float | None = None
    got: Estimate | None = None
    unit: str = ""
    note: str = ""  # plain words: what would decide it, why it could not be measured


class Verdict(Frozen):
    """All checks of a budget; the worst one decides."""

    checks: list[Check] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _without_outcome(cls, data: Any) -> Any:
        # It is written for those who read the JSON, and found from the checks again.
        return {name: value for name, value in data.items() if name != "outcome"} if isinstance(data, dict) else data

    @computed_field  # type: ignore[prop-decorator]
    @property
    def outcome(self) -> Outcome:
        """FAIL beats UNMEASURED beats UNDECIDED beats PASS."""
        got = {check.outcome for check in self.checks}
        for worst in (Outcome.FAIL, Outcome.UNMEASURED, Outcome.UNDECIDED):
            if worst in got:
                return worst
        return Outcome.PASS if got else Outcome.UNMEASURED

    def _repr_html_(self) -> str:
        rows = []
        for check in self.checks:
            got = formatting.quantity(None if check.got is None else check.got.point, check)
            limit = formatting.quantity(check.limit, check)
            rows.append((check.name, check.outcome.value, got, formatting.check_interval(check), limit, check.note))
        return notebook.view(self.outcome.value, ("check", "", "measured", "interval", "limit", "note"), rows)


class Parity(Frozen):
    """How far an exported graph is from the torch model on real items."""

    max_abs: float
    cosine: float  # the smallest over items and outputs
    tolerance: float  # of outputs around one
    size: float = 1.0  # of the outputs, where they are larger: the tolerance is a share of it
    passed: bool
    first_diverging_layer: str | None = None


class OpTime(Frozen):
    """Time of one operator of a running graph, read off the runtime's own profile."""

    name: str
    kind: str  # MatMulInteger, LayerNormalization, …
    ms: float
    precision: str = ""  # "int8", "fp32", … as far as the runtime says
    layer: str = ""  # the torch module it came from, where the graph says
    operations: float | None = None  # a multiply-add is two; None where the runtime does not tell the shapes
    bytes: float | None = None  # read and written, every operand and result once


class Sensitivity(Frozen):
    """What one group of Linears costs in accuracy when it is quantized, and in speed when it is not."""

    group: tuple[str, ...]  # Linears that read one tensor
    damage: float  # distance of the outputs to the float network's with only this group quantized
    cost: float  # its share of the multiplications of all groups


class Finding(Frozen):
    """One reason why a variant is not faster, with its share of the time and what would change it."""

    text: str
    share: float | None = None
    remedy: str = ""
    kind: str = ""  # a stable word for programs: "conversions", "threads", … (docs/explain.md lists them)


class Circumstances(Frozen):
    """Where and how something was measured."""

    host: HostFacts
    versions: dict[str, str]
    threads: int
    batch: int
    length: int | None
    seed: int
    date: str
    warnings: list[str] = Field(default_factory=list)
