"""Export a model as a bundle in one format and precision, without a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from fmopt.core.errors import ConfigError, DataError
from fmopt.core.model import LLAMA_CPP, Artifact, CheckpointMetadata, ReceivedGraph, continues_texts, generates
from fmopt.core.progress import Progress, Silent
from fmopt.core.recipe import Recipe, Step
from fmopt.core.stages.store import Store, disk_errors, own_folder, scratch_beside
from fmopt.data.datasets import load_data
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import browser_files, to_executorch
from fmopt.exporters.bundles import bundle_writer
from fmopt.exporters.bundles.golden import Golden
from fmopt.exporters.gguf import readback, writer
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
    from collections.abc import Mapping

    from fmopt.workflow.job.given import Data, Model

COMPARED = 8  # samples that a GGUF file is compared on


def export(
    model: Model,
    out: str | Path,
    *,
    format: Literal["onnx", "openvino", "executorch", "gguf"] = "onnx",
    precision: Literal["fp32", "fp16", "bf16", "int8", "int4"] = "fp32",
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
        model: a checkpoint's folder, an ONNX or GGUF file, a known name, a hub name, or a live `torch.nn.Module` of transformers.
        out: the folder that the bundle is written to.
        format: what the bundle's model is; "executorch" comes in fp32 and int8. A "gguf" file is opened by llama.cpp, not by
            `fmopt.load`.
        precision: what it computes in. INT8 with fixed scales is calibrated on the calibration split of `data`; of "gguf" int8 is
            Q8_0 and int4, which no other format has, Q4_0.
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
    device = host_probe.load_target(target)
    spec = data or source.default_data
    if format == "gguf":
        if device.kind == "browser":
            raise ConfigError(f"--target {target}: browsers have no llama.cpp that fmopt knows; use --format onnx")
        metadata, samples, _ = _samples(spec, metadata, columns, seed)
        return _export_gguf(metadata, asked, samples, out, golden, progress or Silent())
    (recipe,) = compiled_for(None, (asked,), 0, stateful=keeps_kv_cache(metadata))
    reason = refusal(recipe, metadata, device) or (to_executorch.refusal(metadata) if format == "executorch" else None)
    if reason:
        raise ConfigError(f"--format {format} --precision {precision}: {reason}")
    if device.kind == "browser":
        browser_files.check(metadata.pipeline)
    if spec is None and any(traits_of(step).calibrates for step in recipe.steps):
        raise DataError("INT8 is calibrated on real items: give some with --data")
    metadata, samples, digest = _samples(spec, metadata, columns, seed)
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


def _samples(
    spec: str | None, metadata: CheckpointMetadata, columns: Mapping[str, str] | None, seed: int
) -> tuple[CheckpointMetadata, list[Any], str]:
    """The metadata with the names of its labels, and samples to calibrate and compare on: those of the data, or a plain one
    where there is none; with what identifies them."""
    if spec is None:
        metadata = with_labels(metadata, None)
        return metadata, [plain_example(metadata.pipeline)] * 2, "none"
    kind = find_task(metadata.task)
    dataset = load_data(spec, kind, metadata, columns=columns, seed=seed)
    metadata = with_labels(metadata, dataset)
    items = kind.items(dataset.split("calibration"), metadata)[: calibration_items("quick", metadata)]
    samples = [item.sample for item in items]
    return metadata, samples, f"{dataset.digest}:{len(samples)}"


def _export_gguf(
    metadata: CheckpointMetadata, recipe: Recipe, samples: list[Any], out: Path, golden: str, progress: Progress
) -> Path:
    """A bundle for llama.cpp: the GGUF file, read back and compared with the checkpoint, and no golden items, for fmopt does not
    run it."""
    reason = writer.refusal(metadata)
    if reason is None and golden not in ("data", "none"):
        reason = f"--golden {golden}: such a bundle is run by llama.cpp and carries no golden items; leave it out"
    if reason:
        raise ConfigError(f"--format gguf --precision {recipe.precision}: {reason}")
    with scratch_beside(out) as work, disk_errors(out):
        model = checkpoint.load(metadata)
        progress.say("writing model.gguf")
        path = writer.export_gguf(model, work, recipe.precision)
        progress.say("reading it back by transformers")
        readback.require_same(path, model, samples[:COMPARED], recipe.precision)
        options = {"precision": writer.PRECISIONS[recipe.precision]}
        return bundle_writer.write_bundle(
            out, metadata=metadata, artifact=Artifact(LLAMA_CPP, path, options), recipe=recipe.model_dump(mode="json"),
            verdict="UNMEASURED", golden=Golden(), needs_isa=[],
        )  # fmt: skip


def export_recipe(format: str, precision: str, metadata: CheckpointMetadata) -> Recipe:
    """The one recipe that a format and precision name, for a model."""
    name = f"{format}-{precision}"
    runtime = {"onnx": "onnxruntime", "gguf": LLAMA_CPP}.get(format, format)
    if format == "gguf":
        return Recipe(name=name, runtime=runtime, precision=precision)
    if precision == "int4":
        raise ConfigError(f"--precision int4 is one of --format gguf; --format {format} has fp32, fp16, bf16 and int8")
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
