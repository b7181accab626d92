"""What run.py compares: every peer's artifact and fmopt's own bundles, opened alike and called alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fmopt import edge, lookup
from fmopt.model import Artifact, model_files
from fmopt.runtimes.base import Runner

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
    accuracy: dict[str, Any] = field(default_factory=dict)

    @property
    def full_precision(self) -> bool:
        """Computes in fp32 or bf16."""
        return bool(self.meta.get("full_precision"))

    def hidden(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Vectors of tokens, float32 [rows, tokens, width]."""
        assert self.runner is not None
        outputs = self.runner.run(inputs)
        named = next((outputs[name] for name in HIDDEN if name in outputs), None)
        if named is None:
            named = next((array for array in outputs.values() if array.ndim == 3), None)
        if named is None:
            shapes = {name: array.shape for name, array in outputs.items()}
            raise ValueError(f"no output of shape [rows, tokens, width] among {shapes}")
        return np.asarray(named, dtype=np.float32)


def peers(artifacts: Path, model: Path, threads: int, isa: list[str]) -> list[Contender]:
    """Every meta.json below `artifacts`, opened; one that failed to be made or to open is kept with its error."""
    found = []
    for path in sorted(artifacts.glob("*/*/meta.json")):
        meta = json.loads(path.read_text(encoding="utf-8"))
        contender = Contender(f"{meta['peer']} {meta['variant']}", meta, error=meta["error"])
        if contender.error is None:
            _open(contender, lambda meta=meta, path=path: _peer(meta, path.parent, model, isa), threads)
        found.append(contender)
    return found


def bundle(folder: Path, threads: int) -> Contender:
    """A bundle that fmopt wrote; its minutes are those of the run that made it, its lines the one command."""
    meta: dict[str, Any] = {"peer": "fmopt", "variant": folder.name, "lines": 1, "minutes": _run_minutes(folder)}
    contender = Contender(f"fmopt {folder.name}", meta)
    try:
        facts = edge.read_facts(folder)
    except edge.EdgeError as error:
        contender.error = str(error)
        return contender
    meta |= {key: facts[key] for key in ("runtime", "options", "recipe", "verdict", "versions", "digest")}
    artifact = Artifact(facts["runtime"], folder / facts["model_file"], facts["options"])
    _open(contender, lambda: artifact, threads)
    return contender


def reference(model: Path, threads: int) -> Contender:
    """PyTorch fp32, which every row's accuracy is compared with."""
    contender = Contender("reference", {})
    _open(contender, lambda: Artifact("torch", model, {"auto_class": "AutoModel", "dtype": "fp32"}), threads)
    if contender.error:
        raise SystemExit(f"{model} does not open in PyTorch: {contender.error}")
    return contender


def _peer(meta: Mapping[str, Any], folder: Path, model: Path, isa: list[str]) -> Artifact:
    options = dict(meta["options"])
    if meta["runtime"] == "torch":
        return Artifact("torch", model, {"auto_class": "AutoModel", **options})
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
        contender.runner = lookup.find("runtimes", artifact.runtime).open(plain, threads)
        if artifact.options.get("compile"):
            _compile(contender.runner)
        if artifact.path.is_file():
            contender.meta["files"] = {path.name: path.stat().st_size for path in model_files(artifact.path)}
    except Exception as error:  # every peer fails in its own way, and a failure is a row of the table
        contender.error = f"does not open: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


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
