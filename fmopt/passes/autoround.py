"""Weights in 4, 3 or 2 bits whose rounding is learned: AutoRound, by the sign of the gradient (SignRound, Cheng et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fmopt.passes.quantization.learned_rounding import LearnedRounding

TOGETHER = 8  # rows in one iteration, as its authors have it


@dataclass(frozen=True)
class AutoRound(LearnedRounding):
    """Products of a network's layers by AutoRound's integers; options as of `LearnedRounding`, and `iterations` of each layer:
    more of them round better and take longer."""

    iterations: int = 200

    tool: ClassVar[Literal["autoround"]] = "autoround"
    package: ClassVar[str] = "auto_round"
    extra: ClassVar[str] = "autoround"
    counts: ClassVar[tuple[str, ...]] = ("iterations", "samples", "tokens")

    @property
    def passed_tokens(self) -> int:
        """Tokens that go through every layer, counted three times where they come back: what it takes, beside the network."""
        return 3 * self.iterations * TOGETHER * self.tokens

    def asked(self) -> dict[str, Any]:
        """Iterations, and rows in each."""
        return {"iterations": self.iterations, "together": TOGETHER}


PASS = AutoRound
