"""Parts that an older kdbench wrote, brought to today's columns as they are read.

No column was ever renamed or given another type: each version added some (`since` in the schema).
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdbench.store.layout import ARROW
from kdbench.store.schema import TABLES

#: the first schema version
OLDEST = 1

_TABLE_SINCE = {"timeline": 3}

#: What a column is for the rows of a version that did not have it.
Fill = Callable[[pa.Table], "pa.Array | pa.ChunkedArray"]


def _constant(value: object) -> Fill:
    return lambda rows: pa.array([value] * len(rows))


def _where(column: str, condition: Callable[[Any], Any], value: object) -> Fill:
    """Fill in a value where a condition on another column holds, and null elsewhere."""
    return lambda rows: pc.if_else(condition(rows.column(column)), pa.scalar(value), None)


# What an older kdbench could only have done. Where it could have done anything else, or did not
# know, a new column is null.
_FILLS: Mapping[tuple[str, str], Fill] = {
    # there was no cache of embeddings, no streaming, and no training that went on
    ("cells", "precompute_reused"): _where("precompute_seconds", pc.is_valid, value=False),
    ("cells", "data_storage"): _where("parameter_bytes", pc.is_valid, "device"),
    ("cells", "steps_resumed"): _where("mode", lambda mode: pc.equal(mode, "train"), 0),
    ("phases", "attempt"): _constant(0),
    ("steps", "attempt"): _constant(0),
    # torch's own choice was all that there was
    ("cells", "optimizer_kernels"): _constant("auto"),
    ("memory", "stage"): _constant("steady"),
}
# Columns that came while their version was in the making: its first parts lack them.
_LATE: Mapping[tuple[int, str], tuple[str, ...]] = {
    (1, "cells"): ("teacher_checkpoint", "epochs"),
    (3, "cells"): ("energy_training_kind",),
    (4, "cells"): ("step_seconds_fastest",),
}
# The version in which `attempt` was there, and not filled in while it was in the making.
_ATTEMPT_UNSET = 2


def tables_in_version(version: int) -> tuple[str, ...]:
    """Return the tables of which each run of a version has a part."""
    return tuple(name for name in TABLES if _TABLE_SINCE.get(name, OLDEST) <= version)


def migrate(found: pa.Table, table: str, version: int) -> pa.Table:
    """Give a part's rows, written in `version` (from `OLDEST` on), today's columns.

    A column of its own version that it lacks is not added; raises KeyError if a new one needs it.
    """
    if version == _ATTEMPT_UNSET and "attempt" in found.column_names:
        place = found.column_names.index("attempt")
        found = found.set_column(place, "attempt", pc.fill_null(found.column(place), 0))
    late = _LATE.get((version, table), ())
    for column in TABLES[table]:
        name, dtype = column.name, ARROW[column.dtype]
        if column.since > version:
            values = _FILLS.get((table, name), _constant(None))(found)
            found = found.append_column(name, values.cast(dtype))
        elif name in late and name not in found.column_names:
            found = found.append_column(name, pa.nulls(len(found), dtype))
    return found
