"""Facts of checkpoints from their files, and one clear line for each way a checkpoint can be unusable."""

from __future__ import annotations

import inspect as python_inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmopt.core.errors import CheckpointError, ConfigError
from fmopt.models import checkpoint, heads
from fmopt.models.source import resolve
from fmopt.models.weights import read_weights
from tests.conftest import FAMILIES, HEADS, LABELS


def facts_of(folder: Path, task: str | None = None, **options):
    return checkpoint.inspect(resolve(str(folder)), task, **options)


@pytest.fixture
def copy_of(tiny_checkpoint, tmp_path):
    """A copy of a tiny checkpoint that a test may break."""

    def make(family: str = "bert", task: str = "sentence-embedding") -> Path:
        return Path(shutil.copytree(tiny_checkpoint(family, task), tmp_path / "ckpt"))

    return make


def edit(path: Path, **changes) -> None:
    """Set keys of a JSON file; None removes the key."""
    reported = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in reported.items() if value is not None}))


# ------------------------------------------------------------------------------------------------ what it is


def test_minilm_is_known_by_its_name(minilm):
    source = resolve("minilm")
    assert (source.folder, source.task, source.default_data) == (minilm, "sentence-embedding", "builtin:pydoc")
    metadata = checkpoint.inspect(source)
    assert dict(metadata.pipeline) == {
        "task": "sentence-embedding", "max_length": 256, "inputs": ["input_ids", "attention_mask", "token_type_ids"],
        "padding": {"id": 0, "type_id": 0, "token": "[PAD]", "side": "right"}, "outputs": ["last_hidden_state"],
        "labels": [], "multi_label": False, "add_prefix_space": False, "pooling": "mean", "normalize": True,
    }  # fmt: skip
    assert (metadata.model_type, metadata.layers, metadata.hidden_size, metadata.parameters) == (
        "bert",
        6,
        384,
        22_713_216,
    )
    model = checkpoint.load(metadata)
    with torch.no_grad():
        assert list(model.net(torch.tensor([[101, 102]]))) == ["last_hidden_state"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_and_takes_the_inputs_named(tiny_checkpoint, family):
    metadata = facts_of(tiny_checkpoint(family, "sentence-embedding"))
    assert metadata.model_type == family
    model = checkpoint.load(metadata)
    assert model.family is not None
    takes = python_inspect.signature(model.net.forward).parameters
    assert set(metadata.pipeline["inputs"]) <= set(takes)
    length = metadata.pipeline["max_length"]
    assert length == 64  # 66 positions in RoBERTa and MPNet, of which two serve no token
    ids = torch.full((1, length), 5)
    inputs = {name: torch.zeros_like(ids) for name in metadata.pipeline["inputs"]}
    with torch.no_grad():
        out = model.net(**inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert out.last_hidden_state.shape == (1, length, 32)
    assert metadata.parameters == sum(p.numel() for p in model.net.parameters()) + pooler_size(family, metadata.folder)


def pooler_size(family: str, folder: Path) -> int:
    """Parameters of a pooler that the file has and the loaded network has not."""
    tensors = load_file(folder / "model.safetensors")
    return sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("pooler"))


@pytest.mark.parametrize("family", ["bert", "electra", "albert", "deberta-v2", "roberta", "distilbert", "modernbert"])
def test_type_ids_are_an_input_where_they_matter(tiny_checkpoint, family):
    # DeBERTa-v3 and RoBERTa have no second type, the tokenizer of ALBERT in transformers makes none, the others have no types.
    wanted = family in ("bert", "electra")
    assert ("token_type_ids" in facts_of(tiny_checkpoint(family, "masked-lm")).pipeline["inputs"]) is wanted


@pytest.mark.parametrize(
    "task", [task for task in HEADS if task not in ("sentence-embedding", "masked-lm", "fill-mask", "translation")]
)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_task_and_labels_are_found(tiny_checkpoint, family, task):
    metadata = facts_of(tiny_checkpoint(family, task))
    assert metadata.task == metadata.pipeline["task"] == task
    assert metadata.pipeline["labels"] == (LABELS[task] if task.endswith("classification") else [])
    assert metadata.pipeline["outputs"] == (
        ["start_logits", "end_logits"] if task == "question-answering" else ["logits"]
    )
    assert metadata.pipeline["add_prefix_space"] is (family == "roberta" and task == "token-classification")
    checkpoint.load(metadata)


def test_masked_lm_becomes_an_embedding_without_pooler(tiny_checkpoint):
    metadata = facts_of(tiny_checkpoint("roberta", "masked-lm"))
    assert (metadata.task, metadata.pipeline["pooling"], metadata.pipeline["normalize"]) == (
        "sentence-embedding",
        "mean",
        False,
    )
    assert checkpoint.load(metadata).net.pooler is None


@pytest.mark.parametrize(("family", "mask"), [("bert", "[MASK]"), ("roberta", "<mask>"), ("distilbert", "[MASK]")])
def test_masked_lm_fills_masks_when_asked(tiny_checkpoint, copy_of, family, mask):
    metadata = facts_of(tiny_checkpoint(family, "masked-lm"), "fill-mask")
    assert (metadata.task, metadata.pipeline["outputs"], metadata.pipeline["mask"]["token"]) == (
        "fill-mask",
        ["logits"],
        mask,
    )
    assert checkpoint.load(metadata).net.config.architectures[0].endswith("ForMaskedLM")
    untold = copy_of(family, "masked-lm")  # as older checkpoints, whose class knows what its mask is called
    edit(untold / "tokenizer_config.json", mask_token=None)
    assert facts_of(untold, "fill-mask").pipeline["mask"] == metadata.pipeline["mask"]


def test_what_cannot_fill_masks_gets_a_way_out(tiny_checkpoint, copy_of):
    with pytest.raises(
        CheckpointError, match=r"BertModel has no head for it; train one: fmopt finetune .* --task fill-mask"
    ):
        facts_of(tiny_checkpoint("bert", "sentence-embedding"), "fill-mask")
    maskless = copy_of("bert", "masked-lm")
    edit(maskless / "tokenizer_config.json", mask_token="[NONE]")
    with pytest.raises(CheckpointError, match="its tokenizer has no mask token"):
        facts_of(maskless, "fill-mask")
    assert facts_of(maskless).task == "sentence-embedding"


def test_multi_label_and_no_answer_are_read_from_the_config(copy_of):
    folder = copy_of("bert", "text-classification")
    edit(folder / "config.json", problem_type="multi_label_classification")
    assert facts_of(folder).pipeline["multi_label"] is True


def test_sentence_transformers_files_decide_pooling_length_and_norm(copy_of):
    folder = copy_of()
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": f"{n}_{kind}" if n else ""}
               for n, kind in enumerate(kinds)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
    pipeline = facts_of(folder).pipeline
    assert (pipeline["pooling"], pipeline["normalize"], pipeline["max_length"]) == ("cls", True, 48)
    before = facts_of(folder).digest
    pooling.write_text(json.dumps({"pooling_mode": "max"}))
    assert facts_of(folder).pipeline["pooling"] == "max"
    assert facts_of(folder).digest != before
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}))
    assert facts_of(folder).pipeline["pooling"] == ["cls", "mean"]
    pooling.write_text(json.dumps({"pooling_mode_cls_token": False, "pooling_mode_attention": True}))
    with pytest.raises(CheckpointError, match="asks for pooling by pooling_mode_attention; fmopt pools by"):
        facts_of(folder)
    modules.append({"type": "sentence_transformers.models.Dense", "path": "3_Dense"})
    pooling.write_text(json.dumps({"pooling_mode": "max"}))
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="has a Dense module, which fmopt does not run"):
        facts_of(folder)


def test_older_sentence_transformers_keep_the_network_in_a_sub_folder(copy_of, tmp_path):
    home = tmp_path / "old"
    home.mkdir()
    copy_of().rename(home / "0_Transformer")
    modules = [{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"},
               {"type": "sentence_transformers.models.Normalize", "path": "1_Normalize"}]  # fmt: skip
    (home / "modules.json").write_text(json.dumps(modules))
    metadata = facts_of(home)
    assert metadata.folder == home / "0_Transformer"
    assert metadata.pipeline["normalize"] is True


def test_length_can_be_given_up_to_the_position_table(tiny_checkpoint):
    folder = tiny_checkpoint("roberta", "sentence-embedding")
    assert facts_of(folder, max_length=32).pipeline["max_length"] == 32
    with pytest.raises(CheckpointError, match=r"65 tokens are too many for .*: its position table ends at 64"):
        facts_of(folder, max_length=65)


def test_shards_count_as_one_checkpoint(copy_of):
    folder = copy_of()
    whole = read_weights(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    sharded = read_weights(folder)
    assert (sharded.parameters, sharded.shapes) == (whole.parameters, whole.shapes)
    checkpoint.load(facts_of(folder))
    edit(folder / "model.safetensors.index.json", metadata=None)
    with pytest.raises(CheckpointError, match=r"index\.json is no index of weights"):
        facts_of(folder)
    edit(folder / "model.safetensors.index.json", metadata={})
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names 2 shards and model-2\.safetensors is missing"):
        facts_of(folder)


# ------------------------------------------------------------------------------------------------ refusals


def test_missing_folder_suggests_the_nearest_known_model():
    with pytest.raises(CheckpointError, match="no folder and no known model 'minilmm'; did you mean 'minilm'"):
        resolve("minilmm")
    with pytest.raises(CheckpointError, match="no folder and no known model '/nowhere/ckpt'"):
        resolve("/nowhere/ckpt")


def test_a_folder_name_with_a_typo_does_not_ask_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no folder and no known model 'runs/ckpt'"):
        resolve("runs/ckpt")


def test_hub_name_offline_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"the hub cannot be reached .*copy the model here") as caught:
        resolve("nobody/nothing-of-the-kind")
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_checkpoint(copy_of):
    with pytest.raises(CheckpointError, match="is a file; give the checkpoint's folder"):
        resolve(str(copy_of() / "config.json"))


def test_folder_without_config(copy_of):
    folder = copy_of()
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json \(it holds model\.safetensors, tokenizer\.json"):
        facts_of(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "mine.py--Net"}, "model_type": "mine"}, "wants to run code of its own"),
        ({"model_type": "brt"}, "does not know model_type 'brt'; did you mean 'bert'"),
        ({"model_type": None}, "names no model_type"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantized \(gptq\)"),
        ({"architectures": ["BertForNextSentencePrediction"]}, "fmopt has no task for BertForNextSentencePrediction"),
    ],
)
def test_configs_that_cannot_be_used(copy_of, changes, message):
    folder = copy_of()
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        facts_of(folder)


def test_config_that_is_no_json(copy_of):
    folder = copy_of()
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        facts_of(folder)


def test_truncated_and_corrupt_safetensors_are_named(copy_of):
    folder = copy_of()
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    damaged = r"model\.safetensors \([\d,]+ bytes\) is damaged or was not downloaded whole: .*; get the file again"
    for broken, message in [
        (whole[:-100], damaged),
        (whole + b"\0", damaged),
        (whole[:50], damaged),
        (b"", damaged),
        (b"\xff" * 8 + whole[8:], damaged),
        (whole[:8] + b"x" + whole[9:], damaged),
        (whole[:8] + whole[8:].replace(b"[32,32]", b"[32,33]", 1), damaged),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ]:
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=message):
            facts_of(folder)


def pickle_only(folder: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickles_are_refused_and_converted_when_allowed(copy_of, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "cache"))
    folder = copy_of("bert", "text-classification")
    wanted = load_file(folder / "model.safetensors")
    pickle_only(folder)
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*--allow-pickle"):
        facts_of(folder)
    metadata = facts_of(folder, allow_pickle=True)
    assert metadata.folder.is_relative_to(tmp_path / "cache")
    assert "pickled weights converted" in caplog.text
    got = load_file(metadata.folder / "model.safetensors")
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    checkpoint.load(metadata)
    assert facts_of(folder, allow_pickle=True).folder == metadata.folder
    assert not (folder / "model.safetensors").exists()


class Evil:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


def test_a_pickle_with_code_is_not_run(copy_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "cache"))
    folder = pickle_only(copy_of())
    torch.save({"weights": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors, so it was not read"):
        facts_of(folder, allow_pickle=True)
    assert "ran code" not in capsys.readouterr().out
    assert list((tmp_path / "cache" / "converted").iterdir()) == []


def test_tasks_that_do_not_fit_the_head(tiny_checkpoint):
    plain = tiny_checkpoint("bert", "sentence-embedding")
    with pytest.raises(CheckpointError, match="BertModel has no head for it; train one: fmopt finetune"):
        facts_of(plain, "text-classification")
    classifier = tiny_checkpoint("bert", "text-classification")
    with pytest.raises(CheckpointError, match="head has 3 outputs, which are classes; use --task text-classification"):
        facts_of(classifier, "text-regression")
    with pytest.raises(CheckpointError, match="has no head for it"):
        facts_of(classifier, "question-answering")
    with pytest.raises(ConfigError, match="there is no task 'text-clasification'; did you mean"):
        facts_of(classifier, "text-clasification")
    assert facts_of(classifier, "sentence-embedding").task == "sentence-embedding"
    fresh = facts_of(plain, "token-classification", fresh_head=True)
    assert (fresh.task, fresh.pipeline["labels"], fresh.pipeline["outputs"]) == ("token-classification", [], ["logits"])


def test_a_head_without_weights_is_not_made_up(copy_of):
    folder = copy_of()
    edit(folder / "config.json", architectures=["BertForSequenceClassification"])
    metadata = facts_of(folder)
    with pytest.raises(CheckpointError, match=r"no fitting weights for 2 tensors .*classifier\.bias.*fmopt finetune"):
        checkpoint.load(metadata)


def test_without_architecture_the_head_must_be_named(copy_of):
    folder = copy_of("bert", "token-classification")
    edit(folder / "config.json", architectures=None)
    with pytest.raises(CheckpointError, match=r"names no architecture.*say --task"):
        facts_of(folder)
    assert facts_of(folder, "token-classification").task == "token-classification"


@pytest.mark.parametrize("length", [1, 1.5, 2])
def test_a_length_without_room_for_a_text_is_refused(copy_of, length):
    folder = copy_of()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": length}))
    reported = (
        rf"a length of {int(length)} tokens leaves no room for a text, as the tokenizer adds 2; mend model_max_length"
    )
    with pytest.raises(CheckpointError, match=reported):
        facts_of(folder)


def test_tokenizers_that_are_missing_broken_or_anothers(copy_of, tiny_checkpoint):
    folder = copy_of()
    path = folder / "tokenizer.json"
    shutil.copy(tiny_checkpoint("roberta", "sentence-embedding") / "tokenizer.json", path)
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json cannot be read: it is not a tokenizer this library reads"
    ):
        facts_of(folder)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer this library reads: Model missing"):
        facts_of(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        facts_of(folder)


def test_a_slow_tokenizer_is_converted_into_the_cache(copy_of, tmp_path, monkeypatch, caplog):
    from tokenizers import Tokenizer

    monkeypatch.setenv("FMOPT_CACHE", str(tmp_path / "cache"))
    folder = copy_of()
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = sorted(fast.get_vocab().items(), key=lambda pair: pair[1])
    (folder / "vocab.txt").write_text("\n".join(token for token, _ in vocabulary) + "\n")
    (folder / "tokenizer.json").unlink()
    metadata = facts_of(folder)
    assert "tokenizer converted" in caplog.text
    made = Tokenizer.from_file(str(checkpoint.tokenizer_file(metadata)))
    text = "The small dog, Zebra & rain in LONDON"
    assert made.encode(text, "morning").ids == fast.encode(text, "morning").ids
    assert metadata.pipeline["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    checkpoint.load(metadata)


def test_classes_for_sounds_are_told_from_those_for_texts() -> None:
    """By transformers' own list: the names end alike."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES as SOUNDS

    for name in SOUNDS.values():
        head = heads.Head(name, frozenset(), regression=False, outputs=3)
        assert [task.name for task in heads.shown_by(head)] == ["audio-classification"], name
