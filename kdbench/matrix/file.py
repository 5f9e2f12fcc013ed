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
from kdbench.common.errors import InputError, located, short_repr
from kdbench.common.text import is_name, suggest_name
from kdbench.common.validation import validate
from kdbench.matrix.checks import check_runs
from kdbench.matrix.filter import RowFilter
from kdbench.matrix.resolve import MatrixFile, resolve_cells
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
    with located(where):
        apply_preset(document, None)  # so that the presets are tables
        for other in document.get("presets", ()):
            # A mistake in a preset is reported now, not on the day somebody picks it.
            _check_preset(document, other, where)
        chosen = apply_assignments(apply_preset(document, preset), assignments)
    with _blamed_on(assignments, where), located(where):
        matrix = _matrix(chosen, where, preset)
    columns = [column.name for column in PLAN_COLUMNS]
    matrix = replace(matrix, only=tuple(RowFilter.parse(text, columns) for text in only))
    matrix.runs()  # so that a wrong filter is reported here
    return matrix


def _check_preset(document: Document, preset: str, where: Path) -> None:
    mistake = _mistake(apply_preset(document, preset))
    if mistake is None:
        return
    # What is wrong without it too is the file's own, and no mistake of a preset.
    own = _mistake(apply_preset(document, None))
    if own is not None and str(own) == str(mistake):
        raise own
    raise mistake.at(_origin(where, preset))


def _mistake(document: Document) -> InputError | None:
    try:
        _parsed(document)
    except InputError as error:
        return error
    return None


def _origin(where: Path, preset: str | None) -> object:
    return where if preset is None else f"{where} (preset {short_repr(preset)})"


@contextmanager
def _blamed_on(assignments: Sequence[str], where: Path) -> Iterator[None]:
    """Report a mistake in a key that the command line has set as the command line's.

    What is wrong with a file that such a key names is reported of that file.
    """
    try:
        yield
    except InputError as error:
        keys = (assignment.partition("=")[0].strip() for assignment in assignments)
        # the key itself, or what is below it
        if str(error.where).startswith(str(where)) and any(
            re.match(rf"{re.escape(key)}($|[.\[])", error.key or "") for key in keys
        ):
            raise error.at("--set") from None
        raise


def _matrix(chosen: Document, where: Path, preset: str | None) -> Matrix:
    with located(_origin(where, preset)):
        file = _parsed(chosen)
    # Elsewhere a child cannot be made to end with its parent, and macOS's system libraries do not
    # survive a fork.
    if file.launch == "fork" and platform.system() != "Linux":
        problem = f"a fork needs Linux, found {platform.system()}"
        raise InputError(problem, key="launch", hint='use "spawn", the default')
    name = file.name or _name_from(where)
    cells = tuple(resolve_cells(name, file, chosen))
    check_runs(len(cells), len(file.seeds), file.repeats)
    return Matrix(
        name=name,
        path=where,
        mode=file.mode,
        seeds=file.seeds,
        repeats=file.repeats,
        threads=file.threads,
        launch=file.launch,
        budget=file.budget,
        cells=cells,
        tolerances=parse_tolerances(file.tolerances),
    )


def _name_from(path: Path) -> str:
    if path == display_path(STANDARD_INPUT) or is_stream(path):
        raise InputError(
            "results are kept under the matrix's name, which a pipe does not have",
            key="name",
            hint='give it one: name = "my-matrix"',
        )
    if not is_name(path.stem):
        raise InputError(
            f"cannot name the matrix after the file {short_repr(path.name)}",
            key="name",
            hint=f'give it a name: name = "{suggest_name(path.stem) or "my-matrix"}"',
        )
    return path.stem


def _parsed(document: Document) -> MatrixFile:
    file = validate(MatrixFile, document)
    check_steps(file.budget)
    parse_tolerances(file.tolerances)
    return file
