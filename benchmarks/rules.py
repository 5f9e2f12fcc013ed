"""What calls a step slower: kdbench's rule, and those that known tools document, on the same data.

All are asked for the same 5 %. The tools' rules take every step of every process for an independent
value, whatever process it came from, and know nothing of others' use of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu, ttest_ind

from kdbench.gate.verdict import Outcome, judge

TOLERANCE = 0.05


@dataclass(frozen=True)
class Processes:
    """Recorded processes of one cell, in the order of time."""

    #: seconds of each timed step, [processes, steps]
    steps: np.ndarray
    #: whether others are known to have kept it from the processors, [processes]
    contended: np.ndarray
    #: processors that others kept busy, on average, [processes]
    load: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, places: Sequence[int] | np.ndarray) -> Processes:
        """Those at these places, or where a mask is true."""
        return Processes(self.steps[places], self.contended[places], self.load[places])


Rule = Callable[[Processes, Processes], Outcome]


def kdbench_check(*, value=np.min, contended: bool = False, load: bool = True) -> Rule:
    """The rule of `kdbench check`, and what it would be otherwise.

    Args:
        value: makes one value of a process's steps.
        contended: contended processes count too.
        load: a difference in others' load is heeded.
    """

    def rule(before, after):
        sides = [side if contended else side.at(~side.contended) for side in (before, after)]
        values = (value(side.steps, axis=1).tolist() for side in sides)
        loads = tuple(side.load.tolist() for side in sides) if load else None
        return judge(*values, tolerance=TOLERANCE, loads=loads).outcome

    return rule


def pytest_benchmark(before, after) -> Outcome:
    """--benchmark-compare-fail=mean:5%; it times in one process, here in as many as the others."""
    slower = after.steps.mean() > (1 + TOLERANCE) * before.steps.mean()
    return "regressed" if slower else "held"


def asv(before, after) -> Outcome:
    """`asv continuous --factor 1.05`: medians, and Mann and Whitney's test with p < 0.002."""
    if np.median(after.steps) <= (1 + TOLERANCE) * np.median(before.steps):
        return "held"
    p = mannwhitneyu(after.steps.ravel(), before.steps.ravel(), method="asymptotic").pvalue
    return "regressed" if p < 0.002 else "held"


def pyperf(before, after) -> Outcome:
    """`pyperf compare_to --min-speed=5`: means, and Student's t-test at 95 %."""
    if after.steps.mean() <= (1 + TOLERANCE) * before.steps.mean():
        return "held"
    p = ttest_ind(after.steps.ravel(), before.steps.ravel()).pvalue
    return "regressed" if p < 0.05 else "held"


def _tenth(steps, axis):
    return np.quantile(steps, 0.1, axis=axis)


KDBENCH = kdbench_check()

RULES: dict[str, Rule] = {
    "kdbench check": KDBENCH,
    "... with others' load not heeded": kdbench_check(load=False),
    "... with contended processes": kdbench_check(contended=True),
    "... with both": kdbench_check(contended=True, load=False),
    "... of the fastest tenth's end": kdbench_check(value=_tenth),
    "... of medians": kdbench_check(value=np.median),
    "... of medians, with both": kdbench_check(value=np.median, contended=True, load=False),
    "pytest-benchmark, mean:5%": pytest_benchmark,
    "asv, factor 1.05": asv,
    "pyperf, min-speed 5": pyperf,
}
