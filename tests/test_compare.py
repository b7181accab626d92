import io

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from fmopt.compare import Comparison, Difference, compare, render_text, trial_table, verdict_panel
from fmopt.record import Record, Trial
from fmopt.results import Outcome, Scores
from tests import records


def row(found: Comparison, what: str) -> Difference:
    return next(r for r in found.rows if r.what == what)


def faster(record: Record, factor: float) -> Record:
    """The same run with every latency divided by `factor`."""

    def quick(trial: Trial) -> Trial:
        if trial.latency is None:
            return trial
        samples = [float(x) / factor for x in np.random.default_rng(5).permutation(trial.latency.samples_ms)]
        return trial.model_copy(update={"latency": trial.latency.model_copy(update={"samples_ms": samples})})

    return record.model_copy(
        update={"trials": [quick(t) for t in record.trials], "baselines": [quick(t) for t in record.baselines]}
    )


def with_winner(record: Record, **changes: object) -> Record:
    winner = record.trials[0].model_copy(update=changes)
    return record.model_copy(update={"trials": [winner, *record.trials[1:]]})


def printed(thing: Table | object, width: int = 110) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(thing)
    return console.export_text()


def test_a_record_equals_itself() -> None:
    found = compare(records.realistic(), records.realistic())
    assert [r.what for r in found.rows if r.matters] == []
    assert "no difference that matters" in render_text(found)
    assert len(found.caveats) == 1


def test_faster_by_more_than_noise_matters_and_comes_first() -> None:
    found = compare(records.realistic(), faster(records.realistic(), 1.25))
    latency = row(found, "latency, shipped")
    assert latency.matters
    assert latency.estimate is not None
    assert latency.estimate.point == pytest.approx(1.25, rel=0.02)
    assert latency.change.startswith("B is 1.25×")
    assert latency.change.endswith("as fast")
    flags = [r.matters for r in found.rows]
    assert flags == sorted(flags, reverse=True)


def test_slower_is_said_as_slower() -> None:
    latency = row(compare(faster(records.realistic(), 1.25), records.realistic()), "latency, shipped")
    assert latency.change.startswith("B is 1.25×")
    assert latency.change.endswith("as slow")


def test_two_percent_between_two_runs_is_noise() -> None:
    latency = row(compare(records.realistic(), faster(records.realistic(), 1.015)), "latency, shipped")
    assert not latency.matters
    assert latency.change.startswith("same within noise")


def test_accuracy_is_compared_item_by_item() -> None:
    a = records.realistic()
    base = a.trials[0].test_scores[0]
    worse = [[0.0] if i % 20 == 0 else list(v) for i, v in enumerate(base.values)]
    b = with_winner(a, test_scores=[base.model_copy(update={"values": worse})])
    found = row(compare(a, b), "MRR@10, shipped")
    lost = base.array().mean() - np.asarray(worse).mean()
    assert found.matters
    assert found.estimate is not None
    assert found.estimate.point == pytest.approx(lost)
    assert found.estimate.low > 0
    assert found.change.startswith(f"B loses {100 * lost:.2f} pt (drop ")


def test_other_items_are_not_compared() -> None:
    a = records.realistic()
    b = records.realistic(data=a.data | {"digest": "other"})
    found = compare(a, b)
    assert row(found, "MRR@10, shipped").change == "not comparable: other items"
    assert "the data is not the same" in found.caveats


def test_other_metrics_and_other_shapes_are_not_compared() -> None:
    a = records.realistic()
    winner = a.trials[0]
    assert winner.latency is not None
    b = with_winner(
        a,
        test_scores=[],
        scores=[Scores(name="accuracy", metric="mean", values=[[1.0]], primary=True)],
        latency=winner.latency.model_copy(update={"threads": 2}),
    )
    found = compare(a, b)
    assert row(found, "accuracy, shipped").change == "no metric in common"
    assert row(found, "latency, shipped").change == (
        "not comparable: batch 1, 128 tokens, 1 thread and batch 1, 128 tokens, 2 threads"
    )


def test_verdict_size_versions_and_missing_variants() -> None:
    a = records.realistic()
    b = with_winner(records.realistic(Outcome.FAIL), size_bytes=50_000_000)
    b = b.model_copy(
        update={
            "trials": b.trials[:-1],
            "circumstances": b.circumstances.model_copy(
                update={"versions": b.circumstances.versions | {"onnxruntime": "1.33.0"}}
            ),
        }
    )
    found = compare(a, b)
    assert row(found, "verdict").matters
    assert (row(found, "verdict").a, row(found, "verdict").b) == ("PASS", "FAIL")
    assert row(found, "size").change == "+114 %"
    assert row(found, "variant openvino-broken").a == "tried"
    assert "version of onnxruntime: 1.32.0 in A, 1.33.0 in B" in found.caveats
    text = render_text(found)
    assert text.index("verdict") < text.index("the rest") < text.index("variant openvino-broken")


def test_a_device_that_is_not_here_compares_without_latency() -> None:
    found = row(compare(records.realistic(), records.absent_device()), "latency, shipped")
    assert (found.b, found.change, found.matters) == ("–", "", False)


def test_the_table_names_shipped_reference_failed_and_every_reason() -> None:
    text = printed(trial_table(records.realistic()))
    lines = [line.strip() for line in text.splitlines()]
    first = next(line for line in lines if line.startswith("openvino"))
    assert " ".join(first.split()) == "openvino-static-int8 (shipped) 14.6 ms 19.9 ms 2.15× 0.10 (≤ 0.39) 23.4 MB"
    assert "onnxruntime-fp32 (reference)" in text
    assert "openvino-broken (failed)" in text
    assert "1.02× as long as openvino-static-int8" in text


def test_predictions_are_marked_in_the_table() -> None:
    assert "36.6 ms predicted" in printed(trial_table(records.absent_device()))


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_panel_has_the_verdict_and_every_check(outcome: Outcome) -> None:
    text = printed(verdict_panel(records.realistic(outcome)), 140)
    assert f"─ {outcome.value} ─" in text
    assert "limit 1.00 pt" in text
    assert "size: 23.4 MB, limit 25.0 MB" in text


def test_names_with_brackets_are_no_markup() -> None:
    odd = records.trial("a[bold]b", "onnxruntime", "int8", 20.0, reason="[red]x")
    text = printed(trial_table(records.realistic(trials=[*records.candidates(), odd])))
    assert "a[bold]b" in text
    assert "[red]x" in text
