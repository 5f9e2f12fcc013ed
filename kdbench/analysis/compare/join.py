"""Two sides set against each other, cell by cell and metric by metric."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdbench.analysis.aggregate import MODES, SETTINGS, CellGroup, group_cells
from kdbench.analysis.compare.axes import axes_of, joined, named_axes
from kdbench.analysis.compare.comparison import Compared, Comparison, Pair, Sheet
from kdbench.analysis.compare.matching import match_cells
from kdbench.analysis.compare.places import (
    Change,
    Place,
    changed_packages,
    changed_places,
    changes,
    pair_places,
)
from kdbench.analysis.compare.sides import Side, shared_runs
from kdbench.analysis.estimates import Estimate
from kdbench.analysis.metrics import METRICS, Metric
from kdbench.common.text import printable
from kdbench.spec.gated_metrics import GATED_METRICS

#: What is compared unless the user names metrics.
DEFAULT = (
    "parameters",
    "allocated",
    "reserved",
    "host",
    "step_time",
    "epoch_time",
    "precompute_time",
    "precompute_memory",
    "energy",
    "accuracy",
)
# Told apart by the place, not a part of what is computed, or a remark.
_NOT_CHANGES = ("cell_id", "source", "profile", "student_inferred")
_NAMES = {name: name for name in SETTINGS if name not in _NOT_CHANGES}
_GAUGES = {gauge.column: gauge for gauge in GATED_METRICS.values()}


def compare(before: Side, after: Side, *, metrics: Sequence[Metric] | None = None) -> Comparison:
    """Compare two sides by metrics (`DEFAULT` if None).

    Cells are joined by their label within a matrix, or on the axes by which the sides were not
    picked; if each side holds one matrix alone, these may have different names. Rows of different
    machines are compared only where each side has one, and predictions with measurements only where
    there is nothing else. Raises InputError if it is unclear which of several environments is
    meant.
    """
    wanted = tuple(METRICS[name] for name in DEFAULT) if metrics is None else tuple(metrics)
    groups = _by_matrix_and_place(before), _by_matrix_and_place(after)
    shared = shared_runs(before.results, after.results)
    free = named_axes(before.picked_by | after.picked_by)
    sheets = []
    for one, other in _pair_matrices(list(groups[0]), list(groups[1])):
        first, second = groups[0][one], groups[1][other]
        for places in pair_places(list(first), list(second), matrix=one):
            # popped: what is left in the end is on one side alone
            cells = first.pop(places[0]), second.pop(places[1])
            rows = _rows_of(before, cells[0]), _rows_of(after, cells[1])
            packages = changed_packages(*rows)
            sheets.append(_sheet((one, other), places, cells, packages, wanted, shared, free))
    return Comparison(
        names=(before.name, after.name),
        metrics=wanted,
        sheets=tuple(sheets),
        only_before=_left(groups[0]),
        only_after=_left(groups[1]),
    )


def _by_matrix_and_place(side: Side) -> dict[str, dict[Place, list[CellGroup]]]:
    found: dict[str, dict[Place, list[CellGroup]]] = {}
    for group in group_cells(side.results):
        cells = found.setdefault(group.matrix, {}).setdefault(Place.of(group), [])
        place = next((n for n, cell in enumerate(cells) if _is_same(cell, group)), None)
        if place is None:
            cells.append(group)
        elif group.started > cells[place].started:
            cells[place] = group
    return found


def _is_same(cell: CellGroup, other: CellGroup) -> bool:
    """Whether two machines predicted the same cell; they agree, and the latest counts."""
    return (cell.label, cell.settings) == (other.label, other.settings)


def _pair_matrices(before: Sequence[str], after: Sequence[str]) -> list[tuple[str, str]]:
    """Pair matrices by name; the only one of each side goes with the other's, whatever its name."""
    if len(before) == len(after) == 1:
        return [(before[0], after[0])]
    return [(name, name) for name in before if name in after]


def _left(groups: Mapping[str, Mapping[Place, Sequence[CellGroup]]]) -> tuple[CellGroup, ...]:
    return tuple(g for places in groups.values() for cells in places.values() for g in cells)


def _rows_of(side: Side, groups: Iterable[CellGroup]) -> list[dict[str, Any]]:
    keys = {(group.matrix, run.run_key) for group in groups for run in group.members}
    rows = side.results.records()
    return [row for row in rows if (row["matrix"], row["run_key"]) in keys]


def _sheet(
    matrices: tuple[str, str],
    places: tuple[Place, Place],
    cells: tuple[Sequence[CellGroup], Sequence[CellGroup]],
    packages: tuple[Change, ...],
    metrics: Sequence[Metric],
    shared: frozenset[str],
    free: frozenset[str],
) -> Sheet:
    found = match_cells(*cells, free)
    labels = Counter((before.label, before.mode) for before, _ in found.pairs)
    modes = {group.mode for pair in found.pairs for group in pair}

    def name_of(before: CellGroup, after: CellGroup) -> str:
        alone = labels[before.label, before.mode] == 1
        name = _name_of(before, after, free) if alone else before.name
        return f"{name} ({MODES[before.mode]})" if len(modes) > 1 else name

    return Sheet(
        matrices=matrices,
        places=places,
        changed=changed_places(*places),
        packages=packages,
        pairs=tuple(
            _pair(
                name_of(before, after),
                before,
                after,
                metrics,
                shared,
            )
            for before, after in found.pairs
        ),
        only_before=found.only_before,
        only_after=found.only_after,
        unclear=found.unclear,
    )


def _name_of(before: CellGroup, after: CellGroup, free: frozenset[str]) -> str:
    """Name a pair by its label; of two cells with two labels, by what these have in common."""
    if before.label == after.label:
        return printable(before.label)
    bare = any("teacher" not in axes_of(group.label) for group in (before, after))
    return printable(joined(before.label, free, without_teacher=bare))


def _pair(
    name: str,
    before: CellGroup,
    after: CellGroup,
    metrics: Sequence[Metric],
    shared: frozenset[str],
) -> Pair:
    compared, lacking = [], []
    for metric in metrics:
        one, other = before.estimates.get(metric.name), after.estimates.get(metric.name)
        if one and other:
            sources = (str(group.settings["source"]) for group in (before, after))
            exact = _is_exact(metric, one, other, sources)
            compared.append(Compared(metric, one, other, exact, (before.mode, after.mode)))
        elif one or other:
            lacking.append((metric, "after" if one else "before"))
    keys = ({run.run_key for run in group.members} for group in (before, after))
    return Pair(
        name=name,
        before=before,
        after=after,
        changed=_changed_settings(before, after),
        compared=tuple(compared),
        lacking=tuple(lacking),
        shared=bool(shared.intersection(*keys)),
    )


def _is_exact(metric: Metric, before: Estimate, after: Estimate, sources: Iterable[str]) -> bool:
    """Whether a gate would take any difference for a change, and the runs of each side agree."""
    gauge = _GAUGES.get(metric.column)
    if gauge is None or any(len(set(estimate.ends)) > 1 for estimate in (before, after)):
        return False
    kinds = {gauge.measured if source == "measured" else gauge.predicted for source in sources}
    return kinds == {"exact"}


def _changed_settings(before: CellGroup, after: CellGroup) -> tuple[Change, ...]:
    found = changes(before.settings, after.settings, _NAMES)
    ids = [str(group.settings["cell_id"]) for group in (before, after)]
    # What the identity holds and no column tells: weight decay, the data's fingerprint, ...
    if not found and ids[0] != ids[1]:
        return (Change("cell (by a setting without a column)", ids[0][:6], ids[1][:6]),)
    return found
