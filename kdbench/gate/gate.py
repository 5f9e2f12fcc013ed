"""The library's gate: what `kdbench check` does, from a notebook, a script or a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """What is compared with which baseline.

    Attributes:
        baseline: the baseline's file.
        matrix: what to predict; beside `results`, its tolerances alone count.
        results: measured results; None: predict the matrix.
        profile: device profile of the prediction; None: the baseline's, or the default.
        only: `COLUMN=V1,V2` filters, over `cells` of results; a matrix has its own.
        environment: id or name of the environment of the results.
    """

    baseline: Path
    matrix: Matrix | None = None
    results: Path | None = None
    profile: str | None = None
    only: tuple[str, ...] = ()
    environment: str | None = None

    def __post_init__(self) -> None:
        """Check that there is something to compare.

        Raises:
            InputError: neither a matrix nor results, or options of the one without it.
        """
        if self.matrix is None and self.results is None:
            hint = "--matrix FILE predicts; a results folder has what was measured"
            raise InputError("nothing to check", where="check", hint=hint)
        if self.results is not None and self.profile is not None:
            raise InputError("a profile is of predictions, not of results", where="--profile")
        if self.results is None and self.environment is not None:
            raise InputError(
                "an environment is of results, not of predictions", where="--environment"
            )

    @property
    def tolerances(self) -> Tolerances:
        """How far each figure may grow."""
        return self.matrix.tolerances if self.matrix else Tolerances()

    @property
    def conditions(self) -> tuple[RowFilter, ...]:
        """The filters, read."""
        if self.results is None:
            return self.matrix.only if self.matrix else ()
        columns = [column.name for column in TABLES["cells"]]
        return tuple(RowFilter.parse(text, columns) for text in self.only)


@dataclass(frozen=True)
class Update:
    """What `update` did.

    Attributes:
        report: the new figures against the old ones; None where there were none to compare with.
        failures: label to how it failed; nothing is written then.
        added: lines that the baseline has now and had not.
        removed: lines that it had.
        written: whether the file was written: it is not where nothing changed.
        notes: what a reader should know.
    """

    report: Report | None
    failures: Mapping[str, str]
    added: int = 0
    removed: int = 0
    written: bool = False
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def told(self) -> list[str]:
        """Say what became of the baseline."""
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

    return _compared(read_baseline(gate.baseline), gate, [])[0]


def update(gate: Gate) -> Update:
    """Write the baseline anew, of the cells that were asked for; others keep their lines.

    Nothing is written where a cell failed, or where nothing changed.

    Raises:
        InputError: as `check`; the file is there and is no baseline; or not all of the results
            can be read.
    """
    from kdbench.gate.baseline import render, write_baseline  # noqa: PLC0415

    before, notes = _replaceable(gate.baseline)
    left_out: list[Damage] = []
    if before is None:
        report, now = None, _observe(gate, None, left_out)
        notes = (*notes, *now.notes)  # a report has these in it
    else:
        report, now = _compared(before, gate, left_out)
    if left_out:
        # What these parts held would be gone from the baseline, and nothing would gate it.
        raise InputError(
            "nothing is written to the baseline: expected results that can all be read, found "
            f"{len(left_out)} left out",
            where=gate.results,
        )
    if now.failures:
        return Update(report, now.failures, notes=notes)
    wanted = _merged(before, now.snapshot, gate)
    old, new = (set(render(side).splitlines()) if side else set() for side in (before, wanted))
    written = old != new
    if written:
        write_baseline(gate.baseline, wanted)
    return Update(report, {}, len(new - old), len(old - new), written, notes)


def predict_cells(matrix: Matrix, profile: str | None) -> list[Rows]:
    """Predict every cell of a matrix, in a process of its own.

    Args:
        matrix: what to predict.
        profile: name or file of a device profile; None: the default one.

    Raises:
        InputError: there is no such profile.
    """
    from kdbench.runner.prediction import predict_matrix  # noqa: PLC0415
    from kdbench.spec.device_profile import DEFAULT, load_profile  # noqa: PLC0415

    made = predict_matrix(matrix, profile=load_profile(profile or DEFAULT))
    return [prediction.rows for prediction in made]


def _compared(before: Snapshot, gate: Gate, left_out: list[Damage]) -> tuple[Report, Observed]:
    from kdbench.gate.compare import compare  # noqa: PLC0415

    now = _observe(gate, before.about, left_out)
    chosen = before.matching(gate.conditions, among=now.labels)
    return compare(chosen, now, gate.tolerances, baseline=gate.baseline), now


def _observe(gate: Gate, like: About | None, left_out: list[Damage]) -> Observed:
    """Find out what is now.

    Args:
        gate: what is asked for.
        like: what the baseline is of: where the gate does not say, the same.
        left_out: gets the parts of the results that cannot be read; each is warned of as well.
    """
    from kdbench.gate import observed  # noqa: PLC0415

    if gate.results is not None:
        from kdbench.analysis.results import load_results  # noqa: PLC0415
        from kdbench.store.reading import warn_unreadable  # noqa: PLC0415

        def noted(damage: Damage) -> None:
            left_out.append(damage)
            warn_unreadable(damage)

        results = load_results(
            gate.results, only=gate.only, environment=gate.environment, left_out=noted
        )
        like_matrix = like.matrix if like else None
        wanted = gate.matrix.name if gate.matrix else like_matrix
        return observed.observe_results(results, where=gate.results, matrix=wanted, like=like)
    if gate.matrix is None:
        raise RuntimeError("a gate has a matrix or results")
    profile = gate.profile or (like.profile if like else None)
    return observed.observe_predictions(predict_cells(gate.matrix, profile))


def _replaceable(path: Path) -> tuple[Snapshot | None, tuple[str, ...]]:
    """Read the baseline that is to be replaced; None where there is none that can be read.

    Raises:
        InputError: the file there was never a baseline, and may be somebody's work.
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


def _merged(before: Snapshot | None, now: Snapshot, gate: Gate) -> Snapshot:
    """Keep the lines of the cells that were not asked for.

    Raises:
        InputError: they are of another machine, torch or profile.
    """
    if before is None or not gate.conditions:
        return now
    asked = before.matching(gate.conditions, among=now.entries).entries
    kept = {label: entry for label, entry in before.entries.items() if label not in asked}
    if kept and before.about != now.about:
        raise InputError(
            f"the other {len(kept)} cells of the baseline were {before.about.title} under "
            f"torch {before.about.torch_version}, these {now.about.title} under torch "
            f"{now.about.torch_version}",
            where="--only",
            hint="write all of it anew: --update without --only",
        )
    return replace(now, entries={**kept, **now.entries})
