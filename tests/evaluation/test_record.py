import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmopt.core.errors import BundleError, StoreError
from fmopt.core.results import Estimate, Latency, Outcome, Scores, Verdict
from fmopt.evaluation.record import RecipeLine, Record, Trial, ordered, summary_sentence, verdict_words, why_not
from tests import records


def test_a_bound_is_told_with_the_confidence_that_it_was_taken_at() -> None:
    """That of a verdict which was certain early is not the budget's."""
    record = records.realistic()
    assert "at 95 % confidence" in summary_sentence(record)
    early = record.winning.model_copy(update={"test_confidence": 0.999})
    trials = [early if trial.name == record.winner else trial for trial in record.trials]
    assert "at 99.9 % confidence" in summary_sentence(record.model_copy(update={"trials": trials}))


def test_reads_back_exactly_what_was_written(tmp_path: Path) -> None:
    record = records.realistic()
    path = record.save(tmp_path)
    assert Record.load(path) == Record.load(str(path)) == Record.load(str(tmp_path)) == record
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@given(st.lists(st.floats(allow_nan=False), min_size=3, max_size=3), st.lists(st.floats(1e-9, 1e9), max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_number_changes_on_its_way_through_json(bounds: list[float], samples: list[float]) -> None:
    trial = Trial(
        recipe=RecipeLine(name="a", runtime="torch"),
        status="measured",
        drop=Estimate(point=bounds[0], low=bounds[1], high=bounds[2]),
        latency=Latency(samples_ms=samples, batch=1, length=None, threads=1),
    )
    assert Trial.model_validate_json(trial.model_dump_json()) == trial


def test_options_become_json_at_once_so_that_they_compare_equal_later() -> None:
    line = RecipeLine(name="a", runtime="torch", options={"keep": ("x", "y"), "file": Path("a.onnx")})
    assert line.options == {"keep": ["x", "y"], "file": "a.onnx"}


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b"{}"])
def test_a_damaged_record_is_named_with_the_way_out(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "record.json").write_bytes(damage)
    with pytest.raises(BundleError, match=r"record\.json is damaged at .*run `fmopt optimize` again") as caught:
        Record.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_truncated_record_and_one_with_a_foreign_field_are_damaged(tmp_path: Path) -> None:
    path = records.realistic().save(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="damaged"):
        Record.load(path)
    path.write_text(json.dumps(json.loads(whole) | {"surprise": 1}))
    with pytest.raises(BundleError, match="damaged at surprise"):
        Record.load(path)


def test_a_missing_record_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"there is no record at .*record\.json; name a folder"):
        Record.load(tmp_path)


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = records.realistic().save(tmp_path)
    before = path.read_bytes()

    def full(handle: int, *args: object, **more: object) -> object:
        os.close(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(StoreError, match="disk"):
        records.realistic(effort="max").save(tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_summary_of_a_pass_says_how_fast_at_what_cost_over_how_many_items() -> None:
    assert summary_sentence(records.realistic()) == (
        "INT8 on OpenVINO (openvino-static-int8) is 2.15× (2.12–2.19) as fast as the fastest full-precision variant "
        "(fp32 on ONNX Runtime): 31.5 ms → 14.6 ms at the median (batch 1 of 128 tokens, a stated shape, the model alone, "
        "1 thread). "
        "MRR@10 fell by 0.10 pt, at most 0.39 pt at 95 % confidence over 1,800 items of the test split. "
        "The files went from 90.3 MB to 23.4 MB. "
        "PASS: every check of the budget holds."
    )


def test_summary_of_leaving_the_model_as_it_is() -> None:
    text = summary_sentence(records.realistic(winner="onnxruntime-fp32"))
    assert text.startswith(
        "Nothing that was tried beats full precision within the budget (6 candidates measured): leave"
    )
    assert "fell" not in text


def test_summary_of_a_device_that_is_not_here_claims_no_speed() -> None:
    text = summary_sentence(records.absent_device())
    assert "Raspberry Pi 5, which is not here; a roofline model predicts 36.6 ms, which is no measurement" in text
    assert "as fast as" not in text
    assert text.endswith("UNMEASURED: speedup (the device is not here; run the bundle's run.py bench on it).")


@pytest.mark.parametrize(
    ("point", "high", "said"),
    [
        (-0.002, 0.001, "rose by 0.20 pt, and fell by at most 0.10 pt"),
        (0.0, 0.0017, "did not change, and fell by at most 0.17 pt"),
        (0.003, 0.006, "fell by 0.30 pt, at most 0.60 pt"),
    ],
)
def test_summary_says_which_way_the_metric_went(point: float, high: float, said: str) -> None:
    record = records.realistic()
    trials = [t.model_copy(update={"test_drop": Estimate(point=point, low=-0.01, high=high)}) for t in record.trials]
    assert f"MRR@10 {said} at 95 % confidence" in summary_sentence(record.model_copy(update={"trials": trials}))
    errors = [[0.0, 1.0], [1.0, 1.0]]
    rates = [Scores(name="WER", metric="error_rate", values=errors, primary=True)]
    trials = [trial.model_copy(update={"scores": rates, "test_scores": rates}) for trial in trials]
    other = said.replace("rose", "ROSE").replace("fell", "rose").replace("ROSE", "fell")
    assert f"WER {other} at 95 % confidence" in summary_sentence(record.model_copy(update={"trials": trials}))


def test_summary_says_when_there_were_no_labels() -> None:
    record = records.realistic()
    winner = record.trials[0]
    scores = [winner.test_scores[0].model_copy(update={"against_baseline": True})]
    trials = [winner.model_copy(update={"test_scores": scores}), *record.trials[1:]]
    assert "there are no labels" in summary_sentence(record.model_copy(update={"trials": trials}))


def test_undecided_says_how_many_items_would_decide() -> None:
    assert "about 5,513 items would decide" in summary_sentence(records.realistic(Outcome.UNDECIDED))


def test_no_limits_is_no_verdict() -> None:
    record = records.realistic(verdict=Verdict())
    assert verdict_words(record)[0] == "NO LIMITS"
    assert summary_sentence(record).endswith("No limit was set, so there is no verdict.")


def test_accepting_undecided_is_said_and_does_not_become_a_pass() -> None:
    record = records.realistic(Outcome.UNDECIDED)
    accepted = record.model_copy(update={"budget": record.budget | {"accept_undecided": True}})
    assert verdict_words(record) == ("UNDECIDED", "")
    assert verdict_words(accepted)[0] == "UNDECIDED"
    assert "--accept-undecided" in verdict_words(accepted)[1]


def test_the_shipped_one_comes_first_then_fast_to_slow_then_what_was_not_measured() -> None:
    names = [t.name for t in ordered(records.realistic())]
    assert names[0] == "openvino-static-int8"
    assert names[1:3] == ["openvino-static-int8-minmax", "openvino-nncf-int8"]
    assert names[-2:] == ["torch-fp32", "openvino-broken"]


def test_every_loser_has_its_reason_also_where_the_run_gave_none() -> None:
    record = records.realistic()
    silent = [t.model_copy(update={"reason": ""}) for t in record.trials]
    record = record.model_copy(update={"trials": silent})
    assert why_not(record, silent[0]) == ""
    assert why_not(record, silent[1]).startswith(
        "1.23× as long as openvino-static-int8: activations are quantized again"
    )
    assert why_not(record, silent[3]) == "faster, but not within the budget"
    assert why_not(record, silent[-1]) == "not timed"
