"""Words of any script, the logits of each, and the entities that they make."""

from __future__ import annotations

import numpy as np
import pytest

from fmopt.edge.tagging import postprocess, present, split_words
from fmopt.edge.text import Batch


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("我在北京工作。", ["我", "在", "北", "京", "工", "作", "。"]),
        ("वह दिल्ली में रहता है", ["वह", "दिल्ली", "में", "रहता", "है"]),
        ("東京タワー 2024年", ["東", "京", "タ", "ワ", "ー", "2024", "年"]),
        ("السَّلامُ عليكم", ["السَّلامُ", "عليكم"]),
        ("ไป กรุงเทพ", ["ไ", "ป", "ก", "รุ", "ง", "เ", "ท", "พ"]),
        ("서울에서 왔다", ["서울에서", "왔다"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("cafe\u0301 d'été", ["cafe\u0301", "d'été"]),
        ("❤\ufe0f ok", ["❤\ufe0f", "ok"]),
        ("U.S. e-mail", ["U.S", ".", "e-mail"]),
    ],
)
def test_marks_stay_with_their_letters_and_scripts_without_blanks_are_read_by_letters(text, words):
    found = split_words(text)
    assert [word for word, _, _ in found] == words
    assert all(text[start:end] == word for word, start, end in found)


def test_a_token_of_several_words_is_one_entity():
    labels = ["O", "B-place", "I-place"]
    text = "我在北京"
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 0]][None] * 9
    batch = Batch({}, np.ones((1, 4), dtype=np.int64), [0], offsets=[[(0, 0), (0, 2), (2, 4), (0, 0)]])
    (got,) = postprocess({"labels": labels, "outputs": ["logits"]}, {"logits": logits}, batch, [text])
    assert got.argmax(axis=1).tolist() == [0, 0, 1, 2]
    (span,) = present({"labels": labels}, got, text)
    assert (span["text"], span["entity"]) == ("北京", "place")


def test_a_blank_before_a_word_belongs_to_no_word_and_windows_do_not_relabel():
    labels = ["O", "B-x"]
    text = "one two"
    logits = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    offsets = [[(0, 3), (3, 5), (0, 0)], [(5, 7), (0, 0), (0, 0)]]  # "two" is cut in two
    batch = Batch({}, np.ones((2, 3), dtype=np.int64), [0, 0], offsets=offsets)
    (got,) = postprocess({"labels": labels, "outputs": ["logits"]}, {"logits": logits}, batch, [text])
    assert got.tolist() == [logits[0, 0].tolist(), logits[0, 1].tolist()]
