"""Which cell of one side is which of the other: by label, or by what is left of it without axes.

Where the two sides were picked by axes, `method=a` against `method=b`, cells are joined on all
other axes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from kdbench.analysis.aggregate import CellGroup
from kdbench.matrix.grid import AXES, MAIN_AXES

# Cells that share a label are paired by the first of these in which one cell alone of each side
# agrees with the other: the same cell; the same, run in another way; another cell, run in the same
# way, whose settings were changed; whatever is left of the label.
_ROUNDS = (("cell_id", "mode", "launch"), ("cell_id",), ("mode", "launch"), ())

Cells = tuple[CellGroup, ...]
#: Of the side before, and of the side after.
Both = tuple[Cells, Cells]


@dataclass(frozen=True, eq=False)
class Matched:
    """The cells of two sides, paired by label."""

    #: before and after, in the order that they have before
    pairs: tuple[tuple[CellGroup, CellGroup], ...]
    #: cells whose label the other side lacks, or whose namesakes there have partners
    only: Both
    unclear: tuple[Both, ...]  #: the cells of each label of which it is not plain who is who


def match_cells(
    before: Sequence[CellGroup], after: Sequence[CellGroup], free: Collection[str]
) -> Matched:
    """Pair the cells of one matrix in one place; partners may differ in the axes in `free`."""
    found = _matched(before, after, lambda group: group.label)
    if not free or not all(found.only):
        return found
    # A method without a teacher has one cell where another has one for each teacher.
    bare = "method" in free and any(lacks_teacher(group) for side in found.only for group in side)
    rest = _matched(*found.only, lambda g: label_without(g.label, free, without_teacher=bare))
    return Matched((*found.pairs, *rest.pairs), rest.only, (*found.unclear, *rest.unclear))


def _matched(
    before: Sequence[CellGroup], after: Sequence[CellGroup], name_of: Callable[[CellGroup], str]
) -> Matched:
    pairs: list[tuple[CellGroup, CellGroup]] = []
    only: tuple[list[CellGroup], list[CellGroup]] = ([], [])
    unclear: list[Both] = []
    for name in dict.fromkeys(map(name_of, (*before, *after))):
        left, right = ([g for g in side if name_of(g) == name] for side in (before, after))
        for keys in _ROUNDS:
            found = _agreeing(left, right, keys)
            pairs += found
            left = [group for group in left if all(group is not one for one, _ in found)]
            right = [group for group in right if all(group is not other for _, other in found)]
        if left and right:
            unclear.append((tuple(left), tuple(right)))
        else:
            only[0].extend(left)
            only[1].extend(right)
    return Matched(tuple(pairs), (tuple(only[0]), tuple(only[1])), tuple(unclear))


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


def lacks_teacher(group: CellGroup) -> bool:
    """Whether a cell's label names no teacher."""
    return "teacher" not in _axes_of(group.label)


def label_without(label: str, free: Collection[str], *, without_teacher: bool) -> str:
    """Return a label without the axes that tell the sides apart."""
    axes = _axes_of(label)
    left_out = {*free, "teacher"} if without_teacher else free
    kept = [_written(name, value) for name, value in axes.items() if name not in left_out]
    return "/".join(kept) if axes else label


def options_for(before: Sequence[str], after: Sequence[str]) -> str:
    """Suggest the options that would compare the nearest of two sides' labels; empty for none."""
    firsts, seconds = ([axes for axes in map(_axes_of, side) if axes] for side in (before, after))
    differing = ((_differing(one, other), one, other) for one in firsts for other in seconds)
    near = (found for found in differing if 0 < len(found[0]) < len(AXES))
    nearest = min(near, key=lambda found: len(found[0]), default=None)
    if nearest is None:
        return ""
    names, *axes_of_sides = nearest
    sides = zip(("--before", "--after"), axes_of_sides, strict=True)
    # an axis that one side lacks is picked on the other side alone
    return " ".join(f"{side} {n}={axes[n]}" for side, axes in sides for n in names if n in axes)


def _axes_of(label: str) -> dict[str, str]:
    """Read `method/student/32px[/teacher][/axis=value...]`; empty where a label is another."""
    main = [part for part in label.split("/") if "=" not in part]
    more = dict(part.split("=", 1) for part in label.split("/") if "=" in part)
    if not 3 <= len(main) <= len(MAIN_AXES) or not main[2].endswith("px"):
        return {}
    main[2] = main[2].removesuffix("px")
    return dict(zip(MAIN_AXES, main, strict=False)) | more


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """List the axes that differ; a teacher that one side does not have is its method's doing."""
    found = [name for name in AXES if one.get(name) != other.get(name)]
    if "method" in found and ("teacher" not in one or "teacher" not in other):
        found = [name for name in found if name != "teacher"]
    return [name for name in found if name in one and name in other] or found[:1]


def _written(name: str, value: str) -> str:
    if name == "image_size":
        return f"{value}px"
    return value if name in MAIN_AXES else f"{name}={value}"
