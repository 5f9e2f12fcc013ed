"""Statistics as pure functions of plain sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median as _median

from scipy.special import bdtr, stdtrit

# An interval over processes is not shown under this many: see DESIGN, The store.
FEWEST_PROCESSES = 5


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
    quite, which is why tables show intervals over processes.

    Returns:
        The two ends, or None where even the extremes do not reach `confidence`.
    """
    ordered, n = sorted(values), len(values)
    # Halving: a whole training has 10^5 steps, too many to sum the probabilities one by one.
    rank, too_far = 0, n // 2 + 1
    while too_far - rank > 1:
        middle = (rank + too_far) // 2
        if 1 - 2 * float(bdtr(middle - 1, n, 0.5)) >= confidence:
            rank = middle
        else:
            too_far = middle
    return (ordered[rank - 1], ordered[n - rank]) if rank else None


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean by Student's t, for quantities that are near normal over seeds.

    Returns:
        The two ends, or None under `FEWEST_PROCESSES` values.
    """
    n = len(values)
    if n < FEWEST_PROCESSES:
        return None
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return mean - half, mean + half


def ratio(value: float | None, reference: float | None) -> float | None:
    """`value` over `reference`; None where either is missing or the reference is 0."""
    if value is None or reference is None or reference == 0:
        return None
    return value / reference
