"""Encoding equals the Hugging Face tokenizer's, predictions equal torch's, graphs run, bad input is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmopt.edge import embedding, loading, parts, runners, tagging
from fmopt.edge import host as edge_host
from fmopt.edge import text as edge_text

TEXTS = [
    "the cat sat on the mat",
    "Paris is a large city, and Berlin is a larger one; what a boring, terrible waste of two hours",
    "a",
    "",
    "naïve 😀 emoji\tand\ttabs",
]
WORDS = [["the", "cat", "sat"], ["my", "card", "was", "charged", "twice", ",", "please", "return"], ["London"]]
FAMILIES = ["bert", "roberta", "xlm-roberta"]


def pipeline(task: str, tokenizer: Any = None, **more: Any) -> dict[str, Any]:
    padding = {"id": 0, "type_id": 0, "token": "[PAD]", "side": "right"}
    if tokenizer is not None:
        padding |= {
            "id": tokenizer.pad_token_id,
            "type_id": tokenizer.pad_token_type_id,
            "side": tokenizer.padding_side,
        }
    outputs = {"sentence-embedding": ["last_hidden_state"], "question-answering": ["start_logits", "end_logits"]}
    inputs = ["input_ids", "attention_mask"]
    if tokenizer is None or "token_type_ids" in tokenizer.model_input_names:
        inputs.append("token_type_ids")
    made = {"task": task, "max_length": 24, "inputs": inputs, "padding": padding, "stride": 4}
    return made | {"outputs": outputs.get(task, ["logits"])} | more


def of(folder: Path, task: str, **more: Any) -> tuple[edge_text.Preprocessor, Any]:
    """Our encoder and transformers' own tokenizer for the same checkpoint."""
    import transformers

    options = {"add_prefix_space": True} if more.get("add_prefix_space") else {}
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    return edge_text.Preprocessor(folder / "tokenizer.json", pipeline(task, theirs, **more)), theirs


def same(batch: edge_text.Batch, theirs: Any) -> None:
    assert set(batch.inputs) <= set(theirs)
    for name, array in batch.inputs.items():
        assert array.dtype == np.int64
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    np.testing.assert_array_equal(batch.mask, theirs["attention_mask"])


@pytest.fixture(params=[*FAMILIES, "minilm"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    if request.param == "minilm":
        return request.getfixturevalue("minilm")
    return request.getfixturevalue("tiny_checkpoint")(request.param, "sentence-embedding")


# ---- encoding


def test_single_texts_are_encoded_as_by_transformers(checkpoint: Path) -> None:
    ours, theirs = of(checkpoint, "sentence-embedding")
    wanted = theirs(TEXTS, truncation=True, max_length=24, padding=True, return_tensors="np")
    batch = ours.encode(TEXTS)
    same(batch, wanted)
    assert batch.owner == [0, 1, 2, 3, 4]


def test_pairs_are_truncated_longest_first_as_by_transformers(checkpoint: Path) -> None:
    ours, theirs = of(checkpoint, "text-classification")
    pairs = [(a, b) for a in TEXTS for b in reversed(TEXTS)]
    wanted = theirs(
        [a for a, _ in pairs], [b for _, b in pairs], truncation=True, max_length=24, padding=True, return_tensors="np"
    )
    same(ours.encode(pairs), wanted)


@pytest.mark.parametrize("prefix", [True, False])
def test_words_are_encoded_as_by_transformers(tiny_checkpoint: Any, minilm: Path, prefix: bool) -> None:
    # Without the prefix space transformers refuses words for byte-level tokenizers, so BERT stands for "no".
    folder = tiny_checkpoint("roberta", "token-classification") if prefix else minilm
    ours, theirs = of(folder, "token-classification", add_prefix_space=prefix, max_length=64)
    wanted = theirs(WORDS, is_split_into_words=True, padding=True, return_tensors="np")
    batch = ours.encode(WORDS)
    same(batch, wanted)
    assert batch.word_ids == [wanted.word_ids(row) for row in range(len(WORDS))]


def test_prefix_space_changes_the_first_word(tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint("roberta", "sentence-embedding")
    ours, theirs = of(folder, "sentence-embedding", add_prefix_space=True)
    same(ours.encode(TEXTS), theirs(TEXTS, truncation=True, max_length=24, padding=True, return_tensors="np"))
    plain, _ = of(folder, "sentence-embedding")
    assert ours.encode(["cat"]).inputs["input_ids"].tolist() != plain.encode(["cat"]).inputs["input_ids"].tolist()


def test_a_fixed_length_truncates_and_pads_to_exactly_that(checkpoint: Path) -> None:
    ours, theirs = of(checkpoint, "sentence-embedding")
    for length in (8, 40):
        wanted = theirs(TEXTS, truncation=True, max_length=length, padding="max_length", return_tensors="np")
        same(ours.encode(TEXTS, length), wanted)


def test_padding_on_the_left(minilm: Path) -> None:
    padding = {"id": 0, "type_id": 0, "token": "[PAD]", "side": "left"}
    ours, theirs = of(minilm, "sentence-embedding", padding=padding)
    wanted = theirs(TEXTS, truncation=True, max_length=24, padding=True, padding_side="left", return_tensors="np")
    same(ours.encode(TEXTS), wanted)


def test_question_windows_are_those_of_transformers(checkpoint: Path) -> None:
    ours, theirs = of(checkpoint, "question-answering", max_length=32)
    question, context = (
        "where does it end?",
        "the river ends in the sea, and no one knows how many stars there are. " * 4,
    )
    wanted = theirs(
        [question, question], [context, "the sea"], truncation="only_second", max_length=32, stride=4, padding=True,
        return_overflowing_tokens=True, return_offsets_mapping=True, return_tensors="np",
    )  # fmt: skip
    batch = ours.encode([(question, context), (question, "the sea")])
    same(batch, wanted)
    assert batch.owner == wanted["overflow_to_sample_mapping"].tolist()
    assert len(batch.owner) > 3
    assert batch.offsets == [[tuple(pair) for pair in row] for row in wanted["offset_mapping"].tolist()]
    assert batch.sequence_ids == [wanted.sequence_ids(row) for row in range(len(batch.owner))]


def test_a_question_longer_than_the_window_is_truncated_and_the_context_still_read(minilm: Path) -> None:
    ours, _ = of(minilm, "question-answering", stride=100)
    batch = ours.encode([("where does the river end? " * 20, "in the sea " * 30)])
    assert batch.mask.shape[1] == 24
    contexts = [
        [batch.offsets[row][i] for i, s in enumerate(part) if s == 1] for row, part in enumerate(batch.sequence_ids)
    ]
    assert all(contexts)
    assert max(end for part in contexts for _, end in part) == len("in the sea " * 30) - 1


def test_long_taggings_are_read_in_windows_that_cover_every_word(minilm: Path) -> None:
    ours, _ = of(minilm, "token-classification")
    words = [f"word{i}" for i in range(60)]
    batch = ours.encode([words, ["short"]])
    assert batch.owner[-1] == 1
    assert batch.owner.count(0) > 5
    seen = {word for row, owner in zip(batch.word_ids, batch.owner, strict=True) if owner == 0 for word in row}
    assert seen - {None} == set(range(60))


@pytest.mark.parametrize(
    ("task", "sample", "reported"),
    [
        ("text-classification", 7, "item 2: 7 is not a text"),
        ("text-classification", ("only one",), "item 2: ('only one',) is not a pair of texts"),
        ("question-answering", "no context", "item 2: no context is not a pair of texts; give (first, second)"),
        ("token-classification", ("a", "b"), "item 2: ('a', 'b') is no text and no list of words"),
        ("token-classification", ["a", 3], "item 2: ['a', 3] is no text and no list of words"),
        ("text-classification", "\ud800", "item 2: "),
    ],
)
def test_a_sample_that_the_task_cannot_read_is_named(minilm: Path, task: str, sample: Any, reported: str) -> None:
    ours, _ = of(minilm, task)
    good = {"question-answering": ("q", "c"), "token-classification": ["w"]}.get(task, "t")
    with pytest.raises(parts.EdgeError) as caught:
        ours.encode([good, sample])
    assert str(caught.value).startswith(reported)


def test_tokenizer_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(parts.EdgeError, match=r"tokenizer\.json is missing"):
        edge_text.Preprocessor(tmp_path / "tokenizer.json", pipeline("sentence-embedding"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(parts.EdgeError, match="is not a tokenizer this library reads"):
        edge_text.Preprocessor(tmp_path / "tokenizer.json", pipeline("sentence-embedding"))


def test_an_input_no_tokenizer_makes_and_no_text_at_all(minilm: Path) -> None:
    ours, _ = of(minilm, "sentence-embedding", inputs=["input_ids", "bbox"])
    with pytest.raises(parts.EdgeError, match=r"wants inputs \['bbox'\]"):
        ours.encode(["x"])
    with pytest.raises(parts.EdgeError, match="there is no text"):
        ours.encode([])


# ---- predictions


def batch_of(mask: list[list[int]], **more: Any) -> edge_text.Batch:
    array = np.array(mask)
    return edge_text.Batch({"attention_mask": array}, array, more.pop("owner", list(range(len(mask)))), **more)


def test_sentence_vectors_equal_sentence_transformers(minilm: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
    wanted = reference.encode(TEXTS, batch_size=len(TEXTS))
    ours, _ = of(minilm, "sentence-embedding", max_length=256, pooling="mean", normalize=True)
    batch = ours.encode(TEXTS)
    with torch.inference_mode():
        hidden = reference[0].auto_model(**{k: torch.from_numpy(v) for k, v in batch.inputs.items()}).last_hidden_state
    got = edge_text.postprocess(ours.pipeline, {"last_hidden_state": hidden.numpy()}, batch, TEXTS)
    np.testing.assert_allclose(np.stack(got), wanted, atol=1e-5)


@pytest.mark.parametrize("how", ["mean", "cls", "max"])
def test_pooling_ignores_padding_on_either_side(how: str) -> None:
    hidden = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1]])
    got = embedding.pool(hidden, mask, how, normalize=False)
    reduce = {"mean": lambda rows: rows.mean(axis=0), "cls": lambda rows: rows[0], "max": lambda rows: rows.max(axis=0)}
    np.testing.assert_allclose(got[0], reduce[how](hidden[0, :2]), rtol=1e-6)
    np.testing.assert_allclose(got[1], reduce[how](hidden[1, 2:]), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embedding.pool(hidden, mask, how, normalize=True), axis=1), 1, rtol=1e-6)


def test_an_unknown_pooling_or_task_or_output_is_named() -> None:
    batch = batch_of([[1]])
    with pytest.raises(parts.EdgeError, match="there is no pooling 'last'; there are mean, cls, max"):
        embedding.pool(np.zeros((1, 1, 2)), batch.mask, "last", normalize=False)
    with pytest.raises(parts.EdgeError, match="there is no task 'rhyming'"):
        edge_text.postprocess(pipeline("rhyming"), {"logits": np.zeros((1, 2))}, batch, ["x"])
    with pytest.raises(parts.EdgeError, match="has no output 'logits'; it has a, b"):
        edge_text.postprocess(pipeline("text-classification"), {"a": np.zeros(1), "b": np.zeros(1)}, batch, ["x"])


def test_classes_and_numbers() -> None:
    labels = ["negative", "positive"]
    batch = batch_of([[1], [1]])
    logits = np.array([[0.0, np.log(3.0)], [2.0, -2.0]], dtype=np.float16)
    asked = pipeline("text-classification", labels=labels)
    first, second = edge_text.postprocess(asked, {"logits": logits}, batch, ["a", "b"])
    assert first.dtype == np.float32
    shown = edge_text.present(asked, first, "a")
    assert shown["label"] == "positive"
    assert shown["score"] == pytest.approx(0.75, abs=1e-3)
    assert list(shown["scores"]) == labels
    several = edge_text.present(asked | {"multi_label": True}, second, "b")
    assert several["labels"] == ["negative"]
    assert several["scores"]["negative"] == pytest.approx(1 / (1 + np.exp(-2.0)))
    number = edge_text.postprocess(pipeline("text-regression"), {"logits": np.array([[1.5], [2.5]])}, batch, ["a", "b"])
    assert [edge_text.present(pipeline("text-regression"), one, "") for one in number] == [1.5, 2.5]
    assert number[0].shape == (1,)


def test_words_take_the_logits_of_their_first_token() -> None:
    asked = pipeline("token-classification", labels=["O", "B-x", "I-x"])
    logits = np.arange(15, dtype=np.float32).reshape(1, 5, 3)
    batch = batch_of([[1] * 5], word_ids=[[None, 0, 0, 2, None]])
    (got,) = edge_text.postprocess(asked, {"logits": logits}, batch, [["two", "\u200b", "one"]])
    assert got.tolist() == [logits[0, 1].tolist(), [1, 0, 0], logits[0, 3].tolist()]  # no token: nothing, "O"


def test_a_window_that_begins_inside_a_word_does_not_relabel_it() -> None:
    asked = pipeline("token-classification", labels=["O", "B-x"])
    logits = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    batch = batch_of([[1] * 3] * 2, owner=[0, 0], word_ids=[[0, 1, 1], [1, 1, 2]])
    (got,) = edge_text.postprocess(asked, {"logits": logits}, batch, [["a", "b", "c"]])
    assert got.tolist() == [logits[0, 0].tolist(), logits[0, 1].tolist(), logits[1, 2].tolist()]


def test_entities_have_their_place_in_the_text() -> None:
    asked = pipeline("token-classification", labels=["O", "B-place", "I-place", "B-name"])
    text = "John saw New York, Paris."
    words = [word for word, _, _ in tagging.split_words(text)]
    assert words == ["John", "saw", "New", "York", ",", "Paris", "."]
    logits = np.full((len(words), 4), -9.0, dtype=np.float32)
    for index, label in enumerate([3, 0, 1, 2, 0, 1, 0]):
        logits[index, label] = 9.0
    spans = edge_text.present(asked, logits, text)
    assert [(span["entity"], span["text"]) for span in spans] == [
        ("name", "John"),
        ("place", "New York"),
        ("place", "Paris"),
    ]
    assert all(text[span["start"] : span["end"]] == span["text"] and span["score"] > 0.99 for span in spans)
    assert [span["text"] for span in edge_text.present(asked, logits, words)] == ["John", "New York", "Paris"]


def test_neighbouring_entities_stay_apart() -> None:
    asked = pipeline("token-classification", labels=["O", "B-x", "I-x", "I-y"])
    logits = np.eye(4, dtype=np.float32)[[1, 1, 2, 3, 0, 2]] * 9
    spans = edge_text.present(asked, logits, ["a", "b", "c", "d", "e", "f"])
    assert [(span["entity"], span["text"]) for span in spans] == [("x", "a"), ("x", "b c"), ("y", "d"), ("x", "f")]


def test_words_of_a_text_keep_names_and_abbreviations() -> None:
    words = [word for word, _, _ in tagging.split_words("@ann_b's U.S. e-mail: don't (#go)!")]
    assert words == ["@ann_b's", "U.S", ".", "e-mail", ":", "don't", "(", "#go", ")", "!"]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_masks_are_filled_as_by_transformers(tiny_checkpoint: Any, family: str) -> None:
    import torch
    import transformers

    folder = tiny_checkpoint(family, "fill-mask")
    theirs = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    token = theirs.tokenizer.mask_token
    asked = {"mask": {"id": theirs.tokenizer.mask_token_id, "token": token}, "max_length": 64}
    ours, _ = of(folder, "fill-mask", **asked)
    samples = [f"the cat {token} on the mat.", f"{token} is a large city, and {token} is a larger one", token]
    batch = ours.encode(samples)
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        logits = theirs.model(**tensors).logits.numpy()
    got = edge_text.postprocess(ours.pipeline, {"logits": logits}, batch, samples)
    assert [(one.shape, one.dtype) for one in got] == [((n, logits.shape[-1]), np.float32) for n in (1, 2, 1)]
    np.testing.assert_allclose(np.exp(np.concatenate(got)).sum(axis=1), 1, atol=1e-5)
    for sample, prediction in zip(samples, got, strict=True):
        shown, wanted = edge_text.present(ours.pipeline, prediction, sample, ours), theirs(sample)
        for mine, other in zip(np.ravel(shown), np.ravel(wanted), strict=True):
            assert {**mine, "score": 0} == {**other, "score": 0}
            assert mine["score"] == pytest.approx(other["score"], rel=1e-4)
        assert isinstance(shown[0], list) == (sample.count(token) > 1)


def test_a_text_without_a_mask_is_refused_in_one_line(tiny_checkpoint: Any) -> None:
    asked = {"mask": {"id": 4, "token": "[MASK]"}}
    ours, theirs = of(tiny_checkpoint("bert", "fill-mask"), "fill-mask", **asked)
    assert theirs.mask_token_id == 4
    for text in ("the cat sat", "the cat " * 30 + "[MASK]"):  # none, and one beyond what is read
        batch = ours.encode([text])
        with pytest.raises(
            parts.EdgeError, match=r"has no \[MASK\] among the 24 tokens .*; write \[MASK\] where"
        ) as got:
            edge_text.postprocess(ours.pipeline, {"logits": np.zeros((1, batch.mask.shape[1], 200))}, batch, [text])
        assert "\n" not in str(got.value)


# ---- answers


def answered(
    minilm: Path, question: str, context: str, at: dict[str, tuple[str, float]], **more: Any
) -> dict[str, Any]:
    """The answer when the network's start and end logits are high at given words (of every window that has them)."""
    ours, _ = of(minilm, "question-answering", **more)
    batch = ours.encode([(question, context)])
    outputs = {name: np.zeros(batch.mask.shape, dtype=np.float32) for name in ("start_logits", "end_logits")}
    for name, (word, value) in at.items():
        begin = context.index(word)
        for row, offsets in enumerate(batch.offsets):
            for token, (start, end) in enumerate(offsets):
                if (
                    batch.sequence_ids[row][token] == 1
                    and (start if name == "start_logits" else end - len(word)) == begin
                ):
                    outputs[name][row, token] = value
    if more.get("no_answer"):
        outputs["start_logits"][:, 0] = outputs["end_logits"][:, 0] = more["null"]
    (got,) = edge_text.postprocess(ours.pipeline, outputs, batch, [(question, context)])
    return got


CONTEXT = (
    "the river Thames flows through many towns and fields until at last it ends in the North Sea near Southend in Essex"
)


def test_the_answer_is_found_in_whichever_window_it_lies(minilm: Path) -> None:
    got = answered(minilm, "where?", CONTEXT, {"start_logits": ("North", 12), "end_logits": ("Sea", 12)})
    assert got["text"] == "North Sea"
    assert CONTEXT[got["start"] : got["end"]] == "North Sea"
    assert 0.2 < got["score"] <= 1
    assert edge_text.present(pipeline("question-answering"), got, ("where?", CONTEXT)) == got


def test_an_answer_never_ends_before_it_starts(minilm: Path) -> None:
    got = answered(
        minilm, "where?", CONTEXT, {"start_logits": ("Essex", 12), "end_logits": ("Thames", 11)}, max_length=64
    )
    assert got["start"] < got["end"]
    assert got["text"] == "Essex"


def test_the_score_is_the_product_of_two_shares(minilm: Path) -> None:
    got = answered(minilm, "who?", "just Ann", {"start_logits": ("Ann", 2), "end_logits": ("Ann", 3)})
    assert got["text"] == "Ann"
    assert got["score"] == pytest.approx(np.exp(2) / (1 + np.exp(2)) * np.exp(3) / (1 + np.exp(3)))


def test_no_answer_only_where_the_model_knows_it(minilm: Path) -> None:
    at = {"start_logits": ("Ann", 2.0), "end_logits": ("Ann", 2.0)}
    assert answered(minilm, "who?", "just Ann", at, no_answer=True, null=3.0)["text"] == ""
    assert answered(minilm, "who?", "just Ann", at, no_answer=True, null=1.0)["text"] == "Ann"
    assert answered(minilm, "who?", "", {}) == {"text": "", "start": 0, "end": 0, "score": 0.0}


def test_an_answer_by_a_byte_level_tokenizer_carries_no_space(tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint("roberta", "question-answering")
    ours, _ = of(folder, "question-answering", max_length=64)
    sample = ("who wrote it?", "the captain wrote the book")
    batch = ours.encode([sample])
    outputs = {name: np.zeros(batch.mask.shape, dtype=np.float32) for name in ("start_logits", "end_logits")}
    token = next(i for i, (_, end) in enumerate(batch.offsets[0]) if end >= 5 and batch.sequence_ids[0][i] == 1)
    outputs["start_logits"][0, token] = outputs["end_logits"][0, token] = 9
    (got,) = edge_text.postprocess(ours.pipeline, outputs, batch, [sample])
    assert got["text"] == got["text"].strip() != ""
    assert sample[1][got["start"] : got["end"]] == got["text"]


# ---- graphs


def embedding_graph(path: Path, kind: str = "INT64") -> Path:
    """input_ids [rows, tokens] -> last_hidden_state [rows, tokens, 2]: the id and its square."""
    import onnx
    from onnx import TensorProto, helper

    ids = helper.make_tensor_value_info("input_ids", getattr(TensorProto, kind), ["rows", "tokens"])
    out = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["rows", "tokens", 2])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "real"], ["square"]),
        helper.make_node("Unsqueeze", ["real", "axis"], ["a"]),
        helper.make_node("Unsqueeze", ["square", "axis"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["last_hidden_state"], axis=2),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [2])
    graph = helper.make_graph(nodes, "tiny", [ids], [out], [axis])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["INT64", "INT32"])
def test_both_runtimes_run_the_same_graph(tmp_path: Path, runtime: str, kind: str) -> None:
    runner = runners.open_runner(runtime, embedding_graph(tmp_path / "model.onnx", kind), {}, 2)
    for shape in ((1, 3), (2, 5)):
        ids = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
        got = runner.run({"input_ids": ids, "not_taken": ids})
        assert list(got) == ["last_hidden_state"]
        np.testing.assert_allclose(got["last_hidden_state"], np.stack([ids, ids**2], axis=-1))
    kept = runner.run({"input_ids": np.ones((1, 1), dtype=np.int64)})["last_hidden_state"]
    runner.run({"input_ids": np.full((1, 1), 5, dtype=np.int64)})
    assert kept.tolist() == [[[1, 1]]]  # an output is the caller's, the next run does not overwrite it
    with pytest.raises(parts.EdgeError, match="the graph wants input 'input_ids'; it was given attention_mask"):
        runner.run({"attention_mask": np.ones((1, 1), dtype=np.int64)})
    runner.close()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_that_cannot_be_opened_is_named(tmp_path: Path, runtime: str) -> None:
    with pytest.raises(parts.EdgeError, match=r"model\.onnx is missing"):
        runners.open_runner(runtime, tmp_path / "model.onnx", {}, 1)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(parts.EdgeError, match=r"cannot open .*model\.onnx"):
        runners.open_runner(runtime, tmp_path / "model.onnx", {}, 1)


def test_a_runtime_that_needs_more_says_so(tmp_path: Path) -> None:
    with pytest.raises(parts.EdgeError, match=r"runtime 'torch' is opened by fmopt.*fmopt\.load"):
        runners.open_runner("torch", tmp_path, {}, 1)


def test_a_model_answers_one_or_many_and_windows_run_within_the_batch(tmp_path: Path, minilm: Path) -> None:
    ours, _ = of(minilm, "sentence-embedding", pooling="mean", normalize=False)
    runner = runners.open_runner("onnxruntime", embedding_graph(tmp_path / "model.onnx"), {}, 1)
    model = loading.Model({"pipeline": ours.pipeline}, ours, runner)
    one = model("the cat")
    many = model(["the cat", "a dog ran over the hill"])
    assert one == many[0]
    assert model([]) == []
    ids = ours.tokenizer.encode("the cat").ids
    np.testing.assert_allclose(one, [np.mean(ids), np.mean(np.square(ids, dtype=np.float64))], rtol=1e-6)
    np.testing.assert_allclose(model.predict(TEXTS, batch_size=3), model.predict(TEXTS), rtol=1e-5)
    rows = loading.run_rows(runner, {"input_ids": np.arange(10).reshape(5, 2)}, 2)["last_hidden_state"]
    np.testing.assert_array_equal(rows[..., 0], np.arange(10).reshape(5, 2))


# ---- this machine, JSON


def test_this_machine() -> None:
    host = edge_host.host_fingerprint()
    assert set(host) == {"cpu", "arch", "isa", "cores", "os"}
    assert host["cpu"]
    assert host["cores"] >= 1
    assert host["isa"] == sorted(set(host["isa"]))
    assert json.loads(json.dumps(host)) == host
    assert edge_host.peak_memory_mb() is None or 1 < edge_host.peak_memory_mb() < 1e6


def test_raws_survive_json() -> None:
    for sample in ("text", ("a", "b"), ["a", "b"], b"\x89PNG\xff\x00"):
        assert loading.sample_from_json(json.loads(json.dumps(loading.sample_to_json(sample)))) == sample


def test_difference_of_predictions() -> None:
    vector = np.array([1.0, 2.0], dtype=np.float32)
    assert loading.difference([1.0, 2.5], vector) == 0.5
    assert loading.difference([1.0], vector) == float("inf")
    assert loading.difference([1.0, 2.0], vector * np.nan) == float("inf")
    answer = {"text": "a", "start": 0, "end": 1, "score": 0.5}
    assert loading.difference(answer, answer | {"score": 0.25}) == 0.25
    assert loading.difference(answer, answer | {"text": "b"}) == 1.0


@pytest.mark.parametrize(
    ("needs", "isa", "reported"),
    [
        ([], [], []),
        (["avx512_vnni"], ["avx2", "avx512_vnni"], []),
        (["avx512_vnni"], ["avx2", "avx_vnni"], []),
        (["avx512_vnni"], ["avx2"], ["may saturate"]),
        (["avx512_bf16"], ["avx2"], ["may be slower"]),
        (["avx512_vnni"], [], ["does not say"]),
    ],
)
def test_a_missing_cpu_feature_is_reported_with_its_risk(needs: list[str], isa: list[str], reported: list[str]) -> None:
    got = loading.isa_warnings({"needs_isa": needs}, isa)
    assert len(got) == len(reported)
    assert all(part in line for part, line in zip(reported, got, strict=True))
