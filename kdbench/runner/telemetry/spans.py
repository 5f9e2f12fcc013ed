"""When the timed steps ran: the windows in which the samples are of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.runner.telemetry.windows import Window, padded

# How far from a suspension a reading is believed: the slowest are a second apart, and those next to
# it on both sides tell of what was in it, too. Some counters start anew after it.
APART_NS = 1_000_000_000


@dataclass(frozen=True)
class Span:
    """Consecutive timed steps of one epoch, or of a profile: what is between spans is not theirs.

    Attributes:
        window: from the first step's start to the last one's end, on CLOCK_MONOTONIC.
        epoch: None in a profile.
        steps: how many there are.
    """

    window: Window
    epoch: int | None
    steps: int


def holes_of(steps: Sequence[Mapping[str, Any]]) -> list[Window]:
    """When suspensions were, and what may have been read of them: no span is over one.

    Args:
        steps: all of one attempt, in order. One that was suspended tells of the time since the
            step before it.
    """
    holes, before = [], None
    for step in steps:
        start, end = _window(step)
        if step["suspended"]:
            holes.append((start if before is None else before, end))
        before = end
    return padded(holes, APART_NS)


def spans_of(
    steps: Sequence[Mapping[str, Any]], phases: Sequence[int], holes: Sequence[Window]
) -> list[Span]:
    """Spans of consecutive timed steps of one attempt: the gaps between phases are not in them.

    Between two epochs the test images are classified, and within one a checkpoint is written.

    Args:
        steps: in order.
        phases: when each phase of the attempt began.
        holes: steps that reach into one of these are in no span.
    """
    begun, opened = sorted(phases), sorted(first for first, _ in holes)
    spans: dict[tuple[str, int | None, int, int], Span] = {}
    for step in steps:
        start, end = _window(step)
        if any(start <= last and first <= end for first, last in holes):
            continue
        places = (bisect_right(begun, start), bisect_right(opened, start))
        part = (step["phase"], step.get("epoch"), *places)
        before = spans.get(part, Span((start, start), step.get("epoch"), 0))
        spans[part] = Span((before.window[0], end), before.epoch, before.steps + 1)
    return list(spans.values())


def _window(step: Mapping[str, Any]) -> Window:
    """From a step's start to its end; of an accounting step, which has no time, the start alone."""
    start = int(step["started_ns"])
    return start, start + int((step["seconds"] or 0.0) * 1e9)
