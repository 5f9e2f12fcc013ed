"""Whether a step became slower: a verdict from two sets of processes, as pure functions.

A process is the unit, whatever number of steps it timed: one constant step differs more between
processes than within one. Its value is best its fastest step: others' use of a machine only ever
adds time, and takes the fastest of many steps along least (Chen and Revels 2016, "Robust
benchmarking in noisy environments", arXiv 1608.04295; `benchmarks/power.py` measured it here).
The rule, for `tolerance` t and alarm level a:

- regressed: the ratio is over 1 + t, *and* an exact test says with p <= a that there is a slow-down
  at all;
- improved: the same of the inverse ratio;
- held: the ratio's 95 % interval ends below 1 + t, so a slow-down beyond it is excluded;
- cannot-tell: anything else, fewer than five processes a side, and a change that may be the
  machine's: others kept it busier on one side, in the direction that would explain the verdict.

The ratio is the median of all ratios of a value after to a value before (Hodges and Lehmann 1963,
"Estimates of location based on rank tests", Annals of Mathematical Statistics 34; of logarithms, so
that it is a ratio and swapping the sides inverts it). Up to 29 % of the processes may be in a slow
spell of the machine without taking it along. The test is Mann and Whitney's, in its exact
distribution: where there was no change, it alarms no more often than `a`, whatever the times'
distribution, two modes and long tails included, as long as processes are exchangeable, so if the
machine itself did not change between the sides; which is why others' load on it, where it is known,
is put to the same test. The interval is the test inverted (Hollander, Wolfe and Chicken,
Nonparametric Statistical Methods, 3rd ed., sections 4.1 to 4.3), and so agrees with it.

The test asks for *some* slow-down and the ratio for one that matters. To ask the test for one
beyond the tolerance would take four times as many processes to find twice the tolerance.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from statistics import NormalDist
from typing import Literal

from kdbench.common.stats import MIN_PROCESSES

Outcome = Literal["held", "regressed", "improved", "cannot-tell"]

# Chance of an alarm where nothing changed, at most.
ALARM = 0.01
# Others' load is called unlike with this chance, where it is not.
_UNLIKE = 0.05
# Each end of the 95 % interval is wrong with this chance.
_END = 0.025
# The exact distribution is worked out up to so many pairs: 100 processes a side take 0.1 s, and
# there the normal one differs from it by less than 0.0005.
_EXACT_PAIRS = 10_000
# Half of the interval, in standard errors...
_DEVIATIONS = 1.96
# ...and as a share of the distance to what it must not reach, to stay below in about four of five
# cases: 1.96 of 0.84 + (1.96 or, of the alarm, 2.33) deviations.
_TELLING = 0.65
# Nobody repeats more often than this.
_MOST_REPEATS = 1000


@dataclass(frozen=True)
class Verdict:
    """What two sets of processes say of a change in time."""

    outcome: Outcome
    #: time after over time before; None without values on both sides
    ratio: float | None
    #: 95 % interval of the ratio; None under `MIN_PROCESSES` a side
    interval: tuple[float, float] | None
    #: chance of a difference at least as consistent, in the direction found, if there is none
    p: float | None
    #: how many more repeats each side needs, about, where it cannot tell and so many would do
    more: int | None
    #: one line for people
    reason: str


def judge(
    before: Sequence[float],
    after: Sequence[float],
    *,
    tolerance: float = 0.05,
    alarm: float = ALARM,
    loads: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Verdict:
    """Judge a change from one positive value per process, such as its fastest step's seconds.

    Args:
        before: values of the processes that are the baseline.
        after: values of those to be judged, in the same unit.
        tolerance: the relative slow-down that does not matter, such as 0.05.
        alarm: chance of "regressed" where nothing changed, at most, and of "improved" too. Who
            judges several cells may divide it by their number.
        loads: what others used of the machine during the processes before and after, such as the
            column `cpu_elsewhere`, where it is known.

    Raises:
        ValueError: a time or the alarm level is not a positive number, or the tolerance negative.
    """
    if not all(math.isfinite(v) and v > 0 for v in (*before, *after, alarm, 1 + tolerance)):
        raise ValueError("expected positive, finite times and alarm level")
    if tolerance < 0:
        raise ValueError(f"expected a tolerance of at least 0, found {tolerance}")
    ratios = sorted(b / a for a in before for b in after)
    ratio = _ratio(ratios) if ratios else None
    fewest = min(len(before), len(after))
    if fewest < MIN_PROCESSES:
        more = MIN_PROCESSES - fewest
        sides = f"{len(before)} processes before and {len(after)} after"
        reason = f"{sides} are too few: {more} more, at least"
        return Verdict("cannot-tell", ratio, None, None, more, reason)
    verdict = _of_enough(ratios, (len(before), len(after)), 1 + tolerance, alarm)
    return verdict if loads is None else _in_doubt(verdict, *loads)


def _of_enough(ratios: list[float], sides: tuple[int, int], most: float, alarm: float) -> Verdict:
    """Judge the sorted ratios of all pairs of at least `MIN_PROCESSES` a side."""
    ratio, interval = _ratio(ratios), _interval(ratios, sides)
    # a tie speaks against a change
    slower = _chance(sides, bisect_right(ratios, 1))
    faster = _chance(sides, len(ratios) - bisect_left(ratios, 1))
    outcome: Outcome = "cannot-tell"
    if ratio > most and slower <= alarm:
        outcome = "regressed"
    elif ratio < 1 / most and faster <= alarm:
        outcome = "improved"
    elif interval[1] <= most:
        outcome = "held"
    found = f"{ratio - 1:+.1%} ({interval[0] - 1:+.1%} to {interval[1] - 1:+.1%})"
    more = None
    if outcome == "cannot-tell":
        more = _more(sides, _needed_share(ratio, interval, most), alarm)
        close = f"too close to the tolerance of {most - 1:.1%} to tell"
        found += (
            f", {close}" if more is None else f": about {more} more processes a side would tell"
        )
    return Verdict(outcome, ratio, interval, min(slower, faster), more, found)


def _in_doubt(verdict: Verdict, before: Sequence[float], after: Sequence[float]) -> Verdict:
    """Take back a verdict that the machine's load may have made."""
    if verdict.outcome == "cannot-tell":
        return verdict
    # busier after, times are longer; busier before, a slow-down may be hidden
    when = "after" if verdict.outcome == "regressed" else "before"
    quiet, busy = (before, after) if when == "after" else (after, before)
    p = _chance((len(before), len(after)), sum(b <= q for q in quiet for b in busy))
    if p > _UNLIKE:
        return verdict
    reason = f"{verdict.reason}, but others kept the machine busier {when} (p = {p:.2g})"
    return replace(verdict, outcome="cannot-tell", reason=reason)


def _ratio(ratios: list[float]) -> float:
    """Median of sorted ratios; where two share the middle, their geometric mean."""
    middle = len(ratios) // 2
    if len(ratios) % 2:
        return ratios[middle]
    return math.sqrt(ratios[middle - 1]) * math.sqrt(ratios[middle])


def _interval(ratios: list[float], sides: tuple[int, int]) -> tuple[float, float]:
    """95 % interval of the ratio: those that the test, at half of 5 % each way, does not refute."""
    rank = _rank(sides)
    return ratios[rank], ratios[-1 - rank]


@cache
def _rank(sides: tuple[int, int]) -> int:
    """Count the smallest ratios that lie outside the interval, and the largest."""
    rank = 0
    while _chance(sides, rank + 1) <= _END:
        rank += 1
    return rank


def _chance(sides: tuple[int, int], pairs: int) -> float:
    """P(U <= pairs) of Mann and Whitney's U, where nothing but chance orders the two sides."""
    fewer, more = sorted(sides)
    if fewer * more <= _EXACT_PAIRS:
        below, ways = _cumulated(fewer, more)
        return below[min(pairs, fewer * more)] / ways
    deviation = math.sqrt(fewer * more * (fewer + more + 1) / 12)
    return NormalDist(fewer * more / 2, deviation).cdf(pairs + 0.5)


@cache
def _cumulated(fewer: int, more: int) -> tuple[tuple[int, ...], int]:
    """In how many orders of the two sides U is at most 0, 1, 2 ..., and how many orders there are.

    The numbers of orders are the coefficients of the Gaussian binomial, the product over i of
    (1 - q^(more + i)) / (1 - q^i) (Mann and Whitney 1947, "On a test of whether one of two random
    variables is stochastically larger than the other", Annals of Mathematical Statistics 18).
    """
    size = fewer * more + 1
    orders = [1] + [0] * (size - 1)
    for i in range(1, fewer + 1):
        for u in range(size - 1, more + i - 1, -1):
            orders[u] -= orders[u - more - i]
        for u in range(i, size):
            orders[u] += orders[u - i]
    return tuple(accumulate(orders)), math.comb(fewer + more, fewer)


def _needed_share(ratio: float, interval: tuple[float, float], most: float) -> float:
    """Find what share of its present width the interval may have, to tell in four of five cases.

    If the step seems slower by more than the tolerance, it has to end above 1; else below the
    tolerance. There the change is expected nearer to none than it was found, by as much as noise
    may have moved it: with the weight of a prior whose deviation is the tolerance.
    """
    found, limit = math.log(ratio), math.log(most)
    if found > limit:
        half = found - math.log(interval[0])
        # without any noise, what is missing is a number of processes that can reach the level
        return _TELLING * found / half if half else math.inf
    half = math.log(interval[1]) - found
    expected = found * limit**2 / (limit**2 + (half / _DEVIATIONS) ** 2)
    return _TELLING * (limit - expected) / half


def _more(sides: tuple[int, int], share: float, alarm: float) -> int | None:
    """How many more values a side make an interval `share` as wide; None beyond all patience."""
    wanted = share**2 * sum(1 / n for n in sides)
    for more in range(1, _MOST_REPEATS + 1):
        now = [n + more for n in sides]
        if sum(1 / n for n in now) <= wanted and 1 / math.comb(sum(now), now[0]) <= alarm:
            return more
    return None
