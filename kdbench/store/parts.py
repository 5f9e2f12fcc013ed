"""One part read with care: it may be damaged, foreign, of another version, or made to do harm."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kdbench.errors import KdbenchError
from kdbench.schema import SCHEMA_VERSION
from kdbench.store.layout import EMPTY_PART, VERSION_KEY, arrow_schema
from kdbench.store.migrate import OLDEST, migrated

# No part of a run comes near these: a training of weeks has some million samples. They are held
# against what a file says of itself before anything of it is unpacked, since a kilobyte of
# parquet can stand for terabytes.
_MOST_VALUES = 2**29
_MOST_BYTES = 2**32
# A column of text is unpacked to rows times the length of its texts; this is what the latter
# cannot exceed.
_MOST_TEXT_BYTES = 2**33


@dataclass(frozen=True)
class Damage:
    """A file among the results that is none of them.

    Attributes:
        part: the file.
        table: in whose folder it is.
        problem: what is wrong with it, in a few words.
        newer: nothing is; a newer kdbench wrote it.
    """

    part: Path
    table: str
    problem: str
    newer: bool = False

    def __str__(self) -> str:
        """Name the file and what is wrong with it."""
        return f"{self.part}: {self.problem}"


class DamagedPartError(KdbenchError):
    """A part that cannot be read; `damage` says why."""

    def __init__(self, damage: Damage) -> None:
        super().__init__(str(damage))
        self.damage = damage


class _UnfitError(Exception):
    """What is wrong with a part, before it is known which."""

    def __init__(self, problem: str, *, newer: bool = False) -> None:
        super().__init__(problem)
        self.newer = newer


def read_part(part: Path, table: str, columns: Sequence[str] | None = None) -> pa.Table | None:
    """Read a part, migrated to today's columns.

    Args:
        part: the file.
        table: whose it is to be.
        columns: of today's schema; None: all.

    Returns:
        None if it is not there any more: a run that is going on has just set it aside.

    Raises:
        DamagedPartError: it is none of this table's parts, or a newer kdbench wrote it.
    """
    try:
        _check_regular(part)
        with pq.ParquetFile(part, page_checksum_verification=True) as file:
            version = _version(file.schema_arrow)
            _check_size(file.metadata, table)
            rows = _rows(file, columns, version)
        if version != SCHEMA_VERSION:
            rows = migrated(rows, table, version)
        _check_key(rows, part)
        return _cast(rows, table, columns)
    except FileNotFoundError:
        return None
    except _UnfitError as error:
        raise DamagedPartError(Damage(part, table, str(error), newer=error.newer)) from None
    # whatever a library makes of bytes that are no parquet, it is the file's fault
    except (
        *(OSError, pa.ArrowException, ValueError, KeyError, TypeError, OverflowError),
        MemoryError,
    ) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedPartError(Damage(part, table, f"damaged: {told}")) from None


def has_footer(part: Path, table: str) -> bool:
    """Whether a part is there and says at its end that it is whole; its rows are not read.

    A file that was cut short, emptied or replaced is found by this, in a tenth of a millisecond.
    """
    try:
        _check_regular(part)
        with pq.ParquetFile(part) as file:
            _version(file.schema_arrow)
            _check_size(file.metadata, table)
    except (OSError, pa.ArrowException, ValueError, _UnfitError):
        return False
    return True


def is_sound(part: Path, table: str) -> bool:
    """Whether a file is a part of a table that can be read."""
    try:
        return read_part(part, table) is not None
    except DamagedPartError:
        return False


def _check_regular(part: Path) -> None:
    """Refuse what only looks like a file: a pipe would be waited for, a link leads elsewhere."""
    if not stat.S_ISREG(part.lstat().st_mode):
        raise _UnfitError("foreign: expected a file, found a link or something else")


def _version(schema: pa.Schema) -> int:
    told = (schema.metadata or {}).get(VERSION_KEY, b"").decode(errors="replace")
    version = int(told) if told.isascii() and told.isdecimal() and len(told) < 9 else 0
    if version < OLDEST:
        found = repr(told[:20]) if told else "none"
        raise _UnfitError(f"foreign: expected a schema version of kdbench's, found {found}")
    if version > SCHEMA_VERSION:
        problem = (
            f"a newer kdbench wrote it: schema version {version}, this one reads up to "
            f"{SCHEMA_VERSION}"
        )
        raise _UnfitError(problem, newer=True)
    return version


def _check_size(metadata: pq.FileMetaData, table: str) -> None:
    rows = metadata.num_rows
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(n) for group in groups for n in range(group.num_columns)]
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
    texts = (c.total_uncompressed_size for c in chunks if c.physical_type == "BYTE_ARRAY")
    most = 1 if table == "cells" else _MOST_VALUES // max(1, metadata.num_columns)
    if rows > most:
        raise _UnfitError(f"foreign: expected at most {most:,} rows, found {rows:,}")
    if unpacked > _MOST_BYTES or rows * max(texts, default=0) > _MOST_TEXT_BYTES:
        raise _UnfitError("foreign: it would unpack to more than any run writes")


def _rows(file: pq.ParquetFile, columns: Sequence[str] | None, version: int) -> pa.Table:
    """Read the rows; of today's version only the columns that are asked for."""
    if columns is None or version != SCHEMA_VERSION:
        return file.read()
    return file.read(columns=[*dict.fromkeys(("run_key", *columns))])


def _check_key(rows: pa.Table, part: Path) -> None:
    """Refuse rows of other runs than the one that the part is named after: they count twice."""
    if "run_key" not in rows.column_names:
        raise _UnfitError("damaged: it has no column 'run_key'")
    keys = set(rows.column("run_key").unique().to_pylist())
    named = set() if part.name == EMPTY_PART else {part.stem}
    if keys - named:
        found = ", ".join(sorted(repr(key) for key in keys)[:3])
        raise _UnfitError(f"foreign: expected the run that it is named after, found {found}")


def _cast(rows: pa.Table, table: str, columns: Sequence[str] | None) -> pa.Table:
    wanted = arrow_schema(table, columns)
    if rows.schema.equals(wanted):  # the usual case, and a tenth of a cast to the same
        return rows
    there = set(rows.column_names)
    missing = [name for name in wanted.names if name not in there]
    if missing:
        raise _UnfitError(f"not a part of the table {table!r}: it has no column {missing[0]!r}")
    return rows.select(wanted.names).cast(wanted)
