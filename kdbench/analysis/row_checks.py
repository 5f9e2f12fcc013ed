"""Rows from disk, checked before anything is worked out from them: results are passed on.

A part may be whole parquet with the right columns and hold what no run writes: nothing where
there is always something, a count that would fill the memory, a label that fills a screen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.common.errors import InputError, quoted, short_repr
from kdbench.store.schema import STATUSES, TABLES

# What is counted on to be there; of the columns that are never null, some a reader can do without.
_NEEDED = {
    "cells": (
        *("run_key", "cell_id", "label", "matrix", "mode", "method", "student", "student_inferred"),
        *("image_size", "dataset", "batch_size", "epochs", "alpha1", "alpha2", "seed", "repeat"),
        *("device", "launch", "source", "status", "started_at"),
    ),
    "epochs": ("run_key", "epoch", "steps"),
    "memory": ("run_key", "stage", "category", "bytes", "blocks"),
    "timeline": ("run_key", "moment", "part", "category", "live_bytes"),
}
_WORDS = {
    "mode": ("profile", "train"),
    "launch": ("spawn", "fork"),
    "source": ("measured", "predicted", "reported"),
    "status": STATUSES,
}
# Measured by a second source, which may see less than the first.
_BELOW_ZERO = ("unattributed_bytes",)
# A float holds every integer up to here; sums of a whole table of them stay within 64 bits.
_LARGEST = 2**53
_LARGEST_FLOAT = 1e30
# An allocation or a free of one step: each moment is a column of the timeline's figure.
_MOST_MOMENTS = 10_000_000
_LONGEST = 1000
# What a process said, and a description in JSON: cut where they are shown.
_LONG = ("error", "environment", "contention", "caveats", "teacher_checkpoint")


def check_rows(frame: pd.DataFrame, table: str, home: Path) -> pd.DataFrame:
    """Check a table's rows, in nullable types; numbers that are not finite become missing.

    Raises InputError for a row that no run writes.
    """
    frame = frame.copy()
    for column in TABLES[table]:
        name = column.name
        if name not in frame:
            continue
        if column.dtype == "float64":
            frame[name] = _finite(frame[name])
        values = frame[name]
        there = values.notna()
        if name in _NEEDED.get(table, ()) and not there.all():
            raise _wrong("a value", "none", frame[~there], name, table, home)
        if column.dtype in ("int64", "float64"):
            low, high = _bounds(name, column.dtype)
            outside = there & ~values.between(low, high).fillna(value=True).astype(bool)
            expected = f"a number from {low:g} to {high:g}"
        elif name in _WORDS:
            outside = there & ~values.isin(_WORDS[name])
            expected = f"one of {quoted(_WORDS[name])}"
        elif column.dtype == "string" and name not in _LONG:
            outside = there & (values.str.len() > _LONGEST).fillna(value=False).astype(bool)
            expected = f"at most {_LONGEST} letters"
        else:
            continue
        if outside.any():
            found = short_repr(values[outside].iloc[0])
            raise _wrong(expected, found, frame[outside], name, table, home)
    return frame


def _finite(values: pd.Series[Any]) -> pd.Series[Any]:
    plain = values.to_numpy(dtype=np.float64, na_value=np.nan)
    return values.mask(~np.isfinite(plain))


def _bounds(name: str, dtype: str) -> tuple[float, float]:
    if name == "moment":
        return 0, _MOST_MOMENTS
    high = _LARGEST if dtype == "int64" else _LARGEST_FLOAT
    if name.endswith("_ns"):
        high = 2**63 - 1
    return (-high if name in _BELOW_ZERO else 0), high


def _wrong(
    expected: str, found: str, rows: pd.DataFrame, column: str, table: str, home: Path
) -> InputError:
    key = rows["run_key"].iloc[0]
    return InputError(
        f"expected {expected}, found {found} in the run {short_repr(key)}",
        where=home / table,
        key=column,
        hint="no run writes this: move its part away to read the rest",
    )
