"""From the sampler's samples to figures of the measured windows; pure functions."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

Sample = dict[str, Any]
#: start and end on CLOCK_MONOTONIC, in nanoseconds
Window = tuple[int, int]


def highest(samples: Iterable[Sample], column: str, windows: Sequence[Window]) -> int | None:
    """Highest value sampled within the windows: a lower bound of the true peak, or None."""
    ordered = sorted(windows)
    starts = [start for start, _ in ordered]
    # The latest end of all windows that have begun: a long training has hundreds of windows and
    # a million samples, so each sample looks at one of them.
    ends = list(accumulate((end for _, end in ordered), max))
    best: int | None = None
    for sample in samples:
        value = sample.get(column)
        if value is None or (best is not None and value <= best):
            continue
        begun = bisect_right(starts, sample["monotonic_ns"])
        if begun and sample["monotonic_ns"] <= ends[begun - 1]:
            best = value
    return best


def baseline(samples: Sequence[Sample], column: str) -> int | None:
    """First sample, taken before the worker was started."""
    return samples[0].get(column) if samples else None


def energy_joules(
    samples: Sequence[Sample], windows: Sequence[Window]
) -> tuple[float | None, str | None]:
    """Energy of the card within the windows, and how it was got.

    The counter is read at a window's ends by linear interpolation between its samples; without a
    counter, power is integrated by the trapezoid rule. A window that the samples do not enclose
    has no known energy, and then nothing is claimed.

    Returns:
        Joules and source; None and None where it is not known.
    """
    for column, source in (("energy_joules", "nvml-counter"), ("power_watts", "nvml-power")):
        series = [
            (s["monotonic_ns"], float(s[column])) for s in samples if s.get(column) is not None
        ]
        spent = [
            _within(series, window, cumulative=column == "energy_joules") for window in windows
        ]
        known = [joules for joules in spent if joules is not None]
        if known and len(known) == len(spent):
            return sum(known), source
    return None, None


def _within(
    series: Sequence[tuple[int, float]], window: Window, *, cumulative: bool
) -> float | None:
    start, end = window
    if len(series) < 2 or series[0][0] > start or series[-1][0] < end:
        return None
    if cumulative:
        return _at(series, end) - _at(series, start)
    inside = [
        (start, _at(series, start)),
        *series[bisect_right(series, start, key=_when) : bisect_left(series, end, key=_when)],
        (end, _at(series, end)),
    ]
    return sum((b[0] - a[0]) / 1e9 * (a[1] + b[1]) / 2 for a, b in pairwise(inside))


def _at(series: Sequence[tuple[int, float]], time: int) -> float:
    """Value at a time that the series encloses."""
    index = bisect_left(series, time, key=_when)
    after, high = series[index]
    if after == time:
        return high
    before, low = series[index - 1]
    return low + (time - before) / (after - before) * (high - low)


def _when(point: tuple[int, float]) -> int:
    return point[0]
