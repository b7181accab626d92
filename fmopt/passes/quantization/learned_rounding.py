"""What passes share whose weights another tool rounds by what it learns from calibration items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fmopt.core.errors import ConfigError
from fmopt.core.model import CheckpointMetadata, continues_texts
from fmopt.core.target import Target
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context

BITS, BLOCKS = (2, 3, 4, 8), (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class LearnedRounding:
    """Products of a network's layers by a tool's integers, which the exported graph has as they are (MatMulNBits).

    The head stays for `quantize_weights`, after it. `block` is how many weights of a row share a scale; without `symmetric` each
    block has a zero point too. The tool looks at `samples` rows of `tokens` of the calibration items. 3 bits are stored as 4, for
    want of a kernel.
    """

    bits: int = 4
    block: int = 32
    symmetric: bool = True
    samples: int = 128
    tokens: int = 128

    tool: ClassVar[Literal["autoround", "gptq"]]  # also the name of the pass
    package: ClassVar[str]  # the module that it is imported as
    extra: ClassVar[str]  # what installs it
    counts: ClassVar[tuple[str, ...]] = ("samples", "tokens")  # options that are at least one

    stage: ClassVar[Literal["torch"]] = "torch"
    calibrates: ClassVar[bool] = True
    only_weights: ClassVar[bool] = True
    decides_kernels: ClassVar[bool] = True
    bytes_left: ClassVar[tuple[float, float]] = (1.0, 0.16)

    def __post_init__(self) -> None:
        for name, known in (("bits", BITS), ("block", BLOCKS)):
            if getattr(self, name) not in known:
                given = ", ".join(map(str, known))
                raise ConfigError(f"{self.tool}.{name} is {getattr(self, name)!r}; it is one of {given}")
        for name in self.counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{self.tool}.{name} is {getattr(self, name)}; it takes at least one")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Without the package, and for what does not go on with texts: rows of tokens are all that the tool is given."""
        from fmopt.passes.quantization.rounding_process import missing

        if not continues_texts(metadata.pipeline):
            return f"{self.tool} rounds networks that go on with texts; {metadata.task} does not"
        return missing(self.package, self.extra)

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """Round, in place, in a process of its own. PassError when that fails or leaves a layer out."""
        from fmopt.passes.quantization.rounding_process import round_linears

        return round_linears(
            model, ctx, self.tool, samples=self.samples, tokens=self.tokens, bits=self.bits, block=self.block,
            symmetric=self.symmetric, **self.asked(),
        )  # fmt: skip

    def asked(self) -> dict[str, Any]:
        """What this tool alone is told."""
        return {}
