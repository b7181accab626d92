"""What a teacher said is found again by example, survives a kill, and is kept only where that is cheaper."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmopt.core.errors import PassError
from fmopt.passes.distillation import teacher_cache
from fmopt.passes.distillation.teacher_cache import Cost, TeacherOutputs, TeacherTargets, Terms, outputs_key, refusal
from fmopt.training.collation import Collator

COLLATE = {"id": 0, "type_id": 0, "side": "right"}
TERMS = Terms(epochs=3, room=1e9)


def examples(count: int = 40) -> list[dict[str, Any]]:
    """Texts of 1 to 12 tokens, no two alike."""
    lengths = np.random.default_rng(0).integers(1, 13, count)
    return [
        {"input_ids": 100 * number + np.arange(1, length + 1), "attention_mask": np.ones(length, dtype=np.int64)}
        for number, length in enumerate(lengths)
    ]


class Teacher:
    """Says of a token its id, its half and, by two layers, its square root; of a text its first token and sum."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.worth = 1.0

    def __call__(self, batch: dict[str, torch.Tensor]) -> TeacherTargets:
        ids = batch["input_ids"].float()
        first = torch.gather(ids, 1, batch["attention_mask"].argmax(1, keepdim=True))
        self.asked += (first[:, 0] // 100).int().tolist()
        states = torch.stack([ids.sqrt(), -ids.sqrt()], dim=-1) * self.worth
        return {"hidden": [states, 2 * states], "outputs": [torch.cat([first, ids.sum(1, keepdim=True)], dim=1)]}


def kept_in(folder: Path, ask: Any, texts: list[dict[str, Any]], side: str = "right") -> TeacherOutputs:
    return TeacherOutputs(folder, texts, Collator({**COLLATE, "side": side}), ask, frozenset({"hidden"}))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch):
    """Several shards for few texts, and a disk that costs nothing, so that asking again never pays."""
    monkeypatch.setattr(teacher_cache, "SHARD_TOKENS", 50)
    monkeypatch.setattr(teacher_cache, "LOOKUP_S", 0.0)
    monkeypatch.setattr(teacher_cache, "DISK_BYTES_PER_S", float("inf"))


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_batch_finds_what_the_teacher_says_of_it(tmp_path: Path, side: str):
    texts, said = examples(), []
    outputs = kept_in(tmp_path / "kept", Teacher(), texts, side)
    assert outputs.kept(TERMS, said.append, lambda: False)
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) > 3
    assert len(said) == 1
    assert "it is not asked in every epoch" in said[0]
    again = kept_in(tmp_path / "kept", None, texts, side)  # as another process, or another student, opens it
    for numbers in np.random.default_rng(1).permutation(len(texts)).reshape(-1, 8):
        batch = Collator({**COLLATE, "side": side})([texts[number] for number in numbers])
        mask = batch["attention_mask"].bool()
        targets, wanted = again.targets(again.look_up(numbers, mask)), Teacher()(batch)
        for got, right in zip(targets["hidden"], wanted["hidden"], strict=True):
            torch.testing.assert_close(got[mask], right[mask], rtol=1e-3, atol=0)
            assert not got[~mask].any()
        assert torch.equal(targets["outputs"][0], wanted["outputs"][0])  # few numbers, in full


def test_a_killed_run_asks_only_about_the_rest(tmp_path: Path):
    texts, teacher = examples(), Teacher()

    def killed(batch: dict[str, torch.Tensor]) -> TeacherTargets:
        if len(teacher.asked) > 30:
            raise KeyboardInterrupt
        return teacher(batch)

    with pytest.raises(KeyboardInterrupt):
        kept_in(tmp_path, killed, texts).kept(TERMS, print, lambda: False)
    there = len(list(tmp_path.glob("*.safetensors")))
    teacher.asked.clear()
    outputs = kept_in(tmp_path, teacher, texts)
    assert 0 < there < len(outputs.shards)
    assert outputs.kept(TERMS, print, lambda: False)
    assert sorted(teacher.asked) == [number for shard in outputs.shards[there:] for number in shard]
    teacher.asked.clear()
    assert kept_in(tmp_path, teacher, texts).kept(Terms(1, 1e9), print, lambda: False)  # once more is worth it by now
    assert teacher.asked == []


def test_a_deadline_leaves_what_was_said(tmp_path: Path):
    with pytest.raises(PassError, match=r"while the teacher was asked \(\d+ % of the texts\)"):
        kept_in(tmp_path, Teacher(), examples()).kept(TERMS, print, lambda: True)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2  # the one that was measured, and one more


def test_where_it_cannot_be_kept_the_teacher_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    teacher, write = Teacher(), teacher_cache.save_file

    def full(answers: Any, path: Path) -> None:
        if len(list(tmp_path.glob("*.safetensors"))) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(answers, path)

    monkeypatch.setattr(teacher_cache, "save_file", full)
    assert not kept_in(tmp_path, teacher, examples()).kept(TERMS, said.append, lambda: False)
    assert "No space left" in said[-1]
    teacher.worth = 1e6
    monkeypatch.setattr(teacher_cache, "save_file", write)
    assert not kept_in(tmp_path, teacher, examples()).kept(TERMS, said.append, lambda: False)
    assert "hidden beyond the range of float16" in said[-1]
    assert not kept_in(tmp_path / "none", teacher, examples()).kept(Terms(3, 0), said.append, lambda: False)
    assert said[-1] == "the teacher is asked in every epoch: nothing may be kept on disk"
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.part"))


def test_the_cheaper_way_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(teacher_cache, "LOOKUP_S", 50e-6)
    monkeypatch.setattr(teacher_cache, "DISK_BYTES_PER_S", 200e6)
    texts, tokens = 10_000, 200_000
    logits = Cost(seconds_per_token=3e-4, bytes_per_token=0, bytes_per_text=8)
    states = Cost(seconds_per_token=3e-4, bytes_per_token=4608, bytes_per_text=8)  # 0.9 GB
    quick = Cost(seconds_per_token=5e-6, bytes_per_token=4608, bytes_per_text=8)  # a fast GPU
    assert refusal(logits, texts, tokens, 1.0, Terms(2, 1e9)) is None
    assert refusal(states, texts, tokens, 1.0, Terms(2, 1e9)) is None
    assert "922 MB on disk are more than the 500 MB" in str(refusal(states, texts, tokens, 1.0, Terms(2, 5e8)))
    assert "asking again takes less time" in str(refusal(quick, texts, tokens, 1.0, Terms(30, 1e9)))
    assert "asking again takes less time" in str(refusal(logits, texts, tokens, 1.0, Terms(1, 1e9)))
    assert refusal(logits, texts, tokens, 0.0, Terms(1, 1e9)) is None  # another student's training asked already
    assert "time limit" in str(refusal(logits, texts, tokens, 1.0, Terms(30, 1e9, limit_s=200.0)))
    assert refusal(logits, texts, tokens, 1.0, Terms(30, 1e9, limit_s=400.0)) is None


def test_another_teacher_text_or_question_is_kept_apart():
    texts = examples(4)
    keys = {
        outputs_key(teacher, rows, ["input_ids"], about)
        for teacher in ("a", "b") for rows in (texts, texts[::-1]) for about in ({"kinds": "x"}, {"kinds": "y"})
    }  # fmt: skip
    assert len(keys) == 8
    assert outputs_key("a", texts, ["input_ids"], {"kinds": "x"}) in keys
