"""Results from disk as frames, filtered, with each row's environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.analysis.environments import Environment, assign_environments, pick_environment
from kdbench.analysis.row_checks import check_rows
from kdbench.analysis.utilisation import share_yardsticks
from kdbench.common.errors import InputError, quoted
from kdbench.matrix.filter import RowFilter
from kdbench.store import find_stores, read_table
from kdbench.store.parts import Damage
from kdbench.store.reading import warn_unreadable
from kdbench.store.schema import TABLES


def _lazy_table(name: str) -> cached_property[pd.DataFrame]:
    return cached_property(lambda results: results._table(name))


@dataclass(frozen=True, eq=False)
class Results:
    """Committed rows, as pandas frames with nullable types; all but `cells` are read on first use.

    `cells` has one row per run of a cell, the columns of the schema, and `environment_id`; its
    `utilisation` is by the best yardstick that is known, which is in `yardstick`, and what is wrong
    with that in `utilisation_issue`. The other frames hold the rows of these runs alone, with
    `matrix` and `label` joined.
    """

    homes: Mapping[str, Path]  #: the folder of each matrix's results
    cells: pd.DataFrame  #: one row per run, whatever its status
    known: Mapping[str, Environment]
    left_out: Callable[[Damage], None] = (
        warn_unreadable  #: called with each part that cannot be read
    )

    #: each phase of each run: seconds and peaks in bytes
    phases = _lazy_table("phases")
    #: each epoch of each training: losses, accuracies, seconds
    epochs = _lazy_table("epochs")
    #: each step: seconds, loss, peaks in bytes
    steps = _lazy_table("steps")
    #: what the sampler saw over time: bytes, watts, joules
    samples = _lazy_table("samples")
    #: bytes at the peak of a step by category and module
    memory = _lazy_table("memory")
    #: live bytes by category over the course of a step
    timeline = _lazy_table("timeline")

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of the matrices that have rows here."""
        return tuple(sorted(str(name) for name in self.cells["matrix"].unique()))

    def environments(self) -> list[Environment]:
        """List the environments of these rows, by name."""
        found = [self.known[str(key)] for key in self.cells["environment_id"].unique()]
        return sorted(found, key=lambda environment: (environment.name, environment.id))

    def by_environment(self) -> Iterator[tuple[Environment, Results]]:
        """Yield each environment with its rows."""
        for environment in self.environments():
            yield environment, self._where("environment_id", environment.id)

    def sheets(self) -> Iterator[tuple[str, Environment, Results]]:
        """Yield matrix, environment and rows: what one table or one figure may hold.

        Rows that were profiled and rows that were trained are yielded apart.
        """
        for matrix in self.matrices:
            for environment, rows in self._where("matrix", matrix).by_environment():
                for mode in sorted(rows.cells["mode"].unique()):
                    yield matrix, environment, rows._where("mode", mode)

    def matching(self, conditions: Sequence[str], *, option: str = "--only") -> Results:
        """Keep the runs that meet each `COLUMN=V1,V2`; an InputError if none does."""
        cells, columns = self.cells, [column.name for column in TABLES["cells"]]
        for condition in conditions:
            only = RowFilter.parse(condition, columns, option)
            cells = cells[only.keep([row[only.column] for row in plain_rows(cells)])]
        return replace(self, cells=cells)

    def records(self) -> list[dict[str, Any]]:
        """Return the rows of `cells` as plain dictionaries, missing values being None."""
        return plain_rows(self.cells)

    def _where(self, column: str, value: str) -> Results:
        return replace(self, cells=self.cells[self.cells[column] == value])

    def _table(self, name: str) -> pd.DataFrame:
        # A run_key is unique within a store only: two matrices may hold the same cell.
        frames = []
        for home in dict.fromkeys(self.homes[matrix] for matrix in self.matrices):
            here = [matrix for matrix in self.matrices if self.homes[matrix] == home]
            runs = self.cells.loc[self.cells["matrix"].isin(here), ["run_key", "matrix", "label"]]
            rows = read_table(home, name, left_out=self.left_out)
            frames.append(check_rows(rows, name, home).merge(runs, on="run_key", how="inner"))
        return pd.concat(frames, ignore_index=True)


def load_results(
    path: str | Path,
    *,
    only: Sequence[str] = (),
    environment: str | None = None,
    left_out: Callable[[Damage], None] = warn_unreadable,
) -> Results:
    """Load what was committed; an `UnreadableFileWarning` names each part that is left out.

    Args:
        path: a results folder with matrices in it, or the folder of one matrix.
        only: `COLUMN=V1,V2` filters over the columns of `cells`; values compare as text, missing
            ones as `null`.
        environment: id, name, or unique part of the name of the one environment to keep.
        left_out: called with each part that is left out, in place of the warning.

    Raises:
        InputError: no results there, or none that can be read; an unknown column or environment;
            or a filter that leaves nothing.
    """
    where = Path(path)
    homes, cells = _read_cells(where, left_out)
    if cells.empty:
        raise InputError(
            "no results yet: no run is committed here, or none that can be read",
            where=where,
            hint="kdbench run writes them",
        )
    found = assign_environments(plain_rows(cells))
    cells = cells.assign(environment_id=pd.array([e.id for e in found], dtype="string"))
    (cells,) = share_yardsticks(cells)
    known = {e.id: e for e in found}
    results = Results(homes=homes, cells=cells, known=known, left_out=left_out).matching(only)
    if environment is None:
        return results
    chosen = pick_environment(environment, results.environments())
    return results._where("environment_id", chosen.id)


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn a frame into dictionaries in which everything missing is None."""
    columns = {
        str(name): [
            None if gone else v for v, gone in zip(column.tolist(), column.isna(), strict=True)
        ]
        for name, column in frame.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _read_cells(
    where: Path, left_out: Callable[[Damage], None]
) -> tuple[dict[str, Path], pd.DataFrame]:
    homes: dict[str, Path] = {}
    frames = []
    for home in find_stores(where):
        frame = check_rows(read_table(home, "cells", left_out=left_out), "cells", home)
        for name in frame["matrix"].unique():
            other = homes.setdefault(str(name), home)
            if other != home:
                raise InputError(
                    f"two folders hold results of the matrix {str(name)!r}: "
                    f"{quoted((other.name, home.name), ' and ')}",
                    where=where,
                    hint="name one of them",
                )
        frames.append(frame)
    return homes, pd.concat(frames, ignore_index=True)
