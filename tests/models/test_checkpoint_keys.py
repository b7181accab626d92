"""No key of a checkpoint's files is dropped without a word: honoured as the libraries that wrote them do, or named."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import transformers

from fmopt.edge.text import open_preprocessor
from fmopt.exporters.parity.text_reference import PAIRS, TEXTS
from fmopt.models import checkpoint
from fmopt.models.pipeline import POSITIONS_AFTER_PADDING
from fmopt.models.source import resolve
from tests.conftest import DECODERS, ENCODER_DECODERS, FAMILIES, MORE_DECODERS

# 40 checkpoints as transformers saves them: every family with the heads that it is made with here.
CHECKPOINTS = [
    *((family, "sentence-embedding") for family in FAMILIES),
    *((family, "text-classification") for family in FAMILIES),
    *((family, "token-classification") for family in ("bert", "roberta", "deberta-v2", "modernbert")),
    *((family, "question-answering") for family in ("bert", "roberta")),
    *((family, "fill-mask") for family in ("bert", "roberta", "mpnet")),
    ("bert", "text-regression"),
    *((family, "text-generation") for family in (*DECODERS, *MORE_DECODERS)),
    *((family, "translation") for family in ENCODER_DECODERS),
]
UNKNOWN = "does not know"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copy_of(tiny_checkpoint, tmp_path):
    def make(family: str = "bert", task: str = "sentence-embedding") -> Path:
        return Path(shutil.copytree(tiny_checkpoint(family, task), tmp_path / "ckpt"))

    return make


def edit(path: Path, **changes) -> None:
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | changes))


def facts_of(folder: Path, task: str | None = None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return checkpoint.inspect(resolve(str(folder)), task)


def preprocessor_of(metadata):
    return open_preprocessor(metadata.folder, dict(metadata.pipeline))


@pytest.mark.parametrize(("family", "task"), CHECKPOINTS)
def test_every_key_of_a_plain_checkpoint_is_known(tiny_checkpoint, family, task):
    assert [note for note in facts_of(tiny_checkpoint(family, task), task).notes if UNKNOWN in note] == []


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "config.json", "sentence_bert_config.json", "config_sentence_transformers.json"]
)
def test_a_key_that_nobody_knows_is_named(copy_of, name):
    folder = copy_of()
    edit(folder / name, turn_every_text_around=True)
    (note,) = facts_of(folder).notes
    assert note.startswith(f"{name} says 'turn_every_text_around', which fmopt does not know")


def test_a_note_is_a_warning(copy_of):
    folder = copy_of()
    edit(folder / "config.json", turn_every_text_around=True)
    with pytest.warns(UserWarning, match="turn_every_text_around"):
        checkpoint.inspect(resolve(str(folder)))


# ------------------------------------------------------------------------------------------------ tokenizer_config.json


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {"truncation_side": "left"}),
        ("bert", {"model_max_length": 12}),
        ("bert", {"padding_side": "left"}),
        ("bert", {"do_lower_case": False}),
        ("bert", {"strip_accents": False}),
        ("bert", {"tokenize_chinese_chars": False}),
        ("bert", {"model_input_names": ["input_ids", "attention_mask"]}),
        ("bert", {"split_special_tokens": True}),
        ("bert", {"additional_special_tokens": ["[PAD]", "[UNK]"]}),
        ("roberta", {"add_prefix_space": True}),
        ("roberta", {"truncation_side": "left", "padding_side": "left"}),
        ("xlm-roberta", {"truncation_side": "left"}),
        ("modernbert", {"add_prefix_space": True}),
        ("deberta-v2", {"do_lower_case": True}),
        ("albert", {"do_lower_case": True, "keep_accents": True}),
    ],
)
def test_texts_are_read_as_transformers_reads_them(copy_of, family, settings):
    folder = copy_of(family, "text-classification")
    edit(folder / "tokenizer_config.json", **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    metadata = facts_of(folder)
    assert (
        metadata.pipeline["padding"]["side"] == "right"
    )  # whatever the tokenizer's: a text has the positions it has alone
    ours = preprocessor_of(metadata)
    limit = min(theirs.model_max_length, 64)
    assert metadata.pipeline["max_length"] == limit
    for sample in (
        *TEXTS,
        *PAIRS,
        "the cat [SEP] sat <s> on </s> a [MASK] mat",
        "rain " * 90,
        ("rain " * 50, "cat " * 50),
    ):
        text, pair = sample if isinstance(sample, tuple) else (sample, None)
        wanted = theirs(text, pair, truncation=True, max_length=limit)
        got = ours.encode([sample]).inputs
        assert got["input_ids"][0].tolist() == wanted["input_ids"], sample
        if "token_type_ids" in got:
            assert got["token_type_ids"][0].tolist() == wanted["token_type_ids"]
        else:
            assert not any(wanted.get("token_type_ids", [])) or getattr(theirs, "name", family) == "deberta-v2"


def test_added_tokens_without_a_row_are_left_out_and_others_are_refused(copy_of):
    folder = copy_of()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = preprocessor_of(facts_of(folder)).encode(["a <image_soft_token> b"]).inputs["input_ids"]
    assert ids.max() < rows
    tokenizer.add_tokens(["brandnewword"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(checkpoint.CheckpointError, match="makes ids up to"):
        facts_of(folder)


# ------------------------------------------------------------------------------------------------ sentence-transformers


def write_modules(
    folder: Path, pooling: dict, *, normalize: bool = False, settings: dict | None = None, **config
) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [{"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for n, (path, kind) in enumerate(kinds)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    for path, _ in kinds[1:]:
        (folder / path).mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings or {}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """What fmopt makes of texts, the network in PyTorch."""
    from fmopt.edge.text import postprocess
    from fmopt.exporters.parity.graph import torch_outputs

    metadata = facts_of(folder)
    batch = preprocessor_of(metadata).encode(texts)
    outputs = torch_outputs(checkpoint.load(metadata).net, batch.inputs, metadata.pipeline["outputs"])
    return np.stack(postprocess(metadata.pipeline, outputs, batch, texts))


PROMPTS = {"query": "who is it ", "document": "the book "}


@pytest.mark.parametrize(
    ("family", "pooling", "options"),
    [
        ("bert", {"pooling_mode": "lasttoken"}, {}),
        ("bert", {"pooling_mode_weightedmean_tokens": True}, {"normalize": True}),
        ("bert", {"pooling_mode_mean_sqrt_len_tokens": True}, {}),
        (
            "bert",
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            {},
        ),
        ("bert", {"pooling_mode": ["lasttoken", "cls"]}, {"truncate_dim": 40}),
        ("bert", {"pooling_mode_mean_tokens": True}, {"prompts": PROMPTS, "default_prompt_name": "query"}),
        (
            "bert",
            {"pooling_mode_mean_tokens": True, "include_prompt": False},
            {"prompts": PROMPTS, "default_prompt_name": "document", "normalize": True},
        ),
        ("roberta", {"pooling_mode_mean_tokens": True}, {"settings": {"do_lower_case": True, "max_seq_length": 20}}),
        (
            "bert",
            {"pooling_mode_cls_token": True},
            {"settings": {"max_seq_length": 7}, "truncate_dim": 16, "normalize": True},
        ),
        ("qwen3", {"pooling_mode": "lasttoken"}, {"normalize": True}),
    ],
)
def test_vectors_are_those_of_encode(copy_of, family, pooling, options):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = copy_of(family, "text-generation" if family == "qwen3" else "sentence-embedding")
    write_modules(folder, pooling, **options)
    texts = [*TEXTS[:4], "The Cat sat on the MAT and looked at the rain " * 3, "rain"]
    wanted = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors(folder, texts), wanted, atol=2e-5)


def test_modules_decide_the_task_before_the_class_does(copy_of):
    folder = copy_of("qwen3", "text-generation")
    assert facts_of(folder).task == "text-generation"
    assert (
        facts_of(folder, "sentence-embedding").pipeline["pooling"] == "lasttoken"
    )  # as sentence-transformers takes it
    write_modules(folder, {"pooling_mode": "lasttoken"})
    assert facts_of(folder).task == "sentence-embedding"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "makes chat messages of texts"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"padding": True}}}, "sets processing_kwargs"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "of a network for fill-mask"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "which is not one of its prompts"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "similarity_fn_name is 'maxsim'"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "asks for pooling by attention"),
    ],
)
def test_what_sentence_transformers_does_and_fmopt_does_not_is_refused(copy_of, name, changes, message):
    folder = copy_of()
    write_modules(folder, {"pooling_mode": "mean"})
    edit(folder / name, **changes)
    with pytest.raises(checkpoint.CheckpointError, match=re.escape(message)):
        facts_of(folder)


def test_prompts_without_a_default_and_other_similarities_are_said(copy_of):
    folder = copy_of()
    write_modules(folder, {"pooling_mode": "mean"}, prompts=PROMPTS, similarity_fn_name="dot")
    first, second = facts_of(folder).notes
    assert "the prompts query ('who is it ')" in first
    assert "compared by dot" in second


@pytest.mark.parametrize(("kept", "wanted"), [("Sigmoid", "sigmoid"), ("Identity", None)])
def test_a_reranker_gives_what_its_cross_encoder_gives(copy_of, kept, wanted):
    folder = copy_of("bert", "text-regression")
    edit(folder / "config.json", sentence_transformers={"activation_fn": f"torch.nn.modules.activation.{kept}"})
    assert facts_of(folder).pipeline.get("activation") == wanted
    edit(folder / "config.json", sentence_transformers={"activation_fn": "acme.Squash"})
    with pytest.raises(checkpoint.CheckpointError, match=r"its scores go through acme\.Squash"):
        facts_of(folder)


# ------------------------------------------------------------------------------------------------ config.json


def test_one_output_is_a_share_unless_it_was_trained_to_be_a_number(copy_of):
    folder = copy_of("bert", "text-regression")
    assert "activation" not in facts_of(folder).pipeline
    edit(folder / "config.json", problem_type=None)
    assert facts_of(folder).pipeline["activation"] == "sigmoid"


def test_code_of_its_own_is_not_needed_where_transformers_has_the_network(copy_of):
    folder = copy_of()
    edit(folder / "config.json", auto_map={"AutoModel": "acme/net--modeling.Net"})
    assert "it is not run: transformers has bert by itself" in facts_of(folder).notes[0]


def test_an_encoder_of_t5_alone_makes_vectors(tmp_path):
    from tests.conftest import tiny_config, write_tokenizer

    tokenizer = write_tokenizer(tmp_path / "t5", "t5")
    net = transformers.T5EncoderModel(tiny_config("t5", tokenizer, "translation")).eval()
    net.save_pretrained(tmp_path / "t5")
    metadata = facts_of(tmp_path / "t5")
    assert (metadata.task, metadata.architecture) == ("sentence-embedding", "T5EncoderModel")
    wanted = net(**tokenizer(["the cat"], return_tensors="pt")).last_hidden_state.mean(1).detach().numpy()
    np.testing.assert_allclose(vectors(tmp_path / "t5", ["the cat"]), wanted, atol=1e-5)


def test_positions_that_start_after_padding_are_known_of_every_family():
    """Families whose own code counts positions from the padding id on; those of sounds and images apart, and generators."""
    home = Path(transformers.__file__).parent / "models"
    code = "create_position_ids_from_input_ids(input_ids, self.padding_idx"
    found = {path.parent.name for path in home.glob("*/modeling_*.py") if code in path.read_text("utf8")}
    known = {name.replace("-", "_") for name in POSITIONS_AFTER_PADDING}
    apart = {"bridgetower", "evolla", "kosmos2", "kosmos2_5", "pp_doclayout_v2", "altclip", "clap", "data2vec",
             "speech_to_text", "speecht5", "trocr"}  # fmt: skip
    assert found - known - apart == set()
