"""A board at the end of an ssh line as a target: what it is, what it can do, how fast its memory and arithmetic are."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmopt.core.target import Target
from fmopt.edge.board import interleaved
from fmopt.measurement import host_probe
from fmopt.measurement.remote.answers import Ceilings, last_of
from fmopt.measurement.remote.python_env import ensure_python, imports
from fmopt.measurement.remote.ssh import Board, job_name

RUNTIMES = ("onnxruntime", "openvino")  # what a board is given; PyTorch is not for it
PROBE_SECONDS = 0.4  # of each kernel


def fingerprint(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What `host_probe.host_fingerprint` says of this machine, of a board by what it said of itself (see edge/board/agent.py)."""
    fields = host_probe.cpuinfo_fields(metadata["cpuinfo"])
    return {
        "cpu": fields.get("model name") or metadata["board"] or fields.get("Model") or metadata["machine"],
        "arch": host_probe.arch_of(metadata["machine"]),
        "isa": list(host_probe.isa_of(fields)),
        "cores": metadata["cores"],
        "memory_gb": round(metadata["memory_kb"] * 1024 / 1e9, 1),
        "os": metadata["system"],
        "kernel": metadata["release"],
        "python": metadata["python"],
    }


def probe_board(board: Board, place: Mapping[str, Any]) -> Target:
    """The board as a target, its ceilings measured there by kernels of under a second each, as those of the host are."""
    python = ensure_python(board, place, {"numpy": None, "onnxruntime": None})
    metadata = board.ask("describe")
    known = fingerprint(metadata)
    measured = run_kernels(board, python, known)
    cache = host_probe.cache_of(
        {level: host_probe.kilobytes(size) for level, size in metadata["caches"].items() if size}
    )
    return Target(
        name=board.address.host,
        title=known["cpu"],
        kind="cpu",
        arch=known["arch"],
        isa=tuple(known["isa"]),
        cores=known["cores"],
        memory_gb=known["memory_gb"],
        l2_kb=cache.l2_kb,
        l3_mb=cache.l3_mb,
        bandwidth_gbs=measured["bandwidth_gbs"],
        gops=measured["gops"],
        gops_scope="core",
        precisions=host_probe.precisions_of(known["isa"]),
        runtimes=tuple(name for name in RUNTIMES if imports(board, python, {name: None})),
        width_multiple=host_probe.width_multiple_of(known["isa"]),
        present=True,
        over_ssh=True,
    )


def run_kernels(board: Board, python: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Ceilings, measured there."""
    from fmopt.measurement.host_kernels import product_model  # torch

    with tempfile.TemporaryDirectory(prefix="fmopt-probe-") as scratch:
        files = {
            f"probe/board/{name}.py": Path(interleaved.__file__).with_name(f"{name}.py")
            for name in ("__init__", "kernels", "interleaved")
        }
        for precision, operator in (("fp32", "MatMul"), ("int8", "MatMulInteger")):
            path = Path(scratch) / f"{precision}.onnx"
            path.write_bytes(product_model(operator))
            files[f"probe/{path.name}"] = path
        board.send(files)
    board.progress.start(f"probing {board.address.host}", 1)
    words = [str(PROBE_SECONDS), str(known["cores"]), "fp32=fp32.onnx", "int8=int8.onnx"]
    out, _ = board.job(job_name("probe", known, words), [python, "-m", "board.kernels", *words], cwd="probe")
    board.ask("remove", name="probe")
    return last_of(out, Ceilings, board.address).model_dump()
