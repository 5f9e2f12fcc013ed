"""Which memory grew: the difference of two peaks by category and module."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.analysis.breakdown import NO_MODULE, folded_name
from kdbench.gate.snapshot import Entry
from kdbench.spec.gated_metrics import Stage

# Named of each category; the rest is summed up.
_MOST_MODULES = 3


@dataclass(frozen=True)
class Growth:
    """Bytes of one category and module that a peak has more, or fewer, than before."""

    category: str
    module: str | None
    before: int
    after: int

    @property
    def change(self) -> int:
        """Bytes more."""
        return self.after - self.before


def growth(before: Entry, after: Entry, stage: Stage | None) -> tuple[Growth, ...]:
    """Compare the peaks of one stage, part by part: what changed, the largest growth first."""
    if stage is None:
        return ()
    parts = {
        part: (before.memory.get(part, {}).get(stage, 0), after.memory.get(part, {}).get(stage, 0))
        for part in {**before.memory, **after.memory}
    }
    found = [Growth(*part, *sizes) for part, sizes in parts.items() if sizes[0] != sizes[1]]
    return tuple(sorted(found, key=lambda g: (-g.change, g.category, g.module or "")))


def describe(parts: Sequence[Growth]) -> list[str]:
    """Say which categories grew, and which modules in each, one line a category."""
    totals: dict[str, dict[str, list[int]]] = {}
    for part in parts:
        module = folded_name(part.module) if part.module else NO_MODULE
        totals.setdefault(part.category, {}).setdefault(module, []).append(part.change)
    grown = {name: sum(map(sum, modules.values())) for name, modules in totals.items()}
    return [
        f"{name} {_bytes(grown[name])}: {_modules(totals[name])}"
        for name in sorted(grown, key=lambda name: (-grown[name], name))
        if grown[name] > 0
    ]


def _modules(changes: dict[str, list[int]]) -> str:
    """Name the modules that grew most: `blocks.*.mlp +2,048 B (2 of them)`."""
    grown = sorted(
        ((sum(own), name, len(own)) for name, own in changes.items() if sum(own) > 0),
        key=lambda item: (-item[0], item[1]),
    )
    parts = [
        f"{name} {_bytes(size)}" + (f" ({count} of them)" if count > 1 else "")
        for size, name, count in grown[:_MOST_MODULES]
    ]
    rest = grown[_MOST_MODULES:]
    if rest:
        parts.append(f"{len(rest)} more {_bytes(sum(size for size, _, _ in rest))}")
    return ", ".join(parts)


def _bytes(change: int) -> str:
    return f"{change:+,} B"
