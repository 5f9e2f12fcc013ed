"""The verdict on a change in time: exact, symmetric, monotone, and never made of nothing."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from kdbench.gate import verdict
from kdbench.gate.verdict import judge

times = st.floats(0.01, 100)
sides = st.lists(times, min_size=5, max_size=9)
# equal values too, as a coarse clock makes them
coarse = st.integers(1, 6).map(float)
STEADY = [1.00, 1.01, 1.02, 0.99, 1.00, 1.01, 0.98, 1.00]


def times_of(factor, values=STEADY):
    return [factor * v for v in values]


def noisy(n, seed, *, factor=1.0, spread=0.05):
    return (factor * np.exp(np.random.default_rng(seed).normal(0, spread, n))).tolist()


def test_the_same_times_are_held_and_a_clear_slow_down_is_not():
    assert judge(STEADY, STEADY).outcome == "held"
    found = judge(STEADY, times_of(1.1))
    assert found.outcome == "regressed"
    assert found.ratio == pytest.approx(1.1)
    assert found.reason == "+10.0% (+8.9% to +11.1%)"
    assert found.more is None
    assert judge(STEADY, times_of(0.9)).outcome == "improved"


def test_a_slow_down_within_the_tolerance_is_held_however_sure_it_is():
    found = judge(STEADY, times_of(1.03))
    assert found.p < 0.01
    assert found.outcome == "held"
    assert judge(STEADY, times_of(1.03), tolerance=0.01).outcome == "regressed"


def test_held_is_a_claim_of_its_own_and_noise_cannot_make_it():
    """As noisy as the machine that the recorded processes ran on."""
    before, after = noisy(6, 1, spread=0.14), noisy(6, 2, spread=0.14)
    found = judge(before, after)
    assert found.outcome == "cannot-tell"
    assert found.interval[1] > 1.05
    assert found.more > 20
    assert f"about {found.more} more processes a side" in found.reason


def test_a_change_as_large_as_the_tolerance_stays_open_and_no_number_is_promised():
    before = np.linspace(0.99, 1.01, 20).tolist()
    found = judge(before, times_of(1.0499, before))
    assert (found.outcome, found.more) == ("cannot-tell", None)
    assert "too close to the tolerance of 5.0%" in found.reason


def test_a_slow_spell_in_a_quarter_of_the_processes_moves_no_verdict():
    slow = [*STEADY[:6], *times_of(3, STEADY[6:])]
    assert judge(STEADY, slow).outcome != "regressed"
    assert judge(slow, times_of(1.1)).ratio == pytest.approx(1.1, abs=0.02)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 9), (1, 1), (1, 500), (4, 9), (9, 4)])
def test_too_few_processes_on_a_side_never_tell(before, after):
    """One value a side least of all, however far apart they are."""
    found = judge([1.0] * before, [9.0] * after)
    assert found.outcome == "cannot-tell"
    assert found.interval is None
    assert found.p is None
    assert found.ratio == (9.0 if before and after else None)
    assert found.more == 5 - min(before, after)
    assert f"{before} processes before and {after} after" in found.reason


def test_an_alarm_level_that_so_few_cannot_reach_asks_for_more():
    before, after = [1.0] * 5, [2.0] * 5
    assert judge(before, after).p == pytest.approx(1 / math.comb(10, 5))
    found = judge(before, after, alarm=0.001)
    assert (found.outcome, found.more) == ("cannot-tell", 2)
    for more, outcome in ((1, "cannot-tell"), (2, "regressed")):
        found = judge(before + [1.0] * more, after + [2.0] * more, alarm=0.001)
        assert found.outcome == outcome


BUSY, IDLE = [0.9, 1.1, 1.3, 1.0, 1.2, 1.4, 1.0, 0.8], [0.0, 0.1, 0.0, 0.0, 0.2, 0.0, 0.1, 0.0]


@pytest.mark.parametrize(
    ("factor", "before", "after", "outcome"),
    [
        (1.1, IDLE, IDLE, "regressed"),
        (1.1, IDLE, BUSY, "cannot-tell"),
        (1.1, BUSY, IDLE, "regressed"),
        (1.0, IDLE, BUSY, "held"),
        (1.0, BUSY, IDLE, "cannot-tell"),
        (0.9, BUSY, IDLE, "cannot-tell"),
        (0.9, IDLE, BUSY, "improved"),
        (1.1, [], BUSY, "regressed"),
    ],
)
def test_a_verdict_that_the_machines_load_may_explain_is_taken_back(factor, before, after, outcome):
    plain = judge(STEADY, times_of(factor))
    found = judge(STEADY, times_of(factor), loads=(before, after))
    assert found.outcome == outcome
    if outcome == "cannot-tell":
        when = "after" if factor > 1 else "before"
        assert f"{plain.reason}, but others kept the machine busier {when} (p = " in found.reason
        assert (found.ratio, found.interval, found.p) == (plain.ratio, plain.interval, plain.p)
    else:
        assert found == plain


@given(before=sides, after=sides, loads=st.tuples(sides, sides))
@settings(deadline=None)
def test_a_load_only_ever_takes_back(before, after, loads):
    found = judge(before, after, loads=loads)
    assert found.outcome in (judge(before, after).outcome, "cannot-tell")


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_time_is_refused(wrong):
    with pytest.raises(ValueError, match="positive"):
        judge([*STEADY, wrong], STEADY)
    with pytest.raises(ValueError, match="positive"):
        judge(STEADY, STEADY, alarm=wrong)


@pytest.mark.parametrize("wrong", [-0.1, -2.0, math.nan, math.inf])
def test_what_is_no_tolerance_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        judge(STEADY, STEADY, tolerance=wrong)


def test_without_a_tolerance_only_times_that_cannot_be_slower_are_held():
    assert judge([1.0] * 5, [1.0] * 5, tolerance=0).outcome == "held"
    assert judge(STEADY, times_of(0.9), tolerance=0).outcome == "improved"
    assert judge(STEADY, times_of(1.05), tolerance=0).outcome == "regressed"
    assert judge(STEADY, STEADY, tolerance=0).outcome == "cannot-tell"


@settings(deadline=None, max_examples=40)
@given(st.lists(times | coarse, min_size=10, max_size=10))
def test_chance_alone_alarms_no_more_often_than_stated_whatever_the_times(values):
    """Of all ways to deal the same ten values to two sides, at most 1 % may be called a change."""
    dealt = list(combinations(range(10), 5))
    found = [
        judge([values[i] for i in range(10) if i not in after], [values[i] for i in after]).outcome
        for after in dealt
    ]
    assert found.count("regressed") <= 0.01 * len(dealt)
    assert found.count("improved") <= 0.01 * len(dealt)


@pytest.mark.parametrize(("before", "after"), [(5, 5), (5, 12), (20, 20), (120, 120)])
def test_the_test_agrees_with_scipys(before, after):
    """120 a side are beyond the exact distribution."""
    left, right = noisy(before, 3), noisy(after, 4, factor=1.02)
    exact = [
        mannwhitneyu(right, left, alternative=side, method="exact").pvalue
        for side in ("greater", "less")
    ]
    assert judge(left, right).p == pytest.approx(min(exact), abs=2e-4)


@settings(deadline=None)
@given(before=sides, after=sides)
def test_the_interval_is_the_tests_own(before, after):
    """Its ends are the last slow-down that is not refuted at 2.5 %, each way."""
    found = judge(before, after)
    low, high = found.interval
    assert low <= found.ratio * (1 + 1e-12)
    assert high >= found.ratio * (1 - 1e-12)
    for end, inner, side in ((low, 1 + 1e-9, "greater"), (high, 1 - 1e-9, "less")):
        for nudge in (inner, 1 / inner):
            shifted = [end * nudge * v for v in before]
            p = mannwhitneyu(after, shifted, alternative=side, method="exact").pvalue
            assert (p > 0.025) == (nudge == inner)


@settings(deadline=None)
@given(before=sides, after=sides)
def test_swapping_the_sides_inverts_the_verdict(before, after):
    there, back = judge(before, after), judge(after, before)
    assert back.p == there.p
    assert back.ratio == pytest.approx(1 / there.ratio)
    assert back.interval == pytest.approx((1 / there.interval[1], 1 / there.interval[0]))
    assume(abs(abs(math.log(there.ratio)) - math.log(1.05)) > 1e-9)
    assert (there.outcome == "regressed") == (back.outcome == "improved")


@settings(deadline=None)
@given(before=sides, after=sides, seed=st.integers(0, 99), power=st.integers(-20, 20))
def test_neither_order_nor_unit_matters(before, after, seed, power):
    random = np.random.default_rng(seed)
    shuffled = [random.permutation(v).tolist() for v in (before, after)]
    there = judge(before, after)
    assert judge(*shuffled) == there
    assert judge(*(times_of(2.0**power, v) for v in shuffled)) == there


@settings(deadline=None)
@given(before=sides, after=sides, slower=st.lists(st.floats(1, 3), min_size=9, max_size=9))
def test_slower_times_never_look_better(before, after, slower):
    there = judge(before, after)
    worse = judge(before, [v * s for v, s in zip(after, slower, strict=False)])
    assert worse.ratio >= there.ratio
    assert worse.interval[0] >= there.interval[0]
    assert worse.interval[1] >= there.interval[1]
    rank = ["improved", "held", "cannot-tell", "regressed"]
    assert rank.index(worse.outcome) >= rank.index(there.outcome)


@settings(deadline=None)
@given(before=sides, after=sides)
def test_a_verdict_says_what_its_figures_say(before, after):
    found = judge(before, after)
    low, high = found.interval
    if found.outcome == "regressed":
        assert found.ratio > 1.05
        assert low > 1
    elif found.outcome == "improved":
        assert found.ratio < 1 / 1.05
        assert high < 1
    else:
        assert (found.outcome == "held") == (high <= 1.05)
    assert (found.more is None) or found.outcome == "cannot-tell"
    assert "\n" not in found.reason


def test_so_many_more_repeats_as_it_asks_for_mostly_tell():
    told = []
    for seed in range(60):
        factor = (1.0, 1.1)[seed % 2]
        before, after = noisy(6, seed), noisy(6, 1000 + seed, factor=factor)
        found = judge(before, after)
        if found.outcome != "cannot-tell":
            continue
        more = found.more
        again = judge(
            before + noisy(more, 2000 + seed), after + noisy(more, 3000 + seed, factor=factor)
        )
        told.append(again.outcome != "cannot-tell")
    assert len(told) > 20
    assert sum(told) / len(told) > 0.7


def test_a_side_of_hundreds_is_judged_soon_and_as_well():
    before, after = noisy(150, 5), noisy(150, 6, factor=1.1)
    assert judge(before, after).outcome == "regressed"
    assert judge(before, noisy(150, 7)).outcome == "held"
    assert verdict._chance((150, 150), 150 * 150) == pytest.approx(1, abs=1e-9)
