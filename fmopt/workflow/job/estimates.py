"""What a run will take: minutes by what it goes over and what this machine computes in a second, RAM and disk by the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmopt.core.model import (
    TOKENIZER,
    CheckpointMetadata,
    continues_texts,
    makes_answers,
    takes_length,
)
from fmopt.core.recipe import Recipe
from fmopt.core.target import Target
from fmopt.data.datasets import Dataset
from fmopt.edge.board.interleaved import FEWEST, MIN_SAMPLES, MIN_SECONDS, STOP_CHECK
from fmopt.edge.parts import Sample
from fmopt.edge.text import open_preprocessor
from fmopt.measurement.latency import CONTEXTS, REPLAYED_CALLS, item_sizes
from fmopt.passes.base import traits_of
from fmopt.passes.distill import Distill
from fmopt.tasks.base import Task
from fmopt.workflow.job.request import BATCH, Effort, Training
from fmopt.workflow.job.start import calibration_items
from fmopt.workflow.judgement import QUICK_SECONDS
from fmopt.workflow.search.plan import Estimates, Plan
from fmopt.workflow.search.run import VALIDATION_ROWS
from fmopt.workflow.search.selection import MOST_SECONDS
from fmopt.workflow.search.trials import OPEN_BYTES

# Read off runs of BERTs of two layers: a layer of a graph without its weights, in ONNX and in OpenVINO's XML; and what a run
# writes of itself (report, programs, record), once and for each recipe (its samples, profile and predictions).
ONNX_LAYER_BYTES, OPENVINO_LAYER_BYTES = 9e3, 45e3
RUN_BYTES, RECIPE_BYTES = 0.15e6, 0.06e6
TOKENS = 128  # of a text; with fewer, what is kept of the teacher takes less disk
SIZED_ROWS = 32  # whose items say how many a row has, and how long a usual one is
# Of what is not made of tokens: positions of an image whose configuration does not say how many, and of a recording.
IMAGE_POSITIONS, AUDIO_POSITIONS, ITEM_POSITIONS = 197, 300, 50
# Read off one run each of MiniLM (22M) and mpnet (110M) with effort quick, on two cores with AVX2 and nothing else: 6.9 and 14.1
# minutes, of which these give 5.7 and 13.2.
EFFICIENCY = 0.5  # of a core's ceiling that a short text reaches
CALL_S = 0.002  # of a call beside its products
ANSWER_STEPS = 20  # tokens of an answer
SHARED = 0.7  # of each core that items keep busy which are predicted on all of them
NARROW_TIME = 0.5  # of full precision's, that a variant in 8 or 4 bits takes
AROUND_S, AROUND_PER_MILLION_S = 35.0, 0.2  # looking things up before, profiles, reports and the bundle after
EXPORT_S, EXPORT_PER_MILLION_S = 9.0, 0.12  # a network to a graph, compared with it
PASS_S, PASS_PER_MILLION_S = 0.5, 0.04  # a pass on a graph, an artifact of it
OPEN_S, OPEN_PER_MILLION_S = 0.5, 0.01  # a variant
OBSERVED = 2.0  # times as long as alone an item takes whose activations are looked at
SCORED = 3  # candidates that are validated
VARIANT_BYTES = 2.4  # of the file of a usual variant, for each parameter
RAM_GB, RAM_PER_BYTE = 1.2, 10.0  # peak of the run, beside and for each byte of the weights in fp32 (5.4 GB for mpnet)


@dataclass(frozen=True)
class Amounts:
    """What a run goes over: items of the splits, and positions of a usual one."""

    calibration: int
    validation: int
    test: int
    positions: float


def amounts(metadata: CheckpointMetadata, task: Task, data: Dataset, effort: Effort) -> Amounts:
    """Of a data set, by its first rows: each may be several items."""
    rows = data.split("calibration")
    first = task.items(rows[:SIZED_ROWS], metadata)
    per_row = len(first) / max(len(rows[:SIZED_ROWS]), 1)
    validation, test = (round(per_row * len(data.split(name))) for name in ("validation", "test"))
    return Amounts(
        calibration=min(calibration_items(effort, metadata), round(per_row * len(rows))),
        validation=min(round(per_row * VALIDATION_ROWS), validation),
        test=test,
        positions=_positions(metadata, [item.sample for item in first]),
    )


def _positions(metadata: CheckpointMetadata, samples: Sequence[Sample]) -> float:
    if takes_length(metadata.pipeline) and samples:
        preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
        return float(np.mean(item_sizes(preprocessor, samples)))
    if metadata.modality == "image":
        size, patch = (metadata.config.get(name) for name in ("image_size", "patch_size"))
        if isinstance(size, int) and isinstance(patch, int) and patch > 0:
            return float((size // patch) ** 2 + 1)
        return IMAGE_POSITIONS
    read = metadata.config.get("max_source_positions")  # of a network that reads windows of one length
    return float(read or (AUDIO_POSITIONS if metadata.modality == "audio" else ITEM_POSITIONS))


def estimate(
    metadata: CheckpointMetadata,
    plan: Plan,
    effort: Effort,
    found: Amounts,
    host: Target,
    *,
    texts: int = 0,
    training: Training | None = None,
) -> Estimates:
    """Minutes, RAM and disk of a plan on this machine, `host`. `texts` says how many rows there are to train on.

    Beyond quick for one pruned network, "max" with two rounds of training: what else is tried depends on how that came out.
    """
    recipes = (*plan.baselines, *plan.candidates)
    millions = metadata.parameters / 1e6
    item = item_seconds(metadata, found.positions, host)
    seconds = AROUND_S + AROUND_PER_MILLION_S * millions
    seconds += building_seconds(recipes, millions, found.calibration * item)
    seconds += rounding_seconds(metadata, plan.candidates, host)
    seconds += timing_seconds(metadata, recipes, call_seconds(metadata, found.positions, host))
    together = item / max(1.0, SHARED * host.cores)
    seconds += (1 + SCORED * NARROW_TIME) * min(found.validation * together, MOST_SECONDS[effort])
    judged = (1 + NARROW_TIME) * found.test * together
    seconds += min(judged, QUICK_SECONDS) if effort == "quick" else judged
    if effort != "quick":
        seconds += 45 + 14 * millions
    if effort == "max":
        epochs = (training or Training()).over(texts).epochs or 0.0
        seconds += 2 * (epochs * texts / BATCH) * 0.01 * millions + 5 * millions
    disk = stage_bytes(metadata, recipes)
    if effort != "quick":  # a network pruned, trained, exported and quantized, and what its sublayers were scored by
        disk += 3 * metadata.weight_bytes + 4 * metadata.layers * 17 * metadata.hidden_size**2
    states = texts * TOKENS * metadata.layers * metadata.hidden_size * 2 if effort == "max" else 0
    said = min(states, Distill().cache_gb * 1e9)  # of the teacher, kept on disk where that is cheaper than asking again
    return Estimates(
        minutes=round(seconds / 60, 1),
        ram_gb=round(RAM_GB + RAM_PER_BYTE * 4 * metadata.parameters / 1e9, 1),
        disk_gb=float(f"{(disk + said) / 1e9:.3g}"),
        optional_gb=float(f"{said / 1e9:.3g}"),
    )


def item_seconds(metadata: CheckpointMetadata, positions: float, host: Target) -> float:
    """What a usual item takes full precision on one core: every weight but those of lookup tables, at each of its positions; and
    all of them again for each token of an answer."""
    operations = 2 * max(metadata.parameters - table_weights(metadata), 0) * positions
    seconds = CALL_S + operations / (EFFICIENCY * host.gops["fp32"] * 1e9)
    return seconds + ANSWER_STEPS * step_seconds(metadata, host) if makes_answers(metadata.pipeline) else seconds


def step_seconds(metadata: CheckpointMetadata, host: Target) -> float:
    """What one token more takes: its products, or reading the weights where that takes longer."""
    weights = metadata.parameters
    return CALL_S + max(
        4 * weights / ((host.bandwidth_gbs or np.inf) * 1e9), 2 * weights / (EFFICIENCY * host.gops["fp32"] * 1e9)
    )


def call_seconds(metadata: CheckpointMetadata, positions: float, host: Target) -> float:
    """What one call takes that is timed: a step of decoding, or an item."""
    stepwise = continues_texts(metadata.pipeline)
    return step_seconds(metadata, host) if stepwise else item_seconds(metadata, positions, host)


def building_seconds(recipes: Sequence[Recipe], millions: float, calibrating: float) -> float:
    """Graphs, once each, what is done to them, and artifacts. `calibrating` is what calibration items take alone."""
    export, once = EXPORT_S + EXPORT_PER_MILLION_S * millions, PASS_S + PASS_PER_MILLION_S * millions
    done: dict[tuple[str, ...], float] = {}
    for recipe in recipes:
        if recipe.runtime == "torch":
            continue
        stages = [step.build().stage for step in recipe.steps]
        on_network = stages.count("torch")
        for number in range(on_network, len(stages) + 1):
            key = tuple(map(str, recipe.steps[:number]))
            if key in done:
                continue
            done[key] = export if number == on_network else once
            calibrated = recipe.steps[:number] if number == on_network else recipe.steps[number - 1 : number]
            done[key] += sum(OBSERVED * calibrating + once for step in calibrated if traits_of(step).calibrates)
        done["artifact", recipe.name] = once
    return sum(done.values())


def rounding_seconds(metadata: CheckpointMetadata, recipes: Sequence[Recipe], host: Target) -> float:
    """Of passes that send many tokens through every layer, on all cores: as many as each says in `passed_tokens`."""
    steps = {str(step): step for recipe in recipes for step in recipe.steps}
    tokens = sum(getattr(step.build(), "passed_tokens", 0) for step in steps.values())
    weights = max(metadata.parameters - table_weights(metadata), 0)
    return tokens * 2 * weights / (EFFICIENCY * host.gops["fp32"] * 1e9 * host.cores)


def timing_seconds(metadata: CheckpointMetadata, recipes: Sequence[Recipe], call: float) -> float:
    """Every call of every variant once, and all rounds of what may win: the narrow ones, which are about as fast as each other,
    and in each group of those that are opened together the reference and the best so far. What is short is called twice a
    sample."""
    calls = CONTEXTS if continues_texts(metadata.pipeline) else REPLAYED_CALLS
    rounds = min(MIN_SAMPLES, max(FEWEST, MIN_SECONDS / call))
    narrow = sum(recipe.precision in ("int8", "int4") for recipe in recipes)
    groups = math.ceil(1.5 * len(recipes) * VARIANT_BYTES * metadata.parameters / OPEN_BYTES)
    opened = (len(recipes) + 2 * (groups - 1)) * (OPEN_S + OPEN_PER_MILLION_S * metadata.parameters / 1e6)
    sampled = rounds * (groups * (1 + NARROW_TIME) + max(narrow - 1, 0) * NARROW_TIME)
    return opened + call * (len(recipes) * calls + 2 * (sampled + len(recipes) * STOP_CHECK))


def table_weights(metadata: CheckpointMetadata) -> int:
    """Numbers in the table of words."""
    return int(metadata.config.get("vocab_size") or 0) * metadata.hidden_size


def stage_bytes(metadata: CheckpointMetadata, recipes: Sequence[Recipe]) -> float:
    """What graphs and artifacts of recipes take on disk at most, with the bundle: each graph once, whoever is built of it.

    ONNX Runtime and TensorRT open a graph as it is, OpenVINO its own form of it. Each pass says what it leaves of the lookup
    tables and of the rest.
    """
    tables = 4 * table_weights(metadata)
    rest = max(4 * metadata.parameters - tables, 0)
    graph = ONNX_LAYER_BYTES * metadata.layers
    taken: dict[tuple[str, ...], float] = {}
    for recipe in recipes:
        if recipe.runtime == "torch":
            continue
        left, done = (1.0, 1.0), [""]
        taken.setdefault(("",), graph + tables + rest)
        for step in recipe.steps:
            kept = traits_of(step).bytes_left
            left = (left[0] * kept[0], left[1] * kept[1])
            done.append(str(step))
            taken[tuple(done)] = graph + left[0] * tables + left[1] * rest
        if recipe.runtime == "openvino":
            half = 0.5 if recipe.options.get("fp16_weights") else 1.0
            key = ("openvino", f"{half}", *done)
            xml = OPENVINO_LAYER_BYTES * metadata.layers
            taken[key] = xml + half * (left[0] * tables + left[1] * rest)
    encoder = metadata.folder / TOKENIZER
    beside = RUN_BYTES + RECIPE_BYTES * len(recipes) + (encoder.stat().st_size if encoder.is_file() else 0)
    return sum(taken.values()) + max(taken.values(), default=0.0) + beside
