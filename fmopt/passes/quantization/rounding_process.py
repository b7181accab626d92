"""Weights rounded by a tool that runs in a process of its own: what it is given, how far it is, and what it made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import fmopt
from fmopt.core.errors import PassError
from fmopt.models.loading import TorchModel
from fmopt.models.structure import save_checkpoint
from fmopt.passes.base import Context
from fmopt.passes.quantization.rounded_linears import Rounded, layer_linears, put_rounded, require_blocks
from fmopt.passes.quantization.rounding_tools import NETWORK, REQUEST, ROUNDED, ROWS

STEP = re.compile(r"(\d+)/(\d+) \[|Quantizing layer (\d+) / (\d+)")  # how far a tool's log says it is
LOOK_SECONDS = 2.0  # between two looks at the log


def round_linears(
    model: TorchModel, ctx: Context, tool: Literal["autoround", "gptq"], *, samples: int, tokens: int, **asked: Any
) -> TorchModel:
    """`model` with all Linears of its layers rounded by `tool`, in place. PassError when there is nothing to calibrate on, the
    tool fails, or it leaves a layer as it was."""
    require_blocks(tool, layer_linears(model.net), asked["block"])
    rows = calibration_rows(tool, ctx, samples, tokens)
    with tempfile.TemporaryDirectory(prefix="fmopt-rounding-") as name:
        folder = Path(name)
        save_checkpoint(model, folder / NETWORK)
        save_file({"rows": torch.from_numpy(rows)}, folder / ROWS)
        request = {**asked, "tool": tool, "task": model.metadata.task, "seed": ctx.seed}
        (folder / REQUEST).write_text(json.dumps({**request, "threads": torch.get_num_threads()}))
        ctx.progress(f"{tool}: rounding to {asked['bits']} bits on {len(rows)} rows of {rows.shape[1]} tokens")
        run_tool(folder, lambda text: ctx.progress(f"{tool}: {text}"))
        put_rounded(tool, model.net, read_rounded(folder / ROUNDED, asked["bits"]))
    return model.after(f"{tool}({asked['bits']} bit, {asked['block']})")


def calibration_rows(tool: str, ctx: Context, samples: int, tokens: int) -> np.ndarray:
    """Token ids [rows, tokens] of the calibration items, one after the other: rows of one length are looked at together."""
    found: list[np.ndarray] = []
    for item in islice(ctx.calibration(), samples * tokens):  # an item has at least one token
        found.append(np.asarray(item["input_ids"], np.int64).ravel())
        if sum(map(len, found)) >= samples * tokens:
            break
    if not found:
        raise PassError(f"{tool} has no calibration items; give data with a calibration split")
    ids = np.concatenate(found)
    length = min(tokens, len(ids))
    return ids[: len(ids) // length * length].reshape(-1, length)[:samples].copy()


def run_tool(folder: Path, progress: Callable[[str], None]) -> None:
    """Run what the request in `folder` asks for, to its end. PassError with the last line of the log when it fails."""
    log = folder / "log"
    paths = [str(Path(fmopt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "fmopt.passes.quantization.rounding_tools", str(folder)]
    with log.open("wb") as stream:
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        said = None
        try:
            while (code := _ended(child)) is None:
                if (now := how_far(log)) != said and now is not None:
                    said = now
                    progress(f"{now[0]} of {now[1]} layers")
        finally:
            child.kill()  # of no effect when it has ended
            child.wait()
    if code:
        lines = log.read_text("utf8", "replace").strip().splitlines() or [f"exit status {code}"]
        raise PassError(f"the process that rounds weights failed: {lines[-1]}")


def how_far(log: Path) -> tuple[int, int] | None:
    """(layers done, layers) by a tool's log; None before it says so."""
    found = STEP.findall(log.read_text("utf8", "replace"))
    if not found:
        return None
    bar, of_bar, layer, of_layers = found[-1]
    return int(bar or layer), int(of_bar or of_layers)


def read_rounded(path: Path, bits: int) -> dict[str, Rounded]:
    """What the process wrote, by the name of the module."""
    tensors = load_file(path)
    names = [name.removesuffix(":scales") for name in tensors if name.endswith(":scales")]
    return {
        name: Rounded(tensors[f"{name}:integers"], tensors[f"{name}:scales"], tensors.get(f"{name}:zeros"), bits)
        for name in names
    }


def missing(module: str, extra: str) -> str | None:
    """Why a tool cannot be used; None when it is installed."""
    return None if find_spec(module) else f"{extra} is not installed: pip install 'fmopt[{extra}]'"


def _ended(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return None
