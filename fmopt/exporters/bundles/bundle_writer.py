"""Writes a bundle, whole or not at all: made beside its folder and moved in when it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core.errors import BundleError, StoreError
from fmopt.core.model import LLAMA_CPP, Artifact, CheckpointMetadata
from fmopt.core.stages.store import MARKER, disk_errors, scratch_beside, write_whole
from fmopt.edge import files, host, loading, parts
from fmopt.edge import manifest as edge_manifest
from fmopt.edge.embedding import POOLED
from fmopt.edge.manifest import GOLDEN, MANIFEST, UNFINISHED
from fmopt.edge.recommendation import CATALOGUE
from fmopt.exporters import browser_files
from fmopt.exporters.bundles.bundle_readme import PROCESSOR, VOCABULARY, encoder_file, readme
from fmopt.exporters.bundles.golden import Golden
from fmopt.exporters.bundles.parts_list import SBOM, write_parts_list
from fmopt.models.sentence_transformers import write_sentence_files

# Protobuf ends at 2 GB; below this one file is handier than two.
EXTERNAL_DATA_BYTES = 1_500_000_000
# What encodes samples: a bundle carries those that the checkpoint has.
ENCODERS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
            "chat_template.jinja", "generation_config.json", PROCESSOR, "processor_config.json", VOCABULARY,
            CATALOGUE)  # fmt: skip
PACKAGES = ("fmopt", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "tokenizers", "torch", "transformers",
            "executorch", "gguf")  # fmt: skip


def write_bundle(
    out: Path,
    *,
    metadata: CheckpointMetadata,
    artifact: Artifact,
    recipe: Mapping[str, Any],
    verdict: str,
    golden: Golden,
    needs_isa: Sequence[str],
    record_files: Mapping[str, Path] | None = None,
    for_browser: bool = False,
    judged: Mapping[str, Any] | None = None,
) -> Path:
    """Write a bundle into the folder `out`: made beside it and moved in when whole. Returns `out`.

    `golden` are samples with their predictions as judged; another machine must reproduce them within its tolerance.
    `needs_isa` are CPU features the graph was judged with and may compute
    otherwise without. `record_files` are further files by their name in the bundle. `for_browser` lays the graph where
    transformers.js looks for it and adds a page that runs it. `judged` says on what it was ("workload") and how it is opened so
    ("threads"), where it was. StoreError when `out` holds something that is not ours or
    cannot be written; BundleError when a part is missing.
    """
    _refuse_foreign(out)
    with scratch_beside(out) as staging:
        with disk_errors(staging):
            model_file = _put_model(artifact, staging)
            page = for_browser and browser_files.put_page(staging, metadata.task)
            if for_browser:
                model_file = browser_files.move_graph(staging, model_file, str(recipe.get("precision", "fp32")))
            _put_checkpoint_files(metadata, artifact, staging)
            _put_golden(golden, staging)
            if artifact.runtime != LLAMA_CPP:
                put_programs(metadata.pipeline, artifact.runtime, staging)
            (staging / "README.md").write_text(
                readme(metadata, artifact, verdict, model_file, page=page, golden=golden.origin), encoding="utf-8"
            )
            for name, path in (record_files or {}).items():
                shutil.copyfile(path, staging / name)
            _put_manifest(metadata, artifact, model_file, recipe, verdict, needs_isa, judged or {}, golden, staging)
        return publish(staging, out)


def put_programs(pipeline: Mapping[str, Any], runtime: str, folder: Path) -> None:
    """Copy what runs a bundle of this task and runtime: run.py, and the modules that it imports."""
    modules = parts.module_files(pipeline, runtime)
    shutil.copyfile(modules[0].with_name("run.py"), folder / "run.py")
    (folder / "edge").mkdir()
    for file in modules:
        shutil.copyfile(file, folder / "edge" / file.name)


def publish(made: Path, out: Path, *, beside: Collection[str] = ()) -> Path:
    """Move the finished bundle `made` to `out`, replacing a bundle there but nothing else of ours (stages, record).

    A kill in the middle leaves a folder that says it is unfinished; publishing a bundle again mends it. StoreError when
    `out` holds something that is not ours, and is not among the names `beside` which a bundle may be put.
    """
    _refuse_foreign(out, beside)
    with disk_errors(out):
        if not out.exists() or not any(out.iterdir()):
            out.parent.mkdir(parents=True, exist_ok=True)
            if out.exists():
                out.rmdir()
            made.rename(out)
        else:
            _replace(made, out)
    loading.remember(edge_manifest.read_manifest(out))  # it was judged here
    return out


def _put_model(artifact: Artifact, folder: Path) -> str:
    """Copy the model; returns the name that opens it, "." for a checkpoint folder."""
    path = artifact.path
    if path.is_dir():
        weights = [*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.safetensors.index.json"))]
        if not weights:
            raise BundleError(f"{path} holds no safetensors to bundle")
        for file in weights:
            shutil.copyfile(file, folder / file.name)
        return "."
    if path.suffix == ".onnx":
        _put_onnx(path, folder / "model.onnx")
        return "model.onnx"
    if path.suffix == ".xml":
        shutil.copyfile(path, folder / "model.xml")
        shutil.copyfile(path.with_suffix(".bin"), folder / "model.bin")
        return "model.xml"
    if path.suffix in (".pte", ".gguf"):
        shutil.copyfile(path, folder / f"model{path.suffix}")
        return f"model{path.suffix}"
    raise BundleError(f"{path} is neither model.onnx nor model.xml, model.pte or model.gguf, nor a checkpoint folder")


def _put_onnx(path: Path, target: Path) -> None:
    """One file, or weights beside it in model.onnx.data when both together are over 1.5 GB."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    external = sorted(
        {
            entry.value
            for tensor in onnx.load(path, load_external_data=False).graph.initializer
            if uses_external_data(tensor)
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )
    size = path.stat().st_size + sum((path.parent / name).stat().st_size for name in external)
    if not external and size <= EXTERNAL_DATA_BYTES:
        shutil.copyfile(path, target)
    elif size <= EXTERNAL_DATA_BYTES:
        onnx.save(onnx.load(path), target)
    else:
        # optimum's and ONNX Runtime's own name for it
        onnx.save(onnx.load(path), target, save_as_external_data=True, location=f"{target.name}.data")


def _put_checkpoint_files(metadata: CheckpointMetadata, artifact: Artifact, folder: Path) -> None:
    """What encodes samples, config.json, and how vectors are pooled, under the names that transformers, optimum and
    sentence-transformers look for."""
    needed = encoder_file(metadata)
    if not (metadata.folder / needed).is_file():
        raise BundleError(
            f"{metadata.folder / needed} is missing; a bundle carries what encodes the checkpoint's samples"
        )
    for name in ENCODERS:
        if (metadata.folder / name).is_file() and (
            name != VOCABULARY or needed == VOCABULARY or metadata.modality == "audio"
        ):
            shutil.copyfile(metadata.folder / name, folder / name)
    # A checkpoint that was changed brings its own configuration.
    config = (artifact.path if artifact.path.is_dir() else metadata.folder) / "config.json"
    if not config.is_file():
        raise BundleError(f"{config} is missing; a bundle carries the checkpoint's config.json")
    shutil.copyfile(config, folder / "config.json")
    if metadata.pipeline.get("pooling", POOLED) != POOLED:
        write_sentence_files(metadata, folder)


def _put_golden(golden: Golden, folder: Path) -> None:
    items = [
        {"raw": loading.sample_to_json(sample), "prediction": loading.prediction_to_json(got)}
        for sample, got in golden.items
    ]
    for number, (_, got) in enumerate(golden.items, start=1):
        if isinstance(got, np.ndarray) and not np.isfinite(got).all():
            raise BundleError(f"the prediction for golden item {number} is not finite; such a model is not handed over")
    about = {"origin": golden.origin, "distance": golden.distance, "tolerance": golden.tolerance, "noise": golden.noise}
    _write_json(folder / GOLDEN, {**about, "items": items})


def _put_manifest(
    metadata: CheckpointMetadata, artifact: Artifact, model_file: str, recipe: Mapping[str, Any], verdict: str,
    needs_isa: Sequence[str], judged: Mapping[str, Any], golden: Golden, folder: Path,
) -> None:  # fmt: skip
    """Write fmopt.json, last: it vouches for every other file, and by its digest for itself."""
    hashes = {name: edge_manifest.sha256_file(folder / name) for name in _names(folder)}
    write_parts_list(folder, metadata, artifact, recipe, hashes)
    hashes[SBOM] = edge_manifest.sha256_file(folder / SBOM)
    written = {name: {"bytes": (folder / name).stat().st_size, "sha256": hashes[name]} for name in sorted(hashes)}
    manifest = {
        "format": edge_manifest.FORMAT,
        "digest": "",
        "title": metadata.source.title,
        "task": metadata.task,
        "verdict": verdict,
        "runtime": artifact.runtime,
        "options": dict(artifact.options),
        "model_file": model_file,
        "needs_isa": sorted(needs_isa),
        **({"judged": dict(judged)} if judged else {}),
        "invariance": {"distance": golden.distance, "batched": golden.batched} if golden.items else {},
        "pipeline": dict(metadata.pipeline),
        "recipe": dict(recipe),
        "checkpoint": {
            "asked": metadata.source.asked,
            "title": metadata.source.title,
            "licence": metadata.source.licence,
            "model_type": metadata.model_type,
            "architecture": metadata.architecture,
            "task": metadata.task,
            "hidden_size": metadata.hidden_size,
            "layers": metadata.layers,
            "parameters": metadata.parameters,
            "weight_bytes": metadata.weight_bytes,
            "digest": metadata.digest,
        },
        "versions": {name: host.package_version(name) for name in PACKAGES if host.package_version(name)},
        "host": host.host_fingerprint(),
        "files": written,
    }
    (folder / MANIFEST).write_bytes(sealed(manifest))
    try:
        edge_manifest.read_manifest(folder)
    except parts.EdgeError as error:
        raise BundleError(f"what was made cannot be opened, which is a fault of fmopt: {error}") from error


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """The text of a manifest with its own digest in it, whatever digest it had."""
    first = {"format": manifest["format"], "digest": ""}
    text = json.dumps({**first, **manifest, **first}, indent=1, ensure_ascii=False)
    digest = edge_manifest.manifest_digest(text, "")
    return text.replace('"digest": ""', f'"digest": "{digest}"', 1).encode()


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _refuse_foreign(out: Path, beside: Collection[str] = ()) -> None:
    """StoreError when `out` holds anything but a bundle or a run of ours, or what a bundle may be put beside."""
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; choose a folder")
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if held <= set(beside) or held & {MARKER, UNFINISHED}:
        return
    try:
        ours = str(files.read_json(out, MANIFEST).get("format")).startswith("fmopt-bundle")
    except parts.EdgeError:
        ours = False
    if not ours:
        raise StoreError(f"{out} is not empty and was not made by fmopt; nothing was touched. Choose another folder")


def _replace(made: Path, out: Path) -> None:
    """Swap the bundle's files inside a folder that holds other things of ours."""
    new = _listed(made)
    # What an earlier, killed move may have brought is remembered too.
    stale = (_listed(out) | unfinished(out)) - new
    write_whole(out / UNFINISHED, json.dumps(sorted(new | stale)))
    for name in stale:
        files.remove_inside(out, name)
    for name in sorted(new, key=lambda name: name == MANIFEST):  # the manifest comes last
        files.make_folders(out, name)
        os.replace(made / name, out / name)
    shutil.rmtree(made, ignore_errors=True)
    (out / UNFINISHED).unlink()


def _listed(folder: Path) -> set[str]:
    """Names of a bundle's files, its manifest included; none when there is no readable manifest."""
    try:
        names = files.read_json(folder, MANIFEST).get("files")
    except parts.EdgeError:
        return set()
    return {MANIFEST, *filter(files.is_plain_name, names if isinstance(names, dict) else ())}


def unfinished(folder: Path) -> set[str]:
    """Names that a move which was cut off has left word of."""
    try:
        return set(filter(files.is_plain_name, files.read_json(folder, UNFINISHED, list)))
    except parts.EdgeError:
        return set()
