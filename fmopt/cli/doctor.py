"""What is installed and usable here, and what is missing: for a person whose result is slow or whose import fails."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from fmopt.core import plugins
from fmopt.core.results import Frozen
from fmopt.measurement import host_probe
from fmopt.runtimes.base import Here, on_this_machine

# distributions that all import as `onnxruntime`: two at once shadow each other silently
_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


State = Literal["ok", "missing", "warning"]


class Line(Frozen):
    """One thing that was looked at."""

    what: str
    state: State
    detail: str
    here: Here | None = None  # of a runtime


def examine() -> list[Line]:
    """Libraries, runtimes, the processor, and what disturbs measurements."""
    return [*_libraries(), *_runtimes(), *_processor()]


def _libraries() -> list[Line]:
    lines = [Line(what=name, state="ok", detail=found) for name, found in host_probe.versions().items()]
    present = [name for name in _ONNXRUNTIMES if _version(name)]
    if len(present) > 1:
        lines.append(
            Line(
                what="onnxruntime",
                state="warning",
                detail=f"{' and '.join(present)} are both installed and shadow each other; uninstall all but one",
            )
        )
    return lines


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
