"""Weights in 4, 3 or 2 bits whose rounding is learned: AutoRound, by the sign of the gradient (SignRound, Cheng et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fmopt.core.errors import ConfigError
from fmopt.core.model import CheckpointMetadata, continues_texts
from fmopt.core.target import Target
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context

TOGETHER = 8  # rows in one iteration, as its authors have it
BITS, BLOCKS = (2, 3, 4, 8), (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class AutoRound:
    """Products of a network's layers by AutoRound's integers, which the exported graph has as they are (MatMulNBits).

    The head stays for `quantize_weights`, after it. `block` is how many weights of a row share a scale; without `symmetric` each
    block has a zero point too. `iterations` of each layer, on `samples` rows of `tokens` of the calibration items: more of them
    round better and take longer. 3 bits are stored as 4, for want of a kernel.
    """

    bits: int = 4
    block: int = 32
    symmetric: bool = True
    iterations: int = 200
    samples: int = 128
    tokens: int = 128

    stage: ClassVar[Literal["torch"]] = "torch"
    calibrates: ClassVar[bool] = True
    only_weights: ClassVar[bool] = True
    decides_kernels: ClassVar[bool] = True
    bytes_left: ClassVar[tuple[float, float]] = (1.0, 0.16)

    @property
    def passed_tokens(self) -> int:
        """Tokens that go through every layer, counted three times where they come back: what it takes, beside the network."""
        return 3 * self.iterations * TOGETHER * self.tokens

    def __post_init__(self) -> None:
        for name, known in (("bits", BITS), ("block", BLOCKS)):
            if getattr(self, name) not in known:
                given = ", ".join(map(str, known))
                raise ConfigError(f"autoround.{name} is {getattr(self, name)!r}; it is one of {given}")
        for name in ("iterations", "samples", "tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"autoround.{name} is {getattr(self, name)}; it takes at least one")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Without the package, and for what does not go on with texts: rows of tokens are all that the tool is given."""
        from fmopt.passes.quantization.rounding_process import missing

        if not continues_texts(metadata.pipeline):
            return f"autoround rounds networks that go on with texts; {metadata.task} does not"
        return missing("auto_round", "autoround")

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """Round, in place, in a process of its own. PassError when that fails or leaves a layer out."""
        from fmopt.passes.quantization.rounding_process import round_linears

        return round_linears(
            model, ctx, "autoround", samples=self.samples, tokens=self.tokens, bits=self.bits, block=self.block,
            symmetric=self.symmetric, iterations=self.iterations, together=TOGETHER,
        )  # fmt: skip


PASS = AutoRound
