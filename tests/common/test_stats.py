"""Statistics against exact arithmetic and scipy's own distributions."""

import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kdbench.common.stats import (
    change_point,
    has_shifted,
    is_narrow,
    is_steady,
    mean_interval,
    median,
    median_interval,
    ratio,
    ratio_interval,
)

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


@st.composite
def estimates(draw):
    """A positive value within its interval."""
    ends = sorted(draw(st.lists(st.floats(1e-3, 1e6), min_size=3, max_size=3)))
    return ends[1], (ends[0], ends[2])


@given(estimates(), estimates(), st.floats(1e-3, 1e3))
def test_the_interval_of_a_ratio(after, before, factor):
    low, high = ratio_interval(*after, *before)
    found = after[0] / before[0]
    widest = after[1][0] / before[1][1], after[1][1] / before[1][0]
    assert low <= found * (1 + 1e-12)
    assert high >= found * (1 - 1e-12)
    assert low >= widest[0] * (1 - 1e-9), "no wider than if both erred most at once"
    assert high <= widest[1] * (1 + 1e-9)
    # no wider than needed, but at least as wide as either alone
    assert low <= min(after[1][0] / before[0], after[0] / before[1][1]) * (1 + 1e-9)
    assert high >= max(after[1][1] / before[0], after[0] / before[1][0]) * (1 - 1e-9)
    # sides exchanged, the ends are inverted; units do not matter
    assert ratio_interval(*before, *after) == pytest.approx((1 / high, 1 / low))
    scaled = after[0] * factor, (after[1][0] * factor, after[1][1] * factor)
    assert ratio_interval(*scaled, *before) == pytest.approx((low * factor, high * factor))


def test_the_interval_of_a_ratio_by_hand():
    # upwards by factors of 3 and 4 steps of e^0.1 it is 5 of them, and as many downwards
    step = np.exp(0.1)
    one, other = (20.0, (20 / step**3, 20 * step**4)), (10.0, (10 / step**3, 10 * step**4))
    low, high = ratio_interval(*one, *other)
    assert (low, high) == pytest.approx((2 / step**5, 2 * step**5))


def test_a_ratio_to_what_is_known_exactly_has_the_values_own_interval():
    assert ratio_interval(3.0, (2.0, 5.0), 2.0, (2.0, 2.0)) == pytest.approx((1, 2.5))
    assert ratio_interval(2.0, (2.0, 2.0), 3.0, (2.0, 5.0)) == pytest.approx((2 / 5, 1))
    assert ratio_interval(3.0, (3.0, 3.0), 2.0, (2.0, 2.0)) == (1.5, 1.5)


@pytest.mark.parametrize(
    ("after", "before"),
    [
        ((0.0, (0.0, 0.0)), (1.0, (1.0, 1.0))),
        ((1.0, (0.0, 2.0)), (1.0, (1.0, 1.0))),
        ((1.0, (1.0, 1.0)), (1.0, (-0.5, 2.5))),
        ((1.0, (1.0, 1.0)), (0.0, (0.0, 1.0))),
    ],
)
def test_a_ratio_of_what_may_be_nothing_has_no_interval(after, before):
    assert ratio_interval(*after, *before) is None


def modes(share):
    """A step in two modes, the slower one 9 % up and taken by `share` of the processes."""

    def draw(random, n):
        level = np.where(random.random(n) < share, 1.09, 1.0)
        return level * np.exp(random.normal(0, 0.01, n))

    return draw


SIDES = {
    "normal": lambda random, n: np.exp(random.normal(0, 0.04, n)),
    "wide": lambda random, n: np.exp(random.normal(0, 0.1, n)),
    "narrow": lambda random, n: np.exp(random.normal(0, 0.01, n)),
    "tail": lambda random, n: 1 + random.pareto(1.1, n) / 10,
    "modes": modes(0.3),
    "even modes": modes(0.45),
}


@pytest.mark.parametrize("sizes", [(6, 6), (6, 20), (20, 6), (20, 20)])
@pytest.mark.parametrize(
    "sides",
    [
        ("normal", "normal"),
        ("narrow", "wide"),
        ("wide", "narrow"),
        ("tail", "tail"),
        ("tail", "narrow"),
        ("modes", "modes"),
        ("even modes", "normal"),
        ("even modes", "narrow"),
    ],
)
def test_the_interval_of_a_ratio_of_medians_covers(sides, sizes):
    """Whatever the shapes, and with sides that vary differently."""
    random = np.random.default_rng(11)
    before, after = (SIDES[name] for name in sides)
    medians = [np.median(SIDES[name](np.random.default_rng(1), 10**6)) for name in sides]
    true, covered = medians[1] / medians[0], 0
    for _ in range(2000):
        one, other = before(random, sizes[0]).tolist(), after(random, sizes[1]).tolist()
        low, high = ratio_interval(
            median(other), median_interval(other), median(one), median_interval(one)
        )
        covered += low <= true <= high
    assert covered / 2000 >= 0.95


def test_the_interval_of_a_ratio_is_not_too_wide():
    """It finds a difference of 10 % in noise of 4 % among six processes, most of the time."""
    random, found = np.random.default_rng(5), 0
    for _ in range(1000):
        one = np.exp(random.normal(0, 0.04, 6)).tolist()
        other = (1.1 * np.exp(random.normal(0, 0.04, 6))).tolist()
        low, _ = ratio_interval(
            median(other), median_interval(other), median(one), median_interval(one)
        )
        found += low > 1
    assert found >= 700


def pettitt(values):
    """The definition: U_t counts, over all pairs across t, who is larger."""
    n = len(values)
    return [
        sum(np.sign(values[j] - values[i]) for i in range(t) for j in range(t, n))
        for t in range(1, n)
    ]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=25))
def test_a_change_is_where_pettitts_statistic_is_largest(values):
    found, counts = change_point(values), pettitt(values)
    n, largest = len(values), max(abs(count) for count in counts)
    assert found.p == pytest.approx(min(1, 2 * np.exp(-6 * largest**2 / (n**3 + n**2))))
    if largest:
        assert abs(counts[found.index - 1]) == largest
    first, second = values[: found.index], values[found.index :]
    assert found.ratio == statistics.median(second) / statistics.median(first)


def test_no_change_is_found_where_there_cannot_be_one():
    assert change_point([1.0]) is None
    assert change_point([0.0, 1.0]) is None
    assert change_point([3.0] * 40).p == 1


@pytest.mark.parametrize(
    ("values", "shifted"),
    [
        ([1.0] * 15, None),
        ([1.0] * 16, False),
        ([1.0] * 8 + [1.1] * 8, True),
        ([1.0] * 8 + [1.04] * 8, False),  # too small to matter
        ([1.0] * 30 + [0.9] * 12, True),
        ([5.0, 2.0] + [1.0] * 30, False),  # a cold start does not make a level
        ([1.0] * 30 + [7.0], False),
        ([1.0 + 0.01 * n for n in range(40)], True),  # a drift
        ([1.0, 1.2] * 30, False),  # two modes in turn: noisy, and of one level
    ],
)
def test_a_shifted_series(values, shifted):
    assert has_shifted(values) is shifted


def test_alarms_on_noise_are_rare():
    """At most one in a hundred by the test, and far fewer by the size that it must have."""
    random = np.random.default_rng(0)
    alarms = [has_shifted(random.normal(1, 0.04, 60).tolist()) for _ in range(1000)]
    assert sum(alarms) <= 2


@pytest.mark.parametrize(
    ("values", "settled"),
    [
        ([1.0] * 9, None),
        ([1.0] * 10, True),
        ([9.0, 4.0, 2.0, 1.0, 1.0, *[1.0] * 5], False),
        ([9.0, 4.0, 1.0, 1.0, 1.0, *[1.0] * 5], True),  # the medians tell, and two are cold
        ([2.0 - 0.1 * n for n in range(10)], False),
        ([1.0, 1.01, 1.02, 0.99, 1.0, 1.03, 0.98, 1.01, 1.0, 1.02], True),
        ([1.0, 1.5, 0.8, 1.2, 1.0, 1.4, 0.9, 1.1, 1.6, 1.3], True),  # lost in its noise
    ],
)
def test_a_settled_series(values, settled):
    assert is_steady(values) is settled
    if settled is not None:
        assert is_steady([100.0, *values]) is settled, "only the last ten count"


def test_a_narrow_interval():
    assert not is_narrow([1.0] * 5, 0.5), "there is none"
    assert is_narrow([1.0] * 6, 0.01)
    assert is_narrow([0.99, 1.0, 1.0, 1.0, 1.0, 1.01], 0.021)
    assert not is_narrow([0.99, 1.0, 1.0, 1.0, 1.0, 1.01], 0.019)
