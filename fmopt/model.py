"""The three states of a model: a network in PyTorch, an exported graph, files that a runtime opens.

Torch itself is imported only by the functions that need it, so that bundles can be described without it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmopt.errors import CheckpointError
from fmopt.networks import known_transformers
from fmopt.results import Sensitivity

if TYPE_CHECKING:
    import torch

    from fmopt.families.base import Family

ARTIFACT = "artifact.json"
Format = Literal["torch", "onnx", "openvino", "executorch"]


@dataclass(frozen=True)
class ModelSource:
    """Where a checkpoint comes from: a folder, a hub name, or an entry of `models/`."""

    asked: str  # what the user typed
    folder: Path  # local folder in Hugging Face format
    title: str  # a short name for tables
    task: str | None = None  # what an entry of `models/` knows about it
    training: Mapping[str, Any] = field(default_factory=dict)  # options of `finetune` that an entry of `models/` names
    default_data: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class CheckpointFacts:
    """What is known of a checkpoint from its files alone, before any weight is loaded.

    `pipeline` is the JSON-able dict that `fmopt/edge.py` works by (see `edge.Pipeline`): task, max_length, inputs,
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

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self.source.folder

    @property
    def modality(self) -> str:
        """What raws are: "text", "image", "audio" or "item" (histories of them)."""
        return str(self.pipeline.get("modality", "text"))


def axes_of(pipeline: Mapping[str, Any]) -> dict[str, tuple[str | int, ...]]:
    """Axes of every input: a name ("batch", "tokens") where its length varies, a number where it never does.

    A pipeline says so under "axes"; without it every input is [batch, tokens].
    """
    told = pipeline.get("axes") or {}
    return {name: tuple(told.get(name, ("batch", "tokens"))) for name in pipeline["inputs"]}


def takes_length(pipeline: Mapping[str, Any]) -> bool:
    """Whether items have a number of tokens, so that a latency is one of some length."""
    return any("tokens" in axes for axes in axes_of(pipeline).values())


def static_shape(pipeline: Mapping[str, Any], batch: int, length: int | None) -> tuple[int, ...] | None:
    """The one shape that all inputs have at `batch` × `length`; None where lengths vary, inputs differ in shape, or tokens are
    made one by one."""
    if "stop_ids" in pipeline:
        return None
    sizes = {"batch": batch, "tokens": length}
    shapes = {tuple(sizes.get(a) if isinstance(a, str) else a for a in axes) for axes in axes_of(pipeline).values()}
    shape = shapes.pop() if len(shapes) == 1 else (None,)
    return None if None in shape else tuple(int(size) for size in shape if size is not None)


@dataclass
class TorchModel:
    """A network in PyTorch with the facts needed to export and judge it."""

    net: torch.nn.Module
    facts: CheckpointFacts
    family: Family | None  # None: no known block structure; it still quantizes
    history: tuple[str, ...] = ()  # the passes it went through, in order
    sensitivity: tuple[Sensitivity, ...] = ()  # of its groups of Linears, where a pass measured it

    def after(self, step: str) -> TorchModel:
        """The same model, remembering that `step` was done to it."""
        return replace(self, history=(*self.history, step))


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

    `options` are JSON-able and mean the same to `fmopt/edge.py` in a bundle: {"precision": "f32"|"bf16"} for OpenVINO.
    """

    runtime: str
    path: Path  # model.onnx, model.xml, model.pte, or a checkpoint folder for runtime "torch"
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
    facts = json.loads((folder / ARTIFACT).read_text())
    return Artifact(runtime, folder / facts["file"], facts["options"])


def model_files(path: Path) -> list[Path]:
    """The files that belong to model.onnx or model.xml: itself, `.onnx.data`, `.bin`."""
    beside = [path.with_name(path.name + ".data"), path.with_suffix(".bin")]
    return [path, *(p for p in beside if p.exists() and p != path)]


def file_digest(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_network(
    folder: Path, auto_class: str, dtype: str = "fp32", *, rebuild: Callable[[torch.nn.Module], None] | None = None,
    head: Mapping[str, Any] | None = None,
) -> torch.nn.Module:  # fmt: skip
    """The network of a checkpoint folder in eval mode, loaded without network access, pickle or remote code.

    `auto_class` is a transformers class name ("AutoModelForTokenClassification"); `dtype` is fp32, fp16 or bf16. A
    plain encoder ("AutoModel") comes without its pooler where the class allows that, so that `last_hidden_state` is its
    only output. Weights that the checkpoint lacks are a CheckpointError: a random head would give random answers.
    `rebuild` changes the shapes of the empty network, in place, before weights are loaded. `head` is the configuration of
    a head that will be trained: it may be missing, or of other labels.
    """
    import torch

    transformers = known_transformers()
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, **(head or {})
    )
    loader = auto_loader(auto_class, config)
    mapping = loader._model_mapping
    if type(config) not in mapping:
        raise CheckpointError(f"{folder}: transformers has no {auto_class} for model_type {config.model_type!r}")
    # The pooler is left out by this class argument, which AutoModel passes on only when we name it.
    kinds: Any = mapping[type(config)]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    kind = next((kind for kind in kinds if kind.__name__ in (config.architectures or ())), kinds[0])
    known = inspect.signature(kind.__init__).parameters
    options = {"add_pooling_layer": False} if auto_class == "AutoModel" and "add_pooling_layer" in known else {}
    with quiet(transformers.utils.logging):
        net, found = (loader if rebuild is None else _rebuilding(kind, rebuild)).from_pretrained(
            folder, config=config, dtype=dtypes[dtype], local_files_only=True, trust_remote_code=False,
            use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=head is not None, **options,
        )  # fmt: skip
    if head is None and (found["missing_keys"] or found["mismatched_keys"]):
        first = sorted(str(key) for key in (*found["missing_keys"], *found["mismatched_keys"]))
        raise CheckpointError(
            f"{folder} has no fitting weights for {len(first)} tensors of {type(net).__name__} "
            f"({', '.join(first[:3])}); train the head first: fmopt finetune"
        )
    if rebuild is not None:
        net.__class__ = kind
    return net.eval()


def auto_loader(auto_class: str, config: Any) -> Any:
    """Of the transformers classes that `auto_class` names, one or several with blanks between, the first that has a network for
    `config`; the last when none has."""
    import transformers

    loaders: list[Any] = [getattr(transformers, name) for name in auto_class.split()]
    return next((loader for loader in loaders if type(config) in loader._model_mapping), loaders[-1])


def _rebuilding(kind: Any, rebuild: Callable[[torch.nn.Module], None]) -> Any:
    """The class `kind`, except that a new network of it is passed to `rebuild`: from_pretrained then fills that."""

    def __init__(self: Any, config: Any, **options: Any) -> None:  # noqa: N807
        kind.__init__(self, config, **options)
        rebuild(self)

    return type(kind.__name__, (kind,), {"__init__": __init__, "__module__": kind.__module__})


@contextmanager
def quiet(logging: Any) -> Iterator[None]:
    """Keep transformers' progress bar and load report off the user's terminal; what matters becomes an error."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
