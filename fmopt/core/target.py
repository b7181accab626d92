"""A device as a row of properties: what it can do, how fast, how much it holds. They come from `targets/*.toml` or a probe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from fmopt.core.errors import ConfigError
from fmopt.core.plugins import data_folder, data_names, did_you_mean
from fmopt.core.received import read_toml
from fmopt.core.results import Frozen

Precision = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4"]


class Target(Frozen):
    """Properties of a device. Figures that nobody measured or published are None, never a guess.

    >>> fmopt.Target(name="mine", title="A board", kind="cpu", arch="aarch64", cores=4, memory_gb=8, runtimes=("onnxruntime",),
    ...              precisions=("fp32", "int8")).l3_mb is None
    True
    """

    name: str
    title: str
    kind: Literal["cpu", "gpu", "browser"]
    arch: str  # x86_64, aarch64, wasm32, sm_75 …
    isa: tuple[str, ...] = ()  # avx2, avx512f, avx512_vnni, amx_int8, dotprod, i8mm …
    cores: int
    memory_gb: float
    l2_kb: int | None = None  # per core
    l3_mb: float | None = None
    bandwidth_gbs: float | None = None  # memory, GB/s
    gops: dict[Precision, float] = Field(default_factory=dict)  # dense ceilings, 10⁹ operations/s, whole device
    gops_scope: Literal["core", "device"] = "device"
    precisions: tuple[Precision, ...]
    runtimes: tuple[str, ...]
    width_multiple: int = 8  # widths that kernels like
    present: bool = False  # True: this very machine or one that can be reached, so it can be measured
    over_ssh: bool = False  # True: reached over an ssh line, so only what runs there is measured there

    @property
    def here(self) -> bool:
        """True when it is this very machine."""
        return self.present and not self.over_ssh

    @property
    def int8_dot(self) -> bool:
        """True when 8-bit × 8-bit products are summed in 32 bits without saturating at 16 (VNNI, AMX, dotprod, i8mm).

        In browsers too, where ONNX Runtime Web widens them to 16 bits first (i32x4.dot_i16x8; test_browser_files.py).
        Without it u8 × s8 kernels on x86 add pairs in 16 bits (vpmaddubsw) and weights must stay within 7 bits.
        """
        return bool({"avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"} & set(self.isa)) or self.kind != "cpu"

    @property
    def signed_activations(self) -> bool:
        """True where activations in INT8 are signed and symmetric: TensorRT takes no others, and Arm's sdot and smmla
        multiply signed by signed, so that no zero point has to be subtracted."""
        return self.kind == "gpu" or self.arch == "aarch64"


def target_names() -> tuple[str, ...]:
    """`host` and every shipped target."""
    return ("host", *data_names("targets"))


def read_target(name: str) -> Target:
    """The target called `name`, or in the TOML file `name`. `host` must be probed: see probe.py."""
    path = Path(name) if name.endswith(".toml") else data_folder("targets") / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"there is no target {name!r}{did_you_mean(name, target_names())}")
    return read_toml(path, "a target", lambda content: Target(**{**content, "name": path.stem}))
