"""The gate: what budgets say, what a bound proves, what comes of a check."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmopt.core.errors import ConfigError, DataError, UnmeasuredError
from fmopt.core.results import Check, Estimate, Latency, Outcome, Scores, Verdict
from fmopt.evaluation.bootstrap import block_length, expanded_percentile, median_latency, paired_drop, speedup
from fmopt.evaluation.gate import (
    Budget,
    Drop,
    at_least,
    at_most,
    exit_code,
    items_needed,
    judge,
    samples_needed,
    settle,
)


def scores(values: Any, metric: str = "mean") -> Scores:
    array = np.asarray(values, dtype=float)
    return Scores(name="accuracy", metric=metric, values=array.reshape(len(array), -1).tolist(), primary=True)


def latency(samples: Any) -> Latency:
    return Latency(samples_ms=list(map(float, samples)), batch=1, length=128, threads=1)


def right_and_wrong(n: int, lost: int, won: int = 0) -> tuple[Scores, Scores]:
    """n items of which the baseline has 80 % and more right; the candidate loses `lost` and wins `won` of them."""
    base, candidate = np.ones(n), np.ones(n)
    candidate[:lost] = 0
    base[lost : lost + won] = 0
    return scores(base), scores(candidate)


# ------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("text", "limit"), [("1pt", 0.01), ("0.5pt", 0.005), ("1%", 0.008), (" 2 % ", 0.016), ("0pt", 0.0), ("1PT", 0.01)]
)
def test_a_drop_is_points_or_percent_of_the_baseline(text: str, limit: float) -> None:
    assert Drop.parse(text).limit(0.8) == pytest.approx(limit)


def test_points_of_a_metric_without_an_end_are_percent_of_it() -> None:
    assert Drop.parse("1pt").limit(162.5, bounded=False) == pytest.approx(1.625)
    assert Drop.parse("1pt").limit(0.0, bounded=False) == pytest.approx(0.01)  # a distance to the baseline itself
    drop = Estimate(point=0.5, low=0.1, high=0.9)
    found = [judged(Budget(), drop=drop, baseline_metric=162.5, bounded=one).checks[0].outcome for one in (True, False)]
    assert found == [Outcome.FAIL, Outcome.PASS]


@pytest.mark.parametrize("text", ["1", "pt", "-1pt", "one", "1 points", "1e3pt", ""])
def test_a_drop_that_is_none_says_which_forms_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match=r"like 1pt or 0\.5pt, or a share of the baseline like 1%"):
        Drop.parse(text)


def test_a_budget_is_read_from_the_words_of_the_command() -> None:
    budget = Budget.parse(
        max_drop="0.5pt", min_speedup="2x", max_latency="0.5s", max_size="25MB", max_memory="0.3 GB", confidence=0.9
    )
    assert budget.max_drop == Drop(amount=0.5, unit="pt")
    assert (budget.min_speedup, budget.max_latency_ms) == (2.0, 500.0)
    assert (budget.max_size_mb, budget.max_memory_mb) == (25.0, 300.0)
    assert Budget.parse(max_size="64MiB").max_size_mb == pytest.approx(67.108864)
    assert Budget() == Budget.parse()
    assert str(Budget().max_drop) == "1pt"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"min_speedup": "fast"}, "min-speedup is 'fast'; give a factor like 2x"),
        ({"min_speedup": "0x"}, "min-speedup is '0x'"),
        ({"max_latency": "8"}, "max-latency is '8'; give a time like 8ms"),
        ({"max_size": "25"}, "max-size is '25'; give a size like 25MB"),
        ({"max_memory": "-3MB"}, "max-memory is '-3MB'"),
        ({"confidence": 95.0}, "confidence is 95; it is a share from 0.5 to below 1"),
    ],
)
def test_a_wrong_word_is_named_with_its_right_forms(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        Budget.parse(**words)


# ---------------------------------------------------------------------------------------------------- paired drop


def test_the_point_is_the_difference_of_the_means() -> None:
    drop = paired_drop(*right_and_wrong(1000, lost=30, won=10))
    assert drop.point == pytest.approx(0.02)
    assert drop.low < 0.02 < drop.high
    # normal theory: 0.02 ± 1.645·√(0.04 − 0.02²)/√1000 = ± 0.0104; one more lost item adds 0.001 and a little spread
    assert drop.high == pytest.approx(0.0304, abs=0.003)
    assert drop.low == pytest.approx(0.0096, abs=0.003)


def test_nothing_changed_is_bounded_by_the_rule_of_three() -> None:
    drop = paired_drop(*right_and_wrong(500, lost=0))
    assert drop.point == 0
    assert drop.high == pytest.approx(1 - 0.05 ** (1 / 500))
    assert drop.high == pytest.approx(3 / 500, rel=0.01)
    assert drop.low == -drop.high
    strict = paired_drop(*right_and_wrong(500, lost=0), confidence=0.99)
    assert strict.high == pytest.approx(4.605 / 500, rel=0.01)


@pytest.mark.parametrize(("lost", "exact"), [(1, 4.74), (2, 6.30), (3, 7.75), (5, 10.51), (10, 16.96), (20, 29.06)])
def test_few_losses_are_bounded_as_the_exact_binomial_bound_does(lost: int, exact: float) -> None:
    """The exact bounds are the 95 % quantiles of the Gamma(lost + 1) distribution, Clopper-Pearson for rare events."""
    drop = paired_drop(*right_and_wrong(5000, lost=lost), resamples=4000)
    assert exact - 0.75 <= drop.high * 5000 <= exact + 1.25


@pytest.mark.parametrize(("n", "loses", "wins"), [(400, 0.02, 0.0), (800, 0.03, 0.02), (600, 0.06, 0.04)])
def test_a_candidate_exactly_at_the_limit_passes_about_one_time_in_twenty(n: int, loses: float, wins: float) -> None:
    rng = np.random.default_rng(7)
    limit, passed, trials = loses - wins, 0, 300
    for seed in range(trials):
        luck = rng.random(n)
        base = np.where((luck >= loses) & (luck < loses + wins), 0.0, rng.random(n) < 0.9)
        base = np.where(luck < loses, 1.0, base)
        candidate = np.where(luck < loses, 0.0, np.where(luck < loses + wins, 1.0, base))
        passed += paired_drop(scores(base), scores(candidate), resamples=400, seed=seed).high <= limit
    # 5 % of 300 are 15; three standard deviations of luck are 11 more. The binomial steps allow 6 % at n = 400.
    assert passed <= 0.06 * trials + 3 * math.sqrt(trials * 0.06 * 0.94)


def test_a_good_candidate_is_let_through() -> None:
    """Power: what INT8 usually does (1.3 % of the items change, 0.15 pt lost) is proven within 1 pt by 2,693 items."""
    drop = paired_drop(*right_and_wrong(2693, lost=19, won=15))
    assert drop.point == pytest.approx(4 / 2693)
    assert 0.003 < drop.high < 0.01


@given(lost=st.integers(0, 60), more=st.integers(1, 30), won=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_more_losses_never_look_better(lost: int, more: int, won: int) -> None:
    fewer = paired_drop(*right_and_wrong(200, lost, won), resamples=500)
    further = paired_drop(*right_and_wrong(200, lost + more, won), resamples=500)
    assert further.point > fewer.point
    assert further.high >= fewer.high - 0.015  # the step at FEW_CHANGED and the luck of 500 resamples


@given(confidence=st.floats(0.6, 0.98))
@settings(max_examples=10, deadline=None)
def test_more_confidence_never_narrows_the_interval(confidence: float) -> None:
    pair = right_and_wrong(300, lost=12, won=4)
    sure = paired_drop(*pair, confidence=confidence + 0.01, resamples=500)
    less = paired_drop(*pair, confidence=confidence, resamples=500)
    assert sure.high >= less.high
    assert sure.low <= less.low


def test_continuous_values_are_bounded_by_what_was_seen_once_many_changed() -> None:
    rng = np.random.default_rng(0)
    cosine = 1 - rng.gamma(4, 0.001, size=800)
    drop = paired_drop(scores(np.ones(800)), scores(cosine))
    assert drop.point == pytest.approx(0.004, rel=0.1)
    assert drop.high < 1.15 * drop.point


def test_a_few_changed_items_may_hide_a_whole_loss() -> None:
    barely = np.ones(1000)
    barely[:3] -= 1e-9
    assert paired_drop(scores(np.ones(1000)), scores(barely)).high >= 0.002


def test_a_metric_with_several_columns_is_resampled_by_items() -> None:
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 3, size=(400, 3)).astype(float)
    worse = counts.copy()
    worse[:20, 0] = 0
    worse[:20, 2] += counts[:20, 0]
    drop = paired_drop(scores(counts, "micro_f1"), scores(worse, "micro_f1"), resamples=1000)

    def f1(c: np.ndarray) -> float:
        tp, fp, fn = c.sum(axis=0)
        return float(2 * tp / (2 * tp + fp + fn))

    assert drop.point == pytest.approx(f1(counts) - f1(worse))
    assert 0 < drop.low < drop.point < drop.high


def test_the_same_seed_gives_the_same_bound() -> None:
    pair = right_and_wrong(200, lost=9, won=3)
    assert paired_drop(*pair, seed=5) == paired_drop(*pair, seed=5)


def test_candidate_values_that_are_no_numbers_are_a_whole_loss() -> None:
    broken = np.ones(50)
    broken[7] = np.nan
    drop = paired_drop(scores(np.ones(50)), scores(broken))
    assert drop.point == 1.0
    assert at_most("accuracy drop", drop, 0.01).outcome is Outcome.FAIL


def test_a_correlation_that_the_candidate_leaves_undefined_is_a_whole_loss() -> None:
    truth = np.arange(40.0)
    base = np.stack([truth + np.random.default_rng(0).normal(0, 3, 40), truth], axis=1)
    constant = np.stack([np.ones(40), truth], axis=1)
    assert paired_drop(scores(base, "spearman"), scores(constant, "spearman"), resamples=200).low == 1.0
    with pytest.raises(DataError, match="of the baseline is undefined on these 40 items"):
        paired_drop(scores(constant, "spearman"), scores(base, "spearman"))


def test_more_of_a_distance_is_a_drop_too() -> None:
    before, after = np.full(300, 0.01), np.full(300, 0.01)
    after[:60] = 0.06
    drop = paired_drop(scores(before, "lower_mean"), scores(after, "lower_mean"))
    assert drop.point == pytest.approx(0.01)
    assert 0 < drop.low < drop.point < drop.high


def perplexities(nats: Any) -> Scores:
    return scores(np.stack([np.asarray(nats, dtype=float), np.full(len(nats), 10.0)], axis=1), "perplexity")


def test_perplexity_has_no_whole_to_lose() -> None:
    """A drop in units of perplexity is no share of 1: what is unknown is bounded by as much as there is."""
    nats = np.random.default_rng(0).gamma(40, 1.0, size=300)
    base = float(np.exp(nats.mean() / 10))
    same = paired_drop(perplexities(nats), perplexities(nats))
    assert same.high == pytest.approx(base * (1 - 0.05 ** (1 / 300)))
    worse = paired_drop(perplexities(nats), perplexities(nats * 1.01))
    assert worse.point == pytest.approx(np.exp(1.01 * nats.mean() / 10) - base)
    assert 0 < worse.low < worse.point < worse.high < 1.2 * worse.point
    for ruined in (np.nan, 1e9):
        broken = nats.copy()
        broken[3] = ruined
        drop = paired_drop(perplexities(nats), perplexities(broken))
        assert drop.point == math.inf
        assert at_most("accuracy drop", drop, 0.01 * base).outcome is Outcome.FAIL


@pytest.mark.parametrize(("metric", "columns"), [("mean", 1), ("micro_f1", 3)])
def test_items_of_a_kind_are_resampled_as_if_each_stood_alone(metric: str, columns: int) -> None:
    """Copies of few kinds of items and as many distinct items that differ by nothing worth mention bound alike."""
    rng = np.random.default_rng(5)
    base = rng.integers(0, 6, size=(20, columns)).astype(float)
    candidate = base + rng.integers(0, 2, size=base.shape)
    drawn = rng.integers(0, 20, size=600)
    kinds = paired_drop(scores(base[drawn], metric), scores(candidate[drawn], metric), resamples=4000)
    apart = 1e-10 * rng.random((600, 1))  # in both, so that every pair is one of its own
    alone = paired_drop(
        scores(base[drawn] + apart, metric), scores(candidate[drawn] + apart, metric), resamples=4000, seed=1
    )
    width = kinds.high - kinds.low
    assert kinds.point == pytest.approx(alone.point, abs=1e-6)
    assert kinds.high == pytest.approx(alone.high, abs=0.06 * width)
    assert kinds.low == pytest.approx(alone.low, abs=0.06 * width)


def test_scores_of_different_items_are_refused() -> None:
    with pytest.raises(DataError, match="score both on the same items"):
        paired_drop(scores(np.ones(5)), scores(np.ones(6)))
    with pytest.raises(DataError, match="no items"):
        paired_drop(
            Scores(name="accuracy", metric="mean", values=[]), Scores(name="accuracy", metric="mean", values=[])
        )


# -------------------------------------------------------------------------------------------------------- latency


def test_a_speedup_is_the_ratio_of_medians() -> None:
    rng = np.random.default_rng(0)
    got = speedup(latency(20 + rng.gamma(2, 0.2, 200)), latency(10 + rng.gamma(2, 0.1, 200)))
    assert got.point == pytest.approx(2.0, rel=0.01)
    assert 1.98 < got.low < got.point < got.high < 2.02


def test_drift_that_both_share_does_not_widen_the_ratio() -> None:
    rng = np.random.default_rng(1)
    clock = 1 + 0.2 * np.sin(np.arange(400) / 60)
    slow, fast = clock * (20 + 0.1 * rng.random(400)), clock * (10 + 0.05 * rng.random(400))
    shared = speedup(latency(slow), latency(fast))
    alone = median_latency(latency(fast))
    assert shared.high / shared.low < 1.1
    assert alone.high / alone.low > 1.02


def test_correlated_samples_give_a_wider_interval_than_their_number_suggests() -> None:
    rng = np.random.default_rng(2)
    walk = np.repeat(rng.normal(10, 0.5, 25), 16)  # 400 samples, 25 independent ones
    shuffled = rng.permutation(walk)
    assert block_length(walk) >= 12 > block_length(shuffled)
    together, apart = median_latency(latency(walk)), median_latency(latency(shuffled))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_the_interval_of_a_speedup_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    missed = 0
    for seed in range(120):
        noise = [10 + np.convolve(rng.gamma(2, 0.5, 204), np.ones(5) / 5, "valid") for _ in range(2)]
        missed += speedup(latency(noise[0]), latency(noise[1]), resamples=300, seed=seed).low > 1.0
    assert missed <= 120 * 0.05 + 3 * math.sqrt(120 * 0.05 * 0.95)


def test_few_blocks_reach_further_out_as_student_has_it() -> None:
    even = np.linspace(-1, 1, 100_001)
    many, few = (expanded_percentile(0.0, even, 0.95, blocks) for blocks in (1e6, 8.0))
    assert (many.low, many.high) == pytest.approx((-0.9, 0.9), abs=1e-3)
    # t(0.95, 7) · √(8/7) = 1.8946 · 1.0690 = 2.0254 normal deviations, of which 97.86 % lie below
    assert (few.low, few.high) == pytest.approx((-0.9572, 0.9572), abs=1e-3)


def test_few_samples_give_their_whole_range_and_none_give_an_error() -> None:
    assert speedup(latency([10, 12]), latency([5, 6, 7])) == Estimate(point=2.0, low=10 / 6, high=12 / 5)
    with pytest.raises(UnmeasuredError, match="no latency samples"):
        speedup(latency([]), latency([1.0]))


# --------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(1, 4, "PASS"), (1, 5, "PASS"), (4, 6, "UNDECIDED"), (5, 6, "UNDECIDED"), (5.1, 6, "FAIL")],
)
def test_at_most_looks_at_the_whole_interval(low: float, high: float, outcome: str) -> None:
    check = at_most("latency", Estimate(point=(low + high) / 2, low=low, high=high), 5.0)
    assert check.outcome == outcome
    mirrored = at_least("speedup", Estimate(point=-(low + high) / 2, low=-high, high=-low), -5.0)
    assert mirrored.outcome == outcome


def test_what_was_not_measured_is_no_pass() -> None:
    assert at_most("latency", None, 5.0).outcome is Outcome.UNMEASURED
    assert at_least("speedup", None, 2.0).outcome is Outcome.UNMEASURED


def within(low: float, point: float, high: float) -> Estimate:
    return Estimate(point=point, low=low, high=high)


def judged(budget: Budget, **found: Any) -> Verdict:
    metadata: dict[str, Any] = {
        "drop": within(-0.001, 0.001, 0.004), "baseline_metric": 0.9, "speedup": within(2.4, 2.5, 2.6),
        "latency_ms": within(7.0, 7.1, 7.2), "size_mb": 23.0, "memory_mb": 120.0, "device_present": True,
        "items_changed": 11, "n": 900, "samples": 200,
    }  # fmt: skip
    return judge(budget, **{**metadata, **found})


def test_every_limit_of_the_budget_gets_its_check() -> None:
    budget = Budget.parse(min_speedup="2x", max_latency="8ms", max_size="25MB", max_memory="300MB")
    verdict = judged(budget)
    assert [(check.name, check.outcome) for check in verdict.checks] == [
        ("accuracy drop", "PASS"), ("speedup", "PASS"), ("latency", "PASS"), ("size", "PASS"), ("memory", "PASS"),
    ]  # fmt: skip
    assert verdict.checks[0].note == "11 of 900 items changed"
    assert exit_code(verdict) == 0
    assert exit_code(judged(budget, size_mb=26.0)) == 1
    assert exit_code(judged(budget, memory_mb=None)) == 4
    assert exit_code(judged(Budget(max_drop=None))) == 0


def test_an_undecided_drop_says_how_many_items_would_decide() -> None:
    verdict = judged(Budget(), drop=within(-0.004, 0.005, 0.014))
    note = verdict.checks[0].note
    assert verdict.outcome is Outcome.UNDECIDED
    # half width 0.009 must shrink to 0.005 · 1.645/(1.645 + 0.842): (9/5 · 2.487/1.645)² = 7.404 times as many
    assert note == (
        "11 of 900 items changed; about 6,664 items would decide (5,764 more), towards a pass if they behave like these"
    )
    assert exit_code(verdict) == 3
    assert exit_code(verdict, accept_undecided=True) == 0
    doubtful = judged(Budget(), drop=within(0.004, 0.013, 0.022))
    assert "towards a fail" in doubtful.checks[0].note
    assert exit_code(doubtful, accept_undecided=True) == 3  # its point estimate is beyond the limit


def test_an_undecided_speedup_is_accepted_by_its_point_estimate() -> None:
    budget = Budget.parse(min_speedup="2.45x")
    verdict = judged(budget)
    assert verdict.outcome is Outcome.UNDECIDED
    assert settle(verdict, accept_undecided=True) is Outcome.PASS
    assert settle(verdict, accept_undecided=False) is Outcome.UNDECIDED
    assert settle(judged(Budget.parse(min_speedup="2.55x")), accept_undecided=True) is Outcome.UNDECIDED


def test_an_undecided_time_says_how_many_samples_would_decide() -> None:
    # the nearer bound is 0.1 away and must come within 0.05: (2 · 2.487/1.645)² = 9.14 times as many
    speed = judged(Budget.parse(min_speedup="2.45x")).checks[1]
    assert speed.note == "about 1,829 samples would decide (1,629 more), towards a pass if they behave like these"
    assert judged(Budget.parse(min_speedup="2.55x")).checks[1].note == speed.note.replace("a pass", "a fail")
    late = judged(Budget.parse(max_latency="7.05ms")).checks[1]
    assert (late.outcome, late.note) == (Outcome.UNDECIDED, speed.note.replace("a pass", "a fail"))
    on_it = judged(Budget.parse(max_latency="7.1ms")).checks[1]
    assert on_it.note == "it lies on the limit, so no number of samples decides"
    assert judged(Budget.parse(min_speedup="2x")).checks[1].note == ""
    assert judged(Budget.parse(min_speedup="2.45x"), samples=0).checks[1].note == ""


def test_a_device_that_is_not_here_is_unmeasured_even_without_a_limit() -> None:
    verdict = judged(Budget.parse(max_latency="8ms"), device_present=False)
    assert [check.outcome for check in verdict.checks] == ["PASS", "UNMEASURED"]
    assert "the device is not here" in verdict.checks[1].note
    without = judged(Budget(), device_present=False)
    assert [check.name for check in without.checks] == ["accuracy drop", "latency"]
    assert exit_code(without) == 4
    assert exit_code(without, accept_undecided=True) == 4


def test_accepting_the_undecided_accepts_no_failure() -> None:
    checks = [
        Check(name="accuracy drop", outcome=Outcome.UNDECIDED, limit=0.01, got=within(0, 0.005, 0.02)),
        Check(name="size", outcome=Outcome.FAIL, limit=25, got=within(26, 26, 26)),
    ]
    assert exit_code(Verdict(checks=checks), accept_undecided=True) == 1


def test_items_needed_follow_the_root_of_n() -> None:
    more = ((1.6449 + 0.8416) / 1.6449) ** 2  # for the bound to lie within the limit 4 times in 5, not only on it
    assert items_needed(within(-0.01, 0.0, 0.02), 0.01, 500) == pytest.approx(2000 * more, rel=1e-3)
    assert items_needed(within(0.01, 0.01, 0.01), 0.01, 500) is None
    # nothing lost is never enough by itself: the rule of three wants ln(20)/0.001 items
    assert items_needed(within(-0.0006, 0.0, 0.0011), 0.001, 500) == math.ceil(math.log(20) / 0.001)
    assert items_needed(within(0.0, 0.0, 0.01), 0.0, 500) is None
    assert samples_needed(within(1.8, 2.0, 2.2), 1.9, 100) == pytest.approx(400 * more, rel=1e-2)


def test_a_gain_on_few_items_promises_no_sooner_pass_than_no_drop() -> None:
    lucky, even = within(-0.025, -0.005, 0.015), within(-0.02, 0.0, 0.02)
    assert items_needed(lucky, 0.01, 500) == items_needed(even, 0.01, 500)


def test_the_number_of_items_said_to_decide_does_four_times_in_five() -> None:
    """A pilot too small to decide names n; a fresh evaluation with n items passes a candidate that lost nothing."""
    rng = np.random.default_rng(11)

    def evaluation(n: int) -> Estimate:
        lost, won, _ = rng.multinomial(n, [0.03, 0.03, 0.94])
        return paired_drop(*right_and_wrong(n, lost=lost, won=won), resamples=500)

    passed = trials = 0
    while trials < 60:
        pilot = evaluation(400)
        needed = items_needed(pilot, 0.01, 400)
        if at_most("accuracy drop", pilot, 0.01).outcome is Outcome.UNDECIDED and needed is not None:
            trials += 1
            passed += evaluation(min(needed, 10_000)).high <= 0.01  # √(0.06/10,000) is 0.0024: more are not needed
    assert passed >= 0.8 * trials


@given(point=st.floats(0, 0.009), width=st.floats(0.0001, 0.05), n=st.integers(10, 5000))
@settings(max_examples=50, deadline=None)
def test_items_needed_are_more_than_there_are_while_undecided(point: float, width: float, n: int) -> None:
    got = within(point - width, point, point + width)
    if at_most("accuracy drop", got, 0.01).outcome is Outcome.UNDECIDED:
        needed = items_needed(got, 0.01, n)
        assert needed is not None
        assert needed > n
