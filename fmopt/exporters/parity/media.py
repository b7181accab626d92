"""Images and sounds as transformers' own pipelines answer them, compared with what a bundle answers."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.media.audio import wav_file
from fmopt.edge import loading
from fmopt.edge.audio import read_audio, resample

TOLERANCE = 2e-3  # of scores and, relative to their size, of numbers
LEAST_SCORE, BEST = 0.02, 20  # boxes that are compared: those above a score, so many
BOX_TOLERANCE = 5e-3  # of a box's edges, as a share of the image's longer side
OTHER_PIXELS = 1e-3  # a share of those whose class is clear
PIXEL_TOLERANCE = 5e-3  # of pixels on average, as the network is given them
SIZES = ((48, 48, "RGB"), (37, 61, "RGB"), (64, 30, "L"), (50, 50, "RGBA"))  # of made-up images: height, width, kind


def image_differences(served: Any, net: Any, samples: Sequence[Any]) -> Iterator[str]:
    """Differences in scores of classes, boxes or maps of classes; for another task in what the network is given."""
    import transformers
    from PIL import Image
    from transformers.image_utils import load_image

    if not isinstance(net, transformers.PreTrainedModel):
        return
    reader = transformers.AutoImageProcessor.from_pretrained(served.metadata.folder, local_files_only=True)
    differences = IMAGE_ANSWERS.get(served.metadata.task, _pixels)
    for number, sample in enumerate([*samples, *map(_image, SIZES)], start=1):
        with Image.open(io.BytesIO(sample)) as image:
            if image.mode.startswith(("I", "F")):  # more than 8 bits, of which transformers cuts off what is above 255
                continue
            yield from differences(served, net, reader, load_image(image), sample, f"item {number}")


def _classes(served: Any, net: Any, reader: Any, image: Any, sample: bytes, name: str) -> Iterator[str]:
    """As transformers' image-classification pipeline."""
    import transformers

    make: Any = transformers.pipeline  # whose types know tasks by their names
    own = make("image-classification", model=net, image_processor=reader, device="cpu")
    yield from _scores(name, own(image, top_k=net.config.num_labels), _opened(served)(sample))


def _boxes(served: Any, net: Any, reader: Any, image: Any, sample: bytes, name: str) -> Iterator[str]:
    """As transformers' object-detection pipeline: each of its best boxes must be among a bundle's, in whatever order."""
    import torch

    with torch.inference_mode():
        outputs = net(**reader(image, return_tensors="pt"))
    (own,) = reader.post_process_object_detection(
        outputs, threshold=LEAST_SCORE, target_sizes=[(image.height, image.width)]
    )
    (ours,) = _opened(served).predict([sample])
    order = own["scores"].argsort(descending=True)[:BEST]
    theirs = torch.column_stack([own["labels"], own["scores"], own["boxes"]])[order].numpy()
    pixels = BOX_TOLERANCE * max(image.height, image.width)
    for row in theirs:
        gaps = np.abs(ours - row)
        same = (gaps[:, 0] == 0) & (gaps[:, 1] <= TOLERANCE) & (gaps[:, 2:].max(axis=1, initial=0.0) <= pixels)
        if not same.any():
            label = net.config.id2label[int(row[0])]
            yield f"a box of {name} ({label}, {row[1]:.3f}) is not found, which its own pipeline finds"


def _maps(served: Any, net: Any, reader: Any, image: Any, sample: bytes, name: str) -> Iterator[str]:
    """As transformers' image-segmentation pipeline does it by classes."""
    import torch

    with torch.inference_mode():
        outputs = _own_forward(net)(net, **reader(image, return_tensors="pt"))
    (own,) = reader.post_process_semantic_segmentation(
        outputs, target_sizes=[(image.height, image.width)], return_segmentation_scores=True
    )
    theirs, (first, second) = own.segmentation.numpy(), own.segmentation_scores.topk(2, dim=0).values.numpy()
    # of two classes that are equally likely either is right
    clear = first - second > TOLERANCE * np.maximum(1.0, np.abs(first))
    (ours,) = _opened(served).predict([sample])
    if ours.shape != theirs.shape:
        yield f"the map of {name} has the size {ours.shape}, its own pipeline's {theirs.shape}"
    elif (share := float((clear & (theirs != ours)).mean())) > OTHER_PIXELS:
        yield f"{share:.1%} of the pixels of {name} have another class than by its own pipeline"


def _own_forward(net: Any) -> Any:
    """transformers' forward of a network, which may have another one here (`models/wrappers`)."""
    kinds = (vars(kind).get("forward") for kind in type(net).__mro__)
    return next(found for found in kinds if found is not None and found.__module__.startswith("transformers."))


def _pixels(served: Any, net: Any, reader: Any, image: Any, sample: bytes, name: str) -> Iterator[str]:
    """As the checkpoint's image processor prepares an image."""
    theirs = np.asarray(reader(image, return_tensors="np")["pixel_values"][0], dtype=np.float32)
    ours = np.asarray(served.preprocessor.encode([sample]).inputs["pixel_values"][0], dtype=np.float32)
    if ours.shape != theirs.shape:
        yield f"{name} is prepared as {ours.shape}, by its own processor as {theirs.shape}"
    elif (gap := float(np.abs(ours - theirs).mean())) > PIXEL_TOLERANCE * max(1.0, float(theirs.std())):
        means = f"{ours.mean():.3g} and {theirs.mean():.3g}"
        yield f"the pixels of {name} are off by {gap:.3g} from its own processor's (means {means})"


# Differences of one image: (served, network, transformers' image processor, PIL image, its bytes, its name) -> lines
IMAGE_ANSWERS: Mapping[str, Callable[..., Iterator[str]]] = {
    "image-classification": _classes,
    "object-detection": _boxes,
    "image-segmentation": _maps,
}


def audio_differences(served: Any, net: Any, samples: Sequence[Any]) -> Iterator[str]:
    """Differences in the scores of classes, or in what was heard; nothing for another task, or a network that answers in words
    of its own."""
    task = served.metadata.task
    spells = "ctc" in served.metadata.pipeline
    own = _sound_pipeline(served, net, task) if spells or task == "audio-classification" else None
    if own is None:
        return
    rate = int(served.metadata.pipeline["audio"]["rate"])
    tone = np.round(np.sin(np.arange(rate) * 0.3) * 9000).astype(np.int16)
    for number, sample in enumerate([*samples, wav_file(tone, {"sample_rate": rate})], start=1):
        heard, given = read_audio(sample)
        sound = {"raw": np.asarray(resample(heard, given, rate), dtype=np.float32), "sampling_rate": rate}
        got = _opened(served)(sample)
        if not spells:
            yield from _scores(f"item {number}", own(sound, top_k=net.config.num_labels), got)
        elif (wanted := own(sound)["text"]) != got["text"]:
            yield f"item {number} is heard as {got['text']!r:.80}, by its own pipeline as {wanted!r:.80}"


def _sound_pipeline(served: Any, net: Any, task: str) -> Any:
    """transformers' pipeline of a network with the files of its folder; None for another task, or a network that is none of
    transformers' own."""
    import transformers

    if served.metadata.task != task or not isinstance(net, transformers.PreTrainedModel):
        return None
    folder = served.metadata.folder
    readers: dict[str, Any] = {
        "feature_extractor": transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    }
    if "ctc" in served.metadata.pipeline:
        readers["tokenizer"] = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    make: Any = transformers.pipeline
    return make(task, model=net, device="cpu", **readers)


def _opened(served: Any) -> loading.Model:
    return loading.Model({"pipeline": dict(served.metadata.pipeline)}, served.preprocessor, served.runner)


def _scores(name: str, wanted: Sequence[Mapping[str, Any]], got: Mapping[str, Any]) -> Iterator[str]:
    """Classes may share a name, and have others by the data, so that scores are compared by their size."""
    theirs = np.sort([one["score"] for one in wanted])
    ours = np.sort(list(got["scores"].values()))
    gap = float(np.abs(theirs - ours).max()) if theirs.shape == ours.shape else float("inf")
    if gap > TOLERANCE * max(1.0, float(np.abs(theirs).max(initial=0.0))):
        yield f"a score of {name} is off by {gap:.3g} from its own pipeline's"


def _image(kind: tuple[int, int, str]) -> bytes:
    """A PNG of a made-up image."""
    from PIL import Image

    height, width, mode = kind
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [rows * 5, columns * 4, (rows + columns) * 3, rows * 0 + 255][: {"L": 1, "RGB": 3, "RGBA": 4}[mode]]
    pixels = np.stack(planes, axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode).save(stream, "PNG")
    return stream.getvalue()
