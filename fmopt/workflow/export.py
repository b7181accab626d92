"""Export a model as a bundle in one format and precision, without a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from fmopt.core.errors import ConfigError, DataError
from fmopt.core.model import CheckpointMetadata, ReceivedGraph, continues_texts, generates
from fmopt.core.progress import Progress, Silent
from fmopt.core.recipe import Recipe, Step
from fmopt.core.stages.store import Store, disk_errors, own_folder
from fmopt.data.datasets import load_data
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import browser_files, to_executorch
from fmopt.exporters.bundles import bundle_writer
from fmopt.exporters.to_onnx import check_positions
from fmopt.measurement import host_probe
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.passes.base import traits_of
from fmopt.tasks.base import find_task
from fmopt.workflow.deployed import plain_example
from fmopt.workflow.job.given import ReadingOptions, data_path, model_path, require_options, tokenizer_folder
from fmopt.workflow.job.golden_items import golden_of
from fmopt.workflow.job.label_names import with_labels
from fmopt.workflow.job.start import calibration_items
from fmopt.workflow.search.builder import Builder
from fmopt.workflow.search.candidates import compiled_for, keeps_kv_cache, refusal

if TYPE_CHECKING:
    from fmopt.workflow.job.given import Data, Model


def export(
    model: Model,
    out: str | Path,
    *,
    format: Literal["onnx", "openvino", "executorch"] = "onnx",
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32",
    target: str = "host",
    task: str | None = None,
    data: Data | None = None,
    seed: int = 0,
    golden: str = "data",
    progress: Progress | None = None,
    **reading: Unpack[ReadingOptions],
) -> Path:
    """Export `model` as a bundle in one format and precision, checked against the torch model; no candidates, no gate.

    Arguments:
        model: a checkpoint's folder, an ONNX file, a known name, a hub name, or a live `torch.nn.Module` of transformers.
        out: the folder that the bundle is written to.
        format: what the bundle's model is; "executorch" comes in fp32 and int8.
        precision: what it computes in. INT8 with fixed scales is calibrated on the calibration split of `data`.
        target: a device by its name or TOML file: decides how INT8 is made (in 7 or 8 bits), and the layout (for browsers).
        task: what the model is for, where its files do not show it.
        data: a file, a folder, a hub name, a `datasets.Dataset` or `DatasetDict`, or a list of dicts.
        seed: decides what is cut from what in data without splits.
        golden: what the bundle carries for its self-test: "data" (items of `data`), "none", "synthetic", or a data file.
        reading: tokenizer or processor (what reads a live network's samples), columns (the data's column for each role, such as
            {"text": "review"}), allow_pickle (whether pickled weights are read, with weights_only).

    Returns the folder `out`. Raises ConfigError for a format that the model or device does not have, DataError for data that
    cannot be used or INT8 without data, ParityError where the graph computes something else than the network.

    >>> folder = fmopt.export(checkpoint, out / "exported", format="onnx")
    >>> fmopt.load(folder)("the cat sat on the mat")["label"] in ("negative", "neutral", "positive")
    True
    """
    out, data = Path(out), data_path(data)
    require_options(reading, ReadingOptions.__annotations__)
    columns = reading.get("columns")
    reader = reading.get("tokenizer")
    path = model_path(model, reader, reading.get("processor"))
    source = resolve(path, tokenizer=tokenizer_folder(model, reader))
    metadata = checkpoint.inspect(source, task or source.task, allow_pickle=reading.get("allow_pickle", False))
    check_positions(metadata)
    asked = export_recipe(format, precision, metadata)
    (recipe,) = compiled_for(None, (asked,), 0, stateful=keeps_kv_cache(metadata))
    device = host_probe.load_target(target)
    reason = refusal(recipe, metadata, device) or (to_executorch.refusal(metadata) if format == "executorch" else None)
    if reason:
        raise ConfigError(f"--format {format} --precision {precision}: {reason}")
    if device.kind == "browser":
        browser_files.check(metadata.pipeline)
    kind = find_task(metadata.task)
    spec = data or source.default_data
    if spec is None:
        metadata = with_labels(metadata, None)
        if any(traits_of(step).calibrates for step in recipe.steps):
            raise DataError("INT8 is calibrated on real items: give some with --data")
        samples: list[Any] = [plain_example(metadata.pipeline)] * 2
        digest = "none"
    else:
        dataset = load_data(spec, kind, metadata, columns=columns, seed=seed)
        metadata = with_labels(metadata, dataset)
        items = kind.items(dataset.split("calibration"), metadata)[: calibration_items("quick", metadata)]
        samples = [item.sample for item in items]
        digest = f"{dataset.digest}:{len(samples)}"
    with own_folder(out), disk_errors(out / "stages"):
        builder = Builder(
            metadata,
            device,
            Store(out / "stages"),
            open_preprocessor(metadata.folder, dict(metadata.pipeline)),
            samples,
            digest,
            seed,
            1 << 30,
            progress or Silent(),
        )
        artifact = builder.artifact(recipe)
        chosen = "synthetic" if spec is None and golden == "data" else golden
        found = golden_of(chosen, samples, metadata, artifact, precision, columns)
        if progress is not None:
            progress.say(f"golden.json, the bundle's self-test, holds {found.origin}")
        bundle_writer.write_bundle(
            out,
            metadata=metadata,
            artifact=artifact,
            recipe=recipe.model_dump(mode="json"),
            verdict="UNMEASURED",
            golden=found,
            needs_isa=[],
            for_browser=device.kind == "browser",
        )
    return out


def export_recipe(format: str, precision: str, metadata: CheckpointMetadata) -> Recipe:
    """The one recipe that a format and precision name, for a model."""
    name = f"{format}-{precision}"
    runtime = {"onnx": "onnxruntime"}.get(format, format)
    if format == "executorch":
        if precision not in ("fp32", "int8"):
            raise ConfigError(f"--format executorch has no --precision {precision}; it has fp32 and int8")
        return Recipe(
            name=name, runtime=runtime, precision=precision, options={"quantize": "int8"} if precision == "int8" else {}
        )
    if metadata.graph is not None and not metadata.graph.is_full_precision:
        return _as_it_came(name, runtime, precision, metadata.graph)
    if precision == "int8" and metadata.graph is not None:
        step = Step(use="quantize_nncf" if format == "openvino" else "quantize_static_ort")
        return Recipe(name=name, runtime=runtime, precision="int8", steps=(step,))
    if precision == "int8" and generates(metadata.pipeline):
        if format == "openvino" and not continues_texts(metadata.pipeline):
            raise ConfigError(f"--precision int8 of {metadata.task} is made for ONNX Runtime; use --format onnx")
        if format == "openvino":
            return Recipe(name=name, runtime=runtime, precision="int8", steps=(Step(use="compress_weights"),))
        narrow = Step(use="quantize_weights", options={"bits": 8, "block": 32})
        tables = (Step(use="quantize_embeddings"),) if metadata.modality == "text" else ()
        return Recipe(name=name, runtime=runtime, precision="int8", steps=(narrow, *tables))
    if precision == "int8":
        return Recipe(name=name, runtime=runtime, precision="int8", steps=(Step(use="quantize_static"),))
    if format == "onnx":
        if precision == "bf16":
            raise ConfigError("--format onnx has no bf16 kernels on CPUs; use --format openvino, or --precision fp16")
        return Recipe(
            name=name, runtime=runtime, precision=precision, steps=(Step(use="cast"),) if precision == "fp16" else ()
        )
    options = {
        "fp32": {"precision": "f32"},
        "bf16": {"precision": "bf16"},
        "fp16": {"precision": "f32", "fp16_weights": True},
    }
    return Recipe(name=name, runtime=runtime, precision=precision, options=options[precision])


def _as_it_came(name: str, runtime: str, precision: str, graph: ReceivedGraph) -> Recipe:
    """The recipe of a graph that came quantized: itself, on the runtime that is asked for."""
    if precision != graph.precision:
        raise ConfigError(
            f"--precision {precision}: {graph.path.name} came in {graph.precision}, and no full-precision network was there; "
            f"give --precision {graph.precision}, which leaves it as it is"
        )
    options = {"precision": "f32"} if runtime == "openvino" else {}
    return Recipe(name=name, runtime=runtime, precision=precision, options=options)
