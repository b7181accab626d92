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

from fmopt.core.errors import (
    BoardError,
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
    from fmopt.core.recipe import Recipe, Step
    from fmopt.core.target import Target
    from fmopt.core.workload import Workload
    from fmopt.evaluation.comparison import compare
    from fmopt.evaluation.gate import Budget
    from fmopt.evaluation.history import history
    from fmopt.evaluation.record import Record
    from fmopt.exporters.bundles.bundle import load
    from fmopt.exporters.bundles.bundle import verify_bundle as verify
    from fmopt.models.adapters import merge
    from fmopt.models.checkpoint import load_model
    from fmopt.models.vocabulary import trim
    from fmopt.workflow.benchmark.suite import benchmark, benchmark_matrix
    from fmopt.workflow.evaluate import evaluate
    from fmopt.workflow.explain import explain
    from fmopt.workflow.export import export
    from fmopt.workflow.finetune import finetune
    from fmopt.workflow.job.request import Training
    from fmopt.workflow.optimize import optimize, optimize_family, plan

__all__ = [
    "BoardError",
    "Budget",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FmoptError",
    "ParityError",
    "PassError",
    "PlanError",
    "Recipe",
    "Record",
    "Step",
    "StoreError",
    "Target",
    "Training",
    "UnmeasuredError",
    "Workload",
    "benchmark",
    "benchmark_matrix",
    "compare",
    "evaluate",
    "explain",
    "export",
    "finetune",
    "history",
    "load",
    "load_model",
    "merge",
    "optimize",
    "optimize_family",
    "plan",
    "trim",
    "verify",
]

_HOMES = {
    "Budget": "fmopt.evaluation.gate",
    "Recipe": "fmopt.core.recipe",
    "Record": "fmopt.evaluation.record",
    "Step": "fmopt.core.recipe",
    "Target": "fmopt.core.target",
    "Training": "fmopt.workflow.job.request",
    "Workload": "fmopt.core.workload",
    "benchmark": "fmopt.workflow.benchmark.suite",
    "benchmark_matrix": "fmopt.workflow.benchmark.suite",
    "compare": "fmopt.evaluation.comparison",
    "evaluate": "fmopt.workflow.evaluate",
    "explain": "fmopt.workflow.explain",
    "export": "fmopt.workflow.export",
    "finetune": "fmopt.workflow.finetune",
    "history": "fmopt.evaluation.history",
    "load": "fmopt.exporters.bundles.bundle",
    "load_model": "fmopt.models.checkpoint",
    "merge": "fmopt.models.adapters",
    "optimize": "fmopt.workflow.optimize",
    "optimize_family": "fmopt.workflow.optimize",
    "plan": "fmopt.workflow.optimize",
    "trim": "fmopt.models.vocabulary",
    "verify": "fmopt.exporters.bundles.bundle",
}

_CALLED = {"verify": "verify_bundle"}  # where that name is another there


def __getattr__(name: str) -> Any:
    # torch and the runtimes load only when a verb that needs them is asked for
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), _CALLED.get(name, name))
    raise AttributeError(f"module 'fmopt' has no attribute {name!r}")
