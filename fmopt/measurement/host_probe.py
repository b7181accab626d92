"""This very machine as a target: what it is, what it can do, how fast its memory and arithmetic are."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from fmopt.core.errors import StoreError
from fmopt.core.results import Frozen
from fmopt.core.target import Precision, Target, read_target
from fmopt.edge.errors import EdgeError
from fmopt.edge.host import cache_folder, writable_by_others

# What kernels of the runtimes ask for; /proc/cpuinfo's names on the right where they differ from ours.
ISA_X86 = {
    "sse4_1": "sse4_1", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "avx512f": "avx512f",
    "avx512bw": "avx512bw", "avx512vl": "avx512vl", "avx512_vnni": "avx512_vnni", "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16", "avx_vnni": "avx_vnni", "avx_vnni_int8": "avx_vnni_int8", "amx_tile": "amx_tile",
    "amx_int8": "amx_int8", "amx_bf16": "amx_bf16", "amx_fp16": "amx_fp16",
}  # fmt: skip
ISA_ARM = {"neon": "asimd", "fp16": "asimdhp", "dotprod": "asimddp", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve",
           "sve2": "sve2", "sme": "sme"}  # fmt: skip
ISA_APPLE = {
    "neon": "hw.optional.AdvSIMD", "fp16": "hw.optional.arm.FEAT_FP16", "dotprod": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM", "bf16": "hw.optional.arm.FEAT_BF16", "sme": "hw.optional.arm.FEAT_SME",
}  # fmt: skip
BF16_ISA = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
RUNTIMES = ("onnxruntime", "openvino", "torch", "executorch")
LIBRARIES = (
    "fmopt", "torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf", "numpy", "tokenizers", "executorch", "torchao",
    "auto-round", "neural-compressor",
)  # fmt: skip

EDITION = 2  # raised when a probe measures something else, so that older ones are not taken for it


class Cache(Frozen):
    """Bytes of a core's second level and of the shared last level; None where the system does not say."""

    l2_kb: int | None = None
    l3_mb: float | None = None


def load_target(name: str, *, fresh: bool = False) -> Target:
    """The target called `name`: `host` is this machine, probed once and remembered; others are read from TOML.

    `fresh` probes again whatever is remembered. ConfigError for an unknown name.
    """
    return _remembered_host(fresh=fresh) if name == "host" else read_target(name)


def probe_host(*, quick: bool = True) -> Target:
    """This machine, with ceilings measured by kernels of about half a second each (`quick`), or two.

    gops are those of one core and count a multiply-add as two operations; bandwidth is that of the whole machine.
    """
    from fmopt.measurement.host_kernels import measure_bandwidth, measure_gops  # torch

    metadata = host_fingerprint()
    isa = tuple(metadata["isa"])
    seconds = 0.4 if quick else 2.0
    precisions = precisions_of(isa)
    cache = _caches()
    return Target(
        name="host",
        title=metadata["cpu"],
        kind="cpu",
        arch=metadata["arch"],
        isa=isa,
        cores=metadata["cores"],
        memory_gb=metadata["memory_gb"],
        l2_kb=cache.l2_kb,
        l3_mb=cache.l3_mb,
        bandwidth_gbs=measure_bandwidth(seconds, cores()),
        gops=measure_gops(precisions, seconds),
        gops_scope="core",
        precisions=precisions,
        runtimes=tuple(name for name in RUNTIMES if importlib.util.find_spec(name) is not None),
        width_multiple=width_multiple_of(isa),
        present=True,
    )


def host_fingerprint() -> dict[str, Any]:
    """What a measurement's meaning depends on: CPU, ISA, cores, memory, system. Holds no name of the machine or user."""
    return {
        "cpu": cpu_model(),
        "arch": arch_of(platform.machine()),
        "isa": list(isa_flags()),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "os": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the libraries that results depend on, read without importing them."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Physical cores that this process may use: twin hardware threads share one set of arithmetic units."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def cpu_model() -> str:
    """The CPU's name as its maker calls it, or its architecture."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    fields = _cpuinfo()
    return fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()


def isa_flags() -> tuple[str, ...]:
    """Instruction set extensions in fmopt's names, sorted; empty where the system does not say."""
    if sys.platform == "darwin":
        return tuple(sorted(name for name, key in ISA_APPLE.items() if _sysctl(key) == "1"))
    return isa_of(_cpuinfo())


def isa_of(fields: Mapping[str, str]) -> tuple[str, ...]:
    """Instruction set extensions by the fields of a /proc/cpuinfo, of this machine or another."""
    known = ISA_X86 if "flags" in fields else ISA_ARM
    has = set((fields.get("flags") or fields.get("Features") or "").split())
    return tuple(sorted(name for name, flag in known.items() if flag in has))


def cpuinfo_fields(text: str) -> dict[str, str]:
    """Fields of the first processor of a /proc/cpuinfo."""
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def save_target(target: Target, path: Path) -> None:
    """Write a target as TOML that `read_target` reads. Figures of a probe are marked as measured."""
    metadata = target.model_dump(mode="json", exclude_none=True, exclude={"name", "present", "over_ssh", "gops"})
    source = "measured by fmopt targets probe" if target.present else "see the sources in its original file"
    lines = [f"# {target.title}: {source}", *(f"{key} = {_toml(value)}" for key, value in metadata.items())]
    lines += ["", "[gops]", *(f"{key} = {_toml(value)}" for key, value in target.gops.items())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; choose another file") from error


def _remembered_host(*, fresh: bool) -> Target:
    """The probe of this machine and these libraries, from the user's cache folder where it is."""
    key = json.dumps([EDITION, host_fingerprint(), versions()], sort_keys=True)
    try:
        path = cache_folder() / f"host-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    except EdgeError:
        return probe_host()  # no home: the next run probes again
    if not fresh and not writable_by_others(path.parent):
        try:
            return Target.model_validate_json(path.read_text())
        except (OSError, ValidationError):
            pass  # not probed yet, or written by another version
    target = probe_host()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, target.model_dump_json())
    except OSError:
        pass  # a home that cannot be written only means that the next run probes again
    return target


def _write_whole(path: Path, text: str) -> None:
    """Write beside and move in place, so that a kill leaves no half of a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def precisions_of(isa: Sequence[str]) -> tuple[Precision, ...]:
    """What a CPU with these extensions can hold and compute in."""
    # fp16 is stored everywhere (half the size) and computed in fp32 where there is no arithmetic for it.
    found: list[Precision] = ["fp32", "fp16", "int8", "int4"]
    if BF16_ISA & set(isa):
        found.insert(2, "bf16")
    return tuple(found)


def width_multiple_of(isa: Sequence[str]) -> int:
    """Floats in a register."""
    return 16 if "avx512f" in isa else 8


def arch_of(machine: str) -> str:
    """An architecture by its one name."""
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty on other systems."""
    try:
        return cpuinfo_fields(Path("/proc/cpuinfo").read_text())
    except OSError:
        return {}


def _sysctl(name: str) -> str:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _caches() -> Cache:
    if sys.platform == "darwin":
        size = _sysctl("hw.perflevel0.l2cachesize") or _sysctl("hw.l2cachesize")
        return Cache(l2_kb=int(size) // 1024 if size else None)
    sizes: dict[str, int] = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if (index / "type").read_text().strip() != "Instruction":
                sizes[(index / "level").read_text().strip()] = kilobytes((index / "size").read_text().strip())
        except (OSError, ValueError):
            continue
    return cache_of(sizes)


def cache_of(sizes: Mapping[str, int]) -> Cache:
    """Caches by their levels' kilobytes."""
    return Cache(l2_kb=sizes.get("2"), l3_mb=sizes["3"] / 1024 if "3" in sizes else None)


def kilobytes(text: str) -> int:
    """`512K` → 512."""
    return int(text[:-1]) * {"K": 1, "M": 1024, "G": 1024**2}[text[-1]]


def _toml(value: Any) -> str:
    # JSON's strings, numbers, booleans and lists of them are TOML too.
    return json.dumps(value, ensure_ascii=False)
