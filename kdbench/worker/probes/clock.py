"""The clock of a timed step: how long it took, and how long each part of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from time import monotonic_ns
from typing import Any, Protocol

import torch

from kdbench.store.schema import STEP_PARTS
from kdbench.worker.probes.suspension import Suspension


class DeviceEvent(Protocol):
    """A mark in the order of the device's work, as `torch.cuda.Event` makes it."""

    def record(self) -> None:
        """Set the mark after all that was asked of the device so far."""

    def elapsed_time(self, end_event: Any, /) -> float:  # noqa: ANN401 - one of its own kind
        """Milliseconds of the device from this mark to another."""


class StepClock:
    """Times one step after another, without waiting for the device within a step.

    A part goes from its mark to the next. On a CPU that is the host's clock; on a card, where the
    host runs ahead of the work, it is CUDA events, which are read after the step's end. Neither
    costs more than some microseconds, so the parts are told apart in the timed steps themselves.

    Args:
        synchronize: waits until the device has done all that was asked of it.
        event: makes an event of the device; None where the host's clock tells all.
        now: nanoseconds of CLOCK_MONOTONIC.
        suspension: tells when these went by without anybody working.
    """

    def __init__(
        self,
        synchronize: Callable[[], None],
        event: Callable[[], DeviceEvent] | None = None,
        now: Callable[[], int] = monotonic_ns,
        suspension: Suspension | None = None,
    ) -> None:
        self._synchronize = synchronize
        self._event = event
        self._now = now
        self._suspension = suspension or Suspension()
        self._begun: list[str] = []
        self._times: list[int] = []
        # made once and used in every step
        self._events: list[DeviceEvent] = []

    def start(self) -> None:
        """Begin a step, with its first part."""
        self._synchronize()
        self._begun, self._times = [], []
        self.mark(STEP_PARTS[0])

    def mark(self, part: str) -> None:
        """Say which part begins; one that comes again adds to its time."""
        self._tick()
        self._begun.append(part)

    def stop(self) -> dict[str, Any]:
        """End the step.

        Returns:
            The columns of `steps`: started_ns, seconds, device_seconds (None without events),
            suspended and, for each of the parts that were marked, its seconds. A part that has no
            column counts in the whole alone. A step is suspended also by what came between it and
            the step before: it is then the cold one.
        """
        self._tick()
        self._synchronize()
        ended = self._now()
        suspended = self._suspension.passed()
        device = self._event is not None
        spans = self._device_spans() if device else self._host_spans(ended)
        row: dict[str, Any] = {
            "started_ns": self._times[0],
            "seconds": (ended - self._times[0]) / 1e9,
            "device_seconds": sum(spans) if device else None,
            "suspended": suspended,
        }
        for part, seconds in zip(self._begun, spans, strict=True):
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

    def _host_spans(self, ended: int) -> list[float]:
        times = [*self._times[:-1], ended]
        return [(end - start) / 1e9 for start, end in pairwise(times)]

    def _device_spans(self) -> list[float]:
        used = self._events[: len(self._times)]
        return [start.elapsed_time(end) / 1e3 for start, end in pairwise(used)]


def step_clock(device: torch.device) -> StepClock:
    """Make the clock of a device."""
    if device.type != "cuda":
        return StepClock(lambda: None)
    return StepClock(
        lambda: torch.cuda.synchronize(device),
        lambda: torch.cuda.Event(enable_timing=True),
    )
