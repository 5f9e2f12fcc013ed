"""The two sides of a comparison: which runs are before and which are after."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from kdbench.analysis.environments import pick_environment
from kdbench.analysis.results import Results, load_results
from kdbench.analysis.utilisation import share_yardsticks
from kdbench.common.errors import IncomparableError, InputError, printable

# A store may be copied and gone on with. A run_key alone is no proof: the same run, made again
# elsewhere, has it too.
_RUN = ["run_key", "started_at"]


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a comparison."""

    name: str  #: what titles call it, safe to print
    results: Results  #: its rows
    #: the columns of `cells` whose values made it this side
    picked_by: frozenset[str] = frozenset()


def load_sides(
    before: str | Path,
    after: str | Path | None = None,
    *,
    only: Sequence[str] = (),
    only_before: Sequence[str] = (),
    only_after: Sequence[str] = (),
    environment: str | None = None,
) -> tuple[Side, Side]:
    """Load the two sides of a comparison.

    `after` may be None: both sides are then picked from one folder by the other arguments, and what
    `only_before` takes is not in the other side unless that has filters of its own. Raises
    InputError for broken results, a bad filter or environment, or one side alone, and
    IncomparableError if nothing is left of a side.
    """
    after = before if after is None else after
    same = Path(after).resolve() == Path(before).resolve()
    if same and not only_before and not only_after:
        raise InputError(
            "a folder and no second one, nor what to tell two sides of it apart by",
            where=before,
            hint="name another folder, or pick with --before and --after, such as "
            "--before torch_version=2.11.0+cpu",
        )
    whole = load_results(before, only=only)
    other = whole if same else load_results(after, only=only)
    if not same:
        one, two = share_yardsticks(whole.cells, other.cells)
        whole, other = replace(whole, cells=one), replace(other, cells=two)
    first = whole.matching(only_before, option="--before")
    second = other.matching(only_after, option="--after")
    if same and not only_after:
        second = replace(second, cells=_without(second.cells, first.cells, "--before"))
    elif same and not only_before:
        first = replace(first, cells=_without(first.cells, second.cells, "--after"))
    _check_apart(first, second, before)
    first, second = _picked(first, second, environment)
    return (
        Side(_name(before, only_before), first, _columns(only_before)),
        Side(_name(after, only_after), second, _columns(only_after)),
    )


def shared_runs(before: Results, after: Results) -> frozenset[str]:
    """Return the run_keys of the runs that are on both sides."""
    both = before.cells[_RUN].merge(after.cells[_RUN], on=_RUN)
    return frozenset(both["run_key"].tolist())


def _without(cells: pd.DataFrame, taken: pd.DataFrame, option: str) -> pd.DataFrame:
    left = cells[~cells.index.isin(taken.index)]
    if left.empty:
        raise IncomparableError("it leaves no runs for the other side", where=option)
    return left


def _check_apart(before: Results, after: Results, where: object) -> None:
    """Refuse two sides that are the same runs."""
    shared = len(shared_runs(before, after))
    if shared and shared == len(before.cells) == len(after.cells):
        raise InputError(
            f"both sides are the same {shared} runs" if shared > 1 else "both sides are one run",
            where=where,
            hint="name two folders, or pick apart what one holds with --before and --after",
        )


def _picked(before: Results, after: Results, wanted: str | None) -> tuple[Results, Results]:
    """Keep one environment of each side that measured in several.

    A side that has one alone keeps it: that it is another one may be what is asked for. But the
    environment must be on one side at least.
    """
    if wanted is None:
        return before, after
    sides, errors = [], []
    for side in (before, after):
        measured = side.cells["source"] == "measured"
        there = replace(side, cells=side.cells[measured]).environments()
        try:
            chosen = pick_environment(wanted, there)
        except InputError as error:
            if len(there) > 1:
                raise
            errors.append(error)
            sides.append(side)
        else:
            kept = ~measured | (side.cells["environment_id"] == chosen.id)
            sides.append(replace(side, cells=side.cells[kept]))
    if len(errors) == len(sides):
        raise errors[-1]
    return sides[0], sides[1]


def _columns(conditions: Sequence[str]) -> frozenset[str]:
    return frozenset(condition.partition("=")[0].strip() for condition in conditions)


def _name(path: str | Path, conditions: Sequence[str]) -> str:
    picked = f" ({', '.join(conditions)})" if conditions else ""
    return printable(f"{path}{picked}")
