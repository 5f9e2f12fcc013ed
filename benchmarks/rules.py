"""What calls a step slower: kdbench's rule, and those that known tools document, on the same data.

A rule takes the timed steps of the processes before and after, arrays of shape [processes, steps],
and returns an outcome of `kdbench.verdict`. All are asked for the same 5 %. The tools' rules take
every step of every process for an independent value, whatever process it came from.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import mannwhitneyu, ttest_ind

from kdbench.verdict import Outcome, judge

TOLERANCE = 0.05

Rule = Callable[[np.ndarray, np.ndarray], Outcome]


def kdbench_on(statistic: Callable[[np.ndarray], np.ndarray]) -> Rule:
    """The rule of `kdbench check`, on one value per process: `statistic` of its steps, [n, s]."""

    def rule(before, after):
        sides = (statistic(before).tolist(), statistic(after).tolist())
        return judge(*sides, tolerance=TOLERANCE).outcome

    return rule


def pytest_benchmark(before, after) -> Outcome:
    """--benchmark-compare-fail=mean:5%; it times in one process, here in as many as the others."""
    return "regressed" if after.mean() > (1 + TOLERANCE) * before.mean() else "held"


def asv(before, after) -> Outcome:
    """`asv continuous --factor 1.05`: medians, and Mann and Whitney's test with p < 0.002."""
    if np.median(after) <= (1 + TOLERANCE) * np.median(before):
        return "held"
    p = mannwhitneyu(after.ravel(), before.ravel(), method="asymptotic").pvalue
    return "regressed" if p < 0.002 else "held"


def pyperf(before, after) -> Outcome:
    """`pyperf compare_to --min-speed=5`: means, and Student's t-test at 95 %."""
    if after.mean() <= (1 + TOLERANCE) * before.mean():
        return "held"
    p = ttest_ind(after.ravel(), before.ravel()).pvalue
    return "regressed" if p < 0.05 else "held"


def _lower_quartile(steps):
    return np.quantile(steps, 0.25, axis=1)


def _median(steps):
    return np.median(steps, axis=1)


def _minimum(steps):
    return steps.min(axis=1)


def _mean(steps):
    return steps.mean(axis=1)


# what `kdbench check` judges
KDBENCH = kdbench_on(_median)

RULES: dict[str, Rule] = {
    "kdbench check": KDBENCH,
    "the same of each process's mean": kdbench_on(_mean),
    "of its lower quartile": kdbench_on(_lower_quartile),
    "of its fastest step": kdbench_on(_minimum),
    "pytest-benchmark, mean:5%": pytest_benchmark,
    "asv, factor 1.05": asv,
    "pyperf, min-speed 5": pyperf,
}
