"""Networks that read sounds end to end: loaded, trained, exported, quantized, bundled, asked without torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fmopt
from fmopt.core import plugins
from fmopt.core.errors import CheckpointError, DataError
from fmopt.data.datasets import Dataset, load_data
from fmopt.edge.text import open_preprocessor, postprocess
from fmopt.exporters.parity import graph as parity
from fmopt.models import checkpoint
from fmopt.models.families.base import parts
from fmopt.models.source import resolve
from fmopt.training.examples import training_examples
from fmopt.training.finetune import Settings, finetune
from fmopt.workflow import export
from tests.audio_models import CLASSIFICATION, LETTERS, NAMES, RECOGNITION, audio, sound_rows, write_audio
from tests.torch_models import model_of
from tests.without_torch import run_bundle

KINDS = [
    ("wav2vec2", RECOGNITION),
    ("hubert", RECOGNITION),
    ("hubert", CLASSIFICATION),
    ("audio-spectrogram-transformer", CLASSIFICATION),
    ("whisper", CLASSIFICATION),  # its encoder alone
]
INT8 = ("wav2vec2", "audio-spectrogram-transformer")  # quantized too
SAID = {"low": "a low", "middle": "middle", "high": "high"}  # in letters of the vocabulary


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = {}

    def make(family, task):
        if (family, task) not in made:
            made[family, task] = write_audio(tmp_path_factory.mktemp(family) / f"tiny-{family}", family, task)
        return made[family, task]

    return make


def encoded(metadata, samples):
    return open_preprocessor(metadata.folder, dict(metadata.pipeline)).encode(samples)


def said(metadata, net, samples):
    """What people read of what the torch network says, a sound at a time."""
    found = []
    for sample in samples:
        batch = encoded(metadata, [sample])
        outputs = parity.torch_outputs(net, batch.inputs, ["logits"])
        found += postprocess(dict(metadata.pipeline), outputs, batch, [sample])
    return found


def write_table(folder, transcripts=False):
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        rows = []
        for number, row in enumerate(sound_rows(count, seed=len(split))):
            name = f"{split}-{number}.wav"
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(row["audio"])
            rows.append({"file": name, **({"text": SAID[row["label"]]} if transcripts else {"label": row["label"]})})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize(("family", "task"), KINDS)
def test_each_architecture_works_end_to_end(tiny, tmp_path, family, task):
    """Exported and compared with torch, quantized, bundled; what run.py says without torch is what the network says."""
    folder = tiny(family, task)
    metadata = checkpoint.inspect(resolve(str(folder)))
    assert (metadata.task, metadata.modality) == (task, "audio")
    data = write_table(tmp_path / "data", transcripts=task == RECOGNITION)
    heard = audio(7, 0.3)
    (tmp_path / "heard.wav").write_bytes(heard)
    (wanted,) = said(metadata, checkpoint.load(metadata).net, [heard])
    precisions = [("fp32", 1e-4), *([("int8", 0.1)] if family in INT8 else [])]
    for precision, tolerance in precisions:
        made = export.export(folder, tmp_path / precision, precision=precision, data=data)
        got = run_bundle(made, "predict", "--json", str(tmp_path / "heard.wav"))
        assert got.returncode == 0, got.stderr
        (answer,) = json.loads(got.stdout)
        if task == RECOGNITION:
            assert precision == "int8" or answer["text"] == wanted["text"]
            assert answer["score"] == pytest.approx(wanted["score"], abs=tolerance)
        else:
            shares = np.exp(wanted - np.logaddexp.reduce(wanted))
            assert list(answer["scores"]) == NAMES
            np.testing.assert_allclose(list(answer["scores"].values()), shares, atol=tolerance)
    assert fmopt.load(tmp_path / "fp32")(tmp_path / "heard.wav")["score"] == pytest.approx(answer["score"], abs=0.1)
    sizes = [(tmp_path / precision / "model.onnx").stat().st_size for precision, _ in precisions]
    assert sizes == sorted(set(sizes), reverse=True)


def test_a_mask_keeps_padding_out_of_what_is_said(tiny):
    """Beside a longer sound, a network with a mask says of a sound what it says of it alone."""
    metadata = checkpoint.inspect(resolve(str(tiny("wav2vec2", RECOGNITION))))
    net = checkpoint.load(metadata).net
    samples = [audio(1, 0.2), audio(2, 0.5)]
    batch = encoded(metadata, samples)
    together = postprocess(dict(metadata.pipeline), parity.torch_outputs(net, batch.inputs, ["logits"]), batch, samples)
    for one, other in zip(together, said(metadata, net, samples), strict=True):
        assert one["text"] == other["text"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert batch.frames[0] < batch.frames[1]
    assert batch.frames[1] == parity.torch_outputs(net, batch.inputs, ["logits"])["logits"].shape[1]


@pytest.mark.parametrize(("family", "task"), KINDS[:4])
def test_layers_are_known(tiny, family, task):
    model = model_of(tiny(family, task))
    layers = model.family.layers(model.net)
    assert [(layer.attention.heads, layer.attention.head_dim, layer.ffn.width) for layer in layers] == [(4, 8, 64)] * 2
    assert sum(len(parts(layer)) for layer in model.family.layers(model.net)) == 2 * 6


def test_heads_and_neurons_can_be_pruned(tiny):
    from fmopt.models.surgery.pruned_modules import prune_layer

    metadata = checkpoint.inspect(resolve(str(tiny("wav2vec2", RECOGNITION))))
    model = checkpoint.load(metadata)
    whole = encoded(metadata, [audio(3)])
    for layer in model.family.layers(model.net):
        # What is cut is made to say nothing first, so that cutting changes nothing.
        with torch.no_grad():
            model.net.get_submodule(layer.attention.output).weight[:, 8:16] = 0
            model.net.get_submodule(layer.ffn.narrow).weight[:, 40:] = 0
    before = parity.torch_outputs(model.net, whole.inputs, ["logits"])["logits"]
    for layer in model.family.layers(model.net):
        prune_layer(model.net, layer, [0, 2, 3], range(40))
    after = parity.torch_outputs(model.net, whole.inputs, ["logits"])["logits"]
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert [(layer.attention.heads, layer.ffn.width) for layer in model.family.layers(model.net)] == [(3, 40)] * 2


def dataset(rows):
    train, other = rows
    splits = {"train": train, "calibration": train, "validation": other, "test": other}
    return Dataset("made", "digest", splits)


def test_finetuning_learns_pitches(tmp_path, tiny):
    source = resolve(str(tiny("audio-spectrogram-transformer", CLASSIFICATION)))
    metadata = checkpoint.inspect(source, CLASSIFICATION, fresh_head=True)
    data = dataset((sound_rows(48, 1), sound_rows(18, 2)))
    out = finetune(
        metadata,
        data,
        plugins.find("tasks", CLASSIFICATION),
        tmp_path / "out",
        Settings(epochs=4, batch_size=8, learning_rate=3e-3),
    )
    record = json.loads((out / "finetune.json").read_text())
    assert record["metric"] == "accuracy"
    assert record["value"] > 0.7  # a third by chance
    assert checkpoint.inspect(resolve(str(out))).pipeline["labels"] == sorted(NAMES)


def test_finetuning_by_ctc_lowers_the_loss_and_keeps_the_vocabulary(tmp_path, tiny):
    source = resolve(str(tiny("wav2vec2", RECOGNITION)))
    metadata = checkpoint.inspect(source, RECOGNITION, fresh_head=True)
    rows = [{"audio": row["audio"], "transcript": SAID[row["label"]]} for row in sound_rows(24, 1)]
    out = finetune(
        metadata, dataset((rows, rows[:6])), plugins.find("tasks", RECOGNITION), tmp_path / "out",
        Settings(epochs=3, batch_size=8, learning_rate=3e-3),
    )  # fmt: skip
    record = json.loads((out / "finetune.json").read_text())
    losses = [epoch["loss"] for epoch in record["epochs"]]
    assert record["metric"] == "WER"
    assert losses[-1] < losses[0]
    again = checkpoint.inspect(resolve(str(out)))
    assert (again.task, again.pipeline["ctc"]) == (RECOGNITION, metadata.pipeline["ctc"])


def test_letters_are_those_of_the_vocabulary(tiny):
    metadata = checkpoint.inspect(resolve(str(tiny("wav2vec2", RECOGNITION))))
    task, preprocessor = plugins.find("tasks", RECOGNITION), open_preprocessor(metadata.folder, dict(metadata.pipeline))
    rows = [{"audio": audio(), "transcript": "A low!"}]
    (example,) = training_examples(preprocessor, metadata, task.items(rows, metadata), rows)
    assert "".join(LETTERS[number] for number in example["labels"]) == "a|low"
    rows = [{"audio": audio(), "transcript": "zoo"}]
    with pytest.raises(DataError, match="row 1 has the transcript 'zoo', and the model's vocabulary has no z"):
        training_examples(preprocessor, metadata, task.items(rows, metadata), rows)


def test_arrays_side_by_side_are_recordings_and_classes_are_what_is_said(tmp_path, tiny):
    draw = np.random.default_rng(0)
    lengths = [1200, 1500, 900, 1000, 1100, 1300]
    for split in ("train", "validation", "test"):
        np.savez(
            tmp_path / f"{split}.npz", audio=draw.integers(-9000, 9000, sum(lengths)).astype(np.int16),
            offsets=np.cumsum([0, *lengths]), label=np.arange(6) % 3, sample_rate=8000,
        )  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps(NAMES))
    for task, role in ((CLASSIFICATION, "label"), (RECOGNITION, "transcript")):
        metadata = checkpoint.inspect(resolve(str(tiny("hubert", task))))
        data = load_data(str(tmp_path), plugins.find("tasks", task), metadata)
        rows = data.split("train")
        assert [encoded(metadata, [row["audio"]]).mask.sum() for row in rows] == lengths
        assert [row[role] for row in rows] == ([0, 1, 2, 0, 1, 2] if role == "label" else NAMES * 2)


def test_bad_checkpoints_and_data_are_reported_in_one_line(tmp_path, tiny):
    folder = write_audio(tmp_path / "bad", "wav2vec2", RECOGNITION)
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "a": 1}))
    with pytest.raises(CheckpointError, match="2 tokens and the network writes 18"):
        checkpoint.inspect(resolve(str(folder)))
    (folder / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"vocab\.json is no vocabulary"):
        checkpoint.inspect(resolve(str(folder)))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_extractor_type": "ClapFeatureExtractor"}))
    with pytest.raises(CheckpointError, match="fmopt does not make what a ClapFeatureExtractor makes"):
        checkpoint.inspect(resolve(str(folder)))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="has no feature extractor"):
        checkpoint.inspect(resolve(str(folder)))
    with pytest.raises(CheckpointError, match="--task text-classification does not fit"):
        checkpoint.inspect(resolve(str(tiny("hubert", CLASSIFICATION))), "text-classification")
    metadata = checkpoint.inspect(resolve(str(tiny("hubert", CLASSIFICATION))))
    data = write_table(tmp_path / "data")
    (data / "train-3.wav").write_bytes(audio(seconds=0))
    with pytest.raises(DataError, match="row 4: audio cannot be used: the sound is empty"):
        load_data(str(data), plugins.find("tasks", CLASSIFICATION), metadata)
