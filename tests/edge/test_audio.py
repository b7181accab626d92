"""Sounds are read, resampled and turned into what the checkpoint's own feature extractor makes; letters become words."""

from __future__ import annotations

import io
import json
import struct
import warnings
import wave
from math import gcd

import numpy as np
import pytest
from scipy.signal import resample_poly
from transformers import ASTFeatureExtractor, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from fmopt.core.media.audio import plain_sound, problem, wav_file
from fmopt.edge import audio as edge_audio

KERNELS = [[10, 5], [8, 4], [4, 2]]
WAVEFORM = {"rate": 16000, "features": "waveform", "normalize": True, "kernels": KERNELS}


def tone(seconds: float = 0.5, rate: int = 16000, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * time) * np.exp(-3 * time) + 0.01 * draw.standard_normal(len(time))).astype(
        np.float32
    )


def wav(samples: np.ndarray, rate: int = 16000, width: int = 2, channels: int = 1) -> bytes:
    """A PCM file as the standard library writes it."""
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        if width == 1:
            data = np.round(samples * 127 + 128).astype(np.uint8).tobytes()
        else:
            whole = np.round(samples.astype(np.float64) * (2 ** (8 * width - 1) - 1)).astype("<i4")
            data = b"".join(int(one).to_bytes(4, "little", signed=True)[:width] for one in whole.ravel())
        file.writeframes(data)
    return written.getvalue()


def float_wav(samples: np.ndarray, kind: str, rate: int = 16000) -> bytes:
    data = samples.astype(kind).tobytes()
    width = np.dtype(kind).itemsize
    head = struct.pack("<HHIIHH", edge_audio.FLOAT, 1, rate, rate * width, width, 8 * width)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"LIST" + struct.pack("<I", 3) + b"abc\0data"
    return b"RIFF" + struct.pack("<I", len(body) + 4 + len(data)) + body + struct.pack("<I", len(data)) + data


def preprocessor(tmp_path, **audio):
    inputs = ["input_values", "attention_mask"]
    return edge_audio.Preprocessor(
        tmp_path, {"task": "audio-classification", "inputs": inputs, "audio": WAVEFORM | audio}
    )


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width_is_read(width):
    samples, rate = edge_audio.read_audio(wav(tone(), 8000, width))
    assert rate == 8000
    np.testing.assert_allclose(samples, tone(), atol=2.0 ** -(8 * width - 2) + 1e-7)


@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_floats_are_read_past_chunks_of_odd_length(kind):
    samples, _ = edge_audio.read_audio(float_wav(tone(), kind))
    np.testing.assert_array_equal(samples, tone())


def test_channels_are_mixed():
    both = np.stack([tone(seed=1), tone(seed=2)], axis=1)
    samples, _ = edge_audio.read_audio(wav(both, channels=2))
    np.testing.assert_allclose(samples, both.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (b"", "empty"),
        (wav(np.zeros(0)), "empty"),
        (b"RIFFxxxxWAVEjunk", "none; give a WAV"),
        (b"fLaC" + bytes(40), "no"),
        ("a text", "is not a sound"),
        (float_wav(np.array([0.0, np.nan]), "<f4"), "NaN"),
    ],
)
def test_what_is_no_audio_is_refused_in_one_line(sample, said, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        preprocessor(tmp_path).encode([wav(tone()), sample])
    assert str(error.value).startswith("item 2: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16000), (44100, 16000), (16000, 8000), (22050, 16000)])
def test_resampling_is_scipys(rate, wanted):
    common = gcd(rate, wanted)
    expected = resample_poly(tone(rate=rate).astype(np.float64), wanted // common, rate // common)
    np.testing.assert_allclose(edge_audio.resample(tone(rate=rate), rate, wanted), expected, atol=1e-6)


def test_the_user_hears_of_another_rate_once(tmp_path):
    made = preprocessor(tmp_path)
    slow = wav(tone(rate=8000), 8000)
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always")
        made.encode([slow, slow])
        made.encode([slow])
    assert [str(one.message) for one in reported] == [
        "a sound has 8000 samples a second and the model reads 16000: resampled"
    ]


def test_waveforms_are_as_wav2vec2_reads_them(tmp_path):
    waveforms = [tone(0.3), tone(0.5, seed=1)]
    theirs = Wav2Vec2FeatureExtractor(return_attention_mask=True)(
        waveforms, sampling_rate=16000, padding=True, return_tensors="np"
    )
    ours = preprocessor(tmp_path).encode([float_wav(audio, "<f4") for audio in waveforms])
    np.testing.assert_allclose(ours.inputs["input_values"], theirs["input_values"], atol=1e-5)
    np.testing.assert_array_equal(ours.inputs["attention_mask"], theirs["attention_mask"])


def test_a_recording_shorter_than_a_frame_gives_one(tmp_path):
    batch = preprocessor(tmp_path).encode([float_wav(tone()[:7], "<f4")])
    assert batch.frames == [1]
    assert batch.inputs["input_values"].shape == (1, edge_audio.least_samples(KERNELS))


@pytest.mark.parametrize("options", [{}, {"sampling_rate": 8000, "num_mel_bins": 40, "max_length": 24, "mean": 1.0}])
def test_fbank_is_as_ast_reads_it(options):
    theirs = ASTFeatureExtractor(**options)
    steps = {"rate": theirs.sampling_rate, "mels": theirs.num_mel_bins, "frames": theirs.max_length}
    expected = theirs(tone(), sampling_rate=theirs.sampling_rate, return_tensors="np")["input_values"][0]
    made = edge_audio.fbank(tone(), steps | {"mean": theirs.mean, "std": theirs.std})
    np.testing.assert_allclose(made, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "reading"),
    [({}, {}), ({"feature_size": 40, "chunk_length": 1}, {"truncation": False, "padding": "longest"})],
)
def test_log_mel_is_as_whisper_reads_it(options, reading):
    theirs = WhisperFeatureExtractor(**options)
    steps = {"rate": 16000, "mels": theirs.feature_size, "frames": theirs.nb_max_frames, "window": 400, "hop": 160}
    expected = theirs(tone(1.2), sampling_rate=16000, return_tensors="np", **reading)["input_features"][0]
    np.testing.assert_allclose(edge_audio.log_mel(tone(1.2), steps), expected, atol=1e-4)


def test_letters_are_put_together_as_transformers_does(tmp_path):
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    theirs = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    draw = np.random.default_rng(0)
    paths = [draw.choice([0, 0, 4, 5, 6, 7], size=30) for _ in range(20)]
    how = {"ctc": {"blank": 0, "delimiter": "|", "lower": False}}
    logits = 9 * np.eye(len(tokens), dtype=np.float32)[np.stack(paths)]
    batch = edge_audio.Batch({}, list(range(20)), frames=[30] * 20, tokens=edge_audio.read_vocabulary(tmp_path))
    texts = [got["text"] for got in edge_audio.postprocess(how, {"logits": logits}, batch, [b""] * 20)]
    assert texts == [theirs.decode(path) for path in paths]
    assert any(" " in text for text in texts)


def test_frames_of_padding_are_not_spelled(tmp_path):
    logits = np.zeros((1, 4, 3), dtype=np.float32)
    logits[0, [0, 1, 2, 3], [1, 0, 2, 1]] = 5
    batch = edge_audio.Batch({}, [0], frames=[3], tokens=["", "a", "b"])
    got = edge_audio.postprocess(
        {"ctc": {"blank": 0, "delimiter": "|", "lower": False}}, {"logits": logits}, batch, [b""]
    )
    assert got[0]["text"] == "ab"
    assert got[0]["score"] == pytest.approx(np.exp(5) / (np.exp(5) + 2))


def test_another_text_is_as_far_as_it_gets():
    said = {"text": "one", "score": 0.9}
    assert edge_audio.difference(said, {"text": "one", "score": 0.8}) == pytest.approx(0.1)
    assert edge_audio.difference(said, {"text": "two", "score": 0.9}) == 1.0
    assert edge_audio.difference([1.0, 2.0], np.array([1.0, np.nan])) == float("inf")


def test_arrays_become_files_only_with_a_rate():
    samples, rate = edge_audio.read_audio(wav_file(tone(), {"sample_rate": 8000}))
    assert rate == 8000
    np.testing.assert_allclose(samples, tone(), atol=1e-4)
    with pytest.raises(ValueError, match="sample_rate"):
        wav_file(tone(), {"label": 1})
    assert problem(plain_sound("x")) is None
    assert "no audio" in str(problem(7))
    assert "empty" in str(problem(wav(np.zeros(0))))
