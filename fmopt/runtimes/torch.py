"""PyTorch eager: what a user has before anything is done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmopt import generation, lookup, seq2seq
from fmopt.edge_seq2seq import SOURCE_MASK
from fmopt.errors import PassError
from fmopt.lookup import did_you_mean
from fmopt.model import Artifact, CheckpointFacts, Graph
from fmopt.results import OpTime
from fmopt.runtimes.base import Runner
from fmopt.structure import load_network
from fmopt.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

PROFILED_RUNS, WARM_UP_RUNS = 12, 3
DTYPES = ("fp32", "bf16")
OPTIONS = ("auto_class", "dtype")


class Torch:
    """Runs the checkpoint as it is. Options: `dtype` "fp32" (default) or "bf16"; `auto_class`, found from the task."""

    name = "torch"
    format = "torch"
    opening: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """None when the package is installed."""
        return None if find_spec("torch") else "torch is not installed: pip install torch"

    def refusal(self, target: Target, options: Mapping[str, Any]) -> str | None:
        """A runtime, option or precision the target does not have."""
        if self.name not in target.runtimes:
            return f"{target.name} has no runtime {self.name!r}; it has {', '.join(target.runtimes)}"
        unknown = next((name for name in options if name not in OPTIONS), None)
        if unknown:
            return f"{self.name} has no option {unknown!r}{did_you_mean(unknown, OPTIONS)}"
        dtype = options.get("dtype", "fp32")
        if dtype not in DTYPES:
            return f"{self.name} has no dtype {dtype!r}{did_you_mean(str(dtype), DTYPES)}"
        return None if dtype in target.precisions else f"{target.name} does not compute in {dtype}"

    def build(self, source: Graph | CheckpointFacts, options: Mapping[str, Any], out: Path) -> Artifact:
        """The checkpoint's own folder; nothing is written."""
        if isinstance(source, Graph):
            raise PassError(f"{self.name} runs a checkpoint, not a graph; choose onnxruntime or openvino for passes")
        facts = {"auto_class": lookup.find("tasks", source.task).auto_class, "dtype": "fp32", **options}
        return Artifact(self.name, source.folder, facts)

    def open(self, artifact: Artifact, threads: int) -> Runner:
        """The network in eager mode."""
        return TorchRunner(artifact, threads)

    def profile(self, artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int) -> Sequence[OpTime]:
        """Milliseconds per kind of operator and run (mean; the profiler of torch keeps no more), slowest first."""
        import torch

        runner = TorchRunner(artifact, threads)
        for _ in range(WARM_UP_RUNS):
            runner.run(inputs)
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # its library reports every start and stop on stderr
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(PROFILED_RUNS):
                runner.run(inputs)
        precision = str(artifact.options.get("dtype", "fp32"))
        times = [
            OpTime(
                name=entry.key,
                kind=entry.key.removeprefix("aten::"),
                ms=entry.self_cpu_time_total / 1000 / PROFILED_RUNS,
                precision=precision,
            )
            for entry in profiler.key_averages()
        ]
        return sorted((op for op in times if op.ms > 0), key=lambda op: -op.ms)


class TorchRunner:
    """A network in inference mode. The number of threads is a setting of the whole process: it is set for each run."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        options = artifact.options
        self.net: Any = load_network(artifact.path, str(options["auto_class"]), str(options.get("dtype", "fp32")))
        self.threads = threads
        self.halves = seq2seq.Halves(self.net) if seq2seq.has_halves(self.net) else None
        self.names = _input_names(self.net) | {SOURCE_MASK}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, as fp32; inputs the network does not take are ignored."""
        import torch

        if self.halves is not None:
            with _threads(self.threads):
                return self.halves.run({name: inputs[name] for name in inputs if name in self.names or "." in name})
        feed: dict[str, Any] = {
            name: torch.from_numpy(np.asarray(inputs[name])) for name in inputs if name in self.names
        }
        feed = {name: given.to(self.net.dtype) if given.is_floating_point() else given for name, given in feed.items()}
        with _threads(self.threads), torch.inference_mode():
            if past := generation.cache_of(inputs, self.net.dtype):
                feed["past_key_values"] = past
            outputs = self.net(**feed, return_dict=True)
        found = {name: value.float().numpy() for name, value in outputs.items() if isinstance(value, torch.Tensor)}
        return found | generation.cache_tensors(outputs.get("past_key_values"))

    def close(self) -> None:
        """Forget the network."""
        self.net = None


@contextmanager
def _threads(wanted: int) -> Iterator[None]:
    import torch

    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    yield


def _input_names(net: Any) -> frozenset[str]:
    import inspect

    return frozenset(inspect.signature(net.forward).parameters)


RUNTIME = Torch()
