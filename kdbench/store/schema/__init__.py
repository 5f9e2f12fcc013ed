"""The tables of the store: every column with its type, unit and meaning.

The documentation's page of the columns is made from this. Missing is null everywhere, never 0.
"""

from kdbench.store.schema.cell_conditions import CONDITION_COLUMNS
from kdbench.store.schema.cell_memory import MEMORY_COLUMNS
from kdbench.store.schema.cell_outcome import OUTCOME_COLUMNS, STATUSES
from kdbench.store.schema.column import KEY, Column, Dtype
from kdbench.store.schema.plan import PLAN_COLUMNS
from kdbench.store.schema.series import TABLES_BESIDE_CELLS

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

TABLES: dict[str, tuple[Column, ...]] = {
    "cells": (KEY, *PLAN_COLUMNS, *OUTCOME_COLUMNS, *MEMORY_COLUMNS, *CONDITION_COLUMNS),
    **TABLES_BESIDE_CELLS,
}

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
