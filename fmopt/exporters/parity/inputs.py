"""Does a bundle answer as the checkpoint's own pipeline does, from what a user gives to what a user reads?

The graph is compared with its network elsewhere (`graph`), on inputs that fmopt made; this compares the way to these inputs
and the way from outputs to answers with an independent reference: transformers' own tokenizer with the checkpoint's settings,
and what sentence-transformers or transformers' pipelines make of the network's outputs. Samples are items of the data, and
probes that are made for trouble.

Each modality has one function that yields differences, a line each; the first is the reason of a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmopt.core.errors import ParityError
from fmopt.core.model import CheckpointMetadata, Runner, generates
from fmopt.exporters.parity.generation import generated_text_differences, heard_differences
from fmopt.exporters.parity.media import audio_differences, image_differences
from fmopt.exporters.parity.text import text_differences

ITEMS = 8  # of the data


@dataclass(frozen=True)
class Served:
    """What a bundle would answer by: an opened graph in full precision, and what encodes samples for it."""

    metadata: CheckpointMetadata
    preprocessor: Any
    runner: Runner


# (what is served, a torch network in eval mode, samples) -> differences
Differences = Callable[[Any, Any, Sequence[Any]], Iterator[str]]
DIFFERENCES: Mapping[str, Differences] = {
    "text": text_differences,
    "image": image_differences,
    "audio": audio_differences,
}
OF_GENERATED: Mapping[str, Differences] = {"text": generated_text_differences, "audio": heard_differences}


def require_input_parity(served: Served, net: Any, samples: Sequence[Any]) -> None:
    """ParityError that names the first difference between what would be served and what the checkpoint's own pipeline gives."""
    kinds = OF_GENERATED if generates(served.metadata.pipeline) else DIFFERENCES
    differences = kinds.get(served.metadata.modality)
    if differences is None:
        return
    first = next(iter(differences(served, net, samples[:ITEMS])), None)
    if first is not None:
        raise ParityError(
            f"{served.metadata.source.title} would be served otherwise than it is by its own pipeline: {first}"
        )
