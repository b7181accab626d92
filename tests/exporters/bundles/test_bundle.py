"""A bundle written from a tiny graph: opened, verified, damaged, moved, and run where only numpy and the like exist."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fmopt.core.errors import BundleError, DataError, StoreError
from fmopt.core.model import Artifact, CheckpointMetadata, ModelSource
from fmopt.edge import command as edge_command
from fmopt.edge import host, loading, parts, runners
from fmopt.edge import manifest as edge_manifest
from fmopt.edge import text as edge_text
from fmopt.exporters.bundles import bundle, bundle_writer
from fmopt.exporters.bundles.golden import Golden

GOLDEN = ["the cat sat on the mat", "a small dog", "Paris"]
PADDING = {"id": 0, "type_id": 0, "token": "[PAD]", "side": "right"}
Write = Callable[..., Path]


def write_graph(path: Path, scale: float = 1.0) -> Path:
    """logits [rows, 3] = sum over tokens of a random row for each id: a bag of words, padding rows are zero."""
    table = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32) * np.float32(scale)
    table[0] = 0
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "tokens"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 3])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("ReduceSum", ["vectors", "axis"], ["logits"], keepdims=0),
    ]
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")]
    graph = helper.make_graph(nodes, "tiny", [ids], [out], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def files_of(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def facts_of(folder: Path) -> CheckpointMetadata:
    pipeline = {
        "task": "text-classification", "max_length": 32, "inputs": ["input_ids"], "padding": PADDING,
        "outputs": ["logits"], "labels": ["negative", "neutral", "positive"], "multi_label": False,
    }  # fmt: skip
    source = ModelSource("tiny", folder, "tiny-bert", licence="Apache-2.0")
    return CheckpointMetadata(
        source, "bert", "BertForSequenceClassification", "text-classification", pipeline, hidden_size=32, layers=2,
        parameters=1200, weight_bytes=4800, digest="0" * 64,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def write(tiny_checkpoint: Any, tmp_path: Path) -> Write:
    """write(out, ...) writes a bundle of the tiny graph and returns its folder."""
    checkpoint = tiny_checkpoint("bert", "text-classification")

    def make(out: Path, *, runtime: str = "onnxruntime", model: Path | None = None, **more: Any) -> Path:
        metadata = facts_of(checkpoint)
        path = model or write_graph(tmp_path / "made" / "model.onnx")
        artifact = Artifact(runtime, path, {"providers": ["CPUExecutionProvider"]} if runtime == "onnxruntime" else {})
        preprocessor = edge_text.Preprocessor(checkpoint / "tokenizer.json", metadata.pipeline)
        runner = runners.open_runner(runtime, path, artifact.options, 1)
        predicted = loading.Model({"pipeline": metadata.pipeline}, preprocessor, runner).predict(GOLDEN)
        options = {"golden": Golden(list(zip(GOLDEN, predicted, strict=True)), tolerance=1e-3), "needs_isa": [], **more}
        return bundle_writer.write_bundle(
            out, metadata=metadata, artifact=artifact, recipe={"name": "onnx-fp32"}, verdict="PASS", **options
        )

    return make


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and seal it again, as another host's bundle would be sealed."""
    path = folder / "fmopt.json"
    metadata = json.loads(path.read_text())
    change(metadata)
    metadata["digest"] = ""
    for name, written in metadata["files"].items():
        written.update(bytes=(folder / name).stat().st_size, sha256=edge_manifest.sha256_file(folder / name))
    text = json.dumps(metadata, indent=1)
    path.write_text(text.replace('"digest": ""', f'"digest": "{edge_manifest.manifest_digest(text, "")}"', 1))


def from_elsewhere(folder: Path) -> None:
    edit_manifest(folder, lambda metadata: metadata["host"].update(cpu="another CPU"))


def tamper_golden(folder: Path) -> None:
    golden = json.loads((folder / "golden.json").read_text())
    golden["items"][1]["prediction"][2] += 0.5
    (folder / "golden.json").write_text(json.dumps(golden))


# ---- written and opened


def test_a_bundle_answers_as_the_model_it_came_from(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    wanted = {"model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json", "fmopt.json", "golden.json"}
    assert wanted | {"README.md", "run.py"} <= names
    assert bundle.verify_bundle(out) == []
    model = bundle.load(out)
    golden = json.loads((out / "golden.json").read_text())["items"]
    for item, got in zip(golden, model.predict(GOLDEN), strict=True):
        np.testing.assert_allclose(got, item["prediction"], atol=2e-6)
    shown = model("a small dog")
    assert shown["label"] in ("negative", "neutral", "positive")
    assert sum(shown["scores"].values()) == pytest.approx(1)
    assert [one["label"] for one in model(GOLDEN)] == [model(text)["label"] for text in GOLDEN]
    with pytest.raises(DataError, match="item 1: 5 is not a text"):
        model(5)
    assert [path.name for path in tmp_path.iterdir() if "making" in path.name] == []


def test_the_manifest_says_what_from_what_and_how(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out", needs_isa=["avx2"])
    metadata = json.loads((out / "fmopt.json").read_text())
    assert (metadata["title"], metadata["verdict"], metadata["runtime"]) == ("tiny-bert", "PASS", "onnxruntime")
    assert metadata["recipe"] == {"name": "onnx-fp32"}
    assert metadata["needs_isa"] == ["avx2"]
    assert metadata["host"] == host.host_fingerprint()
    assert metadata["versions"]["onnxruntime"] == host.package_version("onnxruntime")
    assert set(metadata["files"]) == set(files_of(out)) - {"fmopt.json"}
    assert metadata["files"]["model.onnx"]["sha256"] == edge_manifest.sha256_file(out / "model.onnx")
    again = bundle.bundle_metadata(out)
    assert (again.source.title, again.folder, again.layers, again.config["model_type"]) == ("tiny-bert", out, 2, "bert")
    assert again.pipeline["labels"] == ["negative", "neutral", "positive"]
    assert bundle.bundle_artifact(out).path == out / "model.onnx"
    assert bundle.is_bundle(out)
    assert not bundle.is_bundle(tmp_path)


def test_two_bundles_of_one_model_are_equal_byte_by_byte(write: Write, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert [path.read_bytes() for path in files_of(first).values()] == [
        path.read_bytes() for path in files_of(second).values()
    ]


def test_the_readme_fits_a_screen_and_shows_this_task(write: Write, tmp_path: Path) -> None:
    text = (write(tmp_path / "out") / "README.md").read_text()
    assert len(text.splitlines()) <= 40
    assert 'python run.py predict "a text"' in text
    assert "**PASS**" in text
    assert "pip install numpy tokenizers onnxruntime" in text
    assert "Apache-2.0" in text


def test_names_are_those_that_transformers_and_optimum_open(write: Write, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    out = write(tmp_path / "out")
    assert (out / "model.onnx").is_file()  # optimum's ONNX_WEIGHTS_NAME
    assert AutoConfig.from_pretrained(out, local_files_only=True).model_type == "bert"
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    ours = bundle.load(out).preprocessor.encode(["the cat sat"])
    assert tokenizer("the cat sat")["input_ids"] == ours.inputs["input_ids"][0].tolist()


def test_openvino_ir(write: Write, tmp_path: Path) -> None:
    import openvino

    path = tmp_path / "ir" / "graph.xml"
    openvino.save_model(openvino.convert_model(write_graph(tmp_path / "g.onnx")), path, compress_to_fp16=False)
    out = write(tmp_path / "out", runtime="openvino", model=path)
    assert (out / "model.bin").is_file()
    assert bundle.verify_bundle(out) == []
    onnx_model = bundle.load(write(tmp_path / "other"))
    np.testing.assert_allclose(bundle.load(out).predict(GOLDEN), onnx_model.predict(GOLDEN), atol=1e-5)


def test_external_weights_are_merged_below_the_limit_and_split_above(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tmp_path / "split" / "graph.onnx"
    whole = onnx.load(write_graph(tmp_path / "whole.onnx"))
    split.parent.mkdir()
    onnx.save(whole, split, save_as_external_data=True, location="weights.bin", size_threshold=100)
    merged = write(tmp_path / "merged", model=split)
    assert not list(merged.glob("*.data"))
    monkeypatch.setattr(bundle_writer, "EXTERNAL_DATA_BYTES", 1000)
    parted = write(tmp_path / "parted")
    assert (parted / "model.onnx.data").stat().st_size >= 4800
    assert "model.onnx.data" in json.loads((parted / "fmopt.json").read_text())["files"]
    assert bundle.verify_bundle(parted) == []
    np.testing.assert_array_equal(bundle.load(parted).predict(GOLDEN), bundle.load(merged).predict(GOLDEN))


def test_a_torch_winner_brings_its_weights_and_says_what_it_needs(tiny_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("bert", "text-classification")
    out = bundle_writer.write_bundle(
        tmp_path / "out", metadata=facts_of(checkpoint), artifact=Artifact("torch", checkpoint, {"dtype": "fp32"}),
        recipe={}, verdict="PASS", golden=Golden(), needs_isa=[],
    )  # fmt: skip
    assert (out / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert edge_manifest.verify(out) == []
    with pytest.raises(parts.EdgeError, match=r"runtime 'torch' is opened by fmopt.*fmopt\.load"):
        loading.load(out)
    assert "runs by fmopt" in (out / "README.md").read_text()


# ---- damaged


def test_one_flipped_byte_in_any_file_is_named(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    for path in files_of(out).values():
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            problems = bundle.verify_bundle(out)
            assert len(problems) == 1
            assert path.name in problems[0]
            with pytest.raises(BundleError, match=path.name.replace(".", r"\.")):
                bundle.load(out)
        path.write_bytes(whole)
    assert bundle.verify_bundle(out) == []


def test_missing_short_and_foreign_files_are_named(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    size = (out / "config.json").stat().st_size
    (out / "tokenizer.json").unlink()
    (out / "config.json").write_text("{}")
    (out / "numpy.py").write_text("surprise")
    assert edge_manifest.verify(out) == [
        f"config.json has 2 bytes instead of {size}",
        "tokenizer.json is missing",
        "numpy.py does not belong to the bundle",
    ]
    with pytest.raises(BundleError, match=r"is damaged: config\.json has 2 bytes.*; tokenizer\.json is missing; copy"):
        bundle.load(out)


def test_what_the_run_leaves_beside_a_bundle_is_no_damage(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    for name in ("record.json", "report.html", "report.md", ".fmopt", ".fmopt.lock"):
        (out / name).write_text("x")
    (out / "stages").mkdir()
    (out / "running").mkdir()  # of a run that broke off
    assert bundle.verify_bundle(out) == []


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    assert bundle.verify_bundle(tmp_path) == [f"{tmp_path} is not a bundle: it has no fmopt.json"]
    with pytest.raises(BundleError, match=r"is not a bundle: it has no fmopt\.json"):
        bundle.load(tmp_path)
    (tmp_path / "fmopt.json").write_text('{"format": "fmopt-bundle-9"}')
    with pytest.raises(BundleError, match=r"is of format 'fmopt-bundle-9'.*use the run\.py beside it"):
        bundle.bundle_metadata(tmp_path)
    (tmp_path / "fmopt.json").write_text("[1")
    with pytest.raises(BundleError, match=r"fmopt\.json is damaged"):
        bundle.load(tmp_path)


# ---- another machine


def test_the_self_test_runs_once_on_a_new_machine(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    kept = tmp_path / "cache" / "fmopt" / "self-tests"
    assert len(list(kept.iterdir())) == 1  # the machine that built it need not prove itself
    from_elsewhere(out)
    for _ in range(2):
        bundle.load(out)
        assert len(list(kept.iterdir())) == 2
    assert bundle.verify_bundle(out) == []  # nothing was written into the bundle


def test_other_results_on_a_new_machine_are_refused_with_the_largest_difference(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    tamper_golden(out)
    from_elsewhere(out)
    with pytest.raises(BundleError, match=r"differ by up to 0\.5, allowed is 0\.001; optimize the model again"):
        bundle.load(out)
    assert len(list((tmp_path / "cache" / "fmopt" / "self-tests").iterdir())) == 1  # that of the bundle as it was made
    assert "differ by up to 0.5" in bundle.verify_bundle(out)[0]


def test_a_model_that_gives_nan_here_is_refused(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    write_graph(out / "model.onnx", scale=float("nan"))
    from_elsewhere(out)
    with pytest.raises(BundleError, match="differ by up to inf"):
        bundle.load(out)


def test_a_missing_cpu_feature_warns_of_saturation(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out", needs_isa=["amx_int8", "imagined"])
    with pytest.warns(UserWarning, match=r"imagined, which this one lacks"):
        bundle.load(out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle.load(write(tmp_path / "plain"))


# ---- where it is written


def test_other_peoples_folders_are_left_alone(write: Write, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="was not made by fmopt; nothing was touched"):
        write(tmp_path / "theirs")
    with pytest.raises(StoreError, match="is a file"):
        write(tmp_path / "file")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["thesis.txt"]


def test_a_new_winner_replaces_the_old_and_nothing_else(write: Write, tmp_path: Path) -> None:
    import openvino

    out = write(tmp_path / "out")
    (out / "record.json").write_text("{}")
    (out / "stages").mkdir()
    path = tmp_path / "ir" / "model.xml"
    openvino.save_model(openvino.convert_model(write_graph(tmp_path / "g.onnx")), path, compress_to_fp16=False)
    write(out, runtime="openvino", model=path)
    assert not (out / "model.onnx").exists()
    assert (out / "record.json").read_text() == "{}"
    assert (out / "stages").is_dir()
    assert bundle.verify_bundle(out) == []


def test_a_move_that_was_killed_shows_and_is_mended(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".fmopt").touch()  # a run's own folder
    made = write(out / "bundle.tmp")
    replaced: list[Path] = []

    def killed(source: Path, target: Path) -> None:
        if len(replaced) == 3:
            raise KeyboardInterrupt
        replaced.append(target)
        shutil.move(source, target)

    monkeypatch.setattr(bundle_writer.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        bundle_writer.publish(made, out)
    monkeypatch.undo()
    assert bundle.verify_bundle(out) == [f"{out} is not finished: writing it was interrupted; make the bundle again"]
    with pytest.raises(BundleError, match="is not finished"):
        bundle.load(out)
    bundle_writer.publish(write(out / "bundle.tmp"), out)
    assert not (out / "bundle.tmp").exists()
    assert bundle.verify_bundle(out) == []


def test_a_failure_in_the_middle_leaves_nothing(write: Write, tmp_path: Path) -> None:
    before = write(tmp_path / "out")
    with pytest.raises(StoreError, match="absent"):
        write(tmp_path / "out", record_files={"record.json": tmp_path / "absent"})
    with pytest.raises(BundleError, match="is not finite"):
        write(tmp_path / "new", golden=Golden([("a", np.array([np.nan, 1, 2]))]))
    assert not (tmp_path / "new").exists()
    assert bundle.verify_bundle(before) == []


def test_the_parts_that_a_bundle_cannot_do_without(write: Write, tmp_path: Path, tiny_checkpoint: Any) -> None:
    (tmp_path / "empty").mkdir()
    base = facts_of(tiny_checkpoint("bert", "text-classification"))
    options = {"recipe": {}, "verdict": "PASS", "golden": Golden(), "needs_isa": []}
    for artifact, reported in (
        (Artifact("torch", tmp_path / "empty"), "holds no safetensors"),
        (Artifact("onnxruntime", tmp_path / "model.tflite"), "is neither model.onnx nor model.xml"),
    ):
        with pytest.raises(BundleError, match=reported):
            bundle_writer.write_bundle(tmp_path / "new", metadata=base, artifact=artifact, **options)
    artifact = Artifact("onnxruntime", write_graph(tmp_path / "model.onnx"))
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing; a bundle carries"):
        bundle_writer.write_bundle(
            tmp_path / "new", metadata=facts_of(tmp_path / "empty"), artifact=artifact, **options
        )
    assert not (tmp_path / "new").exists()


# ---- alone


ALONE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "fmopt", "onnx", "huggingface_hub", "pydantic", "scipy"}:
            raise ImportError(f"{name} is not on this machine")
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """run.py in a fresh isolated interpreter that has neither fmopt nor torch nor transformers."""
    command = [sys.executable, "-I", "-c", textwrap.dedent(ALONE), str(folder / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_run_py_predicts_benches_and_verifies_alone(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    model = bundle.load(out)
    got = alone(out, "predict", *GOLDEN, "--json")
    assert (got.returncode, got.stderr) == (0, "")
    for ours, theirs in zip(model(GOLDEN), json.loads(got.stdout), strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["scores"] == pytest.approx(theirs["scores"])
    (tmp_path / "texts.txt").write_text("a small dog\n\nParis\n")
    got = alone(out, "predict", "--file", str(tmp_path / "texts.txt"))
    assert [json.loads(line)["label"] for line in got.stdout.splitlines()] == [m["label"] for m in model(GOLDEN[1:])]
    got = alone(out, "bench", "--json", "--seconds", "0", "--length", "32", "--batch", "2", "--threads", "1")
    timed = json.loads(got.stdout)
    assert (timed["batch"], timed["tokens"], timed["threads"]) == (2, 32, 1)
    for row in (timed["model"], timed["end_to_end"]):
        assert len(row["samples_ms"]) == 200
        assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= max(row["samples_ms"])
    assert timed["load_ms"] > 0
    assert timed["peak_memory_mb"] > 10
    got = alone(out, "verify", "--json")
    checked = json.loads(got.stdout)
    assert (got.returncode, checked["ok"], checked["problems"]) == (0, True, [])
    assert checked["largest_difference"] < checked["tolerance"] == 1e-3
    assert alone(out, "verify").stdout.startswith("whole; ")
    assert bundle.verify_bundle(out) == []


def test_a_bundle_is_whole_after_a_program_imported_its_run_py(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    program = "import run; print(run.load()('a small dog')['label'])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    got = subprocess.run([sys.executable, "-c", program], cwd=out, env=environment, capture_output=True, text=True)
    assert (got.stdout.strip(), got.stderr) == (bundle.load(out)("a small dog")["label"], "")
    assert bundle.verify_bundle(out) == []


def test_bad_input_to_run_py_is_one_line_and_exit_2(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = write(tmp_path / "out")
    (tmp_path / "latin.txt").write_bytes(b"ok\ncaf\xe9\n")
    (tmp_path / "untabbed.txt").write_text("one\n")
    for arguments, reported in (
        (["predict"], "nothing to predict; give them as arguments, or --file"),
        (["predict", "--file", str(tmp_path / "latin.txt")], "latin.txt is not UTF-8: byte 6"),
        (["predict", "--file", str(tmp_path / "gone.txt")], "gone.txt cannot be read: No such file"),
        (["predict", "--pair", "one"], "texts come in pairs here"),
        (["predict", "--pair", "--file", str(tmp_path / "untabbed.txt")], "untabbed.txt, line 1: no tab"),
        (["bench", "--batch", "0"], "'0' is not a whole number above 0"),
        (["dance"], "invalid choice: 'dance'"),
        ([], "required"),
    ):
        assert edge_command.main(arguments, out) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("error: ")
        assert reported in shown.err
        assert len(shown.err.splitlines()) == 1


def test_run_py_takes_pairs(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = write(tmp_path / "out")
    (tmp_path / "pairs.txt").write_text("a small dog\tParis\n")
    assert (
        edge_command.main(
            ["predict", "--pair", "a small dog", "Paris", "--file", str(tmp_path / "pairs.txt"), "--json"], out
        )
        == 0
    )
    first, second = json.loads(capsys.readouterr().out)
    assert first == second
    assert first["scores"] == pytest.approx(bundle.load(out)(("a small dog", "Paris"))["scores"])


def test_run_py_verify_names_the_damage(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = write(tmp_path / "out")
    (out / "model.onnx").write_bytes(b"")
    assert edge_command.main(["verify"], out) == 2
    assert capsys.readouterr().err.startswith("error: model.onnx has 0 bytes instead of ")
    assert edge_command.main(["verify", "--json"], out) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert edge_command.main(["predict", "x"], out) == 2
    assert "is damaged: model.onnx" in capsys.readouterr().err
    again = write(tmp_path / "again")
    tamper_golden(again)
    edit_manifest(again, lambda metadata: None)
    assert edge_command.main(["verify"], again) == 2
    assert "differ by up to 0.5" in capsys.readouterr().err


def test_loading_never_imports_torch(write: Write, tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    code = (
        "import sys; from fmopt.exporters.bundles.bundle import load; load(sys.argv[1])('a small dog'); "
        "print([m for m in ('torch', 'transformers', 'onnx', 'openvino') if m in sys.modules])"
    )
    got = subprocess.run(
        [sys.executable, "-c", code, str(out)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (got.stdout.strip(), got.returncode) == ("[]", 0), got.stderr
