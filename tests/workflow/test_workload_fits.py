"""A workload that a task cannot have is refused before anything is built; others are taken as the task can have them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fmopt.core.errors import ConfigError
from fmopt.core.workload import Workload
from fmopt.edge import loading
from fmopt.workflow.job.prepare import fitting

TEXTS = {"task": "text-classification", "max_length": 64, "inputs": ["input_ids", "attention_mask"]}
STEPS = {"task": "text-generation", "eos_token_id": [2], "max_length": 64, "inputs": ["input_ids", "attention_mask"]}
IMAGES = {"task": "image-classification", "inputs": ["pixel_values"], "axes": {"pixel_values": ["batch", 3, 224, 224]}}


def metadata(pipeline: dict[str, Any]) -> Any:
    return SimpleNamespace(pipeline=pipeline, source=SimpleNamespace(title="tiny"))


def test_texts_are_judged_from_raw_input_and_images_have_no_length() -> None:
    assert fitting(Workload(), metadata(TEXTS)) == Workload()
    assert fitting(Workload(length=32), metadata(IMAGES)) == Workload()
    assert not fitting(Workload(from_raw=False), metadata(IMAGES)).from_raw


def test_answers_made_token_by_token_are_timed_as_the_models_own_work() -> None:
    fitted = fitting(Workload(threads=2), metadata(STEPS))
    assert fitted.own_items
    assert not fitted.from_raw


@pytest.mark.parametrize(
    ("workload", "pipeline", "message"),
    [
        (Workload(arrival="batch", batch=4), STEPS, "--workload batch is for models that answer at once"),
        (Workload(arrival="server", rate=5, p99_ms=9), STEPS, "--workload server is for models that answer at once"),
        (Workload(length=65), TEXTS, "--length 65 is more than the 64 tokens that tiny takes"),
        (Workload(also_length=65), TEXTS, "--also-length 65 is more than the 64 tokens"),
        (Workload(also_length=65), IMAGES, "means tokens, and tiny takes none"),
    ],
)
def test_what_cannot_be_is_said(workload: Workload, pipeline: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fitting(workload, metadata(pipeline))


@pytest.mark.parametrize("threads", [None, 0, -3, "2", 1.5, []])
def test_a_manifest_that_says_nothing_sensible_of_threads_gets_every_core(threads: Any) -> None:
    every = loading.available_cores()
    assert loading.judged_threads({"judged": {"threads": threads}}) == every
    assert loading.judged_threads({}) == every
    assert loading.judged_threads({"judged": {"threads": 10**9}}) == every
    assert loading.judged_threads({"judged": {"threads": 1}}) == 1
