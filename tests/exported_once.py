"""An export of the same network, traced on the same inputs, is made once in a run of the tests and copied after that.

Tracing takes seconds whatever the size of a network, and hundreds of tests begin with the same tiny one. The same network gives
the same bytes, which `tests/exporters/test_to_onnx.py` holds without this (marker `traced_anew`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

AROUND_THE_NETWORK = ("labels", "multi_label", "max_length", "padding", "add_prefix_space", "pooling", "normalize")
MOST_WEIGHT_BYTES = 64 * 1024 * 1024
_anew = False


@pytest.fixture(scope="session", autouse=True)
def _exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from fmopt.exporters import to_onnx

    base = tmp_path_factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported-once"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "export_onnx", _remembering(to_onnx.export_onnx, kept))
        yield


@pytest.fixture(autouse=True)
def _traced_anew(request: pytest.FixtureRequest) -> Iterator[None]:
    global _anew
    _anew = request.node.get_closest_marker("traced_anew") is not None
    yield
    _anew = False


def _remembering(export: Callable[..., Any], kept: Path) -> Callable[..., Any]:
    """`export_onnx` that copies what it made of the same network before, in this process or another of the run."""

    @functools.wraps(export)
    def made(model: Any, example: Any, out: Path, *, file_name: str = "model.onnx") -> Any:
        found = None if _anew else _key(model, example, file_name)
        if found is None:
            return export(model, example, out, file_name=file_name)
        folder = kept / found
        if not folder.is_dir():
            graph = export(model, example, out, file_name=file_name)
            _keep(out, file_name, folder, graph)
            return graph
        out.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{file_name}*"):
            shutil.copyfile(path, out / path.name)
        inputs, outputs = (tuple((folder / name).read_text().split()) for name in ("inputs", "outputs"))
        from fmopt.core.model import Graph

        return Graph("onnx", out / file_name, inputs, outputs, model.history)

    return made


def _keep(out: Path, file_name: str, folder: Path, graph: Any) -> None:
    written = folder.with_name(f"{folder.name}-{os.getpid()}")
    written.mkdir(parents=True)
    for path in out.glob(f"{file_name}*"):
        shutil.copyfile(path, written / path.name)
    (written / "inputs").write_text(" ".join(graph.inputs))
    (written / "outputs").write_text(" ".join(graph.outputs))
    try:
        written.rename(folder)
    except OSError:  # the other worker was first
        shutil.rmtree(written)


def _key(model: Any, example: Any, file_name: str) -> str | None:
    """What an export depends on: modules with their settings, weights, pipeline, inputs. None for networks too large to hash."""
    from fmopt.exporters import to_onnx

    net = model.net
    state = dict(sorted(net.state_dict(keep_vars=True).items()))
    if sum(value.nbytes for value in state.values()) > MOST_WEIGHT_BYTES:
        return None
    digest = hashlib.sha256()
    for module in net.modules():
        digest.update(f"{type(module).__module__}.{type(module).__qualname__} {module.extra_repr()}".encode())
        for name, value in vars(module).items():
            if name in ("_forward_hooks", "_forward_pre_hooks") or not name.startswith("_"):
                _add(digest, name, value)
    pipeline = {name: value for name, value in model.metadata.pipeline.items() if name not in AROUND_THE_NETWORK}
    examples = [(name, str(array.dtype)) for name, array in example.items()]  # not their values: the graph is the same
    digest.update(
        repr((str(net.config), pipeline, net.training, file_name, examples, to_onnx.EXTERNAL_DATA_BYTES)).encode()
    )
    for name, value in state.items():
        _add(digest, name, value)
    return digest.hexdigest()[:32]


def _add(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.requires_grad}".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(f"{name} {re.sub(r'0x[0-9a-f]+', '', repr(value))}".encode())
