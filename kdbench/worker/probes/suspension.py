"""Whether time went by that nobody worked in: the machine was suspended, or the process stopped.

A suspension (to memory or to disk) is the growth of CLOCK_BOOTTIME over CLOCK_MONOTONIC: the one
goes on in it, the other does not. A process that was stopped (SIGSTOP, Ctrl-Z in its own terminal)
hears a SIGCONT before it does anything else. What leaves neither of these traces cannot be told:
see docs/explanation/time.md.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

from kdbench.common.errors import KdbenchError

# Both clocks are the same one plus a sum of suspensions, so that any growth is one; no machine
# suspends and resumes in less than this.
_SHORTEST_NS = 1_000_000


def _boot_clock() -> Callable[[], int] | None:
    """Return what reads CLOCK_BOOTTIME; None where the system has none, as macOS."""
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    if clock is None:
        return None
    try:
        time.clock_gettime_ns(clock)
    except OSError:  # a sandbox whose kernel does not know it
        return None
    return partial(time.clock_gettime_ns, clock)


_boottime_ns = _boot_clock()


class DisturbedError(KdbenchError):
    """There were so many suspensions or stops that nothing can be timed between them."""


class _Continues:
    """Counts the SIGCONTs of this process. Its signals are the whole process's, and so is this."""

    def __init__(self) -> None:
        self.count = 0

    def hear(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


_continues = _Continues()


def watch_stops() -> None:
    """Count from now on how often this process goes on after a stop; for its main thread to call.

    Without it a stop passes unnoticed: a process of somebody else's keeps its own handler.
    """
    signal.signal(signal.SIGCONT, _continues.hear)
    # What waits for the system in C goes on waiting, as it would without a handler.
    signal.siginterrupt(signal.SIGCONT, False)


class Suspension:
    """Tells again and again whether there was a suspension or a stop since it was last asked.

    Asking takes about a microsecond, and nothing is asked while a step runs.

    Args:
        awake: nanoseconds of CLOCK_MONOTONIC.
        always: nanoseconds of CLOCK_BOOTTIME; None where there is no such clock.
        continued: how often this process went on after a stop.
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

    def passed(self) -> bool:
        """Whether there was one since this was last asked, or made."""
        continues, (least, most) = self._continued(), self._asleep()
        slept = least - self._asleep_at_most >= _SHORTEST_NS
        stopped = continues != self._continues
        self._continues = continues
        self._asleep_at_most = most if slept else min(most, self._asleep_at_most)
        return slept or stopped

    def _asleep(self) -> tuple[int, int]:
        """Nanoseconds of all suspensions so far: at least, and at most.

        The thread may lose its processor between two clocks. One is read on both sides of the
        other, so that this makes the two further apart, and no suspension.
        """
        if self._always is None:
            return 0, 0
        before = self._awake()
        always = self._always()
        return always - self._awake(), always - before
