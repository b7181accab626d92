"""A bundle: the folder that runs a model elsewhere, without fmopt. Written whole or not at all, verified, opened.

`fmopt/edge/` knows what a bundle is to the one who runs it, and is copied into each; this file makes one.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fmopt.core import plugins
from fmopt.core.errors import BundleError, DataError, StoreError
from fmopt.core.model import Artifact, CheckpointMetadata, ModelSource, takes_length
from fmopt.core.store import MARKER, disk_errors
from fmopt.edge import executorch, host, loading, parts, runners, tensorrt
from fmopt.edge import text as edge_text
from fmopt.edge.loading import GOLDEN, MANIFEST, UNFINISHED
from fmopt.edge.parts import Sample
from fmopt.edge.recommendation import CATALOGUE
from fmopt.exporters import browser_files

# Protobuf ends at 2 GB; below this one file is handier than two.
EXTERNAL_DATA_BYTES = 1_500_000_000
PROCESSOR = "preprocessor_config.json"  # of images and sounds
VOCABULARY = "vocab.json"  # of letters
# What encodes samples: a bundle carries those that the checkpoint has.
ENCODERS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
            "chat_template.jinja", "generation_config.json", PROCESSOR, "processor_config.json", VOCABULARY,
            CATALOGUE)  # fmt: skip
ENCODER_OF = {"text": "tokenizer.json", "item": CATALOGUE}  # where it is not a processor
PACKAGES = ("fmopt", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "tokenizers", "torch", "transformers",
            "executorch")  # fmt: skip
# Runtimes with a module of their own: what has to be installed for it, and what a reader is told.
OWN: Mapping[str, Any] = {module.NAME: module for module in (tensorrt, executorch)}


class Bundle(loading.Model):
    """An opened bundle: `bundle("a text")` or `bundle([raw, raw])`; raises FmoptErrors only."""

    def predict(self, samples: Sequence[Sample], batch_size: int = 1) -> list[Any]:
        """Predictions as they are judged (see `edge.postprocess`); DataError on a sample the task cannot read."""
        try:
            return super().predict(samples, batch_size)
        except parts.EdgeError as error:
            raise DataError(str(error)) from error

    def __call__(self, sample: Any, **options: Any) -> Any:
        """What people read; DataError on a sample that the task cannot read."""
        try:
            return super().__call__(sample, **options)
        except parts.EdgeError as error:
            raise DataError(str(error)) from error

    def stream(self, sample: Any, **options: Any) -> Iterator[Any]:
        """The answer in pieces; DataError on a sample that the task cannot read, or a task that answers at once."""
        try:
            yield from super().stream(sample, **options)
        except parts.EdgeError as error:
            raise DataError(str(error)) from error


def write_bundle(
    out: Path,
    *,
    metadata: CheckpointMetadata,
    artifact: Artifact,
    recipe: Mapping[str, Any],
    verdict: str,
    golden: Sequence[tuple[Sample, Any]],
    tolerance: float,
    needs_isa: Sequence[str],
    record_files: Mapping[str, Path] | None = None,
    for_browser: bool = False,
) -> Path:
    """Write a bundle into the folder `out`: made beside it and moved in when whole. Returns `out`.

    `golden` are samples with their predictions as judged; another machine must reproduce them within `tolerance`
    (absolute, in units of the prediction). `needs_isa` are CPU features the graph was judged with and may compute
    otherwise without. `record_files` are further files by their name in the bundle. `for_browser` lays the graph where
    transformers.js looks for it and adds a page that runs it. StoreError when `out` holds something that is not ours or
    cannot be written; BundleError when a part is missing.
    """
    _refuse_foreign(out)
    staging = out.with_name(f".fmopt-making-{out.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with disk_errors(staging):
            staging.mkdir(parents=True)
            model_file = _put_model(artifact, staging)
            page = for_browser and browser_files.put_page(staging, metadata.task)
            if for_browser:
                model_file = browser_files.move_graph(staging, model_file, str(recipe.get("precision", "fp32")))
            _put_checkpoint_files(metadata, artifact, staging)
            _put_golden(golden, tolerance, staging)
            put_programs(metadata.pipeline, artifact.runtime, staging)
            (staging / "README.md").write_text(
                _readme(metadata, artifact, verdict, model_file, page=page), encoding="utf-8"
            )
            for name, path in (record_files or {}).items():
                shutil.copyfile(path, staging / name)
            _put_manifest(metadata, artifact, model_file, recipe, verdict, needs_isa, staging)
        return publish(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def put_programs(pipeline: Mapping[str, Any], runtime: str, folder: Path) -> None:
    """Copy what runs a bundle of this task and runtime: run.py, and the modules that it imports."""
    modules = parts.module_files(pipeline, runtime)
    shutil.copyfile(modules[0].with_name("run.py"), folder / "run.py")
    (folder / "edge").mkdir()
    for file in modules:
        shutil.copyfile(file, folder / "edge" / file.name)


def script_of(folder: Path) -> str:
    """The file that runs a bundle; those made before 0.2 for TensorRT and ExecuTorch have one of another name."""
    return next((name for name in ("run_tensorrt.py", "run_executorch.py") if (folder / name).is_file()), "run.py")


def publish(made: Path, out: Path) -> Path:
    """Move the finished bundle `made` to `out`, replacing a bundle there but nothing else of ours (stages, record).

    A kill in the middle leaves a folder that says it is unfinished; publishing a bundle again mends it. StoreError when
    `out` holds something that is not ours.
    """
    _refuse_foreign(out)
    with disk_errors(out):
        if not out.exists() or not any(out.iterdir()):
            out.parent.mkdir(parents=True, exist_ok=True)
            if out.exists():
                out.rmdir()
            made.rename(out)
        else:
            _replace(made, out)
    return out


def is_bundle(folder: Path) -> bool:
    """True when the folder holds a manifest, intact or not."""
    return (Path(folder) / MANIFEST).is_file()


def bundle_metadata(folder: Path) -> CheckpointMetadata:
    """The checkpoint a bundle was made from, with the bundle's own folder as its source; BundleError when damaged."""
    folder = Path(folder)
    manifest = _manifest(folder)
    checkpoint = dict(manifest["checkpoint"])
    source = ModelSource(
        asked=checkpoint.pop("asked"), folder=folder, title=checkpoint.pop("title"), task=checkpoint["task"],
        licence=checkpoint.pop("licence"),
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return CheckpointMetadata(source=source, pipeline=manifest["pipeline"], config=config, **checkpoint)


def bundle_artifact(folder: Path) -> Artifact:
    """What a runtime opens in a bundle; BundleError when the manifest is damaged."""
    manifest = _manifest(Path(folder))
    return Artifact(manifest["runtime"], Path(folder) / manifest["model_file"], manifest["options"])


def bundle_precision(folder: Path) -> str:
    """The narrowest that a bundle computes in, by its recipe: "fp32", "bf16", "int8"."""
    return str(_manifest(Path(folder))["recipe"].get("precision", "fp32"))


def verify_bundle(folder: Path) -> list[str]:
    """What is wrong with a bundle, one line each; empty when files are whole and golden predictions are met."""
    folder = Path(folder)
    problems = loading.verify(folder)
    if problems:
        return problems
    try:
        model = loading.open_model(folder, loading.read_manifest(folder), None, _open)
        try:
            loading.self_test(folder, model)
        finally:
            model.close()
    except parts.EdgeError as error:
        return [str(error)]
    return []


def load(bundle: str | Path, threads: int | None = None) -> Bundle:
    """Open a bundle as a callable on raw text: `load(folder)("a text")`, or a list of samples.

    Hashes are verified first, golden items on first use on a machine; warns when the CPU lacks a feature the graph was
    judged with. Torch is imported only for a bundle whose winner is a PyTorch checkpoint. BundleError when damaged.
    """
    try:
        opened = loading.load(bundle, threads, _open)
    except parts.EdgeError as error:
        raise BundleError(str(error)) from error
    return Bundle(opened.metadata, opened.preprocessor, opened.runner)


def _open(runtime: str, path: Path, options: Mapping[str, Any], threads: int) -> Any:
    """Open a bundle's model, also by a runtime that run.py does without."""
    if runtime in runners.RUNNERS:
        return runners.open_runner(runtime, path, options, threads)
    if runtime == tensorrt.NAME and (reason := tensorrt.absent()) is not None:
        warnings.warn(f"computed by ONNX Runtime, rounded as TensorRT would: {reason}", stacklevel=4)
    return plugins.find("runtimes", runtime).open(Artifact(runtime, path, options), threads)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return loading.read_manifest(folder)
    except parts.EdgeError as error:
        raise BundleError(str(error)) from error


# -------------------------------------------------------------------------------- the parts of a bundle


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
    if path.suffix == ".pte":
        shutil.copyfile(path, folder / "model.pte")
        return "model.pte"
    raise BundleError(f"{path} is neither model.onnx nor model.xml nor model.pte nor a checkpoint folder")


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
    """What encodes samples, and config.json, under the names that transformers and optimum look for."""
    needed = _encoder(metadata)
    if not (metadata.folder / needed).is_file():
        raise BundleError(f"{metadata.folder / needed} is missing; a bundle carries what encodes the checkpoint's raws")
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


def _put_golden(golden: Sequence[tuple[Sample, Any]], tolerance: float, folder: Path) -> None:
    items = [
        {"raw": loading.sample_to_json(sample), "prediction": loading.prediction_to_json(got)} for sample, got in golden
    ]
    for item, (sample, got) in zip(items, golden, strict=True):
        if isinstance(got, np.ndarray) and not np.isfinite(got).all():
            raise BundleError(
                f"the prediction for {item['raw']} is not finite; such a model is not handed over: {sample!r}"
            )
    _write_json(folder / GOLDEN, {"tolerance": tolerance, "items": items})


def _put_manifest(
    metadata: CheckpointMetadata, artifact: Artifact, model_file: str, recipe: Mapping[str, Any], verdict: str,
    needs_isa: Sequence[str], folder: Path,
) -> None:  # fmt: skip
    """Write fmopt.json, last: it vouches for every other file, and by its digest for itself."""
    written = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": loading.sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "format": loading.FORMAT,
        "digest": "",
        "title": metadata.source.title,
        "task": metadata.task,
        "verdict": verdict,
        "runtime": artifact.runtime,
        "options": dict(artifact.options),
        "model_file": model_file,
        "needs_isa": sorted(needs_isa),
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
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    digest = loading.manifest_digest(text, "")
    sealed = text.replace('"digest": ""', f'"digest": "{digest}"', 1)
    (folder / MANIFEST).write_bytes(sealed.encode())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


USAGE = {
    "sentence-embedding": ('"a sentence"', "its vector"),
    "text-classification": ('"a text"', "its label with scores"),
    "text-regression": ('"a text"', "its score"),
    "token-classification": ('"a text"', "the entities in it"),
    "question-answering": ('"a question" "a context"', "the answer in the context"),
    "fill-mask": ('"a [MASK] in a text"', "the likeliest tokens there"),
    "audio-classification": ("sound.wav", "its label with scores"),
    "automatic-speech-recognition": ("speech.wav", "what is said in it"),
    "text-generation": (
        '"a beginning"',
        "how it goes on; --max-new-tokens, --temperature, --stream and more: see --help",
    ),
    "translation": ('"a text"', "its translation; --beams, --max-new-tokens, --stream and more: see --help"),
    "summarization": (
        '"a long text"',
        "what it says in short; --beams, --max-new-tokens, --stream and more: see --help",
    ),
    "image-classification": ("picture.png", "its label with scores"),
    "image-feature-extraction": ("picture.png", "its vector, of length one"),
    "zero-shot-image-classification": ("picture.png", "which of its labels fits, with scores"),
    "image-segmentation": ("picture.png", "the class of every pixel"),
    "sequential-recommendation": ('"AN ITEM; ANOTHER"', "what comes next after these (ids or titles)"),
    "text-to-audio": ('"a text"', "its sound; --seed for another one"),
    "object-detection": (
        "picture.png",
        "boxes around what is in it, in its pixels; --threshold 0.5 is the least score",
    ),
}


def _encoder(metadata: CheckpointMetadata) -> str:
    """The file without which a bundle could not encode its samples."""
    return VOCABULARY if "speech" in metadata.pipeline else ENCODER_OF.get(metadata.modality, PROCESSOR)


def readers(metadata: CheckpointMetadata) -> tuple[str, ...]:
    """The packages, beside numpy, that a bundle encodes and spells by."""
    encoder = _encoder(metadata)
    if encoder == "tokenizer.json" or (metadata.modality == "audio" and "start" in metadata.pipeline):
        return ("tokenizers",)
    return ("pillow",) if encoder == PROCESSOR and metadata.modality != "audio" else ()


def _readme(metadata: CheckpointMetadata, artifact: Artifact, verdict: str, model_file: str, *, page: bool) -> str:
    texts, result = USAGE[metadata.task]
    texts = texts.replace("[MASK]", metadata.pipeline.get("mask", {}).get("token", ""))
    own = OWN.get(artifact.runtime)
    alone = artifact.runtime in runners.RUNNERS or own is not None
    packages = own.PACKAGES if own else artifact.runtime
    encoder = _encoder(metadata)
    reads = "".join(f" {package}" for package in readers(metadata))
    others = " (and soundfile, for other files than WAV)" if metadata.modality == "audio" else ""
    needs = (
        f"It needs no fmopt: `pip install numpy{reads} {packages}`{others}."
        if alone
        else "It is a PyTorch checkpoint and runs by fmopt: `pip install fmopt`."
    )
    needs += own.README if own else ""
    predict, bench, verify = (
        f"python run.py {verb}" if alone else f"fmopt {verb} ." for verb in ("predict", "bench", "verify")
    )
    encoder = encoder.replace("tokenizer.json", "tokenizer*.json")
    sample = texts if metadata.task != "question-answering" else "(" + texts.replace('" "', '", "') + ")"
    if metadata.modality == "item":
        sample = json.dumps([edge_text.read_sample(metadata.task, texts.strip('"'))])
    elif metadata.modality != "text":
        sample = f'open("{texts}", "rb").read()'
    browsers = browser_files.usage(model_file, page=page)
    given = {".onnx": model_file, ".pte": model_file, ".xml": "model.xml, model.bin"}
    weights = given.get(artifact.path.suffix, "*.safetensors")
    windows = metadata.task in ("question-answering", "token-classification")
    long = (
        f"Texts longer than {metadata.pipeline['max_length']} tokens are {'read in overlapping windows' if windows else 'cut'}.\n"
        if takes_length(metadata.pipeline) else ""
    )  # fmt: skip
    return f"""# {metadata.source.title}: {metadata.task}

Made by fmopt for {artifact.runtime}; the gate said **{verdict}**. {needs}

```
{predict} {texts}{" -o out.wav" if encoder == VOCABULARY else ""}     # {result}; also --file list.txt, --json
{bench}     # latency here
{verify}     # are the files whole, does it compute here what it should
```
```python
{"from run import load     # in this folder; anywhere: from fmopt import load" if alone else "from fmopt import load"}
model = load(".")
model({sample})     # or a list of them
```
{browsers}
| file | what it is |
|---|---|
| `{weights}` | the model |
| `{encoder}`, `config.json` | of the checkpoint, as transformers and optimum read them |
| `fmopt.json` | what it was made from and how, versions, host, sha256 of every file |
| `golden.json` | inputs with the predictions that were judged; run on first load on a new machine |
| `record.json`, `report.html` | every measurement, and the page drawn from it (where it was judged) |

{long}Licence of the original model: {metadata.source.licence or "not stated; see its source"}.
"""


# -------------------------------------------------------------------------------- moving in


def _refuse_foreign(out: Path) -> None:
    """StoreError when `out` holds anything but a bundle or a run of ours."""
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; choose a folder")
    if not out.is_dir() or not any(out.iterdir()) or (out / MARKER).exists() or (out / UNFINISHED).exists():
        return
    try:
        ours = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["format"].startswith("fmopt-bundle")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise StoreError(f"{out} is not empty and was not made by fmopt; nothing was touched. Choose another folder")


def _replace(made: Path, out: Path) -> None:
    """Swap the bundle's files inside a folder that holds other things of ours."""
    new = _listed(made)
    marker = out / UNFINISHED
    # What an earlier, killed move may have brought is remembered too.
    stale = (_listed(out) | set(json.loads(marker.read_text() or "[]") if marker.is_file() else [])) - new
    marker.write_text(json.dumps(sorted(new | stale)))
    for name in stale:
        (out / name).unlink(missing_ok=True)
    for name in sorted(new, key=lambda name: name == MANIFEST):  # the manifest comes last
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(made / name, out / name)
    shutil.rmtree(made, ignore_errors=True)
    marker.unlink()


def _listed(folder: Path) -> set[str]:
    """Names of a bundle's files, its manifest included; none when there is no readable manifest."""
    try:
        names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {MANIFEST, *(name for name in names if _inside(name))}


def _inside(name: str) -> bool:
    """Whether a listed name is one in the folder or in a folder of it, never a path out of it."""
    path = PurePosixPath(name)
    return not path.is_absolute() and len(path.parts) in (1, 2) and ".." not in path.parts
