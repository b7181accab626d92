"""fmopt: make a pretrained Transformer as small and fast on your device as its accuracy allows, and prove it.

```python
import fmopt
record = fmopt.optimize("minilm", out="out/minilm")     # candidates, measurements, a gated bundle, a report
embed = fmopt.load("out/minilm")                        # never imports torch
vector = embed("a sentence")
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fmopt.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    FmoptError,
    ParityError,
    PassError,
    PlanError,
    StoreError,
    UnmeasuredError,
)

if TYPE_CHECKING:
    from fmopt.adapters import merge
    from fmopt.api import evaluate, explain, export, load_model, optimize
    from fmopt.benchmarking import benchmark, benchmark_matrix
    from fmopt.bundle import load
    from fmopt.comparison import compare
    from fmopt.gate import Budget
    from fmopt.plan import Training
    from fmopt.record import Record
    from fmopt.target import Target
    from fmopt.timeline import history
    from fmopt.vocabulary import trim

__all__ = [
    "Budget",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FmoptError",
    "ParityError",
    "PassError",
    "PlanError",
    "Record",
    "StoreError",
    "Target",
    "Training",
    "UnmeasuredError",
    "benchmark",
    "benchmark_matrix",
    "compare",
    "evaluate",
    "explain",
    "export",
    "history",
    "load",
    "load_model",
    "merge",
    "optimize",
    "trim",
]

_HOMES = {
    "Budget": "fmopt.gate",
    "Record": "fmopt.record",
    "Target": "fmopt.target",
    "Training": "fmopt.plan",
    "benchmark": "fmopt.benchmarking",
    "benchmark_matrix": "fmopt.benchmarking",
    "compare": "fmopt.comparison",
    "evaluate": "fmopt.api",
    "explain": "fmopt.api",
    "export": "fmopt.api",
    "history": "fmopt.timeline",
    "load": "fmopt.bundle",
    "load_model": "fmopt.api",
    "merge": "fmopt.adapters",
    "optimize": "fmopt.api",
    "trim": "fmopt.vocabulary",
}


def __getattr__(name: str) -> Any:
    # torch and the runtimes load only when a verb that needs them is asked for
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fmopt' has no attribute {name!r}")
