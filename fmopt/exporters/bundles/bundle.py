"""A bundle: the folder that runs a model elsewhere, without fmopt. Verified and opened here; `bundle_writer.py` makes one.

`fmopt/edge/` knows what a bundle is to the one who runs it, and is copied into each.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fmopt.core import plugins
from fmopt.core.errors import BundleError, DataError, first_fault
from fmopt.core.model import LLAMA_CPP, Artifact, CheckpointMetadata, ModelSource
from fmopt.core.results import Frozen
from fmopt.edge import files, loading, parts, runners, tensorrt
from fmopt.edge import manifest as edge_manifest
from fmopt.edge.manifest import MANIFEST
from fmopt.edge.parts import Sample
from fmopt.tasks.base import find_task


class Bundle(loading.Model):
    """An opened bundle: `bundle("a text")` or `bundle([sample, sample])`; raises FmoptErrors only."""

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

    def stream(self, sample: Any, **options: Any) -> Generator[Any, None, Any]:
        """The answer in pieces; DataError on a sample that the task cannot read, or a task that answers at once."""
        try:
            return (yield from super().stream(sample, **options))
        except parts.EdgeError as error:
            raise DataError(str(error)) from error


def script_of(folder: Path) -> str:
    """The file that runs a bundle; those made before 0.2 for TensorRT and ExecuTorch have one of another name."""
    return next((name for name in ("run_tensorrt.py", "run_executorch.py") if (folder / name).is_file()), "run.py")


def is_bundle(folder: Path) -> bool:
    """True when the folder holds a manifest, intact or not."""
    return (Path(folder) / MANIFEST).is_file()


def bundle_metadata(folder: Path) -> CheckpointMetadata:
    """The checkpoint a bundle was made from, with the bundle's own folder as its source; BundleError when damaged."""
    folder = Path(folder)
    manifest = checked(folder)
    try:
        origin = Origin.model_validate(manifest["checkpoint"])
    except ValidationError as error:
        raise BundleError(f"{folder / MANIFEST} is damaged: checkpoint: {first_fault(error)}") from error
    if "config.json" not in manifest["files"]:
        raise BundleError(f"{folder / MANIFEST} is damaged: it lists no config.json")
    try:
        config = files.read_json(folder, "config.json")
    except parts.EdgeError as error:
        raise BundleError(f"{folder}: {error}") from error
    source = ModelSource(
        asked=origin.asked, folder=folder, title=origin.title, task=origin.task, licence=origin.licence
    )
    known = origin.model_dump(exclude={"asked", "title", "licence"})
    return CheckpointMetadata(source=source, pipeline=manifest["pipeline"], config=config, **known)


class Origin(Frozen):
    """What a manifest says of the checkpoint that a bundle was made from."""

    asked: str
    title: str
    licence: str | None
    model_type: str
    architecture: str
    task: str
    hidden_size: int
    layers: int
    parameters: int
    weight_bytes: int
    digest: str


def bundle_artifact(folder: Path) -> Artifact:
    """What a runtime opens in a bundle; BundleError when it is damaged, or opened by llama.cpp alone."""
    manifest = checked(Path(folder))
    _refuse_gguf(Path(folder), manifest)
    return Artifact(manifest["runtime"], Path(folder) / manifest["model_file"], manifest["options"])


def bundle_precision(folder: Path) -> str:
    """The narrowest that a bundle computes in, by its recipe: "fp32", "bf16", "int8"."""
    return str(checked(Path(folder))["recipe"].get("precision", "fp32"))


def checked(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle all of whose files are as they were made, and whose graph was tried on this machine.

    BundleError otherwise. What was found whole is not read again in this process unless a file has changed.
    """
    manifest = _manifest(folder)
    stamp = [(name, *_stamp(folder / name)) for name in manifest["files"]]
    if _CHECKED.get((str(folder.absolute()), manifest["digest"])) != stamp:
        try:
            edge_manifest.whole_manifest(folder)
            if not loading.is_known_here(manifest):
                loading.require_tried(folder, manifest)
        except parts.EdgeError as error:
            raise BundleError(str(error)) from error
        _CHECKED[str(folder.absolute()), manifest["digest"]] = stamp
    return manifest


_CHECKED: dict[tuple[str, str], list[Any]] = {}


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        at = path.lstat()
    except OSError:
        return ()
    return at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns


def golden_samples(folder: Path) -> list[Sample]:
    """The samples that a bundle carries with their judged predictions; BundleError when they cannot be read."""
    try:
        return loading.read_golden(Path(folder))[0]
    except parts.EdgeError as error:
        raise BundleError(f"{folder}: {edge_manifest.GOLDEN} cannot be read: {error}") from error


def verify_bundle(folder: str | Path) -> list[str]:
    """What is wrong with the bundle in `folder`, one line each; empty when its files are whole and golden predictions are met.

    Raises BundleError for a manifest that cannot be read once the files were found whole.

    >>> fmopt.verify(bundle)
    []
    """
    folder = Path(folder)
    problems = edge_manifest.verify(folder)
    if problems:
        return problems
    manifest = _manifest(folder)
    if manifest["runtime"] == LLAMA_CPP:  # it was read back when it was made, and carries no golden items
        return []
    try:
        loading.require_tried(folder, manifest)
        model = loading.open_model(folder, manifest, None, _open)
        try:
            loading.self_test(folder, model)
        finally:
            model.close()
    except parts.EdgeError as error:
        return [str(error)]
    return []


def load(bundle: str | Path, threads: int | None = None, *, trust: str | Path | None = None) -> Bundle:
    """Open the bundle in the folder `bundle` as a callable on samples.

    Hashes are verified first, golden items on first use on a machine; warns when the CPU lacks a feature the graph was judged
    with. `threads`: by default every core this process may use. Torch is imported only for a bundle whose winner is a PyTorch
    checkpoint. With `trust`, a public key or an issuer's certificate (PEM), the bundle must be signed by it: see `fmopt sign`.

    Returns a `Bundle`: called with one sample (a text, a pair of texts, the bytes of an image or audio file) it gives what people
    read, with a list of samples a list. Raises BundleError when the bundle is damaged or its predictions are others here.

    >>> classify = fmopt.load(bundle)
    >>> sorted(classify("the cat sat on the mat"))
    ['label', 'score', 'scores']
    """
    _refuse_gguf(Path(bundle), _manifest(Path(bundle)))
    try:
        opened = loading.load(bundle, threads, _open, trust=trust)
    except parts.EdgeError as error:
        raise BundleError(str(error)) from error
    return Bundle(opened.metadata, opened.preprocessor, opened.runner)


def _refuse_gguf(folder: Path, manifest: Mapping[str, Any]) -> None:
    """BundleError for a bundle that llama.cpp opens."""
    if manifest["runtime"] == LLAMA_CPP:
        file = folder / manifest["model_file"]
        raise BundleError(
            f"{folder} holds a GGUF file, which llama.cpp opens and fmopt does not; run it: llama-server -m {file} (fmopt takes "
            "the file itself as a checkpoint)"
        )


def _open(runtime: str, path: Path, options: Mapping[str, Any], threads: int) -> Any:
    """Open a bundle's model, also by a runtime that run.py does without."""
    if runtime in runners.RUNNERS:
        return runners.open_runner(runtime, path, options, threads)
    if runtime == tensorrt.NAME and (reason := tensorrt.absent()) is not None:
        warnings.warn(f"computed by ONNX Runtime, rounded as TensorRT would: {reason}", stacklevel=4)
    return plugins.find("runtimes", runtime).open(Artifact(runtime, path, options), threads)


def _manifest(folder: Path) -> dict[str, Any]:
    """What a bundle says of itself. The part of another package's task is that of the package as it is installed here, never
    the bundle's own copy: only its run.py runs that."""
    try:
        found = edge_manifest.read_manifest(folder)
    except parts.EdgeError as error:
        raise BundleError(str(error)) from error
    task = found["pipeline"]["task"]
    if task not in parts.PARTS and task in plugins.names("tasks"):
        find_task(task)
    return found
