"""OpenVINO IR: written so that the same model always gives the same bytes, and read for the size of its layers."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections import deque
from collections.abc import Iterator
from math import prod
from pathlib import Path

import openvino

from fmopt.core.errors import PassError

# "Constant_1472": a name from a counter of the process, which also counts the models read before this one.
_COUNTED = re.compile(r"^([A-Z][A-Za-z0-9]*)_\d+")


def read_ir(path: Path) -> openvino.Model:
    """A model from IR or ONNX files."""
    return openvino.Core().read_model(str(path))


def save_ir(model: openvino.Model, path: Path, *, fp16_weights: bool = False) -> Path:
    """Write `path` (.xml) and the .bin beside it; names that OpenVINO counted up are replaced by stable ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stable_names(model)
    openvino.save_model(model, str(path), compress_to_fp16=fp16_weights)
    return path


def stable_names(model: openvino.Model) -> None:
    """Number automatically named operators in execution order, instead of in the order of their creation."""
    given: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        match = _COUNTED.match(name)
        if not match:
            continue
        counted, kind = match.group(0), match.group(1)
        if counted not in given:
            numbers[kind] = numbers.get(kind, 0) + 1
            given[counted] = f"{kind}.{numbers[kind]}"
        op.set_friendly_name(given[counted] + name[len(counted) :])


def layer_bytes(path: Path) -> dict[str, int]:
    """Torch module → bytes of its weights as stored in the IR at `path`; "" for those that no module names."""
    sizes: dict[str, int] = {}
    for op in read_ir(path).get_ordered_ops():
        if op.get_type_name() == "Constant":
            home = _home(op)
            bits = op.get_output_element_type(0).bitwidth * prod(op.get_output_shape(0))
            sizes[home] = sizes.get(home, 0) + bits // 8
    return sizes


def _home(constant: openvino.Node) -> str:
    """The module of the nearest operator that reads a constant and is named `<torch module>/<operator>`."""
    waiting, seen = deque([constant]), set()
    while waiting:
        op = waiting.popleft()
        for port in (port for output in op.outputs() for port in output.get_target_inputs()):
            reader = port.get_node()
            name = reader.get_friendly_name()
            if "/" in name:
                return name.split("/", 1)[0]
            if name not in seen:
                seen.add(name)
                waiting.append(reader)
    return ""


@contextlib.contextmanager
def quiet_nncf() -> Iterator[None]:
    """Keep NNCF's progress bars and advice off the terminal; what it gives up on with errors of its own is a PassError."""
    logger = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except Exception as error:
        if not type(error).__module__.startswith("nncf"):
            raise
        raise PassError(f"NNCF gave up: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}") from error
    finally:
        logger.setLevel(before)
