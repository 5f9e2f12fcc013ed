"""Detects lost time: the machine was suspended, or the process stopped.

A suspension (to memory or to disk) is the growth of CLOCK_BOOTTIME over CLOCK_MONOTONIC: only the
former advances during one. A stopped process (SIGSTOP, Ctrl-Z in its own terminal) receives SIGCONT
before it does anything else. What leaves neither trace goes unnoticed: docs/explanation/time.md.
"""

import signal
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

from kdbench.common.errors import KdbenchError

# The clocks differ by the sum of suspensions alone, so any growth is one; no machine suspends and
# resumes in less than this.
_SHORTEST_NS = 1_000_000


def _boot_clock() -> Callable[[], int] | None:
    """Return a reader of CLOCK_BOOTTIME; None where the system has none, like macOS."""
    try:
        time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):  # a sandbox's kernel may not know it
        return None
    return partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)


_boottime_ns = _boot_clock()


class DisturbedError(KdbenchError):
    """Suspensions or stops came too often to time anything between them."""


class _ContinueCounter:
    """Counts the SIGCONTs of this process; signals concern the whole process, so it is global."""

    def __init__(self) -> None:
        self.count = 0

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


_continues = _ContinueCounter()


def watch_stops() -> None:
    """Count from now on how often this process continues after a stop. Call it in the main thread.

    Without it stops pass unnoticed: a process that is not ours keeps its own handler.
    """
    signal.signal(signal.SIGCONT, _continues.handle)
    # System calls in C are restarted, as they would be without a handler.
    signal.siginterrupt(signal.SIGCONT, False)


class SuspensionDetector:
    """Reports whether a suspension or a stop occurred since it was last asked.

    Asking takes about a microsecond, and never happens within a step.
    """

    def __init__(
        self,
        awake: Callable[[], int] = time.monotonic_ns,
        always: Callable[[], int] | None = _boottime_ns,
        continued: Callable[[], int] = lambda: _continues.count,
    ) -> None:
        self._awake, self._always, self._continued = awake, always, continued
        self._continues = continued()
        self._asleep_at_most = self._asleep()[1]

    def occurred(self) -> bool:
        """Whether there was one since the last call, or since the detector was made."""
        continues, (least, most) = self._continued(), self._asleep()
        slept = least - self._asleep_at_most >= _SHORTEST_NS
        stopped = continues != self._continues
        self._continues = continues
        self._asleep_at_most = most if slept else min(most, self._asleep_at_most)
        return slept or stopped

    def _asleep(self) -> tuple[int, int]:
        """Return the nanoseconds of all suspensions so far: at least, and at most.

        The thread may lose its processor between two clocks. One is read on both sides of the
        other, so a pause widens the bounds and does not look like a suspension.
        """
        if self._always is None:
            return 0, 0
        before = self._awake()
        always = self._always()
        return always - self._awake(), always - before
