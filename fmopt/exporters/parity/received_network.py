"""A received graph, run by ONNX Runtime as it came, in the place of a torch network that graphs are compared with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fmopt.core.model import CheckpointMetadata, Inputs
from fmopt.edge.runners import OnnxRuntimeRunner
from fmopt.models.loading import TorchModel


class ReceivedNetwork:
    """Answers as the received graph does, by the names that its task has for what it gives, with what comparisons ask of a
    network of transformers: `config`, `forward`, the table of words."""

    def __init__(self, metadata: CheckpointMetadata, threads: int) -> None:
        graph = metadata.graph
        assert graph is not None
        self.inputs, self.outputs = dict(graph.inputs), dict(graph.outputs)
        self.runner = OnnxRuntimeRunner(graph.path, {}, threads)
        labels = dict(enumerate(metadata.pipeline.get("labels") or ()))
        types = 2 if "token_type_ids" in graph.inputs else 0
        token_types = int(metadata.config.get("type_vocab_size") or types)
        self.config = SimpleNamespace(id2label=labels, type_vocab_size=token_types)
        self._rows = graph.words

    def forward(
        self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, position_ids: Any = None
    ) -> dict[str, Any]:
        """Outputs by name, of tensors [batch, tokens]; types that are not given are 0, positions are counted from 0."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
                 "position_ids": position_ids}  # fmt: skip
        return self._run({name: np.asarray(value) for name, value in given.items() if value is not None})

    def __call__(self, **inputs: Any) -> Any:
        """As `forward`, with attributes as a network of transformers has them."""
        return Outputs(self.forward(**inputs))

    def get_input_embeddings(self) -> Any:
        """Something with a `weight` of as many rows as there are words."""
        return SimpleNamespace(weight=np.empty((self._rows, 0)))

    def close(self) -> None:
        """Give back memory."""
        self.runner.close()

    def _run(self, inputs: Inputs) -> dict[str, Any]:
        import torch

        shape = inputs["input_ids"].shape
        made = {
            "attention_mask": np.ones(shape, np.int64), "token_type_ids": np.zeros(shape, np.int64),
            "position_ids": np.broadcast_to(np.arange(shape[1]), shape),
        } | dict(inputs)  # fmt: skip
        got = self.runner.run({own: made[known] for known, own in self.inputs.items()})
        return {known: torch.from_numpy(np.asarray(got[own])) for known, own in self.outputs.items()}


class Outputs(dict[str, Any]):
    """Outputs by name and as attributes; one that there is not is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


def received_network(metadata: CheckpointMetadata, threads: int) -> TorchModel:
    """The received graph as what graphs are compared with."""
    net: Any = ReceivedNetwork(metadata, threads)
    return TorchModel(net=net, metadata=metadata, family=None)
