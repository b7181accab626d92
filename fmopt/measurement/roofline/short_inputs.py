"""Where the time of a short input goes besides its arithmetic: tokenizer and answer, dispatch, padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from fmopt.core.model import reads_texts_at_once
from fmopt.core.results import Finding, OpTime
from fmopt.edge.board import interleaved
from fmopt.edge.parts import Pipeline, Sample
from fmopt.edge.runners import bucket_for
from fmopt.edge.text import Preprocessor, postprocess

RUNS = 30
NOTABLE = 0.10  # a share of the time below this is not worth a line


def short_findings(
    preprocessor: Preprocessor,
    options: Mapping[str, Any],
    runner: Any,
    sample: Sample,
    profile: Sequence[OpTime],
) -> list[Finding]:
    """What a call on `sample` spends outside its operators, the largest share first; empty for what is not made of tokens or
    needs more than one pass through the graph."""
    pipeline = preprocessor.pipeline
    if not reads_texts_at_once(pipeline):
        return []
    encoded = preprocessor.encode([sample])
    outputs = runner.run(encoded.inputs)
    call_ms = _median_ms(lambda: runner.run(encoded.inputs))
    around_ms = _median_ms(lambda: _around(preprocessor, pipeline, sample, outputs))
    found = [
        _around_the_model(around_ms, call_ms),
        _dispatch(call_ms, sum(op.ms for op in profile)),
        _padding(options, encoded.mask.shape),
    ]
    return sorted((one for one in found if one is not None), key=lambda one: -(one.share or 0.0))


def _around(
    preprocessor: Preprocessor, pipeline: Pipeline, sample: Sample, outputs: Mapping[str, np.ndarray]
) -> object:
    batch = preprocessor.encode([sample])
    return postprocess(pipeline, outputs, batch, [sample])


def _around_the_model(around_ms: float, call_ms: float) -> Finding | None:
    share = around_ms / (around_ms + call_ms)
    if share < NOTABLE:
        return None
    text = f"reading the text and making the answer take {around_ms:.2f} ms beside {call_ms:.2f} ms of the model"
    return Finding(kind="tokenizer", text=text, share=share, remedy="shorter texts, or several at once (--batch 8)")


def _dispatch(call_ms: float, operators_ms: float) -> Finding | None:
    """A runtime's own work around its operators: checking inputs, waking threads, handing over outputs."""
    share = 1 - operators_ms / call_ms if call_ms else 0.0
    if share < NOTABLE:
        return None
    text = f"{call_ms - operators_ms:.2f} of {call_ms:.2f} ms of a call are spent outside its operators"
    return Finding(
        kind="call-overhead",
        text=text,
        share=share,
        remedy="one thread for inputs this short (--threads 1); on OpenVINO lengths to compile for (buckets)",
    )


def _padding(options: Mapping[str, Any], shape: Sequence[int]) -> Finding | None:
    """Tokens that are computed and thrown away, where a text is filled up to a length that was compiled for."""
    bucket = bucket_for(options, shape)
    share = 0.0 if bucket is None else 1 - shape[1] / bucket[1]
    if bucket is None or share < NOTABLE:
        return None
    text = f"{shape[1]} tokens are padded to {bucket[1]}"
    return Finding(kind="padding", text=text, share=share, remedy="more lengths in the option buckets of the recipe")


def _median_ms(call: Callable[[], object]) -> float:
    return median(interleaved.settled_ms(call) for _ in range(RUNS))
