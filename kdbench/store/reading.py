"""The read side of the store: whole tables, without the parts that cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kdbench.common.errors import InputError, UnreadableFileWarning
from kdbench.store.layout import arrow_schema, part_files
from kdbench.store.parts import Damage, DamagedPartError, read_part

if TYPE_CHECKING:
    import pandas as pd


def is_store(root: Path) -> bool:
    """Whether a folder holds a matrix's results."""
    return (root / "cells").is_dir()


def find_stores(path: Path) -> list[Path]:
    """Find the results in a folder: itself, or the folders in it."""
    if not path.exists():
        raise InputError(
            "expected a results folder, found nothing there",
            where=path,
            hint="kdbench run writes one",
        )
    if not path.is_dir():
        raise InputError("expected a results folder, found a file", where=path)
    found = [path] if is_store(path) else sorted(p for p in path.iterdir() if is_store(p))
    if not found:
        raise InputError(
            "not a results folder: expected <matrix>/cells in it, found "
            + (", ".join(sorted(p.name for p in path.iterdir())[:5]) or "an empty folder"),
            where=path,
            hint="name the folder that kdbench run --out wrote to",
        )
    return found


def warn_unreadable(damage: Damage) -> None:
    """Warn of a part that is left out: on the command line, a line on stderr."""
    remedy = (
        "update kdbench to read it"
        if damage.newer
        else "`kdbench doctor RESULTS --repair` moves it away"
    )
    warnings.warn(f"left out {damage}; {remedy}", UnreadableFileWarning, stacklevel=2)


def read_table(
    root: Path,
    table: str,
    *,
    columns: Sequence[str] | None = None,
    left_out: Callable[[Damage], None] = warn_unreadable,
) -> pd.DataFrame:
    """Read one table of a store, committed or not, with nullable pandas types.

    Integers with nulls stay integers (Int64) and missing text is null. Parts of older versions are
    migrated; `left_out` receives each part that cannot be read.
    """
    whole = read_rows(root, table, columns, left_out=left_out)
    frame: pd.DataFrame = whole.to_pandas(types_mapper=_nullable)
    return frame


def read_rows(
    root: Path,
    table: str,
    columns: Sequence[str] | None = None,
    *,
    left_out: Callable[[Damage], None] = warn_unreadable,
) -> pa.Table:
    """Read one table as `read_table` does, as an Arrow table."""
    tables = []
    for part in part_files(root, table):
        try:
            found = read_part(part, table, columns)
        except DamagedPartError as error:
            left_out(error.damage)
            continue
        if found is not None:
            tables.append(found)
    return pa.concat_tables(tables) if tables else arrow_schema(table, columns).empty_table()


def _nullable(dtype: pa.DataType) -> Any:  # noqa: ANN401
    import pandas as pd  # noqa: PLC0415 - only readers need it

    return {
        pa.string(): pd.StringDtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.float64(): pd.Float64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }.get(dtype)
