"""Weights in 4, 3 or 2 bits, where those not yet rounded make up for what was lost (GPTQ, Frantar et al., 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fmopt.core.errors import ConfigError
from fmopt.core.model import CheckpointMetadata, continues_texts
from fmopt.core.target import Target
from fmopt.models.loading import TorchModel
from fmopt.passes.base import Context

BITS, BLOCKS = (2, 3, 4, 8), (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Gptq:
    """Products of a network's layers by the integers of neural-compressor's GPTQ, which the exported graph has as they are.

    The head stays for `quantize_weights`, after it. `block` is how many weights of a row share a scale; without `symmetric` each
    block has a zero point too. It looks at `samples` rows of `tokens` of the calibration items once. 3 bits are stored as 4.
    """

    bits: int = 4
    block: int = 32
    symmetric: bool = True
    samples: int = 128
    tokens: int = 128

    stage: ClassVar[Literal["torch"]] = "torch"
    calibrates: ClassVar[bool] = True
    only_weights: ClassVar[bool] = True
    decides_kernels: ClassVar[bool] = True
    bytes_left: ClassVar[tuple[float, float]] = (1.0, 0.16)

    @property
    def passed_tokens(self) -> int:
        """Tokens that go through every layer: once to be looked at, once more after it was rounded."""
        return 2 * self.samples * self.tokens

    def __post_init__(self) -> None:
        for name, known in (("bits", BITS), ("block", BLOCKS)):
            if getattr(self, name) not in known:
                given = ", ".join(map(str, known))
                raise ConfigError(f"gptq.{name} is {getattr(self, name)!r}; it is one of {given}")
        for name in ("samples", "tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"gptq.{name} is {getattr(self, name)}; it takes at least one")

    def refusal(self, metadata: CheckpointMetadata, target: Target) -> str | None:
        """Without the package, and for what does not go on with texts: rows of tokens are all that the tool is given."""
        from fmopt.passes.quantization.rounding_process import missing

        if not continues_texts(metadata.pipeline):
            return f"gptq rounds networks that go on with texts; {metadata.task} does not"
        return missing("neural_compressor", "neural-compressor")

    def apply(self, model: TorchModel, ctx: Context) -> TorchModel:
        """Round, in place, in a process of its own. PassError when that fails or leaves a layer out."""
        from fmopt.passes.quantization.rounding_process import round_linears

        return round_linears(
            model, ctx, "gptq", samples=self.samples, tokens=self.tokens, bits=self.bits, block=self.block,
            symmetric=self.symmetric,
        )  # fmt: skip


PASS = Gptq
