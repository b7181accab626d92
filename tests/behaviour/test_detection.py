"""Networks that find boxes end to end: loaded, exported, quantized, bundled, asked without torch; trained and judged."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import fmopt
from fmopt.data.datasets import load_data
from fmopt.edge.errors import EdgeError
from fmopt.edge.text import open_preprocessor
from fmopt.models import checkpoint
from fmopt.models.families.base import parts
from fmopt.models.source import resolve
from fmopt.tasks.object_detection import TASK
from fmopt.training.collation import augmented
from fmopt.workflow import export, finetune
from tests.torch_models import model_of
from tests.vision_models import DETECTORS, NAMES, box_arrays, image, write_detector
from tests.without_torch import run_bundle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = {}

    def make(family):
        if family not in made:
            made[family] = write_detector(tmp_path_factory.mktemp(family) / f"tiny-{family}", family)
        return made[family]

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("boxes")
    for seed, (split, count) in enumerate((("train", 32), ("validation", 8), ("test", 8))):
        np.savez(folder / f"{split}.npz", **box_arrays(count, seed))
    (folder / "labels.json").write_text(json.dumps(NAMES))
    return folder


def test_boxes_are_read_from_arrays_and_from_an_objects_column(tiny, tmp_path, data):
    metadata = checkpoint.inspect(resolve(str(tiny("yolos"))))
    (row, *_) = load_data(str(data), TASK, metadata).split("test")
    reported = box_arrays(8, 2)
    count = reported["offsets"][1]
    assert row["classes"] == reported["box_labels"][:count].tolist()
    (item,) = TASK.items([row], metadata)
    np.testing.assert_allclose(item.label[:, 1:], reported["boxes"][:count] * [48, 32, 48, 32], atol=1e-4)
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(image(number, size=(48, 32)))
    rows = [
        {"file_name": f"{n}.png", "objects": {"bbox": [[1, 2, 10, 20]] * n, "categories": [NAMES[2]] * n}}
        for n in range(4)
    ]
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = load_data(str(tmp_path / "boxes.jsonl"), TASK, metadata)
    labels = [
        item.label for split in ("train", "validation", "test") for item in TASK.items(read.split(split), metadata)
    ]
    assert sorted(len(label) for label in labels) == [0, 1, 2, 3]
    assert all(label.tolist() == [[2, 1, 2, 11, 22]] * len(label) for label in labels)


def test_boxes_move_with_their_image():
    values = np.zeros((3, 32, 48), dtype=np.float32)
    values[:, 8:16, 12:24] = 1
    boxes = np.array([[18 / 48, 12 / 32, 12 / 48, 8 / 32]], dtype=np.float32)
    example = {"pixel_values": values, "labels": {"class_labels": np.array([1]), "boxes": boxes}}
    for seed in range(8):
        made = augmented(example, ("shift", "mirror"), np.random.default_rng(seed))
        rows, columns = (np.flatnonzero(made["pixel_values"][0].any(axis=axis)) for axis in (1, 0))
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        ((x, y, w, h),) = made["labels"]["boxes"] * [48, 32, 48, 32]
        np.testing.assert_allclose([x - w / 2, y - h / 2, x + w / 2, y + h / 2], seen, atol=1e-3)


def test_the_layers_of_yolos_are_known(tiny):
    model = model_of(tiny("yolos"))
    layers = model.family.layers(model.net)
    assert [(layer.attention.heads, layer.attention.head_dim, layer.ffn.width) for layer in layers] == [(4, 8, 64)] * 2
    assert sum(len(parts(layer)) for layer in model.family.layers(model.net)) == 12


def told_by_transformers(folder, sample, threshold):
    """Boxes as transformers' own processor and network find them, the best first."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    net = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    image = Image.open(io.BytesIO(sample)).convert("RGB")
    with torch.inference_mode():
        out = net(**processor(image, return_tensors="pt"))
    sizes = [(image.height, image.width)]
    (found,) = processor.post_process_object_detection(out, threshold=threshold, target_sizes=sizes)
    order = torch.argsort(found["scores"], descending=True, stable=True)
    return [found[name][order].numpy() for name in ("labels", "scores", "boxes")]


@pytest.mark.parametrize("family", list(DETECTORS))
def test_each_architecture_works_end_to_end(tiny, tmp_path, data, family):
    """Exported and compared with torch, quantized, bundled; what run.py says without torch is what transformers says."""
    folder = tiny(family)
    metadata = checkpoint.inspect(resolve(str(folder)))
    assert (metadata.task, metadata.modality, metadata.pipeline["labels"]) == ("object-detection", "image", NAMES)
    # RT-DETR is the longest of all to export; it is quantized as DETR is
    precisions = ("fp32",) if family == "rt_detr" else ("fp32", "int8")
    made = {p: export.export(folder, tmp_path / p, precision=p, data=data) for p in precisions}
    shown = image(7, size=(90, 70))
    (tmp_path / "seen.png").write_bytes(shown)
    labels, scores, boxes = (part[:5] for part in told_by_transformers(folder, shown, 0))
    least = str(scores[4] - 1e-3)
    got = run_bundle(made["fp32"], "predict", "--json", "--threshold", least, str(tmp_path / "seen.png"))
    assert got.returncode == 0, got.stderr
    (answer,) = json.loads(got.stdout)
    answer = answer[:5]  # what follows may score as much as the fifth
    assert [one["label"] for one in answer] == [NAMES[number] for number in labels]
    np.testing.assert_allclose([one["score"] for one in answer], scores, atol=1e-3)
    np.testing.assert_allclose([list(one["box"].values()) for one in answer], boxes, atol=0.1)
    opened = fmopt.load(made[precisions[-1]])
    assert opened(tmp_path / "seen.png", threshold=0.05) == opened(shown, threshold=0.05)
    assert len(opened(shown)) <= len(opened(shown, threshold=0.05))
    if "int8" in made:
        assert (made["int8"] / "model.onnx").stat().st_size < (made["fp32"] / "model.onnx").stat().st_size


def test_an_image_is_prepared_as_the_processor_of_transformers_does(tiny):
    for family in DETECTORS:
        folder = tiny(family)
        metadata = checkpoint.inspect(resolve(str(folder)))
        ours = open_preprocessor(folder, dict(metadata.pipeline)).encode([image(3)]).inputs["pixel_values"]
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        wanted = processor(Image.open(io.BytesIO(image(3))), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


@pytest.mark.parametrize("family", DETECTORS)
def test_finetuning_learns_boxes(tiny, tmp_path, data, family):
    record = finetune.finetune(tiny(family), data, tmp_path / "ckpt", task="object-detection", epochs=3, batch=8,
                          learning_rate=1e-3, augment=["mirror", "shift"])  # fmt: skip
    assert record["metric"] == "mAP@0.5"
    losses = [epoch["loss"] for epoch in record["epochs"]]
    assert losses[-1] < losses[0]
    metadata = checkpoint.inspect(resolve(str(tmp_path / "ckpt")))
    assert metadata.pipeline["labels"] == NAMES


def test_options_that_make_no_sense_are_reported(tiny, tmp_path, data):
    out = export.export(tiny("yolos"), tmp_path / "out", precision="fp32", data=data)
    opened = fmopt.load(out)
    with pytest.raises(fmopt.FmoptError, match=r"a threshold of 1\.5 is no share"):
        opened(image(1), threshold=1.5)
    with pytest.raises((fmopt.FmoptError, EdgeError), match="no image that can be read"):
        opened(b"no picture")
