"""Which cell the others are set against, and when Embed-KD has paid for its precompute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.reported import is_reported
from kdbench.errors import InputError, did_you_mean, quoted


def find_reference(groups: Sequence[CellGroup], wanted: str | None) -> CellGroup | None:
    """Find the cell that the others of one matrix and environment are set against.

    Without a wish: the first Teacher-KD cell that finished, rather one that the paper has; else
    the first cell that finished.

    Returns:
        None where the wanted cell is not among these, or nothing finished.
    """
    if wanted is not None:
        named = [g for g in groups if g.name == wanted] or [g for g in groups if g.label == wanted]
        return named[0] if named else None
    finished = [group for group in groups if group.finished]
    teachers = [group for group in finished if group.method == "teacher-kd"]
    paper = [group for group in teachers if is_reported(group.settings)]
    return next(iter([*paper, *teachers, *finished]), None)


def check_reference(groups: Sequence[CellGroup], wanted: str | None) -> None:
    """Check that the wanted reference is there, and only once.

    Raises:
        InputError: no cell has this label, or cells of changed settings share it.
    """
    if wanted is None or any(group.name == wanted for group in groups):
        return
    sharing = [group.name for group in groups if group.label == wanted]
    if sharing:
        raise InputError(
            f"several cells have the label {wanted!r}",
            where="--reference",
            hint=f"name one: {quoted(dict.fromkeys(sharing))}",
        )
    names = list(dict.fromkeys(group.name for group in groups))
    raise InputError(
        f"no cell has the label {wanted!r}",
        where="--reference",
        hint=did_you_mean(wanted, names) or f"there are {quoted(names[:20])}",
    )


def payback_steps(group: CellGroup, groups: Iterable[CellGroup]) -> float | None:
    """Count the steps after which Embed-KD has paid for its precompute.

    Its cell is set against the Teacher-KD cell that differs in the method alone: seconds of the
    precompute over the seconds that each step saves.

    Returns:
        None without such a cell or a number, infinity where no step saves anything.
    """
    if group.method != "embed-kd":
        return None
    differs = ("cell_id", "method")
    alike = {k: v for k, v in group.settings.items() if k not in differs}
    for other in groups:
        same_place = (other.matrix, other.environment) == (group.matrix, group.environment)
        if not same_place or other.method != "teacher-kd":
            continue
        if {k: v for k, v in other.settings.items() if k not in differs} == alike:
            once, slow, fast = (
                group.value("precompute_time"),
                other.value("step_time"),
                group.value("step_time"),
            )
            if once is None or slow is None or fast is None:
                return None
            return once / (slow - fast) if slow > fast else math.inf
    return None
