"""Parts that an older kdbench wrote, brought to today's columns as they are read.

No column was ever renamed or given another type: each version added some. What a column that is
new would have said is filled in where an older kdbench could do nothing else; where it could not
know, it is null.
"""

from collections.abc import Callable, Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from kdbench.store.layout import ARROW
from kdbench.store.schema import SCHEMA_VERSION, TABLES

#: the first version that there was
OLDEST = 1

# What a new column is, of the rows that an older kdbench wrote.
Fill = Callable[[pa.Table], "pa.Array | pa.ChunkedArray | None"]
_SINCE = {"timeline": 3}


def _nothing(_rows: pa.Table) -> None:
    """Fill in nothing: an older kdbench could not know."""


def _constant(value: object) -> Fill:
    return lambda rows: pa.array([value] * len(rows))


def _where(condition: Callable[[pa.Table], pa.ChunkedArray], value: object) -> Fill:
    """Fill in a value for the rows of which a condition holds, null for the others."""
    return lambda rows: pc.if_else(condition(rows), pa.scalar(value), None)


def _known(column: str) -> Callable[[pa.Table], pa.ChunkedArray]:
    return lambda rows: pc.is_valid(rows.column(column))


def _is(column: str, value: str) -> Callable[[pa.Table], pa.ChunkedArray]:
    return lambda rows: pc.equal(rows.column(column), value)


def _unknown(names: Iterable[str]) -> dict[str, Fill]:
    return dict.fromkeys(names, _nothing)


_ADDED: Mapping[int, Mapping[str, Mapping[str, Fill]]] = {
    2: {
        "cells": {
            # there was no cache of embeddings, no streaming, and no training that went on
            "precompute_reused": _where(_known("precompute_seconds"), value=False),
            "data_storage": _where(_known("parameter_bytes"), "device"),
            "steps_resumed": _where(_is("mode", "train"), 0),
            **_unknown(("precompute_key", "teacher_revision")),
        },
        "phases": {"attempt": _constant(0)},
        "steps": {"attempt": _constant(0)},
    },
    3: {
        "cells": _unknown(
            (
                *("contention", "warmup_steps", "step_device_seconds_median", "step_data_seconds"),
                *("step_teacher_seconds", "step_forward_seconds", "step_backward_seconds"),
                *("step_optimizer_seconds", "precompute_joules", "device_idle_bytes"),
                *("gpu_neighbours", "energy_epoch_joules", "energy_training_joules"),
                *("energy_training_kind", "host_energy_step_joules", "host_energy_source"),
                *("matmul_flops_per_second", "copy_bytes_per_second", "sample_seconds_median"),
                *("sample_seconds_max", "load_average", "cpu_elsewhere", "cpu_governor"),
                *("cpu_mhz_median", "cpu_celsius_max", "cpu_throttled_seconds"),
                *("gpu_sm_mhz_median", "gpu_celsius_max", "gpu_throttled"),
            )
        ),
        "steps": _unknown(
            (
                *("device_seconds", "data_seconds", "teacher_seconds", "forward_seconds"),
                *("backward_seconds", "optimizer_seconds"),
            )
        ),
        "samples": _unknown(
            (
                *("gpu_neighbours", "gpu_sm_mhz", "gpu_celsius", "gpu_throttle", "cpu_elsewhere"),
                *("cpu_mhz", "cpu_celsius", "cpu_throttled_seconds", "host_energy_joules"),
            )
        ),
    },
    4: {
        "cells": {
            # torch's own choice was all that there was
            "optimizer_kernels": _constant("auto"),
            **_unknown(
                (
                    *("profile", "caveats", "step_seconds_fastest", "first_allocated_peak_bytes"),
                    *("first_reserved_peak_bytes", "operations_step", "bytes_moved_step"),
                )
            ),
        },
        "memory": {"stage": _constant("steady")},
    },
    5: {
        "cells": _unknown(("oom_source", "oom_asked_bytes", "oom_free_bytes", "suspended_steps")),
        "phases": _unknown(("suspended",)),
        "steps": _unknown(("suspended",)),
    },
    6: {
        # an older kdbench had, or knew, none of these
        "cells": _unknown(
            (
                *("unattributed_scratch_bytes", "method_parameters", "runtime_settings"),
                *("rates_steady", "rates_contended"),
                *("teacher_preprocessing", "teacher_preprocessing_source"),
            )
        ),
    },
}
# Columns that came while their version was in the making: its first parts lack them.
_LATE: Mapping[int, Mapping[str, tuple[str, ...]]] = {
    1: {"cells": ("teacher_checkpoint", "epochs")},
    3: {"cells": ("energy_training_kind",)},
    4: {"cells": ("step_seconds_fastest",)},
}
# Columns that were there and never filled in while their version was in the making.
_LATE_FILLS: Mapping[int, Mapping[str, Mapping[str, object]]] = {
    2: {"phases": {"attempt": 0}, "steps": {"attempt": 0}}
}


def tables_in_version(version: int) -> tuple[str, ...]:
    """Return the tables of which each run of a version has a part."""
    return tuple(name for name in TABLES if _SINCE.get(name, OLDEST) <= version)


def migrate(found: pa.Table, table: str, version: int) -> pa.Table:
    """Give a part's rows, written in `version` (from `OLDEST` on), today's columns.

    A column of its own version that it lacks is not added; raises KeyError if a new one needs it.
    """
    dtypes = {column.name: ARROW[column.dtype] for column in TABLES[table]}
    for name in _LATE.get(version, {}).get(table, ()):
        if name not in found.column_names:
            found = found.append_column(name, pa.nulls(len(found), dtypes[name]))
    for name, value in _LATE_FILLS.get(version, {}).get(table, {}).items():
        filled = pc.fill_null(found.column(name), value)
        found = found.set_column(found.column_names.index(name), name, filled)
    for later in range(version + 1, SCHEMA_VERSION + 1):
        for name, fill in _ADDED[later].get(table, {}).items():
            values = fill(found)
            if values is None:
                values = pa.nulls(len(found), dtypes[name])
            found = found.append_column(name, values.cast(dtypes[name]))
    return found
