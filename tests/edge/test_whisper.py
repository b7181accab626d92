"""Whisper hears as `generate` of transformers makes it hear: languages, tasks, timestamps, sounds longer than its window."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fmopt.core.errors import CheckpointError, DataError
from fmopt.core.media.audio import wav_file
from fmopt.edge.errors import EdgeError
from fmopt.edge.generation import usual
from fmopt.edge.loading import Model
from fmopt.edge.text import open_preprocessor
from fmopt.edge.whisper import Question, heard
from fmopt.models import checkpoint
from fmopt.models.source import resolve
from fmopt.models.wrappers.seq2seq import EncoderDecoder

RATE, WORDS = 8000, 60
LANGUAGES = {"<|en|>": 61, "<|de|>": 62, "<|fr|>": 63}
TASKS = {"transcribe": 64, "translate": 65}
QUIET, STAMPS = 66, 51  # the id that says "no timestamps", and how many timestamps come after it
SETTINGS: dict[str, Any] = {
    "decoder_start_token_id": 60, "eos_token_id": 59, "pad_token_id": 59, "bos_token_id": 59, "is_multilingual": True,
    "lang_to_id": LANGUAGES, "task_to_id": TASKS, "no_timestamps_token_id": QUIET, "max_initial_timestamp_index": 25,
    "begin_suppress_tokens": [5, 59], "suppress_tokens": [3, 60, 61, 62, 63, 64, 65], "max_length": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that hears one second at once, and knows three languages."""
    from tokenizers import Tokenizer, decoders, models

    out = tmp_path_factory.mktemp("whisper")
    tokens = ["<unk>", *(f" w{number}" for number in range(1, 59)), "<|endoftext|>", "<|startoftranscript|>", *LANGUAGES,
              *(f"<|{name}|>" for name in TASKS), "<|notimestamps|>", *(f"<|{n / 50:.2f}|>" for n in range(STAMPS))]  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(tokens[59:67])
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    transformers.WhisperFeatureExtractor(
        feature_size=16, sampling_rate=RATE, hop_length=80, chunk_length=1, n_fft=256
    ).save_pretrained(out)
    torch.manual_seed(3)
    net = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=len(tokens), num_mel_bins=16, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50,
            max_target_positions=40, init_std=0.5, **{name: SETTINGS[name] for name in SETTINGS if name.endswith("token_id")
                                                      and name != "no_timestamps_token_id"},
            suppress_tokens=None, begin_suppress_tokens=None,
        )
    )  # fmt: skip
    net.save_pretrained(out)
    return out


def opened(folder: Path, *, quiet: bool = False, **settings: Any) -> Any:
    """The checkpoint with its generation_config.json changed: in transformers, and as a bundle has it."""
    written = {name: value for name, value in {**SETTINGS, **settings}.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(written))
    metadata = checkpoint.inspect(resolve(str(folder)))
    net: Any = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    if quiet:  # hardly ever a timestamp where none is asked for, as a trained network has it
        with torch.no_grad():
            net.model.decoder.embed_tokens.weight[QUIET + 1 :] *= 0.01
    pipeline = dict(metadata.pipeline)
    model = Model({"pipeline": pipeline}, open_preprocessor(folder, pipeline), EncoderDecoder(net))
    return SimpleNamespace(net=net, model=model, pipeline=pipeline, metadata=metadata)


def sound(seconds: float, seed: int = 0) -> bytes:
    """A sound whose pitch changes all the time."""
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    wave = 0.4 * np.sin(2 * np.pi * (200 + 150 * seed + 300 * time) * time) * (1 + np.sin(9 * time)) / 2
    return wav_file(wave + 0.02 * draw.standard_normal(len(time)), {"sampling_rate": RATE})


def features_of(folder: Path, sample: bytes) -> torch.Tensor:
    """What the checkpoint's own extractor makes of a sound, however long."""
    from fmopt.edge.audio import read_audio

    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    wave, _ = read_audio(sample)
    more = {"truncation": False, "padding": "longest"} if len(wave) > extractor.n_samples else {}
    return extractor(wave, sampling_rate=RATE, return_tensors="pt", **more)["input_features"]


def words(ids: Any) -> list[int]:
    """Ids of words alone."""
    return [int(one) for one in ids if int(one) < 59]


@pytest.mark.parametrize("seconds", [0.7, 1.0, 2.3, 3.0])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_recording_of_any_length_is_heard_as_transformers_hears_it(folder: Path, seconds: float, beams: int) -> None:
    made = opened(folder, quiet=seconds <= 1)
    sample = sound(seconds)
    features = features_of(folder, sample)
    (ours,) = made.model.preprocessor.own.encode([sample]).features
    np.testing.assert_allclose(ours, features[0].numpy(), atol=2e-3)
    long = features.shape[-1] > 100
    with torch.inference_mode():
        wanted = made.net.generate(features, num_beams=beams, do_sample=False, return_timestamps=True if long else None,
                                   return_segments=long)  # fmt: skip
    config = usual(made.pipeline, beams=beams)
    (got,) = heard(made.pipeline, made.model.runner, [ours], config, Question())
    if not long:
        assert got["tokens"] == words(wanted[0])
        return
    segments = wanted["segments"][0]
    assert [words(one["tokens"]) for one in segments] == [ids for _, _, ids in got["segments"]]
    times = [(float(one["start"]), float(one["end"])) for one in segments]
    assert [(begin, end) for begin, end, _ in got["segments"]] == [pytest.approx(pair) for pair in times]
    assert got["tokens"]


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, {}),
        ({}, {"language": "german"}),
        ({}, {"language": "<|fr|>", "task": "translate"}),
        ({}, {"task": "translate"}),
        ({"language": "de"}, {}),
        ({"language": "de", "task": "translate"}, {}),
        ({"forced_decoder_ids": [[1, None], [2, 65]]}, {}),
        ({"forced_decoder_ids": [[1, 63], [2, 64]]}, {}),
        ({"forced_decoder_ids": [[1, 63], [2, 64]]}, {"task": "translate"}),
        ({"return_timestamps": True}, {}),
        ({"is_multilingual": False, "lang_to_id": None, "task_to_id": None}, {}),
    ],
)
def test_language_and_task_are_those_of_transformers(
    folder: Path, settings: dict[str, Any], asked: dict[str, Any]
) -> None:
    made = opened(folder, quiet=True, **settings)
    for seed in range(3):
        sample = sound(0.8, seed)
        with torch.inference_mode():
            wanted = made.net.generate(features_of(folder, sample), do_sample=False, **asked)
        got = made.model(sample, **asked)
        ids = made.model.preprocessor.own.tokenizer
        assert got["text"] == ids.decode(words(wanted[0])).strip()
        assert "".join(made.model.stream(sample, **asked)) == got["text"]


def test_the_language_that_was_found_is_given_and_a_stream_is_the_text(folder: Path) -> None:
    made = opened(folder, quiet=True)
    samples = [sound(0.8, seed) for seed in range(4)]
    inputs = torch.cat([features_of(folder, sample) for sample in samples])
    with torch.inference_mode():
        languages = made.net.detect_language(inputs).tolist()
    codes = {number: name.strip("<|>") for name, number in LANGUAGES.items()}
    together = made.model(samples)
    assert [one["language"] for one in together] == [codes[number] for number in languages]
    assert together == [made.model(sample) for sample in samples]
    long = sound(2.6)
    whole = made.model(long)
    assert "".join(made.model.stream(long)) == whole["text"]
    assert " ".join(one["text"].strip() for one in whole["chunks"]).split() == whole["text"].split()
    assert whole["chunks"][0]["timestamp"][0] >= 0
    assert made.model.predict([long, samples[0]], batch_size=2) == [whole, together[0]]


def test_what_the_model_does_not_know_is_one_line(folder: Path) -> None:
    made = opened(folder)
    with pytest.raises(EdgeError, match="the language 'klingon' is not known to this model; it knows de, en, fr"):
        made.model(sound(0.5), language="klingon")
    with pytest.raises(EdgeError, match="the task 'sing' is not known to this model; it knows transcribe, translate"):
        made.model(sound(0.5), task="sing")
    alone = opened(folder, is_multilingual=False)
    with pytest.raises(EdgeError, match="this model knows one language alone"):
        alone.model(sound(0.5), language="de")
    timeless = opened(folder, no_timestamps_token_id=None, max_initial_timestamp_index=None)
    with pytest.raises(EdgeError, match=r"the sound has 3 seconds; the model hears 1 at once and has no timestamps"):
        timeless.model(sound(2.9))
    with pytest.raises(CheckpointError, match="the language 'xx' is not in its lang_to_id"):
        opened(folder, language="xx")


def test_to_learn_transcripts_a_language_must_be_named(folder: Path) -> None:
    from fmopt.core import plugins
    from fmopt.training.examples import training_examples

    made = opened(folder)
    rows = [{"audio": sound(0.5), "transcript": "w1"}]
    task = plugins.find("tasks", "automatic-speech-recognition")
    with pytest.raises(DataError, match="the checkpoint names no language"):
        list(training_examples(made.model.preprocessor, made.metadata, task.items(rows, made.metadata), rows))


def test_words_after_the_last_special_token_are_no_timestamps(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "words"))
    written = (
        (copy / "tokenizer.json")
        .read_text()
        .replace('"<|0.', '" x0.')
        .replace('"<|1.', '" x1.')
        .replace('0|>":', '0":')
    )
    (copy / "tokenizer.json").write_text(written)
    made = opened(copy)
    assert "timestamp_begin" not in made.pipeline["whisper"]
    sample = sound(0.8)
    with torch.inference_mode():
        ids = made.net.generate(features_of(copy, sample), do_sample=False)[0].tolist()
    spelled = made.model.preprocessor.own.tokenizer.decode([one for one in ids if one != 59]).strip()
    assert made.model(sample)["text"] == spelled
    with pytest.raises(EdgeError, match="has no timestamps that tell where to go on"):
        made.model(sound(2.9))
