"""Answers by an encoder and a decoder: one graph in two parts, token by token as transformers makes them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fmopt.core import plugins
from fmopt.core.errors import CheckpointError, DataError
from fmopt.core.model import Artifact, Graph
from fmopt.edge.generation import usual
from fmopt.edge.loading import run_batch
from fmopt.edge.seq2seq import answers, split_onnx
from fmopt.edge.text import open_preprocessor, postprocess
from fmopt.evaluation.metrics import METRICS
from fmopt.evaluation.predictions import load_predictions, save_predictions
from fmopt.exporters.bundles import bundle
from fmopt.exporters.parity import graph as exporters_parity
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.models.wrappers.seq2seq import AsEncoderDecoder, EncoderDecoder, with_answer
from fmopt.training.examples import training_examples
from fmopt.workflow import export, finetune
from tests.conftest import ENCODER_DECODERS, SENTENCES, TinyCheckpoint
from tests.torch_models import model_of

NEW = 10
TASK = plugins.find("tasks", "translation")


@pytest.fixture(scope="session")
def bundled(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`bundled("t5")`: the bundle of a tiny network that translates; made once, for tracing takes a while."""
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"source": text, "target": text[::-1]}) for text in SENTENCES))

    @cache
    def make(family: str) -> Path:
        out = tmp_path_factory.mktemp("bundles") / family
        return export.export(tiny_checkpoint(family, "translation"), out, data=rows, task="translation")

    return make


@pytest.fixture(scope="module", params=ENCODER_DECODERS)
def exported(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint, bundled: Callable[[str], Path]) -> Any:
    """A tiny network in PyTorch, and as an opened graph."""
    model = model_of(tiny_checkpoint(request.param, "translation"), "translation")
    opened, path = bundle.load(bundled(request.param)), bundled(request.param) / "model.onnx"
    ports = onnx.load(path).graph
    graph = Graph("onnx", path, tuple(one.name for one in ports.input), tuple(one.name for one in ports.output))
    return SimpleNamespace(torch=model, graph=graph, runner=opened.runner, pipeline=opened.pipeline, model=opened)


def generated(exported: Any, texts: Any, **options: Any) -> list[list[int]]:
    """What `generate` of transformers answers, without the tokens that begin and end it."""
    inputs = {name: torch.from_numpy(value) for name, value in exported.model.preprocessor.encode(texts).inputs.items()}
    with torch.inference_mode():
        made = exported.torch.net.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)[:, 1:].tolist()
    stop = exported.pipeline["eos_token_id"][0]
    return [ids[: ids.index(stop)] if stop in ids else ids for ids in made]


def test_the_parts_agree_with_torch(exported: Any) -> None:
    encoded = dict(exported.model.preprocessor.encode([SENTENCES[2]]).inputs)
    batch = with_answer(encoded, exported.pipeline["decoder_start_token_ids"], exported.torch.net.config.vocab_size)
    for runner in (exported.runner, EncoderDecoder(exported.torch.net)):
        parity = exporters_parity.check_parity(
            AsEncoderDecoder(runner), exported.torch.net, [batch], 1e-3, outputs=["logits"]
        )
        assert parity.passed, parity


def test_greedy_and_beams_give_the_tokens_of_generate(exported: Any) -> None:
    texts = list(SENTENCES[:4])  # of different lengths, in one batch
    inputs = dict(exported.model.preprocessor.encode(texts).inputs)
    greedy = answers(exported.pipeline, exported.runner, inputs, usual(exported.pipeline, max_new_tokens=NEW, beams=1))
    assert greedy == generated(exported, texts, num_beams=1)
    assert len({token for row in greedy for token in row}) > 3
    beams = answers(exported.pipeline, exported.runner, inputs, usual(exported.pipeline, max_new_tokens=NEW, beams=3))
    assert beams == generated(exported, texts, num_beams=3)


def test_weights_that_both_parts_use_are_stored_once(exported: Any) -> None:
    size = exported.graph.path.stat().st_size
    parameters = sum(p.numel() for p in exported.torch.net.parameters()) * 4
    assert size < 1.25 * parameters + 200_000
    first, second = split_onnx(exported.graph.path)
    assert len(first) < size > len(second)
    assert len(first) + len(second) > parameters


@pytest.fixture(scope="module")
def marian(bundled: Callable[[str], Path]) -> Path:
    """The bundle of a tiny Marian."""
    return bundled("marian")


def test_a_bundle_answers_without_torch_as_pytorch_does(marian: Path, tiny_checkpoint: TinyCheckpoint) -> None:
    model = model_of(tiny_checkpoint("marian", "translation"))
    assert model.metadata.task == "translation"  # Marian's class does nothing else
    code = (
        "import sys, json, runpy; sys.modules['torch'] = sys.modules['onnx'] = sys.modules['fmopt'] = None;"
        f"sys.argv = ['run.py', 'predict', '--json', '--max-new-tokens', '8', {SENTENCES[0]!r}];"
        f"runpy.run_path({str(marian / 'run.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (shown,) = json.loads(done.stdout)
    opened = bundle.load(marian)
    assert shown == opened(SENTENCES[0], max_new_tokens=8)
    own = plugins.find("runtimes", "torch").open(
        Artifact("torch", model.metadata.folder, {"auto_class": TASK.auto_class}), 1
    )
    inputs = dict(opened.preprocessor.encode([SENTENCES[0]]).inputs)
    ids = answers(opened.pipeline, own, inputs, usual(opened.pipeline, max_new_tokens=8))[0]
    assert shown == {"text": opened.preprocessor.tokenizer.decode(ids).strip(), "tokens": len(ids)}
    assert "".join(opened.stream(SENTENCES[0], max_new_tokens=8)).strip() == shown["text"]


def test_asking_for_too_much_is_one_line(marian: Path) -> None:
    with pytest.raises(DataError, match="beams is 0; it is at least 1"):
        bundle.load(marian)("the cat", beams=0)
    with pytest.raises(DataError, match="a text is answered, not int"):
        bundle.load(marian)([3])


def test_openvino_runs_the_same_parts(exported: Any, tmp_path: Path) -> None:
    built = plugins.find("runtimes", "openvino").build(exported.graph, {}, tmp_path)
    runner = plugins.find("runtimes", "openvino").open(built, 1)
    inputs = dict(exported.model.preprocessor.encode(list(SENTENCES[:2])).inputs)
    config = usual(exported.pipeline, max_new_tokens=NEW, beams=1)
    assert answers(exported.pipeline, runner, inputs, config) == answers(
        exported.pipeline, exported.runner, inputs, config
    )


def test_predictions_are_kept_and_judged(exported: Any, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    texts = list(SENTENCES[:3])
    batch = exported.model.preprocessor.encode(texts)
    outputs = run_batch(exported.pipeline, exported.runner, batch, 2)
    made = postprocess(exported.pipeline, outputs, batch, texts)
    save_predictions(tmp_path / "made", made)
    assert [one.tolist() for one in load_predictions(tmp_path / "made")] == [one.tolist() for one in made]
    items = TASK.items([{"text": text, "target": text} for text in texts], exported.torch.metadata)
    names = {score.name: score for score in TASK.scores(made, items, made, exported.torch.metadata)}
    assert names["BLEU"].primary
    assert names["same text as baseline"].array().min() == 1


def test_corpus_scores_are_those_of_sacrebleu_for_any_resample() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    from fmopt.tasks.translation import _scores

    wanted = [
        "a man sits on a bench in the park",
        "two dogs run over the green grass",
        "she reads",
        "no match at all here",
    ]
    reported = ["a man sits on the bench in a park", "two dogs are running over grass", "she reads", "qqq"]
    draw = np.random.default_rng(0).multinomial(6, [0.25] * 4, size=5)
    for name, kind in (("bleu", sacrebleu.BLEU), ("chrf", sacrebleu.CHRF)):
        values = _scores(name, name, reported, wanted).array()
        rows = METRICS[name].of(values, draw)
        for counts, got in zip(draw, rows, strict=True):
            hypotheses, references = (np.repeat(texts, counts).tolist() for texts in (reported, wanted))
            assert got * 100 == pytest.approx(kind().corpus_score(hypotheses, [references]).score, abs=1e-9)
    nothing = _scores("bleu", "bleu", ["qqq"], ["she reads"]).array()
    assert METRICS["bleu"].of(nothing) == 0


def test_labels_are_the_answer_with_its_end(tiny_checkpoint: TinyCheckpoint) -> None:
    metadata = checkpoint.inspect(resolve(str(tiny_checkpoint("marian", "translation"))))
    preprocessor = open_preprocessor(metadata.folder, dict(metadata.pipeline))
    rows = [{"text": "the cat", "target": "a dog"}]
    (example,) = training_examples(preprocessor, metadata, TASK.items(rows, metadata), rows)
    assert example["labels"].tolist() == preprocessor.ids("a dog")
    assert example["labels"][-1] == metadata.pipeline["eos_token_id"][0]
    with pytest.raises(DataError, match="train row 1 has no label"):
        training_examples(preprocessor, metadata, TASK.items([{"text": "the cat"}], metadata), [{"text": "the cat"}])


def test_a_network_that_answers_says_what_for(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    shutil.copytree(tiny_checkpoint("t5", "translation"), folder)
    assert model_of(folder, "translation").metadata.pipeline["decoder_start_token_ids"] == [1]
    config = json.loads((folder / "config.json").read_text())
    del config["decoder_start_token_id"]
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": None}))
    for other in folder.glob("generation_config.json"):
        other.unlink()
    with pytest.raises(CheckpointError, match="names no decoder_start_token_id"):
        checkpoint.inspect(resolve(str(folder)), "translation")


def test_rouge_is_that_of_rouge_score() -> None:
    from fmopt.tasks.summarization import rouge_1, rouge_2, rouge_l

    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    for text, wanted in (
        ("A cat sat, on the mat!", "the cat sat on a red mat"),
        ("x", "y z"),
        ("", "a"),
        ("a b a b", "a b"),
    ):
        reported = scorer.score(wanted, text)
        got = [measure(text, wanted) for measure in (rouge_1, rouge_2, rouge_l)]
        assert got == pytest.approx([reported[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")])


def test_a_summary_is_judged_against_the_one_that_fits_best(tiny_checkpoint: TinyCheckpoint) -> None:
    model = model_of(tiny_checkpoint("t5", "translation"), "summarization")
    task = plugins.find("tasks", "summarization")
    preprocessor = open_preprocessor(model.metadata.folder, dict(model.metadata.pipeline))
    items = task.items([{"text": "a long text", "target": ["a dog ran", "the cat sat"]}], model.metadata)
    made = [np.array(preprocessor.ids("the cat sat", special=False))]
    scores = {score.name: score for score in task.scores(made, items, None, model.metadata)}
    assert scores["ROUGE-L"].primary
    assert scores["ROUGE-L"].array().tolist() == [[1.0]]
    with pytest.raises(DataError, match="row 1 has the summary 3, which is no text and no list of texts"):
        task.items([{"text": "a", "target": 3}], model.metadata)


def test_what_a_network_answers_is_said_by_its_configuration(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    folder = tmp_path / "bart"
    shutil.copytree(tiny_checkpoint("bart", "translation"), folder)
    with pytest.raises(CheckpointError, match="could be for summarization or translation; say --task summarization"):
        checkpoint.inspect(resolve(str(folder)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"task_specific_params": {"translation_en_to_de": {}}}))
    assert checkpoint.inspect(resolve(str(folder))).task == "translation"


def test_what_may_not_repeat_or_end_is_as_generate_has_it(exported: Any) -> None:
    texts = list(SENTENCES[:3])
    inputs = dict(exported.model.preprocessor.encode(texts).inputs)
    options: dict[str, Any] = {"num_beams": 2, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "length_penalty": 2.0,
                               "early_stopping": True}  # fmt: skip
    pipeline = {
        **exported.pipeline,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 4,
        "length_penalty": 2.0,
        "early_stopping": True,
    }
    made = answers(pipeline, exported.runner, inputs, usual(pipeline, max_new_tokens=NEW, beams=2))
    assert made == generated(exported, texts, **options)


def test_training_teaches_the_task_and_writes_it_down(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    rows = [{"source": text, "target": f"{text} end"} for text in SENTENCES]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = finetune.finetune(
        tiny_checkpoint("bart", "translation"), tmp_path, tmp_path / "out", task="translation", epochs=2, batch=4
    )
    losses = [epoch["loss"] for epoch in record["epochs"]]
    assert losses[-1] < losses[0]
    assert (record["metric"], len(losses)) == ("BLEU", 2)
    assert checkpoint.inspect(resolve(str(tmp_path / "out"))).task == "translation"
