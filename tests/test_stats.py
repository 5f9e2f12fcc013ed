"""Statistics against exact arithmetic and scipy's own distributions."""

import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kdbench.stats import mean_interval, median, median_interval, ratio

FINITE = st.floats(-1e9, 1e9)


@given(st.lists(FINITE, min_size=1))
def test_median_is_the_middle(values):
    assert median(values) == statistics.median(values)


def test_median_of_nothing_is_missing():
    assert median([]) is None


def coverage(n, rank):
    """Chance that the median lies between the rank-th smallest and largest of n values."""
    return 1 - 2 * scipy.stats.binom.cdf(rank - 1, n, 0.5)


# The last is a whole training of the paper: 200 epochs of 781 steps.
@pytest.mark.parametrize("n", [*range(6, 61), 200, 1500, 156_200])
def test_median_interval_is_the_narrowest_that_covers(n):
    low, high = median_interval(range(n))
    rank = low + 1  # the values are their own ranks, from 0
    assert high == n - rank, "as many values are left out below as above"
    assert coverage(n, rank) >= 0.95
    assert coverage(n, rank + 1) < 0.95


@pytest.mark.parametrize("n", range(6))
def test_too_few_values_have_no_median_interval(n):
    assert median_interval(list(range(n))) is None


def test_median_interval_of_published_table():
    # Conover's table A3 and Gibbons give the 1st and 6th of 6, the 2nd and 9th of 10, the 6th
    # and 15th of 20.
    for n, ranks in {6: (1, 6), 8: (1, 8), 9: (2, 8), 10: (2, 9), 20: (6, 15)}.items():
        low, high = median_interval(range(1, n + 1))
        assert (low, high) == ranks


def test_median_interval_of_another_confidence():
    assert median_interval(range(1, 6), 0.9) == (1, 5)
    assert median_interval(range(1, 8), 0.99) is None
    assert median_interval(range(1, 9), 0.99) == (1, 8)
    # the two in the middle hold it with 31 %, and nothing is narrower
    assert median_interval(range(1, 7), 0.3) == (3, 4)


@given(st.lists(FINITE, min_size=6, max_size=40), st.randoms())
def test_median_interval_holds_the_median_in_any_order(values, random):
    shuffled = random.sample(values, len(values))
    low, high = median_interval(shuffled)
    assert low <= median(values) <= high
    assert (low, high) == median_interval(values)
    assert {low, high} <= set(values)


def test_median_interval_covers_as_often_as_it_says():
    # A skewed distribution with heavy tails, where a normal interval would not.
    generator = np.random.default_rng(7)
    draws = generator.pareto(1.1, size=(2000, 15))
    true = 2 ** (1 / 1.1) - 1
    held = [low <= true <= high for low, high in map(median_interval, draws.tolist())]
    assert np.mean(held) == pytest.approx(coverage(15, 4), abs=0.015)


@given(st.lists(st.integers(-(10**6), 10**6).map(lambda n: n / 1000), min_size=5, max_size=30))
def test_mean_interval_is_students(values):
    low, high = mean_interval(values)
    if len(set(values)) == 1:  # scipy has no interval for these
        assert (low, high) == pytest.approx((values[0], values[0]))
        return
    scale = scipy.stats.sem(values)
    expected = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scale)
    assert (low, high) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("n", range(5))
def test_too_few_processes_have_no_interval(n):
    assert mean_interval([1.0] * n) is None


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        (3.0, 2.0, 1.5),
        (0.0, 2.0, 0.0),
        (3.0, 0.0, None),
        (0.0, 0, None),
        (None, 2.0, None),
        (3.0, None, None),
        (None, None, None),
    ],
)
def test_ratio(value, reference, expected):
    # a value of 0 is a value: only what is missing stays missing
    assert ratio(value, reference) == expected
