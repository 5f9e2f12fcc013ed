"""What a ledger's events come to: the peak, what it is made of, and each change on the way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass
class Block:
    """One storage while it lives."""

    size: int
    category: str
    module: str | None


class Event(NamedTuple):
    """A storage that came, went or was resized: its bytes, gained or lost."""

    block: Block
    change: int
    #: the part of the step that it happened in
    part: str


class Change(NamedTuple):
    """An event, told for itself."""

    part: str
    category: str
    #: bytes gained or lost
    size: int


@dataclass(frozen=True)
class Share:
    """Live bytes at the peak that share a category and a module."""

    category: str
    module: str | None
    size: int
    blocks: int

    def row(self) -> dict[str, Any]:
        """Return the columns of `memory`."""
        return {
            "category": self.category,
            "module": self.module,
            "bytes": self.size,
            "blocks": self.blocks,
        }


def peak_of(events: Sequence[Event]) -> tuple[int, int]:
    """Find where most bytes are live: how many events lead there, and the bytes."""
    live = highest = end = 0
    for count, event in enumerate(events, start=1):
        live += event.change
        if live > highest:
            highest, end = live, count
    return end, highest


def shares_of(events: Sequence[Event]) -> list[Share]:
    """Split what is live after some events by category and module, largest first."""
    held: dict[int, tuple[Block, int]] = {}
    for block, change, _ in events:
        held[id(block)] = (block, held.get(id(block), (block, 0))[1] + change)
    totals: dict[tuple[str, str | None], list[int]] = defaultdict(lambda: [0, 0])
    for block, size in held.values():
        if size:
            total = totals[block.category, block.module]
            total[0] += size
            total[1] += 1
    shares = [Share(*key, *total) for key, total in totals.items()]
    return sorted(shares, key=lambda s: (-s.size, s.category, s.module or ""))


def changes_of(events: Sequence[Event]) -> list[Change]:
    """Tell every event in order, each storage under the category that it had in the end."""
    return [Change(part, block.category, size) for block, size, part in events]
