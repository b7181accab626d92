"""Times of a sweep's trials that can be compared: each was timed beside the reference, but at another moment than the others."""

from __future__ import annotations

from fmopt.evaluation.record import Record, Trial, latency_of


def on_one_clock(record: Record) -> Record:
    """The record with samples of every variant stretched until its median is to the reference's as it was when both were timed in
    turn: in the hours of a sweep a machine's clock is another one. Ratios and intervals stay; what was not timed beside the
    reference, or only predicted, stays as it is."""
    reference = record.find(record.reference)
    if reference is None or reference.p50 is None:
        return record
    beside = reference.p50

    def stretched(trial: Trial) -> Trial:
        ours = latency_of(trial)
        if trial.latency is None or trial.speedup is None or not ours or trial is reference:
            return trial
        factor = beside / trial.speedup.point / ours
        samples = [factor * ms for ms in trial.latency.samples_ms]
        return trial.model_copy(update={"latency": trial.latency.model_copy(update={"samples_ms": samples})})

    return record.model_copy(
        update={
            "baselines": [stretched(trial) for trial in record.baselines],
            "trials": [stretched(trial) for trial in record.trials],
        }
    )
