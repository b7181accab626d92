"""Times of trials that were taken hours apart, made comparable."""

from __future__ import annotations

import numpy as np
import pytest

from fmopt.evaluation.record import Record, Trial
from fmopt.reports.plots import on_front
from fmopt.workflow.sweep.one_clock import on_one_clock
from tests.records import absent_device, realistic


def at_another_moment(record: Record, name: str, factor: float) -> Record:
    """All times of a variant longer, as on a slower clock; the ratio that was taken in turn stays."""

    def moved(trial: Trial) -> Trial:
        if trial.name != name or trial.latency is None:
            return trial
        taken = [factor * ms for ms in trial.latency.samples_ms]
        return trial.model_copy(update={"latency": trial.latency.model_copy(update={"samples_ms": taken})})

    return record.model_copy(update={"trials": [moved(trial) for trial in record.trials]})


def test_a_trial_of_a_slower_moment_is_shown_by_its_ratio_to_the_reference():
    record = realistic()
    reference, winner = record.find(record.reference), record.find(record.winner)
    assert reference is not None
    assert winner is not None
    shown = on_one_clock(at_another_moment(record, record.winner, 5.0))
    again = shown.find(record.winner)
    assert again is not None
    assert again.p50 == pytest.approx(reference.p50 / winner.speedup.point)
    assert on_front(shown.everything) == on_front(on_one_clock(record).everything)
    # What samples are to each other stays, and so does the reference.
    np.testing.assert_allclose(
        np.divide(again.latency.samples_ms, again.p50), np.divide(winner.latency.samples_ms, winner.p50)
    )
    assert shown.find(record.reference) == reference


def test_predictions_stay_as_they_are():
    record = absent_device()
    assert on_one_clock(record) == record
