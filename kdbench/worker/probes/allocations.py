"""Allocation events of a step: their peak, its composition, and memory over the step's course."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

#: the part before the step's first one: what is live when the step starts
START = "start"

#: columns of `timeline` for one step, each a list: thousands of rows travel in one event
Columns = dict[str, list[str] | list[int]]


@dataclass
class Block:
    """One storage while it lives."""

    size: int
    category: str
    module: str | None


class Event(NamedTuple):
    """A storage that was allocated, freed or resized."""

    block: Block
    #: bytes gained, or lost where negative
    change: int
    #: the part of the step in which it happened
    part: str


@dataclass(frozen=True)
class Share:
    """Live bytes at the peak that belong to one category and module."""

    category: str
    module: str | None
    size: int
    blocks: int

    def row(self) -> dict[str, Any]:
        """Return the columns of `memory`."""
        named = {"category": self.category, "module": self.module}
        return {**named, "bytes": self.size, "blocks": self.blocks}


def peak_of(events: Sequence[Event]) -> tuple[int, int]:
    """Find the peak: the number of events up to it, and its bytes."""
    live = highest = end = 0
    for count, event in enumerate(events, start=1):
        live += event.change
        if live > highest:
            highest, end = live, count
    return end, highest


def shares_of(events: Sequence[Event]) -> list[Share]:
    """Split the bytes that are live after some events by category and module, largest first."""
    live: dict[int, tuple[Block, int]] = {}
    for block, change, _ in events:
        live[id(block)] = (block, live.get(id(block), (block, 0))[1] + change)
    sizes: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for block, size in live.values():
        if size:
            sizes[block.category, block.module].append(size)
    shares = [Share(*key, sum(found), len(found)) for key, found in sizes.items()]
    return sorted(shares, key=lambda s: (-s.size, s.category, s.module or ""))


def timeline(before: Sequence[Event], events: Sequence[Event]) -> Columns:
    """Add up a step's live bytes by category, each storage under its final category.

    Moment 0 is the step's start, after the events `before`, with a row for each category that ever
    has bytes. Every event of the step is a moment of its own and has one row: the category's live
    bytes from then on.
    """
    live = dict.fromkeys(sorted({event.block.category for event in [*before, *events]}), 0)
    for block, change, _ in before:
        live[block.category] += change
    rows: list[tuple[int, str, str, int]] = [(0, START, *item) for item in live.items()]
    for moment, (block, change, part) in enumerate(events, start=1):
        live[block.category] += change
        rows.append((moment, part, block.category, live[block.category]))
    names = ("moment", "part", "category", "live_bytes")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}  # type: ignore[misc]
