"""Tiny networks with their facts, and items to run them on, for tests of export, calibration and passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.model import Inputs
from fmopt.core.target import Target
from fmopt.edge.parts import Sample
from fmopt.edge.text import Preprocessor
from fmopt.models import checkpoint
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from fmopt.passes.base import Context
from tests.conftest import SENTENCES

HOST = {"title": "test", "kind": "cpu", "arch": "x86_64", "cores": 1, "memory_gb": 1.0, "runtimes": ("onnxruntime",)}


def target(**metadata: object) -> Target:
    """A CPU that computes in int8 and, unless told so, saturates in 16 bits."""
    return Target.model_validate({"name": "test", **HOST, "precisions": ("fp32", "int8"), **metadata})


def model_of(folder: Path, task: str | None = None) -> TorchModel:
    """The checkpoint in `folder`, loaded."""
    return checkpoint.load(checkpoint.inspect(resolve(str(folder)), task=task))


def items_of(model: TorchModel, texts: Sequence[Sample] = SENTENCES) -> list[Inputs]:
    """`texts` as a calibration stream gives them: one a batch, at its own length."""
    preprocessor = Preprocessor(checkpoint.tokenizer_file(model.metadata), dict(model.metadata.pipeline))
    return [dict(preprocessor.encode([text]).inputs) for text in texts]


def padded(model: TorchModel, rows: int = 3) -> Inputs:
    """One batch of texts of different lengths."""
    preprocessor = Preprocessor(checkpoint.tokenizer_file(model.metadata), dict(model.metadata.pipeline))
    return dict(preprocessor.encode(list(SENTENCES[:rows])).inputs)


def context_of(model: TorchModel, scratch: Path | None = None, **metadata: object) -> Context:
    """A context that calibrates on SENTENCES."""
    items = items_of(model)
    stream: Callable[[], Iterator[Inputs]] = lambda: iter(items)  # noqa: E731
    return Context(metadata=model.metadata, target=target(**metadata), calibration=stream, scratch=scratch)


@dataclass
class InTorch:
    """A runner that is the network itself."""

    net: Any
    outputs: Any

    def run(self, inputs: Any) -> dict[str, Any]:
        from fmopt.exporters.parity.graph import torch_outputs

        return torch_outputs(self.net, inputs, self.outputs)


def outputs_of(model: TorchModel, inputs: Inputs) -> np.ndarray:
    """The network's first output."""
    from fmopt.exporters.parity.graph import torch_outputs

    name = model.metadata.pipeline["outputs"][0]
    return torch_outputs(model.net, inputs, [name])[name]
