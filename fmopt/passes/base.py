"""What a pass is: a frozen configuration that answers for itself and makes a new model or graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from fmopt.core import plugins
from fmopt.core.model import CheckpointMetadata, Graph, Inputs
from fmopt.core.recipe import Step
from fmopt.core.target import Target
from fmopt.models.loading import TorchModel
from fmopt.training.examples import Example


class NetworkTimer(Protocol):
    """Times networks where a recipe will run them."""

    @property
    def key(self) -> str:
        """Identifies device, runtime, precision, batch, length and threads."""

    def __call__(self, networks: Mapping[str, Callable[[], TorchModel]]) -> dict[str, float]:
        """Median milliseconds of every network, timed in turn; each is made, built and forgotten one after the other."""


@dataclass(frozen=True)
class Context:
    """What a pass may know: data to calibrate on, the device, limits. It holds no state between passes."""

    metadata: CheckpointMetadata
    target: Target
    calibration: Callable[[], Iterator[Inputs]]  # a fresh stream of encoded items, batch 1, their own lengths
    seed: int = 0
    memory_cap_bytes: int = 1 << 30  # for calibration statistics
    scratch: Path | None = None  # a folder for what two candidates share (calibration statistics)
    progress: Callable[[str], None] = lambda text: None
    examples: Callable[[], Sequence[Example]] = tuple  # the train split, encoded, with labels where its rows have them
    teacher: Callable[[str | None], TorchModel] | None = None  # the baseline, or the checkpoint named, loaded anew
    deadline: float | None = None  # time.monotonic() at which training stops, to be gone on with by the same command
    timer: NetworkTimer | None = (
        None  # times networks where the recipe will run them; only passes that are `priced` get one
    )


@runtime_checkable
class TorchPass(Protocol):
    """A pass on the network in PyTorch."""

    stage: ClassVar[Literal["torch"]]

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Why this pass cannot be used on this model for this target; None when it can."""

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """A new model; the one given may be changed in place and must not be used after."""


@runtime_checkable
class GraphPass(Protocol):
    """A pass on an exported graph."""

    stage: ClassVar[Literal["graph"]]
    format: ClassVar[Literal["onnx", "openvino"]]

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Why this pass cannot be used on this model for this target; None when it can."""

    def apply(self, graph: Graph, ctx: Context, out: Path) -> Graph:
        """Write a new graph into the folder `out`; the one given stays as it is."""


@dataclass(frozen=True)
class Traits:
    """What a pass says of itself, by class attributes of these names; one that it does not have is as here."""

    leaves_checkpoint: bool = False  # whether it makes a network that can be saved, loaded and trained further
    priced: bool = False  # whether it makes what it makes by timing networks on the recipe's runtime
    rounds_products: bool = (
        False  # whether products are computed in 8 bits, so that training can learn how to round them (qat)
    )
    rounds_head: bool = False  # whether it does so to a head too, which training leaves alone
    only_weights: bool = False  # whether only weights are narrow, and products are computed in floats
    calibrates: bool = False  # whether it needs data for ranges
    decides_kernels: bool = False  # of a pass on the network: whether it decides which kernels run
    bytes_left: tuple[float, float] = (1.0, 1.0)  # what it leaves of the bytes of (lookup tables, everything else)
    timed_as: Step | None = None  # a cheaper pass that leads to the same kernels
    partly: str = (
        ""  # the pass that takes the same options, and `groups`: how many of the most sensitive ones stay in floats
    )


def traits_of(step: Step) -> Traits:
    """What the pass of a step says of itself."""
    kind = plugins.find("passes", step.use)
    said: dict[str, Any] = {one.name: getattr(kind, one.name) for one in fields(Traits) if hasattr(kind, one.name)}
    return Traits(**said)
