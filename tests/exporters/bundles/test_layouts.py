"""Bundles as other programs open them: names, settings, and what is refused before anything is written."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import transformers
from typer.testing import CliRunner

import fmopt
from fmopt.cli.app import app, main
from fmopt.core.errors import BundleError, ConfigError, StoreError
from fmopt.exporters.bundles import layouts
from fmopt.exporters.bundles.bundle import bundle_metadata
from tests.conftest import TinyCheckpoint


@pytest.fixture(scope="module")
def bundles(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home, base = tmp_path_factory.mktemp("layouts"), tiny_checkpoint("bert", "sentence-embedding")
    made = {kind: fmopt.export(base, home / kind, format=kind) for kind in ("onnx", "openvino")}
    made["classifier"] = fmopt.export(
        tiny_checkpoint("bert", "text-classification"), home / "classifier", format="openvino"
    )
    made["translator"] = fmopt.export(tiny_checkpoint("t5", "translation"), home / "translator", task="translation")
    return made | {"decoder": fmopt.export(tiny_checkpoint("gpt2", "text-generation"), home / "decoder")}


def test_a_bundle_of_vectors_says_how_they_are_pooled(bundles: dict[str, Path]) -> None:
    folder = bundles["onnx"]
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]
    assert kinds[:2] == ["Transformer", "Pooling"]
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True
    assert fmopt.verify(folder) == []
    listed = json.loads((folder / "fmopt.json").read_text())["files"]
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= set(listed)


@pytest.mark.parametrize(
    ("layout", "kind", "names"),
    [
        ("optimum", "onnx", {"model.onnx", "config.json", "tokenizer.json", "modules.json"}),
        ("optimum", "openvino", {"openvino_model.xml", "openvino_model.bin", "config.json", "tokenizer.json"}),
        ("transformers.js", "onnx", {"onnx/model.onnx", "config.json", "tokenizer.json"}),
        ("tei", "onnx", {"onnx/model.onnx", "1_Pooling/config.json", "tokenizer.json"}),
        ("ovms", "openvino", {"mine/1/model.xml", "mine/1/model.bin", "config.json"}),
        ("triton", "onnx", {"mine/1/model.onnx", "mine/config.pbtxt"}),
    ],
)
def test_files_lie_where_programs_look(
    bundles: dict[str, Path], tmp_path: Path, layout: str, kind: str, names: set[str]
) -> None:
    out = layouts.pack(bundles[kind], layout, tmp_path / "out", name="mine")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names <= found
    assert not found & {"run.py", "fmopt.json", "golden.json", "README.md", "sbom.json"}
    graph = next(path for path in out.rglob("*") if path.suffix in (".onnx", ".xml"))
    original = bundles[kind] / ("model.onnx" if kind == "onnx" else "model.xml")
    assert graph.stat().st_ino == original.stat().st_ino  # no second copy of the weights
    feed = {name: np.ones((1, 5), dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    if kind == "onnx":
        assert onnxruntime.InferenceSession(graph).run(None, feed)[0].shape[:2] == (1, 5)
    else:
        assert openvino.Core().compile_model(graph, "CPU")(feed)[0].shape[:2] == (1, 5)
    assert fmopt.verify(bundles[kind]) == []


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_triton_gets_the_tensors_of_the_graph(bundles: dict[str, Path], tmp_path: Path, kind: str) -> None:
    out = layouts.pack(bundles[kind], "triton", tmp_path / "out", name="mine")
    said = (out / "mine" / "config.pbtxt").read_text()
    inputs = re.findall(r'input \[ \{ name: "(\w+)" data_type: (\w+) dims: \[(.*?)\]', said)
    assert {name for name, *_ in inputs} == {"input_ids", "attention_mask", "token_type_ids"}
    assert {(kind, dims) for _, kind, dims in inputs} == {("TYPE_INT64", "-1, -1")}
    assert re.search(r'output \[ \{ name: "\w+" data_type: TYPE_FP32 dims: \[-1, -1, \d+\]', said)


def test_ovms_and_kserve_get_the_place(bundles: dict[str, Path], tmp_path: Path) -> None:
    layouts.pack(bundles["openvino"], "ovms", tmp_path / "ovms", name="mine")
    (entry,) = json.loads((tmp_path / "ovms" / "config.json").read_text())["model_config_list"]
    assert (entry["config"]["name"], entry["config"]["base_path"]) == ("mine", "/models/mine")
    layouts.pack(bundles["onnx"], "kserve", tmp_path / "kserve", name="Mine.2", uri="s3://bucket/models")
    service = json.loads((tmp_path / "kserve" / "inferenceservice.json").read_text())
    assert service["metadata"]["name"] == "mine-2"
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://bucket/models"


def test_onnx_runtime_genai_is_told_the_graphs_own_ports(bundles: dict[str, Path], tmp_path: Path) -> None:
    out = layouts.pack(bundles["decoder"], "onnxruntime-genai", tmp_path / "out")
    said = json.loads((out / "genai_config.json").read_text())["model"]
    decoder = said["decoder"]
    session = onnxruntime.InferenceSession(out / decoder["filename"])
    inputs = {one.name: one.shape for one in session.get_inputs()}
    layers = range(decoder["num_hidden_layers"])
    told = {name.replace("%d", str(layer)) for name in decoder["inputs"].values() for layer in layers}
    assert told == set(inputs)
    made = {name.replace("%d", str(layer)) for name in decoder["outputs"].values() for layer in layers}
    assert made == {one.name for one in session.get_outputs()}
    past = inputs[decoder["inputs"]["past_key_names"].replace("%d", "0")]
    assert (past[1], past[3]) == (decoder["num_key_value_heads"], decoder["head_size"])
    config = json.loads((bundles["decoder"] / "config.json").read_text())
    assert (said["vocab_size"], said["eos_token_id"]) == (config["vocab_size"], [config["eos_token_id"]])


def test_openvino_genai_gets_the_tokenizer_as_a_graph(bundles: dict[str, Path], tmp_path: Path) -> None:
    extension = pytest.importorskip("openvino_tokenizers", reason="the extra openvino-genai is not installed")
    out = layouts.pack(bundles["openvino"], "openvino-genai", tmp_path / "out")
    assert {"openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml"} <= {
        one.name for one in out.iterdir()
    }
    core = openvino.Core()
    core.add_extension(str(extension._ext_path))
    graph = core.compile_model(out / "openvino_tokenizer.xml", "CPU")
    ids = graph(["the cat sat on the mat"])["input_ids"][0].tolist()
    assert ids == fmopt.load(bundles["openvino"]).preprocessor.ids("the cat sat on the mat")


def test_what_a_program_cannot_open_is_refused_before_anything_is_written(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for kind, layout, options, reported in (
        ("openvino", "tei", {}, "tei opens bundles for onnxruntime; this one is for openvino"),
        ("decoder", "tei", {}, "this bundle is for text-generation"),
        ("decoder", "triton", {}, "run for token after token"),
        ("decoder", "openvino-genai", {}, "opens bundles for openvino; this one is for onnxruntime"),
        ("onnx", "onnxruntime-genai", {}, "knows text-generation; this bundle is for sentence-embedding"),
        (
            "translator",
            "optimum",
            {},
            r"opens an encoder and a decoder as two graphs; this bundle's are one \(translation\)",
        ),
        ("translator", "tei", {}, r"this bundle is for translation; its own run\.py runs it, and fmopt serve$"),
        ("decoder", "transformers.js", {}, r"; --for optimum or onnxruntime-genai takes it$"),
        ("onnx", "ovms", {"name": "../x"}, "cannot be a folder of a server"),
        ("onnx", "kserve", {}, "say from where with --uri"),
        ("onnx", "tritn", {}, r"there is no layout 'tritn'; did you mean 'triton'\?"),
    ):
        with pytest.raises(ConfigError, match=reported):
            layouts.pack(bundles[kind], layout, out, **options)
        assert not out.exists()
    with pytest.raises(BundleError, match="is not a bundle"):
        layouts.pack(tmp_path, "triton", out)
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="is there already and not empty"):
        layouts.pack(bundles["onnx"], "triton", out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        ("optimum", "translator"), ("onnxruntime-genai", "onnx"), ("onnxruntime-genai", "translator"),
        ("openvino-genai", "classifier"), ("transformers.js", "decoder"), ("tei", "decoder"), ("ovms", "decoder"),
        ("triton", "translator"), ("kserve", "decoder"),
    ],
)  # fmt: skip
def test_a_task_that_a_program_does_not_take_is_one_line(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, kind: str
) -> None:
    assert main(["pack", str(bundles[kind]), "--for", layout, "--uri", "s3://b", "-o", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    task = json.loads((bundles[kind] / "fmopt.json").read_text())["task"]
    assert line.startswith(f"fmopt: {bundles[kind]}: {layout} ")
    assert task in line
    assert not (tmp_path / "out").exists()


def test_speech_to_text_of_one_graph_is_none_for_programs_that_want_two(bundles: dict[str, Path]) -> None:
    """WhisperPipeline looks for openvino_encoder_model.xml and openvino_decoder_model.xml, ONNX Runtime GenAI for two too."""
    translator = bundle_metadata(bundles["translator"])
    metadata = dataclasses.replace(translator, task="automatic-speech-recognition")
    for layout, runtime in (
        ("openvino-genai", "openvino"),
        ("onnxruntime-genai", "onnxruntime"),
        ("optimum", "openvino"),
    ):
        said = f"{layout} opens an encoder and a decoder as two graphs; this bundle's are one (automatic-speech-recognition)"
        assert layouts.refusal(layout, runtime, metadata) == said


def test_a_tokenizer_that_transformers_5_wrote_is_read_by_4_too(bundles: dict[str, Path], tmp_path: Path) -> None:
    before = json.loads((bundles["decoder"] / "tokenizer_config.json").read_text())
    assert before["tokenizer_class"] == "TokenizersBackend"
    out = layouts.pack(bundles["decoder"], "optimum", tmp_path / "out")
    after = json.loads((out / "tokenizer_config.json").read_text())
    assert after == {**before, "tokenizer_class": "PreTrainedTokenizerFast"}
    texts = ["the cat sat on the mat", "Größe"]
    ours, theirs = (
        transformers.AutoTokenizer.from_pretrained(one)(texts)["input_ids"] for one in (bundles["decoder"], out)
    )
    assert ours == theirs


def test_a_bundle_in_the_cache_of_a_hub_is_packed_with_what_its_links_lead_to(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """There every file is a link to snapshots/…/../../blobs."""
    snapshot, blobs = tmp_path / "models--mine" / "snapshots" / "main", tmp_path / "models--mine" / "blobs"
    blobs.mkdir(parents=True)
    listed = json.loads((bundles["onnx"] / "fmopt.json").read_text())["files"]
    for number, name in enumerate(["fmopt.json", *listed]):
        place = snapshot / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundles["onnx"] / name, blobs / str(number))
        place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    out = layouts.pack(snapshot, "optimum", tmp_path / "out")
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert (out / "model.onnx").read_bytes() == (bundles["onnx"] / "model.onnx").read_bytes()


def test_a_damaged_bundle_is_not_packed(bundles: dict[str, Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundles["onnx"], damaged)
    with (damaged / "model.onnx").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"xx")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        layouts.pack(damaged, "optimum", tmp_path / "out")


def test_the_command_says_it_in_one_line(bundles: dict[str, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["pack", str(bundles["onnx"]), "--for", "tei", "-o", str(tmp_path / "out")])
    assert (done.exit_code, done.stdout.splitlines()) == (
        0, [f"{tmp_path / 'out'} is laid out for Text Embeddings Inference: onnx/model.onnx"],
    )  # fmt: skip
