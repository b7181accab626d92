"""Where the parts of Phi are: as in Llama, by other names; attention and FFN are side by side, and nothing is gated."""

from __future__ import annotations

from fmopt.models.families.llama import Llama

FAMILY = Llama(name="phi", model_types=("phi",), after="dense", widen=("fc1",), narrow="fc2")
