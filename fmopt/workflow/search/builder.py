"""From a recipe to an artifact: train-side passes, export, graph passes, the runtime's build, each a stage in the store.

Two recipes that begin alike share their stages: one calibrated graph goes to ONNX Runtime and to OpenVINO.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fmopt.core import plugins
from fmopt.core.errors import CheckpointError, ParityError, PassError, explained
from fmopt.core.model import (
    Artifact,
    Graph,
    Runner,
    continues_texts,
    file_digest,
    makes_answers,
    read_artifact,
    write_artifact,
)
from fmopt.core.recipe import Recipe, Step
from fmopt.core.results import Parity
from fmopt.exporters import to_onnx
from fmopt.exporters.parity import graph as exporters_parity
from fmopt.exporters.parity.inputs import Served, require_input_parity
from fmopt.exporters.parity.received_network import received_network
from fmopt.measurement.host_probe import versions
from fmopt.models import checkpoint
from fmopt.models.loading import TorchModel
from fmopt.models.source import resolve
from fmopt.models.structure import LayerMetadata, left_of, save_checkpoint
from fmopt.models.wrappers import decoder, seq2seq
from fmopt.passes.base import traits_of
from fmopt.runtimes.base import opening_options
from fmopt.tasks.base import Output, output_of
from fmopt.workflow.search.build_context import BuildContext
from fmopt.workflow.search.network_timer import RecipeTimer, priced

# A graph is compared with its torch model on real items before anyone trusts it (rule 7). fp32 kernels differ in the
# last bits only; a Q/DQ graph rounds, and one value falling into the neighbouring bin moves its whole row, so there
# the direction of the whole output decides.
TOLERANCE = 1e-3
COSINE_INT8 = 0.99
COSINE_DEQUANTIZED = 0.9  # to the graph whose activations are rounded: what that costs is what is looked for
COSINE_KERNELS = 0.9999  # of one runtime's full-precision kernels to another's: a wrong operator is far below
PARITY_ITEMS = 8
REFERENCE = "onnxruntime"  # computes every exported graph beside its network
CHECKPOINT = "checkpoint"  # folder of the plain network, beside its exported graph
PARITY, LAYERS = "parity.json", "layers.json"  # how far it is from its network; what is known of its layers


@dataclass(frozen=True)
class Builder(BuildContext):
    """Makes the artifacts of recipes; recipes that begin alike share their stages."""

    # Where the network of some steps was exported last: a priced pass makes another one for every runtime.
    exports: dict[tuple[str, ...], Path] = field(default_factory=dict)

    def artifact(self, recipe: Recipe) -> Artifact:
        """The files of a recipe, made now or found finished."""
        runtime = plugins.find("runtimes", recipe.runtime)
        if runtime.format == "torch":
            if recipe.steps:
                raise PassError(
                    f"{recipe.name}: runtime {recipe.runtime!r} runs the checkpoint itself and takes no passes"
                )
            return runtime.build(self.metadata, recipe.options, self.metadata.folder)
        if plain_steps(recipe.steps):  # beside its graph lie the networks that are looked at later
            self._export_folder(_parted(recipe.steps)[0], recipe)
        if runtime.format == "onnx" and recipe.runtime != REFERENCE:
            self._require_same_answers(recipe)
        return self._built(recipe)

    def _built(self, recipe: Recipe) -> Artifact:
        """The files of a recipe for a runtime that takes graphs."""
        runtime = plugins.find("runtimes", recipe.runtime)
        building = {name: value for name, value in recipe.options.items() if name not in runtime.opening}
        program = runtime.format == "executorch"
        last = self._program_stage(recipe) if program else self._graph_stages(recipe.steps, recipe)[-1]
        graph_name = self.store.place(*last).name  # its content is not needed where what was built of it is there
        key = {"graph": graph_name, "runtime": recipe.runtime, "options": building, **tool_versions()}

        def make(folder: Path) -> None:
            graph = self._program(recipe) if program else self.graph(recipe.steps, recipe)
            with explained(f"{recipe.runtime} cannot build from this graph"):
                write_artifact(runtime.build(graph, building, folder), folder)

        built = read_artifact(recipe.runtime, self.store.folder(f"artifact-{recipe.runtime}", key, make))
        return replace(built, options={**built.options, **recipe.options})

    def graph(self, steps: Sequence[Step], recipe: Recipe | None = None) -> Graph:
        """The exported graph after every pass of `steps`, torch passes first; priced ones are timed as in `recipe`."""
        on_torch, on_graph = _parted(steps)
        _, *later = self._graph_stages(steps, recipe)
        graph = read_graph(self._export_folder(on_torch, recipe))
        for step, (name, key) in zip(on_graph, later, strict=True):
            graph = self._after(graph, step, name, key)
        return graph

    def parity(self, steps: Sequence[Step], recipe: Recipe | None = None) -> Parity:
        """How far the exported graph of the torch passes in `steps` is from its network."""
        return Parity.model_validate_json(self._about(steps, recipe)["parity"])

    def layer_metadata(self, steps: Sequence[Step], recipe: Recipe | None = None) -> LayerMetadata:
        """What is known of the layers of the network that the torch passes in `steps` made."""
        return LayerMetadata.model_validate_json(self._about(steps, recipe)["layers"])

    def _about(self, steps: Sequence[Step], recipe: Recipe | None) -> dict[str, str]:
        """What was found out when a graph was exported: it outlives the graph."""
        on_torch, _ = _parted(steps)
        made = self.exports.get(tuple(map(str, on_torch)))
        place = made or self.store.place(*self._graph_stages(on_torch, recipe)[0])

        def read() -> dict[str, str]:
            folder = made or self._export_folder(on_torch, recipe)
            return {"parity": (folder / PARITY).read_text(), "layers": (folder / LAYERS).read_text()}

        about: dict[str, str] = self.store.value("about", {"graph": place.name}, read)
        return about

    def _graph_stages(self, steps: Sequence[Step], recipe: Recipe | None) -> list[tuple[str, dict[str, Any]]]:
        """(name, key) of the stages of the exported graph and of every pass on it, known before any is made."""
        on_torch, on_graph = _parted(steps)
        name = "graph-" + (on_torch[-1].use if on_torch else "export")
        key: dict[str, Any] = {
            "model": self.metadata.digest,
            "task": self.metadata.task,
            "pipeline": dict(self.metadata.pipeline),
            "steps": [step.model_dump() for step in on_torch],
            "compared on": self._compared_on(),
            **tool_versions(),
        }
        if on_torch:
            key |= self._passes_key(on_torch)
        if any(map(priced, on_torch)):
            key |= {"timer": self._timer(on_torch, recipe).key}
        stages = [(name, key)]
        for step in on_graph:
            before = self.store.place(*stages[-1]).name
            key = {"graph": before, "step": step.model_dump(), **self._passes_key([step]), **tool_versions()}
            stages.append((f"graph-{step.use}", key))
        return stages

    def _timer(self, steps: Sequence[Step], recipe: Recipe | None) -> RecipeTimer:
        if recipe is None:
            raise PassError(f"{steps[0]} is timed on a runtime; build it as part of a recipe")
        return RecipeTimer(self, recipe)

    def _export_folder(self, steps: Sequence[Step], recipe: Recipe | None = None) -> Path:
        context = self.pass_context()
        if any(map(priced, steps)):
            context = replace(context, timer=self._timer(steps, recipe))

        def make(folder: Path) -> None:
            if self.metadata.graph is not None:
                self._take_in(folder)
                return
            model = checkpoint.load(self.metadata)
            for number, step in enumerate(steps, 1):
                model = guarded(step, lambda made, m=model: made.apply(m, context))
                if keeps_plain(step):
                    save_checkpoint(model, folder / f"{CHECKPOINT}-{number}")
            self.progress.say("exporting to ONNX")
            with explained(f"{self.metadata.folder} cannot be exported", CheckpointError):
                graph = to_onnx.export_onnx(model, self.example(), folder)
            write_graph(graph, folder)
            parity = self._check_parity(graph, model, COSINE_INT8 if steps else None)
            (folder / PARITY).write_text(parity.model_dump_json())
            known = LayerMetadata(structure=left_of(model), sensitivity=model.sensitivity)
            (folder / LAYERS).write_text(known.model_dump_json())

        folder = self.store.folder(*self._graph_stages(steps, recipe)[0], make)
        self.exports[tuple(map(str, steps))] = folder
        return folder

    def _take_in(self, folder: Path) -> None:
        """A received graph in the place of an export, compared with itself as it came."""
        assert self.metadata.graph is not None
        from fmopt.exporters import received_onnx  # onnx_ir loads late

        self.progress.say(f"taking {self.metadata.graph.path.name} in")
        graph = received_onnx.import_onnx(self.metadata, folder)
        write_graph(graph, folder)
        model = self._network()
        parity = self._check_parity(graph, model, COSINE_DEQUANTIZED if self.metadata.graph.dequantize else None)
        (folder / PARITY).write_text(parity.model_dump_json())
        (folder / LAYERS).write_text(LayerMetadata().model_dump_json())

    def networks(self, steps: Sequence[Step]) -> dict[int, Path]:
        """The networks that a recipe's passes made before it was quantized, of each pass that prunes or trains: checkpoint
        folders by how many passes were done. Found when a recipe with the same such passes was built here."""
        plain = tuple(map(str, steps[: plain_steps(steps)]))
        folder = next((path for made, path in self.exports.items() if plain and made[: len(plain)] == plain), None)
        found = {} if folder is None else {n: folder / f"{CHECKPOINT}-{n}" for n in range(1, len(plain) + 1)}
        return {number: path for number, path in found.items() if path.is_dir()}

    def of_network(self, folder: Path) -> Builder:
        """The same builder for a network that was made of its own."""
        metadata = checkpoint.inspect(resolve(str(folder)), self.metadata.task)
        return replace(self, metadata=metadata, exports={})

    def _program(self, recipe: Recipe) -> Graph:
        """The network of a recipe as an ExecuTorch program, compared with itself on real items."""
        from fmopt.exporters.to_executorch import export_executorch

        int8 = recipe.options.get("quantize") == "int8"

        def make(folder: Path) -> None:
            model = checkpoint.load(self.metadata)
            self.progress.say("exporting to ExecuTorch")
            graph = export_executorch(model, self.example(), folder, int8=int8)
            write_graph(graph, folder)
            self._check_parity(graph, model, COSINE_INT8 if int8 else None, "executorch")

        return read_graph(self.store.folder(*self._program_stage(recipe), make))

    def _program_stage(self, recipe: Recipe) -> tuple[str, dict[str, Any]]:
        if recipe.steps:
            raise PassError(
                f"{recipe.name}: an ExecuTorch program is made of the checkpoint itself, without passes; prune or train that"
            )
        int8 = recipe.options.get("quantize") == "int8"
        key = {
            "model": self.metadata.digest,
            "task": self.metadata.task,
            "pipeline": dict(self.metadata.pipeline),
            "int8": int8,
            "compared on": self._compared_on(),
            "calibration": self.calibration_digest if int8 else "",
            **tool_versions(),
        }
        return "program", key

    def _require_same_answers(self, recipe: Recipe) -> None:
        """ParityError where the recipe's runtime computes something else of the network, in full precision, than the network:
        its graph may be right and an operator of the runtime wrong, as OpenVINO's DFT of opset 20 is. Not looked at where the
        device that the runtime needs is elsewhere."""
        runtime = plugins.find("runtimes", recipe.runtime)
        if hasattr(runtime, "not_timed_here") and runtime.not_timed_here():
            return
        options = {name: value for name, value in recipe.options.items() if name not in getattr(runtime, "lossy", ())}
        plain = Recipe(name=f"{recipe.runtime} in full precision", runtime=recipe.runtime, options=options)

        def difference() -> str:
            artifact, received = self._built(plain), self.metadata.graph
            model = self._network()
            rounds = received is not None and not received.is_full_precision
            with explained(f"{recipe.runtime} cannot open the exported graph"):
                runner = runtime.open(artifact, threads=self.target.cores)
            try:
                with explained(f"{recipe.runtime} cannot compute the exported graph"):
                    parity = self._parity(runner, model, COSINE_DEQUANTIZED if rounds else COSINE_KERNELS)
            finally:
                runner.close()
            if parity.passed:
                return ""
            version = versions().get(recipe.runtime, "")
            return (
                f"{recipe.runtime} {version} computes something else than the network of the graph that {REFERENCE} computes "
                f"rightly: outputs differ by {parity.max_abs:.3g}, with a cosine of {parity.cosine:.4g}"
            )

        graph = self.store.place(*self._graph_stages((), plain)[-1]).name
        key = {"graph": graph, "runtime": recipe.runtime, "stateful": bool(options.get("stateful")), **tool_versions()}
        if found := self.store.value("difference", key, difference):
            raise ParityError(found)

    def _check_parity(self, graph: Graph, model: TorchModel, min_cosine: float | None, by: str = REFERENCE) -> Parity:
        names = {"inputs": graph.inputs, "outputs": graph.outputs}
        artifact = Artifact(by, graph.path, {**names, **opening_options(graph)})
        with explained(f"{by} cannot open the exported graph"):
            runner = plugins.find("runtimes", by).open(artifact, threads=self.target.cores)
        try:
            with explained(f"{by} cannot compute the exported graph"):
                parity = self._parity(runner, model, min_cosine)
            exporters_parity.require_parity(parity, graph, model, self._compared_inputs(model)[0])
            if min_cosine is None and not model.history:  # the checkpoint itself, in full precision
                with explained(f"{self.metadata.folder} does not run as its own files have it", CheckpointError):
                    require_input_parity(Served(self.metadata, self.preprocessor, runner), model.net, self.calibration)
        finally:
            runner.close()
        return parity

    def _network(self) -> TorchModel:
        """What graphs are held against: the checkpoint's network, or a received graph as it came."""
        if self.metadata.graph is not None:
            return received_network(self.metadata, self.target.cores)
        return checkpoint.load(self.metadata)

    def _parity(self, runner: Runner, model: TorchModel, min_cosine: float | None) -> Parity:
        """How far what an opened artifact computes of real items is from the network."""
        pipeline = self.metadata.pipeline
        judged = decoder.TwoSteps(runner) if continues_texts(pipeline) else runner
        if makes_answers(pipeline):
            judged = seq2seq.AsEncoderDecoder(runner)
        return exporters_parity.check_parity(
            judged, model.net, self._compared_inputs(model), TOLERANCE,
            outputs=pipeline["outputs"],  # of a cache, what is kept is proved by what is made of it
            min_cosine=min_cosine, any_order=output_of(pipeline) is Output.BOXES,
        )  # fmt: skip

    def _compared_inputs(self, model: TorchModel) -> list[dict[str, Any]]:
        """What graphs and the network are given: real items, with the begin of an answer where the network makes one."""
        batches = [dict(self.preprocessor.encode([sample]).inputs) for sample in self.calibration[:PARITY_ITEMS]]
        if not makes_answers(self.metadata.pipeline):
            return batches
        config: Any = model.net.config
        start, words = self.metadata.pipeline["decoder_start_token_ids"], int(config.vocab_size)
        return [seq2seq.with_answer(batch, start, words) for batch in batches]

    def _compared_on(self) -> str:
        """Identifies the items that a graph is compared with its network on."""
        return hashlib.sha256(repr(list(self.calibration[:PARITY_ITEMS])).encode("utf-8", "surrogatepass")).hexdigest()

    def _passes_key(self, steps: Sequence[Step]) -> dict[str, Any]:
        """All that passes take from elsewhere than the model and their options: data, limits, and what of the target decides
        what they make, so that no other target's stage is taken."""
        return {
            "calibration": self.calibration_digest,
            "seed": self.seed,
            "memory": self.memory_cap_bytes,
            "int8_dot": self.target.int8_dot,
            "signed_activations": self.target.signed_activations,
            "width_multiple": self.target.width_multiple,
            **digests_named(steps),
            **self._teachers(steps),
        }

    def _teachers(self, steps: Sequence[Step]) -> dict[str, str]:
        """Digests of the checkpoints that steps learn from."""
        named = {step.options["teacher"] for step in steps if step.options.get("teacher")}
        return {
            f"digest of teacher {name}": checkpoint.inspect(resolve(name), self.metadata.task).digest
            for name in sorted(named)
        }

    def _after(self, graph: Graph, step: Step, name: str, key: Mapping[str, Any]) -> Graph:
        made = step.build()

        def make(folder: Path) -> None:
            source, aside = graph, folder / "source"
            if made.format == "openvino" and graph.format == "onnx":
                source = to_onnx.convert_openvino(graph, aside)
            write_graph(guarded(step, lambda p: p.apply(source, self.pass_context(), folder), made), folder)
            shutil.rmtree(aside, ignore_errors=True)

        return read_graph(self.store.folder(name, key, make))


def _parted(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """(Passes on the network, passes on the graph); PassError where one on the network comes after one on the graph."""
    stages = [step.build().stage for step in steps]
    on_torch = stages.count("torch")
    if stages != ["torch"] * on_torch + ["graph"] * (len(stages) - on_torch):
        raise PassError("passes on the network come before passes on the graph: " + ", ".join(map(str, steps)))
    return list(steps[:on_torch]), list(steps[on_torch:])


def guarded(step: Step, work: Any, made: Any = None) -> Any:
    """Run a pass; what is not explained already becomes a PassError that names the step."""
    with explained(f"{step} broke"):
        return work(made or step.build())


def keeps_plain(step: Step) -> bool:
    """Whether what a pass makes is a network that can be saved, loaded and trained further."""
    return traits_of(step).leaves_checkpoint


def plain_steps(steps: Sequence[Step]) -> int:
    """How many passes there are up to the last one that leaves such a network."""
    return max((number for number, step in enumerate(steps, 1) if keeps_plain(step)), default=0)


def digests_named(steps: Sequence[Step]) -> dict[str, list[str]]:
    """Digests of the files and checkpoint folders that options name: a stage depends on what they hold."""
    found: dict[str, list[str]] = {}
    for value in (value for step in steps for value in step.options.values() if isinstance(value, str) and value):
        path = Path(value)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        if digests := [file_digest(file) for file in files if file.is_file()]:
            found[f"digest of {value}"] = digests
    return found


def write_graph(graph: Graph, folder: Path) -> None:
    """Describe a graph beside it, so that a later run finds it."""
    metadata: Mapping[str, Any] = {
        "format": graph.format,
        "file": str(graph.path.relative_to(folder)),
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "history": graph.history,
    }
    (folder / "graph.json").write_text(json.dumps(metadata))


def read_graph(folder: Path) -> Graph:
    """The graph that `write_graph` described."""
    metadata = json.loads((folder / "graph.json").read_text())
    return Graph(
        metadata["format"],
        folder / metadata["file"],
        tuple(metadata["inputs"]),
        tuple(metadata["outputs"]),
        tuple(metadata["history"]),
    )


def tool_versions() -> dict[str, str]:
    """The versions a stage's bytes depend on."""
    return {f"{name} version": version for name, version in versions().items()}
