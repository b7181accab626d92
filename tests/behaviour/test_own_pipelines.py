"""Checkpoints whose heads, tokenizers or networks are unusual answer as transformers' own pipelines and classes do, alone and
in lists."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import fmopt
from fmopt.core.errors import CheckpointError
from fmopt.core.media.audio import wav_file
from fmopt.edge import loading
from fmopt.edge.audio import _spelled, read_vocabulary
from fmopt.edge.text import open_preprocessor
from fmopt.exporters.to_onnx import check_positions
from fmopt.models import checkpoint
from fmopt.models.checkpoint_files import CheckpointFiles
from fmopt.models.preprocessors.audio import read_spelling
from fmopt.models.source import resolve
from tests.audio_models import CLASSIFICATION, RATE, write_audio
from tests.conftest import SENTENCES, TinyCheckpoint
from tests.torch_models import InTorch
from tests.vision_models import write_pictures, write_vision

PAIRS = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[2], " ".join(SENTENCES[:4])), ("The CAT", "Crème 北京")]


def served(folder: Path, task: str | None = None) -> Any:
    """What a bundle of the checkpoint answers, its graph left out: samples through fmopt's way in and out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metadata = checkpoint.inspect(resolve(str(folder)), task)
    pipeline = dict(metadata.pipeline)
    preprocessor = open_preprocessor(metadata.folder, pipeline)
    return loading.Model(
        {"pipeline": pipeline}, preprocessor, InTorch(checkpoint.load(metadata).net, pipeline["outputs"])
    )


def with_head(folder: Path, auto: Any, labels: int = 3, **settings: Any) -> Path:
    """The checkpoint with another number of classes, or another kind of head."""
    config = transformers.AutoConfig.from_pretrained(folder)
    config.id2label = {number: f"l{number}" for number in range(labels)}
    config.label2id = {name: number for number, name in config.id2label.items()}
    for name, value in settings.items():
        setattr(config, name, value)
    torch.manual_seed(3)
    net = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    net.save_pretrained(folder)
    return folder


def shares(told: list[dict[str, Any]]) -> dict[str, float]:
    return {one["label"]: one["score"] for one in told}


HEADS: list[tuple[int, dict[str, Any]]] = [
    (3, {}), (3, {"problem_type": "multi_label_classification"}), (3, {"problem_type": "regression"}), (1, {}),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "settings"), HEADS)
def test_images_are_scored_as_the_pipeline_does(tmp_path: Path, labels: int, settings: dict[str, Any]) -> None:
    folder = with_head(
        write_vision(tmp_path / "vit", "vit"), transformers.AutoModelForImageClassification, labels, **settings
    )
    own = transformers.pipeline("image-classification", model=str(folder), device="cpu")
    model = served(folder)
    for path in sorted(write_pictures(tmp_path, test=3).rglob("*.png"))[:3]:
        got = model(path.read_bytes())
        wanted = shares(own(Image.open(path).convert("RGB"), top_k=3))
        assert got["scores"] == pytest.approx(wanted, abs=1e-4)
        assert ("labels" in got) == (settings.get("problem_type") == "multi_label_classification")


@pytest.mark.parametrize(("labels", "settings"), HEADS[:3])
def test_recordings_are_scored_as_the_pipeline_does(tmp_path: Path, labels: int, settings: dict[str, Any]) -> None:
    folder = write_audio(tmp_path / "ast", "audio-spectrogram-transformer", CLASSIFICATION)
    with_head(folder, transformers.AutoModelForAudioClassification, labels, **settings)
    own = transformers.pipeline("audio-classification", model=str(folder), device="cpu")
    sound = np.round(np.sin(np.arange(RATE) * 0.2) * 32767).astype(np.int16)
    wanted = shares(own({"raw": sound.astype(np.float32) / 32768, "sampling_rate": RATE}, top_k=3))
    assert served(folder)(wav_file(sound, {"sampling_rate": RATE}))["scores"] == pytest.approx(wanted, abs=1e-3)


def test_several_numbers_of_a_text_are_all_given(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("bert", "text-classification"), tmp_path / "ckpt"))
    with_head(folder, transformers.AutoModelForSequenceClassification, 3, problem_type="regression")
    own = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=3)
    for text in SENTENCES[:3]:
        assert served(folder)(text)["scores"] == pytest.approx(shares(own([text])[0]), abs=1e-4)


@pytest.mark.parametrize(
    ("files", "prompt", "limit"),
    [
        (
            {"config_sentence_transformers.json": {"prompts": {"q": "query: find "}, "default_prompt_name": "q"}},
            "query: find ", None,
        ),
        ({"sentence_bert_config.json": {"max_seq_length": 16}}, "", 16),
        ({}, "", None),
    ],
)  # fmt: skip
def test_a_reranker_reads_pairs_as_its_files_say(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, files: dict[str, Any], prompt: str, limit: int | None
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("bert", "text-classification"), tmp_path / "ckpt"))
    with_head(folder, transformers.AutoModelForSequenceClassification, 1)
    about = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid"}
    for name, changes in ({"config_sentence_transformers.json": {}} | files).items():
        (folder / name).write_text(json.dumps(about | changes if name.startswith("config") else changes))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model = served(folder)
    for first, second in PAIRS:
        encoded = tokenizer(prompt + first, second, truncation=True, max_length=limit or 64, return_tensors="pt")
        with torch.inference_mode():
            wanted = float(net(**encoded).logits.sigmoid())
        assert model((first, second)) == pytest.approx(wanted, abs=1e-5)


def test_several_poolings_side_by_side_make_a_bundle_that_opens(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("bert", "sentence-embedding"), tmp_path / "ckpt"))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
               {"idx": 2, "name": "2", "path": "2_Dropout", "type": "sentence_transformers.models.Dropout"}]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": ["mean", "max"]}))
    model = fmopt.load(fmopt.export(folder, tmp_path / "bundle"))
    tokenizer, net = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder)
    for text in SENTENCES[:3]:
        with torch.inference_mode():
            states = net.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        wanted = torch.cat([states.mean(0), states.max(0).values]).numpy()
        np.testing.assert_allclose(model(text), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "fnet", "convbert", "mobilebert"])
def test_a_list_gives_what_each_text_gives_alone(tiny_checkpoint: TinyCheckpoint, tmp_path: Path, kind: str) -> None:
    """Tokenizers that pad on the left, and networks into which padding leaks."""
    base = tiny_checkpoint("gpt2" if kind == "gpt2" else "bert", "text-classification")
    folder = Path(shutil.copytree(base, tmp_path / "ckpt"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    if kind not in ("bert", "gpt2"):
        sizes = {"embedding_size": 32, "intra_bottleneck_size": 32} if kind == "mobilebert" else {}
        before = transformers.AutoConfig.from_pretrained(folder)
        config = transformers.AutoConfig.for_model(
            kind, vocab_size=before.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=64, pad_token_id=before.pad_token_id, **sizes,
        )  # fmt: skip
        config.save_pretrained(folder)
    with_head(folder, transformers.AutoModelForSequenceClassification)
    words = " ".join(SENTENCES).split()
    texts = [" ".join(words[:count]) for count in (24, 22, 23)]  # so alike in length that they go together, padded
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model = served(folder)
    assert len(list(model.preprocessor.batches(texts))) == 1
    for text, got in zip(texts, model(texts), strict=True):
        with torch.inference_mode():
            given = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            wanted = net(**given).logits[0].softmax(-1)
        assert list(got["scores"].values()) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_networks_that_attend_by_blocks_are_refused_by_name() -> None:
    metadata: Any = SimpleNamespace(model_type="longformer", source=SimpleNamespace(title="mine"), config={})
    with pytest.raises(CheckpointError, match=r"longformer attends by blocks .* take a network with full attention"):
        check_positions(metadata)


LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", "a", "B", "c", "'", ".", "n", "t", ",", "[UNK]", "s", "eé"]


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_lower_case": True}, {"clean_up_tokenization_spaces": True}, {"pad_token": "[UNK]"},
     {"replace_word_delimiter_char": "_"}, {"word_delimiter_token": None}],
)  # fmt: skip
def test_ctc_spells_as_the_tokenizer_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
    own = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    how = read_spelling(CheckpointFiles.of(tmp_path), SimpleNamespace(vocab_size=len(LETTERS), pad_token_id=0))
    tokens, draw = read_vocabulary(tmp_path), np.random.default_rng(0)
    for _ in range(100):
        path = np.repeat(draw.choice(len(LETTERS), 14), draw.integers(1, 3, 14))
        logits = np.full((len(path), len(LETTERS)), -9.0)
        logits[np.arange(len(path)), path] = 9.0
        assert _spelled(logits, tokens, how)["text"] == tokenizer.decode(path.tolist())
