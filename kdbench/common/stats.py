"""Statistics as pure functions of plain sequences."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median as _median

# An interval over processes is not shown under this many: see DESIGN, The store.
MIN_PROCESSES = 5
# One constant training step was seen to differ by 9 % between processes: runs that lie further
# apart than twice that did not measure the same, and nothing is to be divided by their middle.
MAX_AGREEING_RATIO = 1.18

# The fewest values among which Pettitt's test can find a change at `_SIGNIFICANT` at all.
MIN_VALUES_FOR_CHANGE = 16
_SIGNIFICANT = 0.01
# A change of level that makes a median stand for neither level. One constant step was seen to vary
# by 4 % within a process.
_CHANGED = 0.05

# Warm-up: two windows of so many steps are compared...
_WINDOW = 5
# ...and differ by less than this when it is over, or by less than their noise explains.
_STEADY = 0.02


def median(values: Sequence[float]) -> float | None:
    """Median; None of nothing."""
    return float(_median(values)) if values else None


def median_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Interval of the median from order statistics; it assumes no distribution.

    The k-th smallest and k-th largest of n values hold the median with probability
    1 - 2 * P(Binomial(n, 1/2) < k); the largest k that keeps `confidence` is taken (Conover,
    Practical Nonparametric Statistics, 3rd ed., section 3.2). So the interval covers at least as
    often as it says, if the values are independent; neighbouring steps of one process are not
    quite, which is why tables show intervals over processes. None where even the extremes do not
    reach `confidence`.
    """
    ordered, n = sorted(values), len(values)
    rank = _interval_rank(n, confidence)
    return (ordered[rank - 1], ordered[n - rank]) if rank else None


def _interval_rank(n: int, confidence: float) -> int:
    """Largest k with 1 - 2 * P(Binomial(n, 1/2) < k) >= confidence; 0 where there is none."""
    below = 0.0
    for k in range(n // 2 + 1):
        # of P(Binomial = k); through logarithms, since the coefficients of 10^5 steps overflow
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        below += math.exp(ways - n * math.log(2))
        if 1 - 2 * below < confidence:
            return k
    return n // 2


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean by Student's t, for quantities that are near normal over seeds.

    None under `MIN_PROCESSES` values.
    """
    n = len(values)
    if n < MIN_PROCESSES:
        return None
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    # Only here: it takes a third of a second to import, which no worker need pay for.
    from scipy.special import stdtrit  # noqa: PLC0415

    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return mean - half, mean + half


def is_narrow(values: Sequence[float], width: float) -> bool:
    """Whether the median's 95 % interval is at most `width` of the median across."""
    interval, middle = median_interval(values), median(values)
    if interval is None or middle is None:
        return False
    return interval[1] - interval[0] <= width * abs(middle)


def is_steady(values: Sequence[float]) -> bool | None:
    """Whether a series that began with a warm-up is steady by its end; None under ten values.

    The medians of its last two windows of five differ by no more than 2 %, or than twice the
    standard error that the noise between neighbours gives such a difference. That noise is taken
    from the median of successive differences, which neither a slow trend nor an outlier inflates
    (von Neumann et al. 1941, "The mean square successive difference", made robust).
    """
    if len(values) < 2 * _WINDOW:
        return None
    before, after = values[-2 * _WINDOW : -_WINDOW], values[-_WINDOW:]
    # normal noise: the median of |x - y| is 0.6745 * sqrt(2) deviations; a median's standard error
    # is 1.2533 deviations over sqrt(n), and of the difference of two sqrt(2) times as much
    steps = _median(abs(b - a) for a, b in pairwise(values[-2 * _WINDOW :]))
    deviation = steps / (0.6745 * math.sqrt(2))
    noise = 1.2533 * deviation * math.sqrt(2 / _WINDOW)
    middle = _median(after)
    return abs(middle - _median(before)) <= max(_STEADY * abs(middle), 2 * noise)


@dataclass(frozen=True)
class Change:
    """Where a series most likely changed its level."""

    #: the first value of the second level
    index: int
    #: median of the second level over that of the first
    ratio: float
    #: how probable such a change is in a series without one, if its values are independent
    p: float


def change_point(values: Sequence[float]) -> Change | None:
    """Find where a series most likely changed its level, by Pettitt's rank test.

    K is the largest |U_t|, U_t = 2 * (sum of the first t ranks) - t * (n + 1), and
    p = 2 * exp(-6 * K^2 / (n^3 + n^2)) (Pettitt 1979, "A non-parametric approach to the
    change-point problem", Applied Statistics 28). A drift has one too, about its middle; a few odd
    values at an end have none. None under two values, or where the first level's median is 0.
    """
    n = len(values)
    if n < 2:
        return None
    best, index, total = 0.0, 1, 0.0
    for t, rank in enumerate(_ranks(values)[:-1], start=1):
        total += rank
        if abs(2 * total - t * (n + 1)) > best:
            best, index = abs(2 * total - t * (n + 1)), t
    before, after = _median(values[:index]), _median(values[index:])
    if before == 0:
        return None
    p = min(1.0, 2 * math.exp(-6 * best**2 / (n**3 + n**2)))
    return Change(index, after / before, p)


def has_shifted(values: Sequence[float]) -> bool | None:
    """Whether a series changed its level by more than 5 %, and by more than chance would.

    None under `MIN_VALUES_FOR_CHANGE` values, which cannot tell.
    """
    if len(values) < MIN_VALUES_FOR_CHANGE:
        return None
    change = change_point(values)
    return change is not None and change.p < _SIGNIFICANT and abs(change.ratio - 1) > _CHANGED


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [(bisect_left(ordered, v) + 1 + bisect_right(ordered, v)) / 2 for v in values]


def ratio(value: float | None, reference: float | None) -> float | None:
    """`value` over `reference`; None where either is missing or the reference is 0."""
    if value is None or reference is None or reference == 0:
        return None
    return value / reference


def ratio_interval(
    value: float,
    interval: tuple[float, float],
    reference: float,
    reference_interval: tuple[float, float],
) -> tuple[float, float] | None:
    """Interval of `value` over `reference`, independent estimates that each have an interval.

    By logarithms, each end lies from the ratio by the two distances that would take it there, one
    of each interval, squared and added (Zou and Donner 2008, "Construction of confidence limits
    about effect measures: a general approach", Statistics in Medicine 27; known as MOVER). So it
    covers about as often as the two intervals do, asks nothing of distributions that they do not
    ask, and lets the two sides vary differently. (A rank test's interval does not: with normal
    noise ten times as wide on the side of 6 values as on that of 20, it covered 81 % of the time
    in a simulation, and this one 97 %.) A reference without any spread leaves the value's own.
    None where a value or an end is not positive: a ratio then means nothing.
    """
    if min(value, reference, *interval, *reference_interval) <= 0:
        return None
    up, down = math.log(interval[1] / value), math.log(value / interval[0])
    reference_up = math.log(reference_interval[1] / reference)
    reference_down = math.log(reference / reference_interval[0])
    found = value / reference
    low = found * math.exp(-math.hypot(down, reference_up))
    return low, found * math.exp(math.hypot(up, reference_down))
