"""Speech by an encoder and a decoder end to end: a tiny Whisper that hears three words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fmopt.core import plugins
from fmopt.core.errors import DataError, PassError
from fmopt.core.progress import Silent
from fmopt.core.stages.store import Store
from fmopt.edge import parts
from fmopt.edge.generation import usual
from fmopt.edge.runners import ENCODER_DECODER, open_runner
from fmopt.edge.seq2seq import answers
from fmopt.edge.text import open_preprocessor
from fmopt.exporters import to_onnx
from fmopt.exporters.bundles import bundle
from fmopt.exporters.parity import graph as exporters_parity
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.models.structure import load_network, save_checkpoint
from fmopt.models.surgery.pruned_modules import prune_layer
from fmopt.models.wrappers.seq2seq import AsEncoderDecoder, with_answer
from fmopt.passes.calibration.generated_answers import answering
from fmopt.passes.calibration.output_distance import distance_from_now
from fmopt.passes.distill import Distill
from fmopt.training.examples import training_examples
from fmopt.workflow import export
from fmopt.workflow.search.builder import Builder
from tests.audio_models import RECOGNITION, WORDS, audio, write_whisper
from tests.torch_models import model_of, target

NEW = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights with a tokenizer made of WORDS."""
    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its bundle, and what it was made from."""
    data = tmp_path_factory.mktemp("sounds")
    rows = []
    for number, word in enumerate(WORDS * 4):
        (data / f"{number}.wav").write_bytes(audio(number, 0.4, 300.0 * (1 + number % 3)))
        rows.append({"file": f"{number}.wav", "text": word})
    (data / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path_factory.mktemp("bundle") / "whisper"
    export.export(folder, out, data=data / "rows.jsonl")
    return SimpleNamespace(out=out, data=data, metadata=checkpoint.inspect(resolve(str(folder))))


def test_what_is_heard_is_what_generate_says(folder: Path, made: Any) -> None:
    opened, metadata = bundle.load(made.out), made.metadata
    assert (metadata.task, metadata.pipeline["part"]) == (RECOGNITION, "whisper")
    net: Any = load_network(metadata.folder, plugins.find("tasks", RECOGNITION).auto_class)
    samples = [(made.data / f"{number}.wav").read_bytes() for number in range(3)]
    inputs = opened.preprocessor.encode(samples).inputs
    with torch.inference_mode():
        reported = net.generate(
            torch.from_numpy(inputs["input_features"]), max_new_tokens=NEW, do_sample=False, num_beams=1
        )
    stop, start = metadata.pipeline["eos_token_id"][0], metadata.pipeline["decoder_start_token_ids"]
    wanted = [row[1:] if row[0] == start[0] else row for row in reported.tolist()]
    wanted = [row[: row.index(stop)] if stop in row else row for row in wanted]
    got = answers(opened.pipeline, opened.runner, inputs, usual(opened.pipeline, max_new_tokens=NEW, beams=1))
    assert got == wanted
    assert len({token for row in got for token in row}) > 3
    assert opened(samples, max_new_tokens=NEW, beams=1) == [
        {"text": opened.preprocessor.own.tokenizer.decode(ids).strip(), "tokens": len(ids)} for ids in got
    ]


def test_a_bundle_hears_without_torch(made: Any) -> None:
    code = (
        "import sys, json, runpy; sys.modules['torch'] = sys.modules['onnx'] = sys.modules['fmopt'] = None;"
        f"sys.argv = ['run.py', 'predict', '--json', {str(made.data / '1.wav')!r}];"
        f"runpy.run_path({str(made.out / 'run.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [bundle.load(made.out)(made.data / "1.wav")]
    carried = {path.stem for path in (made.out / "edge").glob("*.py")}
    assert carried - set(parts.COMMON) == {
        "whisper",
        "audio",
        "seq2seq",
        "generation",
        "decoding",
        "kv_cache",
        "lookup",
    }


def test_a_broken_recording_is_one_line(made: Any) -> None:
    with pytest.raises(DataError, match="item 1: the sound is empty"):
        bundle.load(made.out)([b""])


def test_labels_are_the_words_with_their_end(made: Any) -> None:
    preprocessor: Any = open_preprocessor(made.metadata.folder, dict(made.metadata.pipeline))
    task = plugins.find("tasks", RECOGNITION)
    rows = [{"audio": audio(0), "transcript": "high low"}]
    (example,) = training_examples(preprocessor, made.metadata, task.items(rows, made.metadata), rows)
    assert example["labels"].tolist() == preprocessor.own.ids("high low")
    assert example["input_features"].shape == (32, 100)


def test_both_of_its_stacks_are_pruned_and_trained_again(folder: Path, made: Any, tmp_path: Path) -> None:
    samples = [(made.data / f"{number}.wav").read_bytes() for number in range(12)]
    model = model_of(folder)
    preprocessor = open_preprocessor(model.metadata.folder, dict(model.metadata.pipeline))
    items = [dict(preprocessor.encode([sample]).inputs) for sample in samples]
    rows = [{"audio": sample, "transcript": WORDS[number % 3]} for number, sample in enumerate(samples)]
    builder = Builder(
        metadata=model.metadata, target=target(), store=Store(tmp_path / "store"), preprocessor=preprocessor, calibration=[],
        calibration_digest="", seed=0, memory_cap_bytes=1 << 30, progress=Silent(), train=rows,
    )  # fmt: skip
    ctx = replace(builder.pass_context(), calibration=lambda: iter(items))
    heard = answering(model, ctx, 8)
    distance = distance_from_now(model, ctx, 8)
    layers = model.family.layers(model.net)
    assert [layer.stack for layer in layers] == ["encoder", *["decoder"] * (len(layers) - 1)]
    for layer in layers:
        prune_layer(model.net, layer, (1,), range(8), (0,))
    before = distance()
    again = checkpoint.load(checkpoint.inspect(resolve(str(save_checkpoint(model, tmp_path / "cut")))))
    item = next(heard.calibration())
    wanted = exporters_parity.torch_outputs(model.net, item, ["logits"])["logits"]
    np.testing.assert_array_equal(exporters_parity.torch_outputs(again.net, item, ["logits"])["logits"], wanted)
    graph = to_onnx.export_onnx(again, items[0], tmp_path / "graph")
    runner = AsEncoderDecoder(open_runner("onnxruntime", graph.path, {ENCODER_DECODER: True}, 1))
    assert exporters_parity.check_parity(runner, again.net, [item], 1e-3, outputs=["logits"]).passed
    Distill(epochs=20.0, batch_size=4, learning_rate=5e-3, bf16=False).apply(model, ctx)
    assert distance() < 0.7 * before

    reported = [row if number == 3 else {"audio": row["audio"]} for number, row in enumerate(rows)]
    made = Distill(epochs=1.0, batch_size=4, bf16=False).apply(model, replace(builder, train=reported).pass_context())
    assert all(bool(value.isfinite().all()) for value in made.net.parameters())  # two batches ask for no word
    silent = replace(builder, train=[{"audio": row["audio"]} for row in rows])
    with pytest.raises(PassError, match="no recording of the train split has a transcript"):
        Distill(epochs=1.0, bf16=False).apply(model, silent.pass_context())


def test_a_whisper_of_many_languages_is_asked_in_one(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "many"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "generation_config.json").read_text())
    config |= {"lang_to_id": {"<|en|>": 7, "<|de|>": 8}, "task_to_id": {"transcribe": 9}, "no_timestamps_token_id": 10}
    (copy / "generation_config.json").write_text(json.dumps(config))
    found = checkpoint.inspect(resolve(str(copy))).pipeline
    assert (found["decoder_start_token_ids"][2:], found["language_ids"]) == (
        [10],
        [7, 8],
    )  # no task either, as transformers
    (copy / "generation_config.json").write_text(json.dumps({**config, "language": "german"}))
    metadata = checkpoint.inspect(resolve(str(copy)))
    assert metadata.pipeline["decoder_start_token_ids"][1:] == [8, 9, 10]


def test_the_graph_agrees_with_torch(folder: Path, made: Any) -> None:
    runner = open_runner("onnxruntime", made.out / "model.onnx", {ENCODER_DECODER: True}, 1)
    net: Any = load_network(folder, "AutoModelForSpeechSeq2Seq")
    assert isinstance(net, transformers.WhisperForConditionalGeneration)
    features = np.random.default_rng(0).standard_normal((2, 32, 100)).astype(np.float32)
    batch = with_answer(
        {"input_features": features}, made.metadata.pipeline["decoder_start_token_ids"], net.config.vocab_size
    )
    parity = exporters_parity.check_parity(AsEncoderDecoder(runner), net, [batch], 1e-3, outputs=["logits"])
    assert parity.passed, parity
