"""Does a small embedding model find what the whole one finds? MRR of SciTLDR's abstracts by title, of docstrings by first line.

    .venv/bin/python benchmarks/retrieval.py minilm out/smaller-embeddings-max-0

The first is the baseline; neither set was trained or judged on. Writes results/embeddings-retrieval.json.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmopt.measurement import host_probe
from fmopt.workflow import evaluate

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("FMOPT_DATA", Path("..", "shared", "data")))
SETS: dict[str, tuple[str, dict[str, str] | None]] = {
    "scitldr": (str(DATA / "scitldr"), {"query": "title", "document": "source"}),
    "pydoc": ("builtin:pydoc", None),
}


def main(models: list[str]) -> None:
    """Evaluate each on each, write, print."""
    found: dict[str, dict[str, Any]] = {}
    for name, (data, columns) in SETS.items():
        for model in models:
            scores = evaluate.evaluate(model, data, task="sentence-embedding", columns=columns, batch=1)
            values = {metric: one.point for metric, one in scores.items()}
            found.setdefault(name, {})[model] = values | {"items": next(iter(scores.values())).items}
            print(name, model, values, flush=True)
    made = {
        "sets": found, "host": host_probe.host_fingerprint(), "versions": host_probe.versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "command": " ".join(["benchmarks/retrieval.py", *models]),
    }  # fmt: skip
    (HERE / "results" / "embeddings-retrieval.json").write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
