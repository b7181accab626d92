"""Why a bundle or a graph is not faster on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fmopt.core.errors import ConfigError
from fmopt.core.model import Artifact, Runner, takes_length
from fmopt.core.progress import Progress
from fmopt.core.results import Finding
from fmopt.edge.loading import timed_inputs
from fmopt.exporters.bundles import bundle as bundles
from fmopt.measurement import host_probe, latency
from fmopt.measurement.roofline.diagnosis import Diagnosis, diagnose, example_inputs
from fmopt.measurement.roofline.short_inputs import short_findings
from fmopt.workflow.deployed import deployed

TOKENS = 128  # of what has no items of its own, and of several at once


def explain(
    model: str | Path,
    *,
    batch: int = 1,
    length: int | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Why a bundle (or an ONNX file by itself) is not faster on this machine: where its time goes and what would change it.

    It is run and timed here, a bundle by default on its golden item of middle length: of such short inputs it is said too what
    they cost outside the model.

    Arguments:
        model: the folder of a bundle, or an ONNX file.
        batch: rows of a call.
        length: tokens of a row; None: a golden item's, or 128 where there are none.
        threads: of the runtime.
        seed: decides the inputs that are made up.
        progress: gets a line for each step.

    Returns a `Diagnosis`: findings with the share of the time that they concern, the largest first, and the time (ms) of kinds of
    operators and of layers. Raises ConfigError for anything else than a bundle or an ONNX file, or for more tokens than it reads.

    >>> found = fmopt.explain(bundle)
    >>> found.p50_ms > 0
    True
    """
    path = Path(model)
    beside: Callable[..., list[Finding]] | None = None
    for name, value in (("batch", batch), ("length", length), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if bundles.is_bundle(path):
        artifact, pipeline = bundles.bundle_artifact(path), bundles.bundle_metadata(path).pipeline
        own = bundles.golden_samples(path) if length is None and batch == 1 else []
        tokens = (length or min(TOKENS, int(pipeline["max_length"]))) if takes_length(pipeline) else None
        if tokens is not None and tokens > int(pipeline["max_length"]):
            raise ConfigError(f"length is {length}, but {path} reads at most {pipeline['max_length']} tokens")
        one = deployed(path)
        sizes = latency.item_sizes(one.preprocessor, own)
        usual = own[sorted(range(len(own)), key=sizes.__getitem__)[len(own) // 2]] if own else None
        if usual is None:
            rows = latency.latency_inputs(one.preprocessor, one.samples, batch=batch, length=tokens, seed=seed)[0]
        else:
            rows = dict(one.preprocessor.encode([usual]).inputs)
            tokens = int(next(iter(rows.values())).shape[1]) if takes_length(pipeline) else None

        def inputs_of(runner: Runner) -> Mapping[str, Any]:
            return timed_inputs(one.preprocessor.pipeline, runner, rows)

        if usual is not None:
            beside = partial(short_findings, one.preprocessor, artifact.options, sample=usual)

    elif path.suffix == ".onnx" and path.is_file():
        tokens = length or TOKENS
        artifact, example = Artifact("onnxruntime", path, {}), example_inputs(path, batch, tokens, seed)

        def inputs_of(runner: Runner) -> Mapping[str, Any]:
            return example

    else:
        raise ConfigError(f"{path} is neither a bundle nor an ONNX file; make one: fmopt optimize, or fmopt export")
    target = host_probe.load_target("host")
    return diagnose(
        artifact, inputs_of, target, model=str(model), batch=batch, length=tokens, threads=threads, seed=seed,
        progress=progress, beside=beside,
    )  # fmt: skip
