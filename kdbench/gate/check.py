"""The gate from Python: what `kdbench check` does, for a notebook, a script or a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.common.errors import InputError
from kdbench.matrix.file import Matrix
from kdbench.matrix.filter import RowFilter
from kdbench.spec.gated_metrics import Tolerances
from kdbench.store.schema import TABLES

if TYPE_CHECKING:
    from kdbench.gate.findings import Report
    from kdbench.gate.snapshot import About, Observed, Snapshot
    from kdbench.store.parts import Damage

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What to compare, and with which baseline.

    Raises:
        InputError: neither a matrix nor results, or an option that belongs to the other.
    """

    baseline: str | Path  #: the baseline's file
    #: the matrix to predict; beside `results`, only its tolerances count
    matrix: Matrix | None = None
    results: str | Path | None = None  #: folder of measured results; None: predict the matrix
    #: device profile of the prediction; None: the baseline's, or the default
    profile: str | None = None
    #: `COLUMN=V1,V2` filters over `cells` of the results; a matrix has its own
    only: tuple[str, ...] = ()
    environment: str | None = None  #: id or name of the environment of the results

    def __post_init__(self) -> None:
        if self.matrix is None and self.results is None:
            hint = "--matrix FILE predicts; a results folder has what was measured"
            raise InputError("nothing to check", where="check", hint=hint)
        if self.results is not None and self.profile is not None:
            raise InputError("a profile is of predictions, not of results", where="--profile")
        if self.results is None and self.environment is not None:
            problem = "an environment is of results, not of predictions"
            raise InputError(problem, where="--environment")

    @property
    def tolerances(self) -> Tolerances:
        """How far each figure may grow."""
        return self.matrix.tolerances if self.matrix else Tolerances()

    @property
    def conditions(self) -> tuple[RowFilter, ...]:
        """The filters, parsed."""
        if self.results is None:
            return self.matrix.only if self.matrix else ()
        columns = [column.name for column in TABLES["cells"]]
        return tuple(RowFilter.parse(text, columns) for text in self.only)


@dataclass(frozen=True)
class Update:
    """What `update_baseline` did."""

    report: Report | None  #: the new figures against the old ones; None without an old baseline
    #: the error of each failed cell by label; if there are any, nothing is written
    failures: Mapping[str, str]
    added: int = 0  #: how many lines of the baseline are new
    removed: int = 0  #: how many lines are gone
    written: bool = False  #: whether the file was written; it is not if nothing changed
    notes: Sequence[str] = ()  #: what a reader should know

    @property
    def summary(self) -> list[str]:
        """What happened to the baseline, in lines."""
        if self.failures:
            lines = [f"failed: {label}: {how}" for label, how in self.failures.items()]
            return [*lines, "the baseline stays as it was: a cell failed"]
        if not self.written:
            return ["the baseline stays as it was: nothing changed"]
        return [f"the baseline is written: {self.added} lines added, {self.removed} removed"]

    @property
    def exit_code(self) -> int:
        """0 written, or nothing to write; 1 a cell failed."""
        return 1 if self.failures else 0


def check(gate: Gate) -> Report:
    """Compare with the baseline.

    Raises:
        InputError: the baseline, the results or the matrix are missing or broken.
        IncomparableError: results of another schema.
    """
    from kdbench.gate.baseline import read_baseline  # noqa: PLC0415 - pandas is slow

    return _compare(read_baseline(Path(gate.baseline)), gate, [])[0]


def update_baseline(gate: Gate) -> Update:
    """Write the selected cells of the baseline anew; other cells keep their lines.

    Nothing is written if a cell failed or nothing changed.

    Raises:
        InputError: as `check`; the file exists and is not a baseline; or some results cannot be
            read.
    """
    from kdbench.gate.baseline import render, write_baseline  # noqa: PLC0415

    path = Path(gate.baseline)
    before, notes = _read_old(path)
    left_out: list[Damage] = []
    if before is None:
        report, now = None, _observe(gate, None, left_out)
        notes = (*notes, *now.notes)  # otherwise the report has them
    else:
        report, now = _compare(before, gate, left_out)
    if left_out:
        # What these parts held would be gone from the baseline, and nothing would gate it.
        raise InputError(
            "nothing is written to the baseline: expected results that can all be read, found "
            f"{len(left_out)} left out",
            where=gate.results,
        )
    if now.failures:
        return Update(report, now.failures, notes=notes)
    merged = _merge(before, now.snapshot, gate)
    old, new = (set(render(side).splitlines()) if side else set() for side in (before, merged))
    if old != new:
        write_baseline(path, merged)
    return Update(report, {}, len(new - old), len(old - new), old != new, notes)


def predict_cells(matrix: Matrix, profile: str | None) -> list[Rows]:
    """Predict every cell of a matrix, in a child process; the default profile if None."""
    from kdbench.runner.prediction import predict_matrix  # noqa: PLC0415
    from kdbench.spec.device_profile import DEFAULT, load_profile  # noqa: PLC0415

    predictions = predict_matrix(matrix, profile=load_profile(profile or DEFAULT))
    return [prediction.rows for prediction in predictions]


def _compare(before: Snapshot, gate: Gate, left_out: list[Damage]) -> tuple[Report, Observed]:
    from kdbench.gate.compare import compare  # noqa: PLC0415

    now = _observe(gate, before.about, left_out)
    selected = before.matching(gate.conditions, among=now.labels)
    return compare(selected, now, gate.tolerances, baseline=gate.baseline), now


def _observe(gate: Gate, like: About | None, left_out: list[Damage]) -> Observed:
    """Load or predict the present figures.

    `like` is the baseline's matrix, environment and profile, where the gate names none.
    """
    from kdbench.gate import observed  # noqa: PLC0415

    if gate.results is not None:
        from kdbench.analysis.results import load_results  # noqa: PLC0415
        from kdbench.store.reading import warn_unreadable  # noqa: PLC0415

        def note(damage: Damage) -> None:
            left_out.append(damage)
            warn_unreadable(damage)

        results = load_results(
            gate.results, only=gate.only, environment=gate.environment, left_out=note
        )
        name = gate.matrix.name if gate.matrix else like.matrix if like else None
        return observed.observe_results(results, where=gate.results, matrix=name, like=like)
    assert gate.matrix is not None  # noqa: S101 - checked when the gate was made
    profile = gate.profile or (like.profile if like else None)
    return observed.observe_predictions(predict_cells(gate.matrix, profile))


def _read_old(path: Path) -> tuple[Snapshot | None, tuple[str, ...]]:
    """Read the baseline to be replaced, with notes; None if it is missing or unreadable.

    A file that was never a baseline may be somebody's work: that is an InputError.
    """
    from kdbench.gate.baseline import is_baseline, read_baseline  # noqa: PLC0415

    if not path.exists():
        return None, ()
    try:
        return read_baseline(path), ()
    except InputError as error:
        if not is_baseline(path):
            raise
        return None, (f"the old baseline could not be read, and all is new: {error}",)


def _merge(before: Snapshot | None, now: Snapshot, gate: Gate) -> Snapshot:
    """Keep the lines of the cells that were not selected, unless they are of another machine."""
    if before is None or not gate.conditions:
        return now
    selected = before.matching(gate.conditions, among=now.entries).entries
    kept = {label: entry for label, entry in before.entries.items() if label not in selected}
    if kept and before.about != now.about:
        raise InputError(
            f"the other {len(kept)} cells of the baseline were {before.about.title} under "
            f"torch {before.about.torch_version}, these {now.about.title} under torch "
            f"{now.about.torch_version}",
            where="--only",
            hint="write all of it anew: --update without --only",
        )
    return replace(now, entries={**kept, **now.entries})
