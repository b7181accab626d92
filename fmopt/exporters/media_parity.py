"""Images and sounds as transformers' own pipelines answer them, compared with what a bundle answers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fmopt.core.audio import wav_file
from fmopt.edge import loading
from fmopt.edge.audio import read_audio, resample

TOLERANCE = 2e-3  # of scores and, relative to their size, of numbers
SIZES = ((48, 48, "RGB"), (37, 61, "RGB"), (64, 30, "L"), (50, 50, "RGBA"))  # of made-up images: height, width, kind


def image_differences(served: Any, net: Any, samples: Sequence[Any]) -> Iterator[str]:
    """Differences in the scores of classes; nothing for another task."""
    from PIL import Image
    from transformers.image_utils import load_image

    own = _pipeline(served, net, "image-classification")
    if own is None:
        return
    for number, sample in enumerate([*samples, *map(_image, SIZES)], start=1):
        with Image.open(io.BytesIO(sample)) as image:
            if image.mode.startswith(("I", "F")):  # more than 8 bits, of which transformers cuts off what is above 255
                continue
            wanted = own(load_image(image), top_k=net.config.num_labels)
        yield from _scores(number, wanted, _answer(served, sample))


def sound_differences(served: Any, net: Any, samples: Sequence[Any]) -> Iterator[str]:
    """Differences in the scores of classes, or in what was heard; nothing for another task, or a network that answers in words
    of its own."""
    task = served.metadata.task
    spells = "ctc" in served.metadata.pipeline
    own = _pipeline(served, net, task) if spells or task == "audio-classification" else None
    if own is None:
        return
    rate = int(served.metadata.pipeline["audio"]["rate"])
    tone = np.round(np.sin(np.arange(rate) * 0.3) * 9000).astype(np.int16)
    for number, sample in enumerate([*samples, wav_file(tone, {"sample_rate": rate})], start=1):
        heard, given = read_audio(sample)
        sound = {"raw": np.asarray(resample(heard, given, rate), dtype=np.float32), "sampling_rate": rate}
        got = _answer(served, sample)
        if not spells:
            yield from _scores(number, own(sound, top_k=net.config.num_labels), got)
        elif (wanted := own(sound)["text"]) != got["text"]:
            yield f"item {number} is heard as {got['text']!r:.80}, by its own pipeline as {wanted!r:.80}"


def _pipeline(served: Any, net: Any, task: str) -> Any:
    """transformers' pipeline of a network with the files of its folder; None for another task, or a network that is none of
    transformers' own."""
    import transformers

    if served.metadata.task != task or not isinstance(net, transformers.PreTrainedModel):
        return None
    folder = served.metadata.folder
    readers: dict[str, Any] = {}
    if served.metadata.modality == "image":
        readers["image_processor"] = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    else:
        readers["feature_extractor"] = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    if "ctc" in served.metadata.pipeline:
        readers["tokenizer"] = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    make: Any = transformers.pipeline  # whose types know tasks by their names
    return make(task, model=net, device="cpu", **readers)


def _answer(served: Any, sample: bytes) -> Any:
    pipeline = dict(served.metadata.pipeline)
    return loading.Model({"pipeline": pipeline}, served.preprocessor, served.runner)(sample)


def _scores(number: int, wanted: Sequence[Mapping[str, Any]], got: Mapping[str, Any]) -> Iterator[str]:
    """Classes may share a name, and have others by the data, so that scores are compared by their size."""
    theirs = np.sort([one["score"] for one in wanted])
    ours = np.sort(list(got["scores"].values()))
    gap = float(np.abs(theirs - ours).max()) if theirs.shape == ours.shape else float("inf")
    if gap > TOLERANCE * max(1.0, float(np.abs(theirs).max(initial=0.0))):
        yield f"a score of item {number} is off by {gap:.3g} from its own pipeline's"


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
