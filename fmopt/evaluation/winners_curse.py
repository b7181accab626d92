"""How much reserve the best of many has to keep: among hundreds of candidates some look better than they are."""

from __future__ import annotations

import math

from scipy.special import log_ndtr, ndtri, ndtri_exp

from fmopt.core.results import Estimate

RESERVE = 0.5  # of the allowed drop, that a candidate of a plan keeps


def most_seen(drop: Estimate, limit: float, times_as_many: float, confidence: float) -> float:
    """The largest drop on validation with which a candidate may still be chosen, for `times_as_many` candidates as a plan has.

    Arguments:
        drop: as seen on validation, with bounds at `confidence`; in units of the metric, as `limit` is.
        limit: the drop that the budget allows.
        times_as_many: candidates looked at, for each one of the plan's.

    With as many as the plan it is half of `limit`. One that really loses `limit` is seen below that with the probability
    Φ(−limit/2s), s the standard error of the drop; of k times as many each may be with a k-th of it (Bonferroni), so that all
    together are taken for better than they are no more often than the plan's. The error rate of the verdict does not hang on
    this, for it is about items that chose nothing: this keeps the sweep from bringing luck before it, which would fail there.
    """
    line = RESERVE * limit
    sure = float(ndtri(confidence))
    error = (drop.high - drop.point) / sure if sure > 0 else 0.0
    if times_as_many <= 1 or not 0 < error < math.inf or limit <= 0:
        return line
    alone = float(log_ndtr((line - limit) / error))
    return min(line, limit + error * float(ndtri_exp(alone - math.log(times_as_many))))
