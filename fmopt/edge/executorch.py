"""Runs ExecuTorch programs (.pte, kernels of XNNPACK) with numpy, torch and executorch alone.

Bundles for ExecuTorch carry this module; their run.py works as everywhere.

An app on a phone opens the same model.pte by ExecuTorch's own C++, Java or Swift libraries: the inputs and outputs of its
method `forward` stand in fmopt.json, in their order, under `options`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgeError, last_line, need
from .host import ForkSafeLock

NAME = "executorch"
PACKAGES = "executorch torch"
README = """

`model.pte` holds the network for ExecuTorch with XNNPACK's kernels; its method `forward` takes and gives what fmopt.json
names under `options`, in that order. Apps on Android and iOS open it by ExecuTorch's own libraries."""
KINDS = {3: np.int32, 4: np.int64, 6: np.float32, 11: np.bool_}  # of PyTorch's ScalarType


class ExecuTorchRunner:
    """A program opened by ExecuTorch's own runtime. Options: "inputs" and "outputs", the names of what `forward` takes and gives.

    A batch larger than the program was made for runs in several. The number of threads is one of the whole process.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], threads: int) -> None:
        self.torch = need("torch", "torch")
        self.inputs, self.outputs = tuple(options["inputs"]), tuple(options["outputs"])
        with _without_chatter():
            library = need("executorch.extension.pybindings.portable_lib", "executorch")
            runtime = need("executorch.runtime", "executorch").Runtime.get()
            library._unsafe_reset_threadpool(threads)
            try:
                self.method = runtime.load_program(Path(path)).load_method("forward")
            except RuntimeError as error:
                raise EdgeError(f"{path}: ExecuTorch cannot open it: {last_line(error)}") from error
        metas = [self.method.metadata.input_tensor_meta(number) for number in range(len(self.inputs))]
        self.kinds = [KINDS[meta.dtype()] for meta in metas]
        self._lock = ForkSafeLock()  # a method has one memory for all its calls
        self.most = [tuple(meta.sizes()) for meta in metas]  # of each axis

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; inputs the program does not take are ignored. EdgeError for more tokens than it was made for."""
        missing = next((name for name in self.inputs if name not in inputs), None)
        if missing:
            raise EdgeError(f"the program wants input {missing!r}; it was given {', '.join(sorted(inputs))}")
        for name, most in zip(self.inputs, self.most, strict=True):
            shape = np.shape(inputs[name])
            if len(shape) != len(most) or any(size > limit for size, limit in zip(shape[1:], most[1:], strict=True)):
                raise EdgeError(f"the program takes {name} of up to {list(most)}; it was given {list(shape)}")
        rows = self.most[0][0]
        parts = [self._at_once(inputs, slice(at, at + rows)) for at in range(0, len(inputs[self.inputs[0]]), rows)]
        return {name: np.concatenate([part[n] for part in parts]) for n, name in enumerate(self.outputs)}

    def _at_once(self, inputs: Mapping[str, np.ndarray], rows: slice) -> list[np.ndarray]:
        feed = [
            self.torch.from_numpy(np.ascontiguousarray(inputs[name][rows], dtype=kind))
            for name, kind in zip(self.inputs, self.kinds, strict=True)
        ]
        # What it returns lies in memory that the next call writes to.
        with self._lock:
            return [output.float().numpy().copy() for output in self.method.execute(feed)]

    def close(self) -> None:
        """Forget the program."""
        self.method = None


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep what its libraries write about the processor and about kernels for GPUs off stderr, C++'s lines too."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def open_runner(path: Path, options: Mapping[str, Any], threads: int) -> ExecuTorchRunner:
    """A program opened by ExecuTorch's own runtime."""
    return ExecuTorchRunner(path, options, threads)
