"""A bundle as other programs open it: the same model and files under the names that they look for, and their own settings.

Weights are hard links to the bundle's where the file system has them, so that a layout takes no second room on the disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmopt.core.errors import BundleError, ConfigError
from fmopt.core.model import CheckpointMetadata, continues_texts, generates, model_files
from fmopt.core.plugins import did_you_mean
from fmopt.core.stages.store import link_or_copy, whole_folder
from fmopt.edge import files
from fmopt.exporters.bundles.bundle import bundle_metadata, checked
from fmopt.exporters.bundles.genai_files import genai_config, put_openvino_tokenizer

BOTH = ("onnxruntime", "openvino")  # the runtimes whose graphs other programs open
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a model on a server: a folder there, and a part of its URLs
OURS = re.compile(
    r"(edge|web|onnx)/.*|run\.py|README\.md|golden\.json|sbom\.json|record\.json|report\.(html|md)|index\.html|serve\.py"
)
TOKENIZER_CONFIG = "tokenizer_config.json"
TRITON_TYPES = {
    "bool": "TYPE_BOOL", "boolean": "TYPE_BOOL", "int8": "TYPE_INT8", "i8": "TYPE_INT8", "uint8": "TYPE_UINT8",
    "u8": "TYPE_UINT8", "int32": "TYPE_INT32", "i32": "TYPE_INT32", "int64": "TYPE_INT64", "i64": "TYPE_INT64",
    "float16": "TYPE_FP16", "f16": "TYPE_FP16", "float32": "TYPE_FP32", "float": "TYPE_FP32", "f32": "TYPE_FP32",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph; -1 for an axis of any size."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Bundled:
    """A bundle that was found whole, and how it is to be called on a server."""

    folder: Path
    manifest: Mapping[str, Any]
    metadata: CheckpointMetadata
    name: str
    uri: str | None

    @property
    def graph(self) -> Path:
        """Its model.onnx or model.xml."""
        return self.folder / str(self.manifest["model_file"])

    @property
    def threads(self) -> int | None:
        """How many it was judged with."""
        return (self.manifest.get("judged") or {}).get("threads")


@dataclass(frozen=True)
class Layout:
    """Where one program looks for what."""

    what: str
    runtimes: tuple[str, ...]
    put: Callable[[Bundled, Path], None]
    tasks: tuple[str, ...] = ()  # none: whatever is one call of the graph
    generates: bool = False  # whether it knows graphs that are called for token after token


def pack(bundle: str | Path, layout: str, out: str | Path, *, name: str | None = None, uri: str | None = None) -> Path:
    """Write the bundle in the folder `bundle` to the new folder `out` as `layout` has it; returns `out`.

    `layout` is one of `LAYOUTS`. `name` is what servers call the model, by default made of the bundle's title; `uri` is where
    KServe finds the folder. Raises BundleError for a bundle that is damaged, ConfigError for one that the program cannot open,
    StoreError when `out` is there already.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"there is no layout {layout!r}{did_you_mean(layout, LAYOUTS)}")
    folder, out, wanted = Path(bundle), Path(out), LAYOUTS[layout]
    manifest, metadata = checked(folder), bundle_metadata(folder)
    reason = refusal(layout, manifest["runtime"], metadata)
    if reason is not None:
        others = [one for one in LAYOUTS if refusal(one, manifest["runtime"], metadata) is None]
        way_out = f"--for {' or '.join(others)} takes it" if others else "its own run.py runs it, and fmopt serve"
        raise ConfigError(f"{folder}: {reason}; {way_out}")
    if name is not None and not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} cannot be a folder of a server; use letters, digits, '.', '_' and '-'")
    if layout == "kserve" and not uri:
        raise ConfigError(
            "KServe fetches a model: say from where with --uri, such as pvc://models or s3://bucket/models"
        )
    called = name or re.sub(r"[^A-Za-z0-9._-]+", "-", metadata.source.title).strip("-._")[:64] or "model"
    with whole_folder(out) as made:
        wanted.put(Bundled(folder, manifest, metadata, called, uri), made)
    return out


def refusal(layout: str, runtime: str, metadata: CheckpointMetadata) -> str | None:
    """Why a bundle of this runtime and task is none for the layout; None where it is."""
    wanted = LAYOUTS[layout]
    if runtime not in wanted.runtimes:
        return f"{layout} opens bundles for {' and '.join(wanted.runtimes)}; this one is for {runtime}"
    if wanted.generates and generates(metadata.pipeline) and not continues_texts(metadata.pipeline):
        return f"{layout} opens an encoder and a decoder as two graphs; this bundle's are one ({metadata.task})"
    if wanted.tasks and metadata.task not in wanted.tasks:
        return f"{layout} knows {' and '.join(wanted.tasks)}; this bundle is for {metadata.task}"
    if generates(metadata.pipeline) and not wanted.generates:
        return f"{layout} runs a graph once for each item; this bundle's is run for token after token ({metadata.task})"
    return None


def tensors(graph: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of a model.onnx or model.xml."""
    if graph.suffix == ".xml":
        import openvino

        def read(port: Any) -> Tensor:
            shape = tuple(axis.get_length() if axis.is_static else -1 for axis in port.get_partial_shape())
            return Tensor(port.get_any_name(), port.get_element_type().get_type_name(), shape)

        network = openvino.Core().read_model(graph)
        return [read(port) for port in network.inputs], [read(port) for port in network.outputs]
    import onnx

    model = onnx.load(graph, load_external_data=False).graph
    weights = {tensor.name for tensor in model.initializer}

    def described(value: onnx.ValueInfoProto) -> Tensor:
        kind = value.type.tensor_type
        name = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        return Tensor(value.name, name, tuple(axis.dim_value or -1 for axis in kind.shape.dim))

    return [described(one) for one in model.input if one.name not in weights], [described(one) for one in model.output]


# ------------------------------------------------------------------------------------------------ where files go


def _put_graph(one: Bundled, to: Path) -> None:
    """The graph as `to` (without an ending), its weights beside it. A graph names its own weights, so that these keep theirs
    where they are not called as the graph."""
    for file in model_files(one.graph):
        beside = to.parent / file.name if file.name.endswith(".data") else to.with_name(to.name + file.suffix)
        link_or_copy(file, beside)


def _put_settings(one: Bundled, out: Path) -> None:
    """config.json, the tokenizer or processor, and how vectors are pooled."""
    weights = {file.relative_to(one.folder).as_posix() for file in model_files(one.graph)}
    for name in one.manifest["files"]:
        if name in weights or OURS.fullmatch(name):
            continue
        if name == TOKENIZER_CONFIG:
            _put_tokenizer_config(one.folder, out)
        else:
            link_or_copy(one.folder / name, out / name)


def _put_tokenizer_config(folder: Path, out: Path) -> None:
    """As it is, but for what transformers 5 writes and 4, which optimum-onnx rests on, cannot read; both read this."""
    said = files.read_json(folder, TOKENIZER_CONFIG)
    if said.get("tokenizer_class") == "TokenizersBackend":
        said["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(said.get("extra_special_tokens"), list):
        said["additional_special_tokens"] = said.pop("extra_special_tokens")
    (out / TOKENIZER_CONFIG).write_text(json.dumps(said, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _as_optimum(one: Bundled, out: Path) -> None:
    _put_graph(one, out / ("openvino_model" if one.graph.suffix == ".xml" else "model"))
    _put_settings(one, out)


def _as_hub(one: Bundled, out: Path) -> None:
    _put_graph(one, out / "onnx" / "model")
    _put_settings(one, out)


def _as_ort_genai(one: Bundled, out: Path) -> None:
    _put_graph(one, out / "model")
    _put_settings(one, out)
    inputs, outputs = ({tensor.name: tensor.shape for tensor in found} for found in tensors(one.graph))
    settings = genai_config(
        inputs, outputs, one.metadata.pipeline,
        filename="model.onnx", hidden_size=one.metadata.hidden_size, threads=one.threads,
    )  # fmt: skip
    (out / "genai_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def _as_openvino_genai(one: Bundled, out: Path) -> None:
    if generates(one.metadata.pipeline) and "beam_idx" not in {tensor.name for tensor in tensors(one.graph)[0]}:
        raise BundleError(
            f"{one.folder}: OpenVINO GenAI wants a graph that keeps its own past; make the bundle with stateful = true "
            "(docs/generation.md)"
        )
    _as_optimum(one, out)
    put_openvino_tokenizer(out, out)


def _as_ovms(one: Bundled, out: Path) -> None:
    _put_graph(one, out / one.name / "1" / "model")
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if one.threads:
        hints |= {"INFERENCE_NUM_THREADS": one.threads, "NUM_STREAMS": 1}
    config = {"name": one.name, "base_path": f"/models/{one.name}", "target_device": "CPU", "plugin_config": hints}
    (out / "config.json").write_text(json.dumps({"model_config_list": [{"config": config}]}, indent=1) + "\n")


def _as_triton(one: Bundled, out: Path) -> None:
    _put_graph(one, out / one.name / "1" / "model")
    backend = "openvino" if one.graph.suffix == ".xml" else "onnxruntime"
    lines = [f'name: "{one.name}"', f'backend: "{backend}"']
    if backend == "openvino":
        lines.append('default_model_filename: "model.xml"')
    lines.append("max_batch_size: 0")
    for role, found in zip(("input", "output"), tensors(one.graph), strict=True):
        for tensor in found:
            kind = TRITON_TYPES.get(tensor.type)
            if kind is None:
                raise BundleError(f"{one.folder}: {tensor.name} is of {tensor.type}, which Triton has no name for")
            lines.append(
                f"{role} [ {{ name: {json.dumps(tensor.name)} data_type: {kind} dims: {list(tensor.shape)} }} ]"
            )
    lines.append("instance_group [ { count: 1 kind: KIND_CPU } ]")
    if one.threads and backend == "onnxruntime":
        lines.append(f'parameters {{ key: "intra_op_thread_count" value: {{ string_value: "{one.threads}" }} }}')
    (out / one.name / "config.pbtxt").write_text("\n".join(lines) + "\n")


def _as_kserve(one: Bundled, out: Path) -> None:
    _as_triton(one, out)
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": re.sub(r"[^a-z0-9-]+", "-", one.name.lower()).strip("-")},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "triton"}, "protocolVersion": "v2", "runtime": "kserve-tritonserver",
                    "storageUri": one.uri,
                }
            }
        },
    }  # fmt: skip
    (out / "inferenceservice.json").write_text(
        json.dumps(service, indent=1) + "\n"
    )  # kubectl reads JSON as it reads YAML


VECTORS_AND_CLASSES = ("sentence-embedding", "text-classification", "text-regression")
LAYOUTS: Mapping[str, Layout] = {
    "optimum": Layout(
        "optimum's ORTModelFor… and OVModelFor…, sentence-transformers with backend onnx or openvino",
        BOTH, _as_optimum, generates=True,
    ),
    "onnxruntime-genai": Layout(
        "ONNX Runtime GenAI: genai_config.json", ("onnxruntime",), _as_ort_genai, ("text-generation",), generates=True
    ),
    "openvino-genai": Layout(
        "OpenVINO GenAI: LLMPipeline, TextEmbeddingPipeline", ("openvino",), _as_openvino_genai,
        ("text-generation", "sentence-embedding"), generates=True,
    ),
    "transformers.js": Layout("transformers.js: onnx/model.onnx", ("onnxruntime",), _as_hub),
    "tei": Layout("Text Embeddings Inference: onnx/model.onnx", ("onnxruntime",), _as_hub, VECTORS_AND_CLASSES),
    "ovms": Layout("OpenVINO Model Server: NAME/1 and config.json", BOTH, _as_ovms),
    "triton": Layout("Triton Inference Server: NAME/1 and config.pbtxt", BOTH, _as_triton),
    "kserve": Layout("KServe with Triton: the same, and an InferenceService", BOTH, _as_kserve),
}  # fmt: skip
