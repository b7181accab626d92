"""The three states of a model: a network in PyTorch, an exported graph, files that a runtime opens.

Torch itself is imported only by the functions that need it, so that bundles can be described without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fmopt.edge.parts import part_of
from fmopt.edge.text import Preprocessor

if TYPE_CHECKING:
    pass


ARTIFACT = "artifact.json"


Format = Literal["torch", "onnx", "openvino", "executorch"]
LLAMA_CPP = "llama.cpp"  # the runtime that a bundle with a GGUF file names: it opens the file itself, fmopt does not


@dataclass(frozen=True)
class ModelSource:
    """Where a checkpoint comes from: a folder, a GGUF file, a hub name, or an entry of `models/`."""

    asked: str  # what the user typed
    folder: Path  # local folder in Hugging Face format
    title: str  # a short name for tables
    task: str | None = None  # what an entry of `models/` knows about it
    training: Mapping[str, Any] = field(default_factory=dict)  # options of `finetune` that an entry of `models/` names
    default_data: str | None = None
    licence: str | None = None
    graph: Path | None = None  # an ONNX file that comes in place of a network
    tokenizer: Path | None = None  # where its tokenizer lies, when that is not `folder`
    dequantize: bool = False  # whether its Q/DQ pairs are folded into weights in full precision, to start again


@dataclass(frozen=True)
class ReceivedGraph:
    """An ONNX graph that comes in place of a network, as far as its file and one try tell."""

    path: Path
    inputs: Mapping[str, str]  # names that fmopt knows -> the graph's own
    outputs: Mapping[str, str]  # the same of those that are kept
    precision: str  # the narrowest that it computes in: "fp32", "fp16", "int8", "int4"
    operators: frozenset[str]  # types of its nodes
    words: int  # rows of the table that token ids are looked up in
    classes: int = 0  # of logits, where these are of classes
    dequantize: bool = False  # whether its Q/DQ pairs are folded into weights in full precision, to start again

    @property
    def is_full_precision(self) -> bool:
        """Whether what is made of it begins in full precision."""
        return self.precision == "fp32" or self.dequantize


@dataclass(frozen=True)
class CheckpointMetadata:
    """What is known of a checkpoint from its files alone, before any weight is loaded.

    `pipeline` is the JSON-able dict that `fmopt/edge/` works by (see edge/parts.py): task, max_length, inputs,
    padding, pooling, labels. It is copied into every bundle.
    """

    source: ModelSource
    model_type: str  # config.json's "model_type"
    architecture: str  # config.json's first "architectures", or ""
    task: str
    pipeline: Mapping[str, Any]
    hidden_size: int
    layers: int
    parameters: int  # counted from the safetensors headers
    weight_bytes: int
    digest: str  # sha256 over the files that matter
    config: Mapping[str, Any] = field(default_factory=dict)
    origin: Path | None = None  # the folder that was given, where `folder` is a part or a converted copy of it
    notes: tuple[str, ...] = ()  # what a user should know of how its inputs and answers are taken
    graph: ReceivedGraph | None = None  # where it came as an ONNX graph: there is no network then

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self.source.folder

    @property
    def modality(self) -> str:
        """What samples are: "text", "image", "audio" or "item" (histories of them)."""
        return str(self.pipeline.get("modality", "text"))


def axes_of(pipeline: Mapping[str, Any]) -> dict[str, tuple[str | int, ...]]:
    """Axes of every input: a name ("batch", "tokens") where its length varies, a number where it never does.

    A pipeline says so under "axes"; without it every input is [batch, tokens].
    """
    given = pipeline.get("axes") or {}
    return {name: tuple(given.get(name, ("batch", "tokens"))) for name in pipeline["inputs"]}


def takes_length(pipeline: Mapping[str, Any]) -> bool:
    """Whether items have a number of tokens, so that a latency is one of some length."""
    return any("tokens" in axes for axes in axes_of(pipeline).values())


def static_shape(pipeline: Mapping[str, Any], batch: int, length: int | None) -> tuple[int, ...] | None:
    """The one shape that all inputs have at `batch` × `length`; None where lengths vary, inputs differ in shape, or tokens are
    made one by one."""
    if generates(pipeline):
        return None
    sizes = {"batch": batch, "tokens": length}
    shapes = {tuple(sizes.get(a) if isinstance(a, str) else a for a in axes) for axes in axes_of(pipeline).values()}
    shape = shapes.pop() if len(shapes) == 1 else (None,)
    return None if None in shape else tuple(int(size) for size in shape if size is not None)


def makes_answers(pipeline: Mapping[str, Any]) -> bool:
    """Whether a pipeline is that of an encoder and a decoder, which answers to an item in words."""
    return "decoder_start_token_ids" in pipeline


def generates(pipeline: Mapping[str, Any]) -> bool:
    """Whether a pipeline makes texts, one token at a time: it goes on with one, or answers to one."""
    return "eos_token_id" in pipeline


def reads_texts_at_once(pipeline: Mapping[str, Any]) -> bool:
    """Whether it is plain texts that a network reads, each answered by one pass through one graph."""
    part = part_of(pipeline)
    texts = getattr(part, "Preprocessor", Preprocessor) is Preprocessor
    steps = any(hasattr(part, name) for name in ("run", "timed", "work"))
    return texts and takes_length(pipeline) and not generates(pipeline) and not steps


def continues_texts(pipeline: Mapping[str, Any]) -> bool:
    """Whether a pipeline goes on with a text, by one network that reads and writes."""
    return generates(pipeline) and not makes_answers(pipeline)


@dataclass(frozen=True)
class Graph:
    """An exported graph on disk. `path` is model.onnx, model.xml or model.pte; weights may lie beside it."""

    format: Format
    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """Files on disk that one runtime opens, with the options to open them by.

    `options` are JSON-able and mean the same to `fmopt/edge/` in a bundle: {"precision": "f32"|"bf16"} for OpenVINO.
    """

    runtime: str
    path: Path  # model.onnx, model.xml, model.pte, model.gguf, or a checkpoint folder for runtime "torch"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of the model file and the weights beside it (external data, .bin)."""
        if self.path.is_dir():
            return sum(p.stat().st_size for p in self.path.glob("*.safetensors"))
        return sum(p.stat().st_size for p in model_files(self.path))

    @property
    def digest(self) -> str:
        """sha256 over its files and options."""
        paths = sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else model_files(self.path)
        total = hashlib.sha256(repr((self.runtime, sorted(self.options.items()))).encode())
        for path in paths:
            total.update(file_digest(path).encode())
        return total.hexdigest()


def write_artifact(artifact: Artifact, folder: Path) -> None:
    """Describe an artifact in the folder that holds its files, so that a later run finds it."""
    (folder / ARTIFACT).write_text(json.dumps({"file": artifact.path.name, "options": dict(artifact.options)}))


def read_artifact(runtime: str, folder: Path) -> Artifact:
    """The artifact that `write_artifact` described."""
    metadata = json.loads((folder / ARTIFACT).read_text())
    return Artifact(runtime, folder / metadata["file"], metadata["options"])


def model_files(path: Path) -> list[Path]:
    """The files that belong to model.onnx or model.xml: itself, `.onnx.data`, `.bin`."""
    beside = [path.with_name(path.name + ".data"), path.with_suffix(".bin")]
    return [path, *(p for p in beside if p.exists() and p != path)]


def file_digest(path: Path) -> str:
    """sha256 of a file, read in blocks; once in a process, as long as its size and time of change stay what they are."""
    found = path.stat()
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if identity not in _DIGESTS:
        with path.open("rb") as stream:
            _DIGESTS[identity] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _DIGESTS[identity]


_DIGESTS: dict[tuple[int, ...], str] = {}  # by device, inode, size and time of change


Inputs = Mapping[str, np.ndarray]  # name -> array, of text int64 [batch, tokens]


def token_mask(inputs: Inputs) -> np.ndarray | None:
    """Bool [batch, tokens], False on padding; None for inputs that are never padded, such as images of one size."""
    mask = inputs.get("attention_mask")
    return None if mask is None else np.asarray(mask, dtype=bool)


class Runner(Protocol):
    """An opened artifact."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; inputs the model does not take are ignored."""

    def close(self) -> None:
        """Give back memory and threads."""


TOKENIZER = "tokenizer.json"
