"""Clocks of timed steps and of precompute batches."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from time import monotonic_ns
from typing import Any

import torch

from kdbench.store.schema import STEP_PARTS
from kdbench.worker.probes.suspension import SuspensionDetector

#: start and end on CLOCK_MONOTONIC, in nanoseconds
Window = tuple[int, int]


class StepClock:
    """Times one step after another, without waiting for the device within a step.

    A part lasts from its mark to the next. On a CPU the host's clock times it; on a GPU, where the
    host runs ahead, CUDA events do, which are read after the step's end. Either costs a few
    microseconds, so the timed steps themselves are split into parts.
    """

    def __init__(
        self,
        synchronize: Callable[[], None],
        event: Callable[[], Any] | None = None,
        now: Callable[[], int] = monotonic_ns,
        suspension: SuspensionDetector | None = None,
    ) -> None:
        self._synchronize, self._event, self._now = synchronize, event, now
        self._suspension = suspension or SuspensionDetector()
        self._parts: list[str] = []
        self._times: list[int] = []
        self._events: list[Any] = []  # made once and reused in every step

    def start(self) -> None:
        """Begin a step, with its first part."""
        self._synchronize()
        self._parts, self._times = [], []
        self.mark(STEP_PARTS[0])

    def mark(self, part: str) -> None:
        """Begin a part; one that comes again adds to its time."""
        self._tick()
        self._parts.append(part)

    def stop(self) -> dict[str, Any]:
        """End the step and return its columns of `steps`; device_seconds is None without events.

        A part that has no column counts in the whole alone. A suspension since the step before
        counts as this step's, which then runs cold.
        """
        self._tick()
        self._synchronize()
        ended = self._now()
        suspended = self._suspension.occurred()
        if self._event is None:
            times = [*self._times[:-1], ended]
            spans = [(end - start) / 1e9 for start, end in pairwise(times)]
        else:
            used = self._events[: len(self._times)]
            spans = [start.elapsed_time(end) / 1e3 for start, end in pairwise(used)]
        row: dict[str, Any] = {
            "started_ns": self._times[0],
            "seconds": (ended - self._times[0]) / 1e9,
            "device_seconds": sum(spans) if self._event else None,
            "suspended": suspended,
        }
        for part, seconds in zip(self._parts, spans, strict=True):
            if part in STEP_PARTS:
                row[f"{part}_seconds"] = row.get(f"{part}_seconds", 0.0) + seconds
        return row

    def _tick(self) -> None:
        self._times.append(self._now())
        if self._event is None:
            return
        if len(self._events) < len(self._times):
            self._events.append(self._event())
        self._events[len(self._times) - 1].record()


def step_clock(device: torch.device) -> StepClock:
    """Make the clock of a device."""
    if device.type != "cuda":
        return StepClock(lambda: None)
    event = partial(torch.cuda.Event, enable_timing=True)
    return StepClock(partial(torch.cuda.synchronize, device), event)


class BatchTimes:
    """Times batches that follow one another, and keeps the suspended ones apart.

    The first batch begins with the object.
    """

    def __init__(
        self,
        synchronize: Callable[[], None],
        now: Callable[[], int] = monotonic_ns,
        suspension: SuspensionDetector | None = None,
    ) -> None:
        self._synchronize, self._now = synchronize, now
        self._suspension = suspension or SuspensionDetector()
        #: of timed batches
        self.count = 0
        #: when they ran; batches in a row share one window
        self.timed: list[Window] = []
        #: when the suspended ones ran
        self.suspended: list[Window] = []
        self.begin()

    @property
    def seconds(self) -> float:
        """Sum of the timed batches."""
        return sum(end - start for start, end in self.timed) / 1e9

    def begin(self) -> None:
        """Begin a batch after other work."""
        self._synchronize()
        self._suspension.occurred()
        self._in_a_row = False
        self._started = self._now()

    def end_batch(self) -> None:
        """End a batch, and begin the next."""
        self._synchronize()
        start, end = self._started, self._now()
        if self._suspension.occurred():
            self.suspended.append((start, end))
            self._in_a_row = False
            # Not `end`: a stop right after it would lie in the next batch but count for this one.
            self._started = self._now()
            return
        if self._in_a_row:
            start, _ = self.timed.pop()
        self.timed.append((start, end))
        self.count += 1
        self._in_a_row, self._started = True, end
