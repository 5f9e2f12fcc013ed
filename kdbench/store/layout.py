"""The files and folders of a matrix's results, and the Arrow types of its tables."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa

from kdbench.store.schema import SCHEMA_VERSION, TABLES, Dtype

#: A zero-row part in every table: it can be read before the first run is committed.
EMPTY_PART = "empty.parquet"
#: what a running cell writes line by line, a folder per run
SPOOL = ".spool"
#: what a newer run of the same key replaced, or --fresh
SUPERSEDED = ".superseded"
#: files that cannot be read, or that kdbench did not write
SET_ASIDE = ".set-aside"
LOGS = "logs"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
VERSION_KEY = b"kdbench_schema_version"

ARROW: dict[Dtype, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


def arrow_schema(table: str, columns: Sequence[str] | None = None) -> pa.Schema:
    """Return a table's Arrow schema with its version, or that of `columns` alone without it."""
    whole = _whole_schema(table, SCHEMA_VERSION)
    return whole if columns is None else pa.schema([whole.field(name) for name in columns])


@cache  # a schema is immutable, and each part is compared with one
def _whole_schema(table: str, version: int) -> pa.Schema:
    fields = [pa.field(column.name, ARROW[column.dtype]) for column in TABLES[table]]
    return pa.schema(fields, metadata={VERSION_KEY: str(version)})


def part_name(run_key: str) -> str:
    """Return the file name of a run's part in each table."""
    return f"{run_key}.parquet"


def part_files(root: Path, table: str) -> list[Path]:
    """List a table's parts, readable or not, but for those that are being written."""
    return sorted(p for p in (root / table).glob("*.parquet") if not p.name.startswith("."))


def unfinished_files(root: Path, table: str) -> list[Path]:
    """List the temporary files of parts that are being written, or were when a run was killed."""
    found = sorted((root / table).glob(".*.parquet.*"))
    return [path for path in found if path.is_file() or path.is_symlink()]
