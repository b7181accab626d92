"""Networks that know labels by what they say (CLIP, SigLIP) end to end: given labels, exported, quantized, asked without
torch; trained and judged."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import fmopt
from fmopt.core.errors import CheckpointError, DataError
from fmopt.data.datasets import load_data
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.models.wrappers.zero_shot import PROMPT
from fmopt.tasks.zero_shot_image_classification import TASK
from fmopt.workflow import evaluate, export, finetune
from fmopt.workflow.job.label_names import with_labels
from tests.vision_models import MATCHERS, NAMES, image, picture_rows, write_matcher, write_pictures
from tests.without_torch import run_bundle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = {}

    def make(family):
        if family not in made:
            made[family] = write_matcher(tmp_path_factory.mktemp(family) / f"tiny-{family}", family)
        return made[family]

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=36, validation=12, test=12)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "cache"))


def said_by_transformers(folder, sample, labels):
    """The scores of transformers' own pipeline."""
    ask = transformers.pipeline(
        TASK.name,
        model=str(folder),
        image_processor=transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
    )
    found = ask(Image.open(io.BytesIO(sample)).convert("RGB"), candidate_labels=labels)
    return {one["label"]: one["score"] for one in found}


@pytest.mark.parametrize("family", list(MATCHERS))
def test_each_architecture_works_end_to_end(tiny, tmp_path, data, family):
    """Exported and compared with torch, quantized, bundled; what run.py says without torch is what transformers says."""
    folder = tiny(family)
    metadata = checkpoint.inspect(resolve(str(folder)))
    assert (metadata.task, metadata.modality, metadata.pipeline["labels"]) == (TASK.name, "image", [])
    made = {p: export.export(folder, tmp_path / p, precision=p, data=data) for p in ("fp32", "int8")}
    shown = image(7)
    (tmp_path / "seen.png").write_bytes(shown)
    wanted = said_by_transformers(folder, shown, sorted(NAMES))
    assert max(wanted.values()) - min(wanted.values()) > 1e-3
    got = run_bundle(made["fp32"], "predict", "--json", str(tmp_path / "seen.png"))
    assert got.returncode == 0, got.stderr
    (answer,) = json.loads(got.stdout)
    assert answer["scores"] == pytest.approx(wanted, abs=1e-4)
    assert answer["label"] == max(wanted, key=lambda label: wanted[label])
    assert fmopt.load(made["int8"])(shown)["scores"] == pytest.approx(wanted, abs=0.1)
    assert (made["int8"] / "model.onnx").stat().st_size < (made["fp32"] / "model.onnx").stat().st_size


@pytest.mark.parametrize("family", list(MATCHERS))
def test_the_classifier_is_the_network_with_all_prompts(tiny, family):
    folder = tiny(family)
    net = checkpoint.load(checkpoint.inspect(resolve(str(folder)))).net
    assert not any(name.startswith("text_") for name, _ in net.named_parameters())  # it read the labels, and is gone
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    filled = {"padding": "max_length", "max_length": 64} if family == "siglip" else {"padding": True}
    texts = tokenizer([PROMPT.format(f"LABEL_{n}") for n in range(2)], return_tensors="pt", **filled)
    kept = {name: texts[name] for name in ("input_ids", "attention_mask") if family == "clip" or name == "input_ids"}
    with torch.inference_mode():
        wanted = whole(pixel_values=pixels, **kept).logits_per_image
        torch.testing.assert_close(net(pixels)["logits"], wanted, rtol=1e-5, atol=1e-5)


def test_finetuning_learns_what_labels_say(tiny, tmp_path, data):
    record = finetune.finetune(tiny("clip"), data, tmp_path / "ckpt", epochs=6, batch=6, learning_rate=2e-3)
    assert (record["metric"], record["value"]) == ("accuracy", 1.0)
    metadata = checkpoint.inspect(resolve(str(tmp_path / "ckpt")))
    assert metadata.pipeline["labels"] == sorted(NAMES)
    scores = {name: score.point for name, score in evaluate.evaluate(tmp_path / "ckpt", data).items()}
    assert scores["accuracy"] == 1.0
    assert scores["MRR of the label"] == 1.0
    # both towers were trained and are there: transformers' own network says the same of what each label tells it
    for row in picture_rows(6, seed=9):
        reported = said_by_transformers(tmp_path / "ckpt", row["image"], sorted(NAMES))
        assert max(reported, key=lambda label: reported[label]) == row["label"]


def test_labels_come_from_the_data_and_stay(tiny, tmp_path, data):
    metadata = checkpoint.inspect(resolve(str(tiny("clip"))))
    read = load_data(str(data), TASK, metadata)
    named = with_labels(metadata, read)
    assert (named.pipeline["labels"], named.source.title) == (sorted(NAMES), metadata.source.title)
    assert with_labels(named, read) is named
    assert not (tiny("clip") / "config.json").read_text().count(NAMES[0])  # the user's checkpoint is as it was
    items = TASK.items(read.split("test"), named)
    logits = np.eye(3, dtype=np.float32)[[item.label for item in items]]
    second = np.roll(logits, 1, axis=1) * 2 + logits  # the right one comes second
    (accuracy, rank, *_) = TASK.scores(list(second), items, None, named)
    assert (np.mean(accuracy.values), rank.name, np.mean(rank.values)) == (0, "MRR of the label", 0.5)


def test_what_cannot_be_read_as_labels_is_refused(tiny, tmp_path):
    draw = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        images = draw.integers(0, 255, (8, 32, 32, 3)).astype(np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, label=np.arange(8) % 3)
    with pytest.raises(DataError, match="names no labels: give data with those that it shall know"):
        export.export(tiny("clip"), tmp_path / "out")
    with pytest.raises(DataError, match=r"are numbers; put their names.* into labels\.json"):
        export.export(tiny("clip"), tmp_path / "out", data=tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps(NAMES))
    folder = write_matcher(tmp_path / "other", "clip")
    net = transformers.CLIPModel.from_pretrained(folder)
    net.text_model.set_input_embeddings(torch.nn.Embedding(40, 32))
    net.config.text_config.vocab_size = 40
    net.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="the text tower has 40; copy the tokenizer"):
        export.export(folder, tmp_path / "out2", data=tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer \(no tokenizer\.json\), and labels are texts"):
        export.export(folder, tmp_path / "out3", data=tmp_path)
