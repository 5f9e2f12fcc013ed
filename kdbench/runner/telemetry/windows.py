"""The windows of time in which the timed steps ran, and figures of the samples in them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

Sample = dict[str, Any]
#: start and end on CLOCK_MONOTONIC, in nanoseconds
Window = tuple[int, int]
# The distance from a suspension at which samples are trusted: the slowest samples are a second
# apart, and those next to a suspension include it. Some counters restart after it.
MARGIN_NS = 1_000_000_000


def highest(samples: Iterable[Sample], column: str, windows: Sequence[Window]) -> int | None:
    """Highest value sampled within the windows: a lower bound of the true peak, or None."""
    return max(within(samples, column, windows), default=None)


def baseline(samples: Sequence[Sample], column: str) -> int | None:
    """First sample, taken before the worker was started."""
    return samples[0].get(column) if samples else None


def within(samples: Iterable[Sample], column: str, windows: Sequence[Window]) -> list[Any]:
    """All values sampled within the windows, in order; a window's ends belong to it."""
    ordered = _merged(windows)
    starts = [start for start, _ in ordered]
    found = []
    for sample in samples:
        value, now = sample.get(column), sample["monotonic_ns"]
        begun = bisect_right(starts, now)
        if value is not None and begun and now <= ordered[begun - 1][1]:
            found.append(value)
    return found


def padded(windows: Sequence[Window], nanoseconds: int) -> list[Window]:
    """Windows made longer at both ends, for what is sampled seldom."""
    return [(start - nanoseconds, end + nanoseconds) for start, end in windows]


def without(windows: Iterable[Window], holes: Iterable[Window]) -> list[Window]:
    """Windows in order, without what of them lies in some holes."""
    left = _merged(windows)
    for first, last in _merged(holes):
        left = [
            part
            for start, end in left
            for part in ((start, min(end, first)), (max(start, last), end))
            if part[0] < part[1]
        ]
    return left


def mean_rate(samples: Iterable[Sample], column: str, windows: Sequence[Window]) -> float | None:
    """Mean over the windows of a value that each sample tells of the time since the one before.

    The first sample begins the first such time. A time of which no sample tells is left out; None
    where none tells of any part of the windows.
    """
    ordered, before = _merged(windows), None
    area = spanned = 0.0
    first = 0
    for sample in samples:
        now, value = sample["monotonic_ns"], sample.get(column)
        if value is not None and before is not None:
            while first < len(ordered) and ordered[first][1] <= before:
                first += 1
            overlap = sum(
                max(0, min(end, now) - max(start, before))
                for start, end in ordered[first : bisect_right(ordered, (now, now))]
            )
            area, spanned = area + overlap * value, spanned + overlap
        if value is not None or before is None:
            before = now
    return area / spanned if spanned else None


def interval_seconds(samples: Sequence[Sample]) -> tuple[float | None, float | None]:
    """Median and longest interval between samples, as achieved; None and None under two."""
    times = [sample["monotonic_ns"] for sample in samples]
    gaps = [(b - a) / 1e9 for a, b in pairwise(times)]
    return (median(gaps), max(gaps)) if gaps else (None, None)


@dataclass(frozen=True)
class Counter:
    """What a counter, or the integral of a rate, gained within windows.

    The counter is read at a window's ends by linear interpolation between its samples; a rate is
    integrated by the trapezoid rule.
    """

    series: Sequence[tuple[int, float]]  #: time in nanoseconds and value
    cumulative: bool  #: a counter; else a rate per second
    source: str  #: what it is called

    @classmethod
    def of(
        cls, samples: Iterable[Sample], column: str, *, cumulative: bool = True, source: str = ""
    ) -> Counter:
        """Pick a column's known values."""
        known = [
            (s["monotonic_ns"], float(s[column])) for s in samples if s.get(column) is not None
        ]
        return cls(known, cumulative, source)

    def gained(self, windows: Sequence[Window]) -> float | None:
        """Sum over windows; None for no window, and where the samples do not enclose each."""
        spent = [_within(self.series, window, cumulative=self.cumulative) for window in windows]
        known = [value for value in spent if value is not None]
        return sum(known) if known and len(known) == len(spent) else None


def card_energy(samples: Sequence[Sample], windows: Sequence[Window]) -> Counter | None:
    """Pick the card's energy counter, or else its power, if it encloses all the windows."""
    for column, source in (("energy_joules", "nvml-counter"), ("power_watts", "nvml-power")):
        counter = Counter.of(samples, column, cumulative=column == "energy_joules", source=source)
        if counter.gained(windows) is not None:
            return counter
    return None


def energy_joules(
    samples: Sequence[Sample], windows: Sequence[Window]
) -> tuple[float | None, str | None]:
    """Return the card's energy within the windows, in joules, and its source.

    Both are None where a window is not enclosed by samples: a part of the energy would be a number,
    and wrong.
    """
    counter = card_energy(samples, windows)
    return (None, None) if counter is None else (counter.gained(windows), counter.source)


@dataclass(frozen=True)
class Span:
    """Consecutive timed steps of one epoch, or of a profile."""

    window: Window  #: from the first step's start to the last one's end, on CLOCK_MONOTONIC
    epoch: int | None  #: None in a profile
    steps: int  #: how many there are


def suspensions(steps: Sequence[Mapping[str, Any]]) -> list[Window]:
    """Return when the machine was suspended, with a margin.

    `steps` are all of one attempt, in order; a suspended step was suspended after the step before.
    """
    holes, before = [], None
    for step in steps:
        start, end = _step_window(step)
        if step["suspended"]:
            holes.append((start if before is None else before, end))
        before = end
    return padded(holes, MARGIN_NS)


def timed_spans(
    steps: Sequence[Mapping[str, Any]], phases: Sequence[int], holes: Sequence[Window]
) -> list[Span]:
    """Group consecutive timed steps of one attempt, without the gaps between phases.

    Test images are classified between two epochs, and checkpoints are written within one. Steps
    that overlap one of `holes` are left out.
    """
    begun, opened = sorted(phases), sorted(first for first, _ in holes)
    spans: dict[tuple[str, int | None, int, int], Span] = {}
    for step in steps:
        start, end = _step_window(step)
        if any(start <= last and first <= end for first, last in holes):
            continue
        places = (bisect_right(begun, start), bisect_right(opened, start))
        part = (step["phase"], step.get("epoch"), *places)
        before = spans.get(part, Span((start, start), step.get("epoch"), 0))
        spans[part] = Span((before.window[0], end), before.epoch, before.steps + 1)
    return list(spans.values())


def _merged(windows: Iterable[Window]) -> list[Window]:
    """Windows in order, those that overlap made one."""
    merged: list[Window] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


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


def _step_window(step: Mapping[str, Any]) -> Window:
    """From a step's start to its end; an accounting step has no duration."""
    start = int(step["started_ns"])
    return start, start + int((step["seconds"] or 0.0) * 1e9)
