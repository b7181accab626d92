"""Networks for speech synthesis end to end: split, joined, compared sample by sample, bundled, heard without torch."""

from __future__ import annotations

import json
import wave
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import VitsModel, VitsTokenizer

import fmopt
from fmopt.core import plugins
from fmopt.core.errors import CheckpointError, DataError
from fmopt.core.model import Artifact
from fmopt.edge.loading import run_batch
from fmopt.edge.speech import drawn, mel_distance, mel_frames
from fmopt.edge.text import open_preprocessor
from fmopt.exporters.parity import graph as parity
from fmopt.models import checkpoint
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.source import resolve
from fmopt.models.wrappers import speech_synthesis
from fmopt.tasks.base import Item
from fmopt.workflow import export
from tests.speech_models import LETTERS, write_tokenizer, write_voice
from tests.without_torch import run_bundle

TASK = "text-to-audio"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NOISE = ("duration_noise", "noise")
AS_MMS = [*"k'zyudhesw–3cna _ovi"]  # the first letter is the blank, as in facebook/mms-tts


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    return write_voice(tmp_path_factory.mktemp("voice") / "tiny-voice")


@pytest.fixture(scope="module")
def metadata(voice):
    return checkpoint.inspect(resolve(str(voice)))


@pytest.fixture(scope="module")
def model(metadata):
    return checkpoint.load(metadata)


@pytest.fixture(scope="module")
def bundle(voice, tmp_path_factory):
    """Exported once: compared with torch on real texts on the way."""
    home = tmp_path_factory.mktemp("bundle")
    return export.export(voice, home / "made", data=write_texts(home / "data"))


@pytest.fixture(scope="module")
def graph(bundle):
    return bundle / "model.onnx"


def encoded(metadata, texts, **reported):
    return open_preprocessor(metadata.folder, dict(metadata.pipeline)).own.encode(texts, **reported)


def opened(graph, runtime):
    return plugins.find("runtimes", runtime).open(Artifact(runtime, graph), 1)


def test_what_the_files_say(metadata):
    assert (metadata.task, metadata.modality) == (TASK, "text")
    assert metadata.pipeline["speech"]["rate"] == 8000
    assert metadata.pipeline["axes"]["noise"] == ["batch", 16, "drawn"]


@pytest.mark.parametrize("stochastic", [True, False])
def test_noise_as_an_input_changes_nothing(tmp_path, stochastic):
    """transformers' own network, given the same numbers when it draws some, says the same."""
    voice = write_voice(tmp_path / "voice", use_stochastic_duration_prediction=stochastic)
    metadata = checkpoint.inspect(resolve(str(voice)))
    model = checkpoint.load(metadata)
    batch = encoded(metadata, ["three one", "two"])
    tensors = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
    theirs = VitsModel.from_pretrained(voice).eval()
    theirs.noise_scale = theirs.noise_scale_duration = 1.0
    with (
        patch.object(torch, "randn", lambda *shape: tensors["duration_noise"]),
        patch.object(torch, "randn_like", lambda like: tensors["noise"][:, :, : like.shape[2]]),
        torch.no_grad(),
    ):
        wanted = theirs(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"])
    got = parity.torch_outputs(model.net, batch.inputs, ["waveform", "sequence_lengths"])
    np.testing.assert_allclose(got["waveform"], wanted.waveform.numpy(), atol=1e-5)
    assert got["sequence_lengths"].tolist() == wanted.sequence_lengths.tolist()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_graph_says_what_the_network_says(graph, metadata, model, runtime):
    """Each half by its own result, of texts shorter and longer than what was traced, alone and padded."""
    runner = opened(graph, runtime)
    for texts in (["a"], ["seven"], ["nine eight seven six five four three two one zero"], ["one", "two two", "i"]):
        inputs = dict(encoded(metadata, texts, seed=len(texts[0])).inputs)
        inputs["noise"] = inputs["noise"][:, :, :40]  # begins anew for the longer ones
        wanted = parity.torch_outputs(model.net, inputs, metadata.pipeline["outputs"])
        got = runner.run(inputs)
        for name in metadata.pipeline["outputs"]:
            np.testing.assert_allclose(got[name], wanted[name], atol=1e-4, err_msg=f"{name} of {texts}")
    runner.close()


def test_durations_are_whole_and_make_the_length(model, metadata):
    got = parity.torch_outputs(model.net, encoded(metadata, ["seven", "a"]).inputs, metadata.pipeline["outputs"])
    durations = got["durations"]
    assert (durations == np.round(durations)).all()
    assert len(np.unique(durations)) > 2
    assert got["sequence_lengths"].tolist() == (durations.sum(axis=1) * 32).tolist()
    assert not durations[1, 3:].any()  # padding lasts no time


def test_splines_are_those_of_transformers():
    torch.manual_seed(0)
    inputs = 4 * torch.randn(2, 1, 300)
    widths, heights, derivatives = (3 * torch.randn(2, 1, 300, bins) for bins in (10, 10, 9))
    wanted, _ = speech_synthesis.vits._unconstrained_rational_quadratic_spline(
        inputs.clone(), widths.clone(), heights.clone(), derivatives.clone(), reverse=True
    )
    got, _ = speech_synthesis.spline(inputs, widths, heights, derivatives, reverse=True)
    assert (inputs.abs() > 5).any()
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("letters", "reported"),
    [
        (LETTERS, {}),
        (LETTERS, {"add_blank": False}),
        (AS_MMS, {"pad_token": "k", "unk_token": "<unk>"}),
    ],
)  # fmt: skip
def test_letters_become_ids_as_in_transformers(tmp_path, letters, reported):
    folder = write_tokenizer(tmp_path, letters, **reported)
    theirs = VitsTokenizer.from_pretrained(folder)
    config = SimpleNamespace(
        model_type="vits", vocab_size=40, flow_size=4, sampling_rate=8000, noise_scale=0.5, noise_scale_duration=0.5,
        pad_token_id=None, window_size=4,
    )  # fmt: skip
    from fmopt.models.preprocessors.speech import speech_pipeline

    pipeline = {"task": TASK, **speech_pipeline(CheckpointFiles.of(folder), config)}
    ours = open_preprocessor(folder, pipeline).own
    for text in ("Seven of NINE, then one.", "  a knock… ", "it's so", "Öse a", "new\nline c"):
        assert ours.ids(text) == theirs(text)["input_ids"], text


def test_noise_is_drawn_by_the_seed_and_its_beginning_stays(metadata):
    np.testing.assert_array_equal(drawn(2, 50, 3, 0)[:, :20], drawn(2, 20, 3, 0))
    assert abs(drawn(16, 1024, 0, 1).std() - 1) < 0.02
    one, same, other = (encoded(metadata, ["seven"], seed=seed).inputs for seed in (1, 1, 2))
    for name in NOISE:
        np.testing.assert_array_equal(one[name], same[name])
        assert np.abs(one[name] - other[name]).max() > 1
    quiet = encoded(metadata, ["seven"], noise_scale=0.0).inputs
    assert not quiet["noise"].any()
    assert quiet["duration_noise"].any()


def test_a_recording_is_the_same_beside_others(graph, metadata):
    runner, pipeline = opened(graph, "onnxruntime"), dict(metadata.pipeline)
    texts = ["one", "three three three", "a"]
    together = run_batch(pipeline, runner, encoded(metadata, texts), 3)["waveform"]
    for text, audio in zip(texts, together, strict=True):
        (alone,) = run_batch(pipeline, runner, encoded(metadata, [text]), 1)["waveform"]
        np.testing.assert_allclose(audio, alone, atol=1e-6)


def write_texts(folder, count=12):
    folder.mkdir()
    for start, split in enumerate(("train", "validation", "test")):
        rows = [{"text": " ".join(WORDS[(start + step * n) % 10] for step in (1, 3))} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_bundle_speaks_without_torch(bundle, metadata, model, tmp_path):
    """What run.py writes is what the torch network says."""
    out = tmp_path / "said" / "seven.wav"

    def reported(*arguments):
        return run_bundle(bundle, *arguments, HOME=str(tmp_path))

    got = reported("predict", "--json", "Seven!", "-o", str(out), "--seed", "5")
    assert got.returncode == 0, got.stderr
    (shown,) = json.loads(got.stdout)
    inputs = encoded(metadata, ["seven"], seed=5).inputs
    outputs = parity.torch_outputs(model.net, inputs, ["waveform"])
    wanted = outputs["waveform"][0]
    assert shown == {"file": str(out), "seconds": round(len(wanted) / 8000, 3), "sampling_rate": 8000}
    with wave.open(str(out)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    np.testing.assert_allclose(heard, wanted, atol=1e-4)
    again = reported("predict", "seven", "-o", str(out))
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert reported("verify").returncode == 0
    spoken = fmopt.load(bundle)("seven", seed=5)
    assert spoken["sampling_rate"] == 8000
    np.testing.assert_allclose(spoken["audio"], wanted, atol=1e-4)
    with pytest.raises(DataError, match=r"'\?!' has no letter that this model speaks; it speaks ' a b c"):
        fmopt.load(bundle)("?!")


def test_two_recordings_are_compared_in_bels():
    draw = np.random.default_rng(0)
    audio = 0.1 * draw.standard_normal(8000)
    assert mel_distance(audio, audio, 8000) == 0
    assert mel_distance(audio, 10**0.5 * audio, 8000) == pytest.approx(1, abs=1e-6)  # ten times the power
    sine = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    assert mel_frames(sine, 8000)[4:-4].max() == pytest.approx(0, abs=0.15)


def test_recordings_of_other_lengths_are_warped():
    """A sound in which something lasts longer is nearer than another sound of the right length."""
    time = np.arange(6000) / 8000
    low, high = (0.3 * np.sin(2 * np.pi * pitch * time) for pitch in (300, 2000))
    whole, longer = np.concatenate([low, high]), np.concatenate([low, low[:3000], high])
    stretched, other = mel_distance(whole, longer, 8000), mel_distance(whole, np.concatenate([high, low]), 8000)
    assert 0 < stretched < 0.2 < 1 < other
    assert mel_distance(longer, whole, 8000) == pytest.approx(stretched)


def test_least_path_is_that_of_the_recursion():
    from fmopt.edge.speech import _least_path

    costs = np.random.default_rng(0).random((7, 11))
    sums = np.full((8, 12), np.inf)
    sums[0, 0] = 0
    for i in range(7):
        for j in range(11):
            c = costs[i, j]
            sums[i + 1, j + 1] = min(sums[i, j + 1] + c, sums[i + 1, j] + c, sums[i, j] + 2 * c)
    assert _least_path(costs) == pytest.approx(sums[7, 11])


def test_scores_measure_what_changed(metadata):
    task, draw = plugins.find("tasks", TASK), np.random.default_rng(0)
    before = [0.1 * draw.standard_normal(4000) for _ in range(3)]
    after = [before[0], 10**0.049 * before[1], before[2][:3000]]
    items = [Item(number, word) for number, word in enumerate(WORDS[:3])]
    distance, length = task.scores(after, items, before, metadata)
    assert (distance.name, distance.primary, distance.metric) == ("mel distance", True, "lower_mean")
    assert distance.array()[:2, 0] == pytest.approx([0, 0.098])
    assert length.array()[:, 0] == pytest.approx([0, 0, 0.25])
    assert [change.item for change in task.changes(after, items, before, metadata)] == [2]  # a decibel is not heard yet
    assert task.scores(after, items, None, metadata) == []


def test_what_cannot_be_spoken_is_reported_in_one_line(tmp_path, voice):
    folder = write_voice(tmp_path / "bad")
    write_tokenizer(folder, LETTERS, phonemize=True)
    with pytest.raises(CheckpointError, match="phonemes by another program"):
        checkpoint.inspect(resolve(str(folder)))
    write_tokenizer(folder, [*LETTERS, "é"])
    with pytest.raises(CheckpointError, match="ids up to 30 and the network's embedding 30 rows"):
        checkpoint.inspect(resolve(str(folder)))
    (folder / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"vocab\.json is no vocabulary"):
        checkpoint.inspect(resolve(str(folder)))
    with pytest.raises(CheckpointError, match="--task text-classification does not fit"):
        checkpoint.inspect(resolve(str(voice)), "text-classification")
