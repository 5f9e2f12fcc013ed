"""A matrix file: TOML -> `Matrix` -> ordered cells and runs."""

import itertools
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdbench.common.document import (
    STANDARD_INPUT,
    Document,
    apply_assignments,
    apply_preset,
    display_path,
    is_stream,
    read_document,
)
from kdbench.common.errors import InputError, short_repr
from kdbench.common.text import is_name, suggest_name
from kdbench.common.validation import validate
from kdbench.matrix.filter import RowFilter
from kdbench.matrix.resolve import MatrixFile, resolve_cells
from kdbench.matrix.sizes import check_runs
from kdbench.spec.budget import Budget, check_steps
from kdbench.spec.cell import Cell, CellRun, Launch, Mode
from kdbench.spec.gated_metrics import Tolerances, parse_tolerances
from kdbench.store.schema import PLAN_COLUMNS


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What a matrix file asks for, all of it checked."""

    name: str
    path: Path
    mode: Mode
    seeds: tuple[int, ...]
    repeats: int
    threads: int | None
    launch: Launch
    budget: Budget
    cells: tuple[Cell, ...]
    only: tuple[RowFilter, ...] = ()
    tolerances: Tolerances = field(default_factory=Tolerances)

    def runs(self, device: str = "cpu") -> list[CellRun]:
        """List the runs in order: every cell, every seed, every repeat, less what `only` drops.

        Repeats come outermost, so that the repeats of one cell lie far apart in time and a slow
        spell of the machine does not hit all of one cell's.
        """
        runs = [
            CellRun(
                cell=cell,
                mode=self.mode,
                seed=seed,
                repeat=repeat,
                device=device,
                threads=self.threads,
                launch=self.launch,
                budget=self.budget,
            )
            for repeat, seed, cell in itertools.product(range(self.repeats), self.seeds, self.cells)
        ]
        for only in self.only:
            kept = only.keep([run.plan_row()[only.column] for run in runs])
            runs = list(itertools.compress(runs, kept))
        return runs


def load_matrix(
    path: str | Path,
    *,
    preset: str | None = None,
    assignments: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Matrix:
    """Load a matrix file.

    Args:
        path: the TOML file, or `-` for the standard input; it is read once, so that a pipe will
            do.
        preset: name of one of its presets.
        assignments: `KEY=VALUE` strings laid over file and preset (the command line's `--set`).
        only: `COLUMN=V1,V2` filters over the runs (the command line's `--only`).

    Raises:
        InputError: anything wrong with the file or these arguments, the first thing found.
    """
    document = read_document(Path(path))
    where = display_path(Path(path))
    for other in document.get("presets") or ():
        # A mistake in a preset is told now, not on the day somebody picks it.
        _check_preset(document, other, where)
    chosen = apply_assignments(apply_preset(document, preset, where=where), assignments)
    with _blamed_on(assignments, where):
        matrix = _matrix(chosen, where, f"preset {short_repr(preset)}" if preset else None)
    columns = [column.name for column in PLAN_COLUMNS]
    matrix = replace(matrix, only=tuple(RowFilter.parse(text, columns) for text in only))
    matrix.runs()  # so that a wrong filter is told here
    return matrix


def _check_preset(document: Document, preset: str, where: Path) -> None:
    chosen = apply_preset(document, preset, where=where)
    try:
        _parsed(chosen, where=where, origin=f"preset {short_repr(preset)}")
    except InputError as error:
        # What is wrong without it too is the file's own, and no mistake of a preset.
        own = _mistake(apply_preset(document, None, where=where), where)
        if own is not None and str(own) == str(error.at(where)):
            raise own from None
        raise


def _mistake(document: Document, where: Path) -> InputError | None:
    try:
        _parsed(document, where=where, origin=None)
    except InputError as error:
        return error
    return None


@contextmanager
def _blamed_on(assignments: Sequence[str], where: Path) -> Iterator[None]:
    """Tell a mistake in a key that the command line has set as the command line's.

    What is wrong with a file that such a key names is told of that file.
    """
    try:
        yield
    except InputError as error:
        if not str(error.where).startswith(str(where)):
            raise
        keys = (assignment.partition("=")[0].strip() for assignment in assignments)
        # the key itself, or what is below it
        if any(re.match(rf"{re.escape(key)}($|[.\[])", error.key or "") for key in keys):
            raise error.at("--set") from None
        raise


def _matrix(chosen: Document, where: Path, origin: str | None) -> Matrix:
    file = _parsed(chosen, where=where, origin=origin)
    _check_launch(file.launch, where)
    name = file.name or _name_from(where)
    matrix = Matrix(
        name=name,
        path=where,
        mode=file.mode,
        seeds=file.seeds,
        repeats=file.repeats,
        threads=file.threads,
        launch=file.launch,
        budget=file.budget,
        cells=tuple(resolve_cells(name, file, chosen, where)),
        tolerances=parse_tolerances(file.tolerances, where=where),
    )
    if not matrix.cells:
        raise InputError("no cells left: [[exclude]] drops every one", where=where, key="exclude")
    check_runs(len(matrix.cells), len(matrix.seeds), matrix.repeats, where)
    return matrix


def _check_launch(launch: Launch, where: Path) -> None:
    # Elsewhere a child cannot be made to end with its parent, and macOS's system libraries do not
    # survive a fork.
    if launch == "fork" and platform.system() != "Linux":
        raise InputError(
            f"a fork needs Linux, found {platform.system()}",
            where=where,
            key="launch",
            hint='use "spawn", the default',
        )


def _name_from(path: Path) -> str:
    if path == display_path(STANDARD_INPUT) or is_stream(path):
        raise InputError(
            "results are kept under the matrix's name, which a pipe does not have",
            where=path,
            key="name",
            hint='give it one: name = "my-matrix"',
        )
    if not is_name(path.stem):
        raise InputError(
            f"cannot name the matrix after the file {short_repr(path.name)}",
            where=path,
            key="name",
            hint=f'give it a name: name = "{suggest_name(path.stem) or "my-matrix"}"',
        )
    return path.stem


def _parsed(document: Document, *, where: Path, origin: str | None) -> MatrixFile:
    source = f"{where} ({origin})" if origin else where
    file = validate(MatrixFile, document, where=source)
    check_steps(file.budget, source)
    parse_tolerances(file.tolerances, where=source)
    return file
