"""Times of batches that follow one another, those that a suspension was in kept apart."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns

from kdbench.worker.probes.suspension import Suspension

#: start and end on CLOCK_MONOTONIC, in nanoseconds
Window = tuple[int, int]


class BatchTimes:
    """A clock of batches, which starts with the first of them.

    Args:
        synchronize: waits until the device has done all that was asked of it.
        now: nanoseconds of CLOCK_MONOTONIC.
        suspension: tells when these went by without anybody working.
    """

    def __init__(
        self,
        synchronize: Callable[[], None],
        now: Callable[[], int] = monotonic_ns,
        suspension: Suspension | None = None,
    ) -> None:
        self._synchronize, self._now = synchronize, now
        self._suspension = suspension or Suspension()
        #: how many batches were timed
        self.count = 0
        #: when those ran; of some in a row, from the first one's start to the last one's end
        self.timed: list[Window] = []
        #: when the others ran
        self.suspended: list[Window] = []
        self.begin()

    @property
    def seconds(self) -> float:
        """Of all that were timed."""
        return sum(end - start for start, end in self.timed) / 1e9

    def begin(self) -> None:
        """Begin a batch behind something that was none."""
        self._synchronize()
        self._suspension.passed()
        self._in_a_row = False
        self._started = self._now()

    def end_batch(self) -> None:
        """End a batch, and begin the next."""
        self._synchronize()
        start, end = self._started, self._now()
        if self._suspension.passed():
            self.suspended.append((start, end))
            self._in_a_row = False
            # not `end`: a stop right behind it would be in the next batch, and be told of this one
            self._started = self._now()
            return
        if self._in_a_row:
            start, _ = self.timed.pop()
        self.timed.append((start, end))
        self.count += 1
        self._in_a_row, self._started = True, end
