"""The tables of the store: every column with its type, unit and meaning.

The documentation's page of the columns is made from this. Missing is null everywhere, never 0.
"""

from kdbench.store.schema.cells import CELLS, PLAN_COLUMNS
from kdbench.store.schema.column import Column, Dtype, read_columns
from kdbench.store.schema.series import SERIES

__all__ = [
    "COMPARABLE_SINCE",
    "MEMORY_CATEGORIES",
    "PLAN_COLUMNS",
    "SCHEMA_VERSION",
    "STATUSES",
    "STEP_PARTS",
    "TABLES",
    "Column",
    "Dtype",
]

SCHEMA_VERSION = 6
#: The oldest version whose figures mean what today's do: a baseline of it is compared as it is.
COMPARABLE_SINCE = 4

_KEY = read_columns("text run_key: joins all tables: one run of one cell")
TABLES: dict[str, tuple[Column, ...]] = {
    table: _KEY + columns for table, columns in {"cells": CELLS, **SERIES}.items()
}

STATUSES = ("ok", "oom", "failed", "timeout", "killed", "diverged", "interrupted")

#: The parts of a step that have columns, in the order in which they begin.
STEP_PARTS = ("data", "teacher", "forward", "backward", "optimizer")

MEMORY_CATEGORIES = (
    "parameters",
    "gradients",
    "optimizer_state",
    "activations",
    "teacher",
    "inputs",
    "workspace",
    "other",
)
