"""A task, a pass, a runtime and a family that come with another package: files of its own, no file of ours changed."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from fmopt.core.errors import ConfigError
from fmopt.core.workload import Workload
from fmopt.edge import parts
from fmopt.exporters.bundles.bundle import load, verify_bundle
from fmopt.models.families.base import find_family
from fmopt.tasks.base import Output, find_task
from fmopt.workflow.export import export
from fmopt.workflow.job.request import Request
from fmopt.workflow.optimize import optimize_request
from tests.conftest import SENTENCES, write_tokenizer

PACKAGE = "another_package"
TONES = ("calm", "loud")

TASK = '''
"""Says whether a line is loud."""

from pathlib import Path

import numpy as np

from fmopt.core.results import Scores
from fmopt.tasks.base import Change, Item, Output, Task, Usage, column, label_index, labelled


class ToneDetection(Task):
    name = "tone-detection"
    auto_class = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    columns = {"line": ("line",), "tone": ("tone",)}
    needed = (("line",),)
    output = Output.CLASSES
    usage = Usage('"a line"', "its tone")
    edge_part = Path(__file__).with_name("extension_tone.py")
    priority = -1  # what classifies texts is a text classifier, unless one asks for this
    has_classes = True

    def items(self, rows, metadata):
        labels = metadata.pipeline["labels"]
        return [Item(number, row["line"], label_index(row.get("tone"), labels, number)) for number, row in enumerate(rows)]

    def scores(self, predictions, items, baseline, metadata):
        chosen = np.stack(predictions).argmax(axis=1)
        found = []
        if labelled(items):
            right = chosen == np.array([item.label for item in items])
            found = [Scores(name="right tones", metric="mean", values=column(right), primary=True)]
        if baseline is not None:
            same = chosen == np.stack(baseline).argmax(axis=1)
            found.append(Scores(name="same tone", metric="mean", values=column(same), against_baseline=True, primary=not found))
        return found

    def changes(self, predictions, items, baseline, metadata):
        return []

    def pipeline_entries(self, folder, config):
        return {"tone": {"width": int(config.hidden_size)}}


TASK = ToneDetection()
'''

PART = '''
"""What a bundle needs to know of tones."""

from .text import named_outputs, softmax


def postprocess(pipeline, outputs, batch, samples):
    return list(named_outputs(pipeline, outputs)[0])


def present(pipeline, prediction, sample, preprocessor=None):
    shares = softmax(prediction)
    return {"tone": pipeline["labels"][int(shares.argmax())], "width": pipeline["tone"]["width"], "line": sample}
'''

PASS = '''
"""Writes a word into a graph."""

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx


@dataclass(frozen=True)
class SignGraph:
    """Sign it."""

    stage: ClassVar[str] = "graph"
    format: ClassVar[str] = "onnx"

    word: str = "signed"

    def refusal(self, metadata, target):
        return None

    def apply(self, graph, ctx, out):
        model = onnx.load(graph.path)
        model.metadata_props.add(key="word", value=self.word)
        out.mkdir(parents=True, exist_ok=True)
        onnx.save(model, out / graph.path.name)
        return replace(graph, path=out / graph.path.name, history=(*graph.history, f"sign_graph({self.word})"))
'''

RUNTIME = '''
"""ONNX Runtime as it comes, without optimizing anything."""

import shutil

import onnxruntime

from fmopt.core.model import Artifact, model_files


class Runner:
    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options)

    def run(self, inputs):
        taken = {port.name: inputs[port.name] for port in self.session.get_inputs()}
        names = [port.name for port in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, taken), strict=True))

    def close(self):
        del self.session


class PlainRuntime:
    name = "plain-runtime"
    format = "onnx"
    opening = ()

    def missing(self):
        return None

    def refusal(self, target, options):
        return None

    def build(self, source, options, out):
        out.mkdir(parents=True, exist_ok=True)
        for file in model_files(source.path):
            shutil.copyfile(file, out / file.name)
        return Artifact(self.name, out / source.path.name, dict(options))

    def open(self, artifact, threads):
        return Runner(artifact.path, threads)

    def profile(self, artifact, inputs, threads):
        return []


RUNTIME = PlainRuntime()
'''

FAMILY = '''
"""Where the layers of ERNIE are."""

from fmopt.models.families.base import FeedForward, Layer, attention_block, columns, modules_named


class Ernie:
    name = "ernie"
    model_types = ("ernie",)
    pruning_refusal = None

    def layers(self, net):
        return [self.layer(net, name) for name, _ in modules_named(net, r"encoder\\.layer\\.\\d+")]

    def embeddings(self, net):
        return [name for name, _ in modules_named(net, r"embeddings\\.word_embeddings")]

    def layer(self, net, name):
        attention = attention_block(
            net, f"{name}.attention.self", ("query", "key", "value"), f"{name}.attention.output.dense",
            norm=f"{name}.attention.output.LayerNorm",
        )
        narrow = f"{name}.output.dense"
        return Layer(name, attention, FeedForward((f"{name}.intermediate.dense",), narrow, columns(net, narrow)))


FAMILY = Ernie()
'''

ENTRY_POINTS = f"""
[fmopt.tasks]
tone-detection = {PACKAGE}.task:TASK
[fmopt.passes]
sign_graph = {PACKAGE}.sign_graph:SignGraph
[fmopt.runtimes]
plain-runtime = {PACKAGE}.plain_runtime:RUNTIME
[fmopt.families]
ernie = {PACKAGE}.ernie:FAMILY
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder on sys.path that holds the other package and what an installer writes beside it."""
    site = tmp_path_factory.mktemp("site")
    package = site / PACKAGE
    package.mkdir()
    files = {
        "__init__": "",
        "task": TASK,
        "extension_tone": PART,
        "sign_graph": PASS,
        "plain_runtime": RUNTIME,
        "ernie": FAMILY,
    }
    for name, source in files.items():
        (package / f"{name}.py").write_text(source)
    facts = site / "another_package-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: another-package\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(ENTRY_POINTS)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(site))
    before = os.environ.get("PYTHONPATH")
    patch.setenv("PYTHONPATH", os.pathsep.join([str(site), *([before] if before else [])]))
    importlib.invalidate_caches()
    yield site
    patch.undo()
    for name in [one for one in sys.modules if one.split(".")[0] == PACKAGE or one == "fmopt.edge.extension_tone"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def checkpoint(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of a family that fmopt itself does not know."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("ernie") / "tiny-ernie"
    tokenizer = write_tokenizer(folder, "bert")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "ernie", vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, id2label=dict(enumerate(TONES)),
        label2id={name: number for number, name in enumerate(TONES)},
    )  # fmt: skip
    transformers.AutoModelForSequenceClassification.from_config(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    rows = [{"line": " ".join(draw.choices(words, k=6)), "tone": draw.choice(TONES)} for _ in range(60)]
    path = tmp_path_factory.mktemp("data") / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def made(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("made")
    recipe = folder / "recipe.toml"
    recipe.write_text(
        'name = "all-theirs"\nruntime = "plain-runtime"\n[[steps]]\nuse = "drop_layers"\n'
        '[[steps]]\nuse = "sign_graph"\noptions = { word = "hello" }\n'
    )
    asked = Request(
        model=str(checkpoint),
        task="tone-detection",
        data=str(data),
        recipe=recipe,
        workload=Workload(length=16),
        out=folder / "out",
    )
    return folder / "out", optimize_request(asked)


def test_they_are_found_by_their_entry_points(installed: Path) -> None:
    assert {entry.name for entry in entry_points(group="fmopt.tasks")} >= {"tone-detection"}
    assert find_task("tone-detection").output is Output.CLASSES
    family = find_family("ernie")
    assert family is not None
    assert type(family).__module__ == f"{PACKAGE}.ernie"


def test_a_model_goes_through_optimize_with_them(made: tuple[Path, Any]) -> None:
    out, record = made
    (theirs,) = [trial for trial in record.everything if trial.name == "all-theirs"]
    assert theirs.status == "measured", theirs.reason
    assert theirs.recipe.runtime == "plain-runtime"
    assert {score.name for score in theirs.scores} >= {"right tones", "same tone"}
    assert len(theirs.latency.samples_ms) >= 20
    assert verify_bundle(out) == []
    opened = load(out)
    assert set(opened("the cat sat")) == {"tone", "width", "line"}
    opened.close()


@pytest.fixture
def bundle(checkpoint: Path, data: Path, tmp_path: Path) -> Path:
    return export(checkpoint, format="onnx", task="tone-detection", data=data, out=tmp_path / "bundle")


def test_the_bundle_carries_their_part_and_runs_without_either_package(bundle: Path, tmp_path: Path) -> None:
    listed = json.loads((bundle / "fmopt.json").read_text())["files"]
    assert "edge/extension_tone.py" in listed
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", str(bundle / "run.py"), "predict", "the cat sat", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=alone, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    (shown,) = json.loads(done.stdout)
    assert (shown["line"], shown["width"]) == ("the cat sat", 32)
    assert shown["tone"] in TONES

    part = bundle / "edge" / "extension_tone.py"
    part.write_text(part.read_text().replace("tones", "others"))  # no byte of it runs when it is not the one listed
    done = subprocess.run(command, capture_output=True, text=True, env=alone, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "edge/extension_tone.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_fmopt_runs_the_part_that_is_installed_never_the_one_in_the_bundle(bundle: Path) -> None:
    code = (
        f"import fmopt, sys; m = fmopt.load({str(bundle)!r}); print(sys.modules['fmopt.edge.extension_tone'].__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert Path(done.stdout.strip()).parent.name == PACKAGE, done.stderr
    site = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])
    without = os.environ["PYTHONPATH"].removeprefix(str(site)).removeprefix(os.pathsep)
    code = f"import fmopt\ntry:\n    fmopt.load({str(bundle)!r})\nexcept fmopt.BundleError as error:\n    print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": without},
        check=False,
    )
    assert "comes with another package, which is not installed here" in done.stdout, done.stderr


def test_a_part_with_a_name_of_ours_is_refused(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = find_task("tone-detection")
    monkeypatch.setattr(type(task), "edge_part", tmp_path / "loading.py")
    with pytest.raises(ConfigError, match=r"is called loading\.py; call it extension_loading\.py"):
        find_task("tone-detection")
    monkeypatch.setattr(type(task), "edge_part", tmp_path / "extension_tone.py")
    with pytest.raises(ConfigError, match=r"two packages have a part called extension_tone\.py"):
        find_task("tone-detection")


def test_a_manifest_cannot_name_a_module_that_is_no_part() -> None:
    for name in ("loading", "board.agent", "extension_../../os", "extension_os", "../extension_tone"):
        with pytest.raises(parts.EdgeError):
            parts.load_part(name)
