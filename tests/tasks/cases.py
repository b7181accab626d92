"""What the task tests share: facts of a checkpoint that is never opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmopt.core.model import CheckpointMetadata, ModelSource
from fmopt.core.results import Scores


def metadata(task: str, labels: Sequence[str] = (), **pipeline: Any) -> CheckpointMetadata:
    reported = {"task": task, "labels": list(labels), **pipeline}
    source = ModelSource("tiny", Path("."), "tiny")
    return CheckpointMetadata(source, "bert", "", task, reported, 8, 1, 100, 400, "digest")


def by_name(scores: Sequence[Scores]) -> dict[str, Scores]:
    assert sum(score.primary for score in scores) == 1
    return {score.name: score for score in scores}
