"""Which cell of one side is which of the other.

By their labels first. Where the two sides were picked by axes, `method=a` against `method=b`, what
is left is joined on all other axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.compare.axes import axes_of, joined

# Cells that share a label are paired by the first of these in which one cell alone of each side
# agrees with the other: the same cell; the same, run in another way; another cell, run in the same
# way, whose settings were changed; whatever is left of the label.
_ROUNDS = (("cell_id", "mode", "launch"), ("cell_id",), ("mode", "launch"), ())

Cells = tuple[CellGroup, ...]


@dataclass(frozen=True, eq=False)
class Matched:
    """The cells of two sides, paired by label."""

    #: before and after, in the order that they have before
    pairs: tuple[tuple[CellGroup, CellGroup], ...]
    #: cells whose label the other side lacks, or whose namesakes there have partners
    only_before: Cells
    only_after: Cells  #: the same of the other side
    #: cells before and after of each label of which it is not plain who is who
    unclear: tuple[tuple[Cells, Cells], ...]


def match_cells(
    before: Sequence[CellGroup], after: Sequence[CellGroup], free: frozenset[str] = frozenset()
) -> Matched:
    """Pair the cells of one matrix in one place; partners may differ in the axes in `free`."""
    found = _matched(before, after, lambda group: group.label)
    if not free or not found.only_before or not found.only_after:
        return found
    sides = found.only_before, found.only_after
    # A method without a teacher has one cell where another has one for each teacher.
    bare = "method" in free and any(
        "teacher" not in axes_of(group.label) for side in sides for group in side
    )
    rest = _matched(*sides, lambda group: joined(group.label, free, without_teacher=bare))
    return Matched(
        (*found.pairs, *rest.pairs),
        rest.only_before,
        rest.only_after,
        (*found.unclear, *rest.unclear),
    )


def _matched(
    before: Sequence[CellGroup], after: Sequence[CellGroup], name_of: Callable[[CellGroup], str]
) -> Matched:
    pairs: list[tuple[CellGroup, CellGroup]] = []
    only_before: list[CellGroup] = []
    only_after: list[CellGroup] = []
    unclear: list[tuple[Cells, Cells]] = []
    for name in dict.fromkeys(name_of(group) for group in (*before, *after)):
        left = [group for group in before if name_of(group) == name]
        right = [group for group in after if name_of(group) == name]
        for keys in _ROUNDS:
            found = _agreeing(left, right, keys)
            pairs += found
            left = [group for group in left if all(group is not one for one, _ in found)]
            right = [group for group in right if all(group is not other for _, other in found)]
        if left and right:
            unclear.append((tuple(left), tuple(right)))
        else:
            only_before += left
            only_after += right
    return Matched(tuple(pairs), tuple(only_before), tuple(only_after), tuple(unclear))


def _agreeing(
    left: Sequence[CellGroup], right: Sequence[CellGroup], keys: Sequence[str]
) -> list[tuple[CellGroup, CellGroup]]:
    """Pair cells of which one alone on each side has the same values of these settings."""

    def alike(group: CellGroup, others: Sequence[CellGroup]) -> list[CellGroup]:
        return [o for o in others if all(o.settings[k] == group.settings[k] for k in keys)]

    return [
        (group, found[0])
        for group in left
        if len(found := alike(group, right)) == 1 and len(alike(group, left)) == 1
    ]
