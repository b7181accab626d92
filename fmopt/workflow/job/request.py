"""What the user asks for, as one checked value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fmopt.core.recipe import Recipe
from fmopt.core.results import Frozen
from fmopt.core.workload import Workload
from fmopt.evaluation.gate import Budget
from fmopt.workflow.job.given import ReadingOptions, data_path, model_path, require_options, tokenizer_folder

if TYPE_CHECKING:
    from fmopt.workflow.job.given import Data, Model

Effort = Literal["quick", "standard", "max"]


STEPS, BATCH = 3_000, 32  # of a distillation at least: small data is seen more often, 3 to 30 times


class Training(Frozen):
    """What training effort "max" may use beside the data's train split.

    >>> fmopt.Training(epochs=2).epochs
    2.0
    """

    teacher: str | None = None  # a checkpoint to learn from instead of the baseline
    unlabelled: str | None = None  # a file of texts without labels
    epochs: float | None = Field(None, gt=0)  # of each distillation; None: enough for `STEPS` steps

    def over(self, rows: int) -> Training:
        """With epochs that fit so many rows."""
        if self.epochs is not None:
            return self
        return self.model_copy(update={"epochs": float(min(max(math.ceil(STEPS * BATCH / max(rows, 1)), 3), 30))})


class RunOptions(ReadingOptions, total=False):
    """What says how a run goes about it, not what is asked for; fields of `Request`, and what reads a live network's samples."""

    on: str | None  # ssh://… of the board that it is for and timed on
    clean: bool  # leave nothing there
    time_limit_s: float | None
    cluster: str | None  # ray://HOST:PORT, auto or local:N: where candidates are built, scored and timed
    store: str | None  # a folder, file:// or s3:// URL of stages that several runs share
    fresh: bool  # forget finished stages
    keep_stages: bool  # also those that nothing reads once the bundle is written
    max_calibration_memory: int  # bytes
    golden: str  # what a bundle's self-test holds: "data", "none", "synthetic", or a data file
    items: bool  # whether records and reports show items of the data
    dequantize: bool  # of a model that is an ONNX graph: fold its Q/DQ pairs into weights in fp32, to start again
    command: str  # how the record says that it was asked for


class Asked(RunOptions, total=False):
    """The keywords of `optimize`."""

    data: Data | None
    task: str | None
    target: str
    budget: Budget | None
    workload: Workload | None
    effort: Effort
    training: Training | None
    recipe: str | Path | Recipe | None
    out: str | Path
    seed: int


class Request(Frozen):
    """What the user asked for, in the words of the command."""

    model: str
    target: str = "host"
    data: str | None = None
    task: str | None = None
    tokenizer: str | None = (
        None  # of a model that is an ONNX graph: the folder of its tokenizer, or that tokenizer.json
    )
    dequantize: bool = False  # of such a one that came quantized: fold its Q/DQ pairs into fp32 weights, to start again
    columns: dict[str, str] | None = None
    effort: Effort = "quick"
    training: Training = Training()
    budget: Budget = Budget()
    workload: Workload = Workload()
    on: str | None = None  # ssh://… of the board that it is for and timed on
    clean: bool = False  # leave nothing there
    recipe: Path | Recipe | None = None
    slower: tuple[float, ...] = ()  # speedups of its family that are made before it: trained pruning goes by them
    time_limit_s: float | None = None
    seed: int = 0
    out: Path = Path("fmopt-out")
    stages: Path | None = None  # where finished stages are kept; None: in `out`
    cluster: str | None = None  # ray://HOST:PORT, auto or local:N: where candidates are built, scored and timed
    store: str | None = None  # a folder, file:// or s3:// URL of stages that several runs share
    fresh: bool = False
    keep_stages: bool = False  # also those that nothing reads once the bundle is written
    allow_pickle: bool = False
    max_calibration_memory: int = 1 << 30
    command: str = ""
    golden: str = "data"  # what a bundle's self-test holds: "data", "none", "synthetic", or a data file
    items: bool = True  # whether records and reports show items of the data

    @property
    def stages_folder(self) -> Path:
        """Where finished stages are kept."""
        return self.stages or self.out / "stages"


def make_request(model: Model | Request, asked: Mapping[str, Any]) -> Request:
    """What was asked for, as a value: live networks and data are written to the cache, and named by where they lie there.

    ConfigError or DataError for what cannot be handed over, and for a keyword that there is not.
    """
    if isinstance(model, Request):
        return model.model_copy(update=dict(asked))
    known = {*Request.model_fields, "tokenizer", "processor"}
    require_options(asked, known)
    reader = asked.get("tokenizer")
    path = model_path(model, reader, asked.get("processor"))
    given = {name: value for name, value in asked.items() if value is not None and name in Request.model_fields}
    given |= {"tokenizer": tokenizer_folder(model, reader)}
    return Request(**{**given, "model": path, "data": data_path(asked.get("data"))})
