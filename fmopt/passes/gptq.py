"""Weights in 4, 3 or 2 bits, where those not yet rounded make up for what was lost (GPTQ, Frantar et al., 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fmopt.passes.quantization.learned_rounding import LearnedRounding


@dataclass(frozen=True)
class Gptq(LearnedRounding):
    """Products of a network's layers by the integers of neural-compressor's GPTQ, which looks at the items once; options as of
    `LearnedRounding`."""

    tool: ClassVar[Literal["gptq"]] = "gptq"
    package: ClassVar[str] = "neural_compressor"
    extra: ClassVar[str] = "neural-compressor"

    @property
    def passed_tokens(self) -> int:
        """Tokens that go through every layer: once to be looked at, once more after it was rounded."""
        return 2 * self.samples * self.tokens


PASS = Gptq
