"""Two sides set against each other, cell by cell and metric by metric."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from kdbench.analysis.aggregate import MODES, SETTINGS, CellGroup, group_cells
from kdbench.analysis.compare.comparison import Compared, Comparison, Pair, Sheet
from kdbench.analysis.compare.matching import Cells, label_without, lacks_teacher, match_cells
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
from kdbench.common.errors import printable
from kdbench.matrix.grid import AXES
from kdbench.spec.gated_metrics import GATED_METRICS

#: What is compared unless the user names metrics.
DEFAULT_METRICS = (
    *("parameters", "allocated", "reserved", "host", "step_time", "epoch_time"),
    *("precompute_time", "precompute_memory", "energy", "accuracy"),
)
# Told apart by the place, not a part of what is computed, or a remark.
_NOT_CHANGES = ("cell_id", "source", "profile", "student_inferred")
_NAMES = {name: name for name in SETTINGS if name not in _NOT_CHANGES}
_GATED = {metric.column: metric for metric in GATED_METRICS.values()}


def compare(before: Side, after: Side, *, metrics: Sequence[Metric] | None = None) -> Comparison:
    """Compare two sides by metrics (`DEFAULT_METRICS` if None).

    Cells are joined by their label within a matrix, or on the axes by which the sides were not
    picked; if each side holds one matrix alone, these may have different names. Rows of different
    machines are compared only where each side has one, and predictions with measurements only where
    there is nothing else. Raises InputError if it is unclear which of several environments is
    meant.
    """
    wanted = tuple(METRICS[name] for name in DEFAULT_METRICS) if metrics is None else tuple(metrics)
    first, second = _by_matrix_and_place(before), _by_matrix_and_place(after)
    names = [(name, name) for name in first if name in second]
    if len(first) == len(second) == 1:
        names = [(next(iter(first)), next(iter(second)))]
    join = _Join(before, after, wanted)
    sheets = []
    for matrices in names:
        one, other = first[matrices[0]], second[matrices[1]]
        for places in pair_places(list(one), list(other), matrix=matrices[0]):
            # popped: what is left in the end is on one side alone
            cells = one.pop(places[0]), other.pop(places[1])
            sheets.append(join.sheet(matrices, places, cells))
    return Comparison(
        names=(before.name, after.name),
        metrics=wanted,
        sheets=tuple(sheets),
        only=(_all_cells(first), _all_cells(second)),
    )


_Groups = dict[str, dict[Place, list[CellGroup]]]


def _by_matrix_and_place(side: Side) -> _Groups:
    found: _Groups = {}
    for group in group_cells(side.results):
        cells = found.setdefault(group.matrix, {}).setdefault(Place.of(group), [])
        # Two machines that predicted the same cell agree, and the latest counts.
        same = (
            n for n, g in enumerate(cells) if (g.label, g.settings) == (group.label, group.settings)
        )
        place = next(same, None)
        if place is None:
            cells.append(group)
        elif group.started > cells[place].started:
            cells[place] = group
    return found


def _all_cells(groups: _Groups) -> Cells:
    return tuple(g for places in groups.values() for cells in places.values() for g in cells)


class _Join:
    """What all sheets of a comparison have in common."""

    def __init__(self, before: Side, after: Side, metrics: Sequence[Metric]) -> None:
        self._sides, self._metrics = (before, after), metrics
        self._shared = shared_runs(before.results, after.results)
        self._free = (before.picked_by | after.picked_by).intersection(AXES)

    def sheet(
        self,
        matrices: tuple[str, str],
        places: tuple[Place, Place],
        cells: tuple[Sequence[CellGroup], Sequence[CellGroup]],
    ) -> Sheet:
        """Compare the cells of one matrix in one place."""
        found = match_cells(*cells, self._free)
        labels = Counter((before.label, before.mode) for before, _ in found.pairs)
        modes = {group.mode for pair in found.pairs for group in pair}
        pairs = []
        for before, after in found.pairs:
            alone = labels[before.label, before.mode] == 1
            name = self._name_of(before, after) if alone else before.name
            if len(modes) > 1:
                name = f"{name} ({MODES[before.mode]})"
            pairs.append(self._pair(name, before, after))
        rows = (_rows_of(*one) for one in zip(self._sides, cells, strict=True))
        return Sheet(
            matrices=matrices,
            places=places,
            changed=changed_places(*places),
            packages=changed_packages(*rows),
            pairs=tuple(pairs),
            only=found.only,
            unclear=found.unclear,
        )

    def _name_of(self, before: CellGroup, after: CellGroup) -> str:
        """Name a pair by its label; of two cells with two labels, by what these have in common."""
        if before.label == after.label:
            return printable(before.label)
        bare = lacks_teacher(before) or lacks_teacher(after)
        return printable(label_without(before.label, self._free, without_teacher=bare))

    def _pair(self, name: str, before: CellGroup, after: CellGroup) -> Pair:
        compared, missing = [], []
        for metric in self._metrics:
            one, other = before.estimates.get(metric.name), after.estimates.get(metric.name)
            if one and other:
                sources = (str(group.settings["source"]) for group in (before, after))
                exact = _is_exact(metric, one, other, sources)
                compared.append(Compared(metric, one, other, exact, (before.mode, after.mode)))
            elif one or other:
                missing.append((metric, "after" if one else "before"))
        keys = ({run.run_key for run in group.members} for group in (before, after))
        return Pair(
            name=name,
            before=before,
            after=after,
            changed=_changed_settings(before, after),
            compared=tuple(compared),
            missing=tuple(missing),
            shared=bool(self._shared.intersection(*keys)),
        )


def _rows_of(side: Side, groups: Iterable[CellGroup]) -> list[dict[str, Any]]:
    keys = {(group.matrix, run.run_key) for group in groups for run in group.members}
    return [row for row in side.results.records() if (row["matrix"], row["run_key"]) in keys]


def _is_exact(metric: Metric, before: Estimate, after: Estimate, sources: Iterable[str]) -> bool:
    """Whether a gate would take any difference for a change, and the runs of each side agree."""
    gated = _GATED.get(metric.column)
    if gated is None or any(len(set(estimate.ends)) > 1 for estimate in (before, after)):
        return False
    kinds = {gated.measured if source == "measured" else gated.predicted for source in sources}
    return kinds == {"exact"}


def _changed_settings(before: CellGroup, after: CellGroup) -> tuple[Change, ...]:
    found = changes(before.settings, after.settings, _NAMES)
    ids = [str(group.settings["cell_id"]) for group in (before, after)]
    # What the identity holds and no column shows: weight decay, the data's fingerprint, ...
    if not found and ids[0] != ids[1]:
        return (Change("cell (by a setting without a column)", ids[0][:6], ids[1][:6]),)
    return found
