"""What is installed and usable here, and what is missing: for a person whose result is slow or whose import fails."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from fmopt.core import plugins
from fmopt.core.results import Frozen
from fmopt.measurement import host_probe
from fmopt.runtimes.base import Here, on_this_machine

# distributions that all import as `onnxruntime`: two at once shadow each other silently
_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
# What an extra of the distribution is for; those of who works on fmopt are left out.
EXTRAS = {
    "minilm": "the model minilm",
    "serve": "fmopt serve",
    "sign": "fmopt sign",
    "executorch": "phones (ExecuTorch)",
    "gguf": "GGUF files (llama.cpp)",
    "tensorrt": "NVIDIA GPUs (TensorRT)",
}
FOR_GPUS = ("tensorrt",)  # extras that are of no use without an NVIDIA GPU
PROGRAMS = {"ssh": ("openssh-client", "boards over ssh (--on)"), "npm": ("npm", "pages that run a bundle in a browser")}

State = Literal["ok", "missing", "warning"]


class Line(Frozen):
    """One thing that was looked at."""

    what: str
    state: State
    detail: str
    here: Here | None = None  # of a runtime
    fix: tuple[str, ...] = ()  # lines for a shell that bring what is missing


def examine() -> list[Line]:
    """Libraries, runtimes, what single commands need, the processor, and what disturbs measurements."""
    return [*_libraries(), *_runtimes(), *_extras(), *_programs(), *_processor()]


def _libraries() -> list[Line]:
    lines = [Line(what=name, state="ok", detail=found) for name, found in host_probe.versions().items()]
    present = [name for name in _ONNXRUNTIMES if _version(name)]
    if len(present) > 1:
        lines.append(
            Line(
                what="onnxruntime",
                state="warning",
                detail=f"{' and '.join(present)} are both installed and shadow each other; uninstall all but one",
                fix=(f"pip uninstall --yes {' '.join(present)}", _pip(requirements(None, ("onnxruntime",)))),
            )
        )
    if absent := [one for one in requirements(None) if not _version(_distribution(one))]:
        named = ", ".join(map(_distribution, absent))
        lines.append(Line(what="libraries", state="missing", detail=f"not installed: {named}", fix=(_pip(absent),)))
    return lines


def _extras() -> list[Line]:
    """What only some commands need; where all of it is there, nothing is said."""
    lines = []
    for extra, purpose in EXTRAS.items():
        absent = [one for one in requirements(extra) if not _version(_distribution(one))]
        if absent and (extra not in FOR_GPUS or Path("/proc/driver/nvidia").exists()):
            named = ", ".join(map(_distribution, absent))
            lines.append(
                Line(what=f"for {purpose}", state="missing", detail=f"not installed: {named}", fix=(_pip(absent),))
            )
    return lines


def _programs() -> list[Line]:
    return [
        Line(what=f"for {purpose}", state="missing", detail=f"there is no program {program}",
             fix=(f"apt-get install {package}",))
        for program, (package, purpose) in PROGRAMS.items()
        if shutil.which(program) is None
    ]  # fmt: skip


def requirements(extra: str | None, names: tuple[str, ...] = ()) -> list[str]:
    """What fmopt itself requires, or one of its extras, as pip takes it: "fastapi>=0.130". Only those of `names`, where given."""
    found = []
    for one in requires("fmopt") or []:
        wanted, _, marker = one.partition(";")
        of_extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", marker)
        if (of_extra[1] if of_extra else None) == extra and (not names or _distribution(wanted) in names):
            found.append(wanted.strip())
    return found


def _distribution(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]


def _pip(wanted: list[str]) -> str:
    return " ".join(["pip install", *(f'"{one}"' for one in wanted)])  # quoted: a shell takes > for its own


def _runtimes() -> list[Line]:
    lines = []
    for name in plugins.names("runtimes"):
        runtime = plugins.find("runtimes", name)
        here = on_this_machine(runtime)
        said = [f"{what} here: {how}" for what, how in here.model_dump().items()]
        reason = runtime.missing()
        state: State = "missing" if reason else "ok" if here == Here() else "warning"
        detail = reason or ("can be built, judged and timed here" if state == "ok" else "; ".join(said))
        lines.append(Line(what=f"runtime {name}", state=state, detail=detail, here=here))
    return lines


def _processor() -> list[Line]:
    target = host_probe.load_target("host")
    lines = [
        Line(
            what="processor",
            state="ok",
            detail=f"{target.title}: {target.cores} cores, {target.memory_gb:.0f} GB, "
            f"{' '.join(target.isa) or 'no ISA features known'}",
        )
    ]
    if not target.int8_dot:
        lines.append(
            Line(
                what="INT8",
                state="warning",
                detail="no VNNI, AMX, dotprod or i8mm: INT8 gains less here, and weights "
                "are kept within 7 bits so that 16-bit sums do not saturate",
            )
        )
    return lines


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
