"""A step's memory over its course: live bytes by category, after each allocation and free."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from kdbench.worker.probes.ledger import START
from kdbench.worker.probes.tally import Change

# The columns of `timeline` that a step fills, each as a list: thousands of rows in one event.
Columns = dict[str, list[str] | list[int]]


def timeline(changes: Sequence[Change]) -> Columns:
    """Add a step's changes up.

    Moment 0 is the step's start: all that was there before it, with a row for each category that
    ever holds something. Every later change is a moment of its own, and has one row.

    Args:
        changes: in order; those of the part `start` come first.

    Returns:
        `moment` (from 0), `part`, `category` and `live_bytes` (of this category from this moment
        on): lists of one length, in order.
    """
    before = list(takewhile(lambda change: change.part == START, changes))
    live = dict.fromkeys(sorted({change.category for change in changes}), 0)
    for change in before:
        live[change.category] += change.size
    columns: Columns = {
        "moment": [0] * len(live),
        "part": [START] * len(live),
        "category": list(live),
        "live_bytes": list(live.values()),
    }
    later = changes[len(before) :]
    sizes = []
    for change in later:
        live[change.category] += change.size
        sizes.append(live[change.category])
    added: Columns = {
        "moment": list(range(1, len(later) + 1)),
        "part": [change.part for change in later],
        "category": [change.category for change in later],
        "live_bytes": sizes,
    }
    return {name: [*columns[name], *added[name]] for name in columns}
