"""The windows of time in which the timed steps ran, for picking their samples."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.runner.telemetry.windows import Window, padded

# The distance from a suspension at which samples are trusted: the slowest samples are a second
# apart, and those next to a suspension include it. Some counters restart after it.
MARGIN_NS = 1_000_000_000


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
        start, end = _window(step)
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
        start, end = _window(step)
        if any(start <= last and first <= end for first, last in holes):
            continue
        places = (bisect_right(begun, start), bisect_right(opened, start))
        part = (step["phase"], step.get("epoch"), *places)
        before = spans.get(part, Span((start, start), step.get("epoch"), 0))
        spans[part] = Span((before.window[0], end), before.epoch, before.steps + 1)
    return list(spans.values())


def _window(step: Mapping[str, Any]) -> Window:
    """From a step's start to its end; an accounting step has no duration."""
    start = int(step["started_ns"])
    return start, start + int((step["seconds"] or 0.0) * 1e9)
