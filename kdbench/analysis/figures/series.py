"""What becomes a line of its own: cells by method, and by what else sets them apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

from kdbench.analysis.aggregate import SETTINGS, CellGroup
from kdbench.analysis.figures import style
from kdbench.analysis.figures.sheet import TIE, Sheet, block_title
from kdbench.common.errors import printable

# What a block of panels has in common.
_BLOCK = ("dataset", "student", "image_size")
# Follow from the teacher's name.
_OF_TEACHER = ("teacher_weights", "teacher_checkpoint")
# Named first.
_FIRST = ("teacher", "alpha2", "alpha1", "loss", "precision", "attention", "batch_size")
_DASHES = ("-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (5, 1.4, 1.2, 1.4)))
_MARKERS = ("o", "s", "^", "D", "v", "<", "p", ">", "h")
_PALEST = 0.55


@dataclass(frozen=True)
class Look:
    """How a line or an area is drawn, the same in every panel of a page."""

    label: str
    colour: str
    dashes: Any = "-"
    marker: str = "o"
    hatch: bool = False


@dataclass(frozen=True, eq=False)
class Block:
    """The cells of one student at one image size (and data set): they share panels."""

    title: str
    groups: Sequence[CellGroup]


def blocks(groups: Sequence[CellGroup]) -> list[Block]:
    """Put cells together by data set, student (the smaller first) and image size."""
    found: dict[tuple[object, ...], list[CellGroup]] = {}
    sizes: dict[str, float] = {}
    for group in groups:
        found.setdefault(tuple(group.settings[name] for name in _BLOCK), []).append(group)
        student = str(group.settings["student"])
        parameters = group.student_parameters or float("inf")
        sizes[student] = min(parameters, sizes.get(student, parameters))
    several = len({key[0] for key in found}) > 1

    def order(key: tuple[object, ...]) -> tuple[object, ...]:
        return str(key[0]), sizes[str(key[1])], str(key[1]), key[2]

    return [
        Block(
            block_title(found[key][0]) + (f", {printable(key[0])}" if several else ""), found[key]
        )
        for key in sorted(found, key=order)
    ]


def looks(
    sheet: Sheet, groups: Sequence[CellGroup], *, apart_from: Sequence[str] = ()
) -> dict[int, Look]:
    """Choose each cell's look, by its `id`: a colour per method, and shades of it for its variants.

    Settings in `apart_from` are an axis of the figure: cells that differ in them alone share a
    look.
    """
    names = distinguishing_settings(groups, apart_from)
    variant_of = {id(group): (group.method, variant_name(group, names)) for group in groups}
    variants: dict[str, list[str]] = {}
    for method, variant in dict.fromkeys(variant_of.values()):
        variants.setdefault(method, []).append(variant)
    rank = {method: index for index, method in enumerate(sheet.colours)}
    made = {}
    for method, own in variants.items():
        for index, variant in enumerate(own):
            # The last is the full colour: alpha2 is drawn from pale to strong.
            pale = _PALEST * (1 - index / (len(own) - 1)) if len(own) > 1 else 0.0
            made[method, variant] = Look(
                label=", ".join(filter(None, (style.method_name(method), variant))),
                colour=style.shade(sheet.colours[method], pale),
                dashes=_DASHES[(len(own) - 1 - index) % len(_DASHES)],
                marker=_MARKERS[(rank[method] + index) % len(_MARKERS)],
            )
    return {key: made[both] for key, both in variant_of.items()}


def distinguishing_settings(
    groups: Sequence[CellGroup], apart_from: Sequence[str] = ()
) -> list[str]:
    """List the settings in which cells of one block differ, whatever their methods.

    What follows from another (a teacher's weights from the teacher, alpha1 = 1 - alpha2) is left
    out, and so is what a cell without a teacher has not.
    """
    skipped = {*_BLOCK, *apart_from, *_OF_TEACHER, "method", "cell_id", "student_inferred"}
    if all(isclose(g.settings["alpha1"], 1 - g.settings["alpha2"]) for g in groups):
        skipped.add("alpha1")
    names = [name for name in dict.fromkeys((*_FIRST, *SETTINGS)) if name not in skipped]
    found: set[str] = set()
    for block in blocks(groups):
        for name in names:
            asked = [group for group in block.groups if _has(group, name)]
            if len({str(group.settings[name]) for group in asked}) > 1:
                found.add(name)
        lines = [
            (group.method, *(str(group.settings[name]) for name in found)) for group in block.groups
        ]
        # Points of one line have cell_ids of their own.
        if not apart_from and len(set(lines)) < len(lines):
            found.add("cell_id")
    return [name for name in (*names, "cell_id") if name in found]


def _has(group: CellGroup, name: str) -> bool:
    """Whether a setting means anything for a cell: without a teacher, some do not."""
    return group.settings["teacher"] is not None or name not in ("teacher", "alpha1", "alpha2")


def variant_name(group: CellGroup, names: Sequence[str]) -> str:
    """Write what a cell's settings of these names are."""
    parts = []
    for name in names:
        value = group.settings[name]
        if not _has(group, name):
            continue
        if name == "cell_id":
            parts.append(f"cell {str(value)[:6]}")
        elif name == "teacher":
            parts.append(printable(value))
        elif name in ("alpha1", "alpha2"):
            parts.append(f"{style.GREEK[name]}{TIE}={TIE}{value:g}")
        else:
            parts.append(printable(f"{name}={value}"))
    return ", ".join(parts)
