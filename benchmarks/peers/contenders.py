"""What run.py compares: every peer's artifact and fmopt's own bundles, opened alike and called alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core import plugins
from fmopt.core.model import Artifact, CheckpointMetadata, Runner, model_files
from fmopt.core.results import Scores
from fmopt.edge import manifest as edge_manifest
from fmopt.edge import parts
from fmopt.models import checkpoint

# Names peers give to the tokens' vectors [rows, tokens, width]; a sentence-transformers export calls them the second.
HIDDEN = ("last_hidden_state", "token_embeddings")


@dataclass
class Contender:
    """One row of the table. `meta` is what made it; `runner` is None when it failed, and `error` says why."""

    name: str
    meta: dict[str, Any]
    size_bytes: int = 0
    runner: Runner | None = None
    error: str | None = None
    samples_ms: list[float] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)

    @property
    def full_precision(self) -> bool:
        """Computes in fp32 or bf16."""
        return bool(self.meta.get("full_precision"))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by the names that fmopt's tasks read."""
        assert self.runner is not None
        outputs = self.runner.run(inputs)
        hidden = next((outputs[name] for name in HIDDEN if name in outputs), None)
        return outputs if hidden is None else {**outputs, HIDDEN[0]: hidden}

    def close(self) -> None:
        """Give back memory and threads."""
        if self.runner is not None:
            self.runner.close()

    def fail(self, what: str, error: Exception) -> None:
        """Keep why it failed; a failure is a row of the table."""
        self.error = f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def peers(artifacts: Path, metadata: CheckpointMetadata, threads: int, isa: list[str]) -> list[Contender]:
    """Every meta.json below `artifacts`, opened; one that failed to be made or to open is kept with its error."""
    found = []
    for path in sorted(artifacts.glob("*/*/meta.json")):
        meta = json.loads(path.read_text(encoding="utf-8"))
        contender = Contender(f"{meta['peer']} {meta['variant']}", meta, error=meta["error"])
        if contender.error is None:
            _open(contender, lambda meta=meta, path=path: _peer(meta, path.parent, metadata, isa), threads)
        found.append(contender)
    return found


def bundle(folder: Path, metadata: CheckpointMetadata, threads: int) -> Contender:
    """A bundle that fmopt wrote; its minutes are those of the run that made it, its lines the one command."""
    meta: dict[str, Any] = {"peer": "fmopt", "variant": folder.name, "lines": 1, "minutes": _run_minutes(folder)}
    contender = Contender(f"fmopt {folder.name}", meta)
    try:
        reported = edge_manifest.read_manifest(folder)
    except parts.EdgeError as error:
        contender.error = str(error)
        return contender
    meta |= {key: reported[key] for key in ("runtime", "options", "recipe", "verdict", "versions", "digest")}
    ours, theirs = folder / "tokenizer.json", checkpoint.tokenizer_file(metadata)
    if edge_manifest.sha256_file(ours) != edge_manifest.sha256_file(theirs):
        # all are given the same token ids; a bundle of another checkpoint, or with its own vocabulary, reads them wrong
        contender.error = (
            f"{folder} has another tokenizer than {metadata.source.asked}; compare a bundle of that checkpoint"
        )
        return contender
    artifact = Artifact(reported["runtime"], folder / reported["model_file"], reported["options"])
    _open(contender, lambda: artifact, threads)
    return contender


def reference(metadata: CheckpointMetadata, threads: int) -> Contender:
    """PyTorch fp32, which every row's accuracy is compared with."""
    contender = Contender("PyTorch fp32", {})
    _open(contender, lambda: _torch(metadata, {"dtype": "fp32"}), threads)
    if contender.error:
        raise SystemExit(f"{metadata.folder} does not open in PyTorch: {contender.error}")
    return contender


def _torch(metadata: CheckpointMetadata, options: Mapping[str, Any]) -> Artifact:
    auto_class = plugins.find("tasks", metadata.task).auto_class
    return Artifact("torch", metadata.folder, {"auto_class": auto_class, **options})


def _peer(meta: Mapping[str, Any], folder: Path, metadata: CheckpointMetadata, isa: list[str]) -> Artifact:
    options = dict(meta["options"])
    if meta["runtime"] == "torch":
        return _torch(metadata, options)
    if meta["runtime"] == "openvino" and {"avx512_bf16", "amx_bf16"} & set(isa):
        # OpenVINO's own default where the CPU has it; our runtime asks for fp32 unless told otherwise
        options["precision"] = "bf16"
    return Artifact(meta["runtime"], folder / meta["file"], options)


def _open(contender: Contender, find: Callable[[], Artifact], threads: int) -> None:
    """Open it through fmopt's runtimes, the same for all: same thread count, no spinning beside others."""
    try:
        artifact = find()
        contender.size_bytes = artifact.size_bytes
        options = {name: value for name, value in artifact.options.items() if name != "compile"}
        plain = Artifact(artifact.runtime, artifact.path, options)
        contender.runner = plugins.find("runtimes", artifact.runtime).open(plain, threads)
        if artifact.options.get("compile"):
            _compile(contender.runner)
        if artifact.path.is_file():
            contender.meta["files"] = {path.name: path.stat().st_size for path in model_files(artifact.path)}
    except Exception as error:  # every peer fails in its own way
        contender.fail("does not open", error)


def _compile(runner: Any) -> None:
    import torch

    runner.net = torch.compile(runner.net)


def _run_minutes(folder: Path) -> float | None:
    """Minutes of the run that wrote this bundle: the sum of its stages."""
    try:
        stages = json.loads((folder / "record.json").read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError):
        return None
    return round(sum(stages.values()) / 60, 3) if stages else None
