"""A clock for networks that are not candidates yet: each is built as a recipe's later steps and runtime would build it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fmopt.core import plugins
from fmopt.core.errors import PassError
from fmopt.core.model import Artifact, Graph, Runner, read_artifact, write_artifact
from fmopt.core.recipe import Recipe, Step
from fmopt.edge.board import interleaved
from fmopt.exporters import to_onnx
from fmopt.measurement import host_probe, latency
from fmopt.measurement.backends import Work, timed_calls
from fmopt.models.loading import TorchModel
from fmopt.passes.base import traits_of
from fmopt.workflow.search.build_context import BuildContext

CALIBRATED_ON = 8  # items; ranges do not change time
SAMPLES = 100
METHOD = 4  # of timing: times of another are not compared with these
KEPT_OPTIONS = ("providers", "shape", "buckets", "rows", "pad")  # of a recipe, for its network in full precision too
A_FEW, COMPANY = 2, "in full precision"  # of more networks each has company
SECONDS, MANY = 60.0, 12  # at most, of so many networks together; of more, more


@dataclass(frozen=True)
class RecipeTimer:
    """A `NetworkTimer`: the time of networks on the recipe's runtime, after the steps that follow its first
    priced one."""

    context: BuildContext
    recipe: Recipe

    @property
    def key(self) -> str:
        """sha256 over everything but the networks that a time depends on."""
        context = self.context
        known = {
            "method": METHOD, "host": host_probe.host_fingerprint(), "versions": host_probe.versions(),
            "runtime": self.recipe.runtime,
            "options": self.recipe.options, "steps": [step.model_dump() for step in self._later()],
            "workload": context.workload.model_dump(), "int8_dot": context.target.int8_dot,
            "inputs": context.metadata.pipeline["inputs"],
            "data": context.calibration_digest if context.workload.own_items else "",
        }  # fmt: skip
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()

    def __call__(self, networks: Mapping[str, Callable[[], TorchModel]]) -> dict[str, float]:
        """Median milliseconds of every network on the workload, timed in turn: on the mixture of lengths that calibration items
        have, from raw input to answer, unless a shape is stated.

        The first of a few is what the others are compared with. It is built once, for later calls too. Where it is graphs that
        are quantized it runs among them in full precision as well, as something will where they are judged: beside that a pruned
        network took 1 to 2 % less of the uncut one's time in INT8 than without.
        """
        context = self.context
        runtime = plugins.find("runtimes", self.recipe.runtime)
        runners: dict[str, Runner] = {}
        with tempfile.TemporaryDirectory(dir=context.store.root, prefix="unfinished-") as scratch:
            calls: dict[str, Callable[[], object]] = {}
            try:
                for number, (name, make) in enumerate(networks.items()):
                    context.progress.say(f"building networks to time, {number + 1} of {len(networks)}")
                    if number == 0 and len(networks) <= A_FEW:
                        built = dict(zip((name, COMPANY), self._kept(make()), strict=False))
                    else:
                        built = {name: self._built(make(), Path(scratch) / str(number))[1]}
                    for one, artifact in built.items():
                        runners[one] = runtime.open(artifact, context.workload.threads)
                work = self._work()
                for name, runner in runners.items():
                    calls[name] = interleaved.Replay(timed_calls(work, runner))
                seconds = SECONDS * max(1.0, len(networks) / MANY)  # whole answers of many networks take long
                samples = interleaved.time_in_turn(
                    calls, min_samples=SAMPLES, max_seconds=seconds, seed=context.seed, clock=interleaved.settled_ms
                )
            finally:
                for runner in runners.values():
                    runner.close()
        return {name: float(np.median(samples[name])) for name in networks}

    def _work(self) -> Work:
        """What the networks are timed on."""
        context, workload = self.context, self.context.workload
        asked = (context.preprocessor, context.calibration, workload.items_per_call)
        work = Work({}, context.metadata.pipeline, workload.threads, context.seed, preprocessor=context.preprocessor)
        if workload.from_raw:
            return replace(work, batches=latency.replayed(*asked, context.seed))
        return replace(work, inputs=latency.latency_inputs(*asked, workload.length, context.seed))

    def _later(self) -> tuple[Step, ...]:
        """What follows the first priced step, as it is timed; training changes weights only, and not the time."""
        steps = self.recipe.steps
        first = next(number for number, step in enumerate(steps) if priced(step))
        return tuple(
            traits_of(step).timed_as or step
            for step in steps[first + 1 :]
            if step.build().stage == "graph" or traits_of(step).decides_kernels
        )

    def _kept(self, model: TorchModel) -> list[Artifact]:
        """What the recipe makes of a network of such shapes; where it is graphs that are quantized, its graph as exported too."""
        shapes = {name: tuple(value.shape) for name, value in model.net.state_dict().items()}
        key = {
            "clock": self.key,
            "network": type(model.net).__name__,
            "config": repr(model.net.config),
            "shapes": shapes,
        }
        where = {name: value for name, value in self.recipe.options.items() if name in KEPT_OPTIONS}
        narrows_graphs = {step.build().stage for step in self._later()} == {"graph"}
        runtime = plugins.find("runtimes", self.recipe.runtime)

        def make(folder: Path) -> None:
            graph, artifact = self._built(model, folder / "made")
            write_artifact(artifact, artifact.path.parent)
            artifact.path.parent.rename(folder / "narrow")
            if narrows_graphs:
                write_artifact(runtime.build(graph, where, folder / "full"), folder / "full")
            shutil.rmtree(folder / "made")

        folder = self.context.store.folder("timed", key, make)
        kept = [folder / part for part in ("narrow", "full") if (folder / part).is_dir()]
        return [read_artifact(self.recipe.runtime, one) for one in kept]

    def _built(self, model: TorchModel, out: Path) -> tuple[Graph, Artifact]:
        """The network as it was exported, and what the recipe makes of it."""
        context = self.context
        known = replace(
            context.pass_context(),
            scratch=None,
            calibration=lambda: islice(context.calibration_stream(), CALIBRATED_ON),
        )
        passes = [step.build() for step in self._later()]
        for made in (made for made in passes if made.stage == "torch"):
            model = _where_it_applies(model, partial(made.apply, model, known))
        exported = graph = to_onnx.export_onnx(model, context.example(), out / "exported")
        for number, made in enumerate(made for made in passes if made.stage == "graph"):
            folder = out / f"graph-{number}"
            if made.format == "openvino" and graph.format == "onnx":
                graph = to_onnx.convert_openvino(graph, folder / "source")
            graph = _where_it_applies(graph, partial(made.apply, graph, known, folder))
        artifact: Artifact = plugins.find("runtimes", self.recipe.runtime).build(
            graph, self.recipe.options, out / "built"
        )
        return exported, artifact


def priced(step: Step) -> bool:
    """Whether a pass makes what it makes by timing networks on the recipe's runtime."""
    return traits_of(step).priced


def _where_it_applies(before: Any, apply: Callable[[], Any]) -> Any:
    """A network cut to nothing may hold nothing that a pass could work on: then it stays as it is."""
    try:
        return apply()
    except PassError:
        return before
