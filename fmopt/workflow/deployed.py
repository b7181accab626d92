"""Bundles and checkpoints opened as they are deployed, for benchmarks and diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fmopt.core import plugins
from fmopt.core.errors import UnmeasuredError
from fmopt.core.media import audio as core_audio
from fmopt.core.media import images
from fmopt.core.model import Artifact, CheckpointMetadata, Runner, static_shape
from fmopt.core.progress import Silent
from fmopt.core.stages.store import Store
from fmopt.edge.parts import Pipeline, Sample
from fmopt.edge.text import Preprocessor, open_preprocessor
from fmopt.exporters.bundles import bundle as bundles
from fmopt.measurement import host_probe
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.tasks.base import Output, output_of
from fmopt.workflow.benchmark.record import Place, Variant
from fmopt.workflow.search.builder import Builder
from fmopt.workflow.search.candidates import BASELINES, received_baselines, refusal


@dataclass(frozen=True)
class Contestant:
    """Something to time. `compiled` artifacts are as deployed; others may be opened for the shape of a cell."""

    name: str
    preprocessor: Preprocessor
    artifact: Artifact
    samples: Sequence[Sample]  # texts in the shape of its task
    precision: str
    deployed: bool

    @property
    def variant(self) -> Variant:
        """It, as the record names it."""
        return Variant(
            name=self.name,
            runtime=self.artifact.runtime,
            precision=self.precision,
            size_bytes=self.artifact.size_bytes,
            digest=self.artifact.digest,
        )

    def opened_for(self, place: Place) -> Runner:
        """A runner; full precision on OpenVINO is compiled for the shape, as a deployment of that shape would be."""
        artifact = self.artifact
        if artifact.runtime == "openvino" and not self.deployed:
            shape = static_shape(self.preprocessor.pipeline, place.batch, place.length)
            artifact = replace(artifact, options={**({"shape": list(shape)} if shape else {}), **artifact.options})
        runner: Runner = plugins.find("runtimes", artifact.runtime).open(artifact, place.threads)
        return runner


BENCH_TEXTS = (
    "The quick brown fox jumps over the lazy dog while the river keeps its course to the sea.",
    "A report is only as good as the measurements behind it, and a measurement only as good as its circumstances.",
)


def bench_metadata(model: str) -> CheckpointMetadata:
    """What a bundle was made from, or what a checkpoint is."""
    if bundles.is_bundle(Path(model)):
        return bundles.bundle_metadata(Path(model))
    source = resolve(model)
    return checkpoint.inspect(source, source.task)


def deployed(bundle: Path) -> Contestant:
    """A bundle as it is. UnmeasuredError for one whose device is not here: what stands in for it has another speed."""
    runtime = plugins.find("runtimes", bundles.bundle_artifact(bundle).runtime)
    reason = runtime.not_timed_here() if hasattr(runtime, "not_timed_here") else None
    if reason is not None:
        raise UnmeasuredError(f"{bundle} is for {runtime.name} and cannot be timed here: {reason}")
    metadata = bundles.bundle_metadata(bundle)
    preprocessor = open_preprocessor(bundle, dict(metadata.pipeline))
    artifact, precision = bundles.bundle_artifact(bundle), bundles.bundle_precision(bundle)
    return Contestant(str(bundle), preprocessor, artifact, bench_samples(metadata), precision, deployed=True)


def bench_samples(metadata: CheckpointMetadata) -> list[Any]:
    """Texts in the shape of the task, where no data is at hand."""
    return [plain_example(metadata.pipeline, text) for text in BENCH_TEXTS]


def contestants(model: str, metadata: CheckpointMetadata, store: Store) -> list[Contestant]:
    """A bundle as it is; a checkpoint on every full-precision runtime."""
    if bundles.is_bundle(Path(model)):
        return [deployed(Path(model))]
    samples = bench_samples(metadata)
    preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
    target = host_probe.load_target("host")
    builder = Builder(metadata, target, store, preprocessor, samples * 2, "bench", 0, 1 << 30, Silent())
    return [
        Contestant(
            f"{metadata.source.title} {recipe.name}",
            preprocessor,
            builder.artifact(recipe),
            samples,
            recipe.precision,
            deployed=False,
        )
        for recipe in (BASELINES if metadata.graph is None else received_baselines(metadata.graph))
        if refusal(recipe, metadata, target) is None
    ]


def open_artifact(artifact: Artifact, threads: int) -> Runner:
    """An artifact opened as deployed."""
    return plugins.find("runtimes", artifact.runtime).open(artifact, threads)


def plain_example(pipeline: Pipeline, text: str = BENCH_TEXTS[0]) -> Any:
    """A sample that the pipeline's task takes, where no data is needed: export and bench without data. A text, or an image,
    sound or history made of it."""
    if pipeline.get("modality") == "image":
        return images.plain_picture(text)
    if pipeline.get("modality") == "audio":
        return core_audio.plain_sound(text)
    if pipeline.get("modality") == "item":
        some = pipeline["some_items"]
        return [some[ord(letter) % len(some)] for letter in text]
    match output_of(pipeline):
        case Output.MASKED_WORDS:
            first, _, rest = text.partition(" ")
            return f"{first} {pipeline['mask']['token']} {rest.partition(' ')[2]}"
        case Output.SPAN:
            return ("What does the fox jump over?", text)
        case Output.TAGS:
            return text.split()
        case _:
            return text
