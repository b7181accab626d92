"""Whether a GGUF file that was written is the network that it was made of: weights, logits and tokens, read by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmopt.core.errors import ParityError
from fmopt.edge.text import open_preprocessor
from fmopt.models.gguf.checkpoint_folder import read_network
from fmopt.models.gguf.header import read_header
from fmopt.models.gguf.layout import dimensions_of
from fmopt.models.gguf.tokenizer import tokenizer_of
from fmopt.models.loading import TorchModel

# By how much a matrix may have moved, as a share of its own length (Frobenius): that of rounding, with room. A matrix whose rows
# are in another order moves by more than its length.
MOST_MOVED: Mapping[str, float] = {"fp32": 0.0, "fp16": 1e-3, "bf16": 5e-3, "int8": 0.02, "int4": 0.25}
TOLERANCE = 1e-4  # of logits, as a share of the largest
LONGEST = 64  # tokens of a text that is compared
PROBES = (
    "",
    "It's 3.14159 or 12,345?  Two  blanks,\n\n\ttabs",
    "naïve café, Ünïcödé, 日本語, 🙂",
    "def f(x): return x**2 # done\r\n",
)


def require_same(path: Path, model: TorchModel, texts: Sequence[str], precision: str) -> None:
    """ParityError unless a GGUF file holds `model`, rounded as `precision` says, and its tokenizer.

    Afterwards the network holds the file's weights: it is not to be used as the checkpoint's any more.
    """
    header = read_header(path)
    dimensions = dimensions_of(header)
    _require_tokens(path, tokenizer_of(header, dimensions.vocabulary), model, texts)
    read = read_network(header, dimensions)
    weights = model.net.state_dict()
    for name, written in read.state_dict().items():
        moved = float((written - weights[name].float()).norm() / weights[name].float().norm().clamp_min(1e-12))
        if not moved <= MOST_MOVED[precision]:
            raise ParityError(
                f"{path}: {name} is read back changed by {moved:.2g} of its length, allowed are {MOST_MOVED[precision]:g}; "
                "the file is not handed over"
            )
    model.net.load_state_dict(read.state_dict())
    _require_logits(path, read, model, texts)


def _require_tokens(path: Path, tokenizer: Any, model: TorchModel, texts: Sequence[str]) -> None:
    own = open_preprocessor(model.metadata.folder, dict(model.metadata.pipeline))
    for text in (*PROBES, *texts):
        if tokenizer.backend_tokenizer.encode(text).ids != own.ids(text):
            raise ParityError(
                f"{path}: its tokenizer reads {text[:60]!r} as other tokens than the checkpoint's; use --format onnx"
            )


def _require_logits(path: Path, read: Any, model: TorchModel, texts: Sequence[str]) -> None:
    """Both compute the same of the same weights: what is left to differ are the settings."""
    import torch

    own = open_preprocessor(model.metadata.folder, dict(model.metadata.pipeline))
    most = min(LONGEST, int(read.config.max_position_embeddings))
    for text in texts:
        ids = torch.tensor([own.ids(text)[:most]])
        if not ids.shape[1]:  # an empty text of a tokenizer that puts no token before it
            continue
        with torch.inference_mode():
            ours, theirs = (net(input_ids=ids, use_cache=False).logits.float() for net in (model.net, read))
        gap = float((ours - theirs).abs().max() / ours.abs().max())
        if not gap <= TOLERANCE:
            raise ParityError(
                f"{path}: read back, its logits differ by {gap:.2g} of the largest; the file is not handed over"
            )
