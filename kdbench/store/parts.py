"""The reading of one part, which may be damaged, foreign, of another version, or malicious."""

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdbench.common.errors import KdbenchError
from kdbench.store.layout import ARROW, EMPTY_PART, VERSION_KEY, arrow_schema
from kdbench.store.migrate import OLDEST, migrate
from kdbench.store.schema import SCHEMA_VERSION
from kdbench.store.sealing import has_broken_seal

# No part of a run comes near these: a training of weeks has some million samples. They are checked
# before anything is unpacked, since a kilobyte of parquet can stand for terabytes.
_MOST_VALUES = 2**29
_MOST_BYTES = 2**32
_MOST_FILE_BYTES = 2**30
# Most bytes of all texts of all rows, unpacked: one that many rows share is in the file once.
_MOST_TEXT_BYTES = 2**30
# Columns of other types than a part's can have are not unpacked: each could be a trap of its own.
_KNOWN_TYPES = frozenset(ARROW.values())
# A clock that was never set shows the first; near the calendar's end, date arithmetic overflows.
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
# What pyarrow raises for bytes that are no parquet.
_LIBRARY_ERRORS = (
    *(OSError, pa.ArrowException, ValueError, KeyError, TypeError, OverflowError),
    MemoryError,
)


@dataclass(frozen=True)
class Damage:
    """A file among a table's parts that cannot be read as one."""

    part: Path  #: the file
    table: str  #: in whose folder it is
    problem: str  #: what is wrong with it, in a few words
    newer: bool = False  #: nothing is wrong with it: a newer kdbench wrote it

    def __str__(self) -> str:
        """Name the file and what is wrong with it."""
        return f"{self.part}: {self.problem}"


class DamagedPartError(KdbenchError):
    """A part that cannot be read; `damage` says why."""

    def __init__(self, damage: Damage) -> None:
        super().__init__(str(damage))
        self.damage = damage


class _UnfitError(Exception):
    """What is wrong with a part, without its path."""

    def __init__(self, problem: str, *, newer: bool = False) -> None:
        super().__init__(problem)
        self.newer = newer


def read_part(part: Path, table: str, columns: Sequence[str] | None = None) -> pa.Table | None:
    """Read a part, migrated to today's columns (those in `columns`; None: all).

    None if it is gone: a run that is going on has just set it aside. Raises DamagedPartError if it
    is no part of this table, or a newer kdbench wrote it.
    """
    found = read_versioned(part, table, columns)
    return None if found is None else found[0]


def read_versioned(
    part: Path, table: str, columns: Sequence[str] | None = None
) -> tuple[pa.Table, int] | None:
    """Read a part as `read_part` does, and the version of the schema that it was written in."""
    try:
        content = _content(part)
        with _opened(content) as file:
            version = _version(file.schema_arrow)
            _check_size(file.metadata, table)
            rows = _rows(file, content, columns, version)
        if version != SCHEMA_VERSION:
            rows = migrate(rows, table, version)
        _check_key(rows, part)
        return _checked(_cast(rows, table, columns)), version
    except FileNotFoundError:
        return None
    except _UnfitError as error:
        raise DamagedPartError(Damage(part, table, str(error), newer=error.newer)) from None
    except _LIBRARY_ERRORS as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedPartError(Damage(part, table, f"damaged: {problem}")) from None


def is_whole(part: Path, table: str) -> bool:
    """Whether a part is there as it was written; its rows are not looked at.

    This finds a file that was cut short, emptied, replaced or changed, in a fraction of the time
    that it takes to read.
    """
    try:
        with _opened(_content(part)) as file:
            _version(file.schema_arrow)
            _check_size(file.metadata, table)
    except (OSError, pa.ArrowException, ValueError, _UnfitError):
        return False
    return True


def is_readable(part: Path, table: str) -> bool:
    """Whether a file is a part of a table that can be read."""
    try:
        return read_part(part, table) is not None
    except DamagedPartError:
        return False


def _content(part: Path) -> bytes:
    """Read a regular file whole: a pipe in its place would be waited for."""
    found = part.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise _UnfitError("foreign: expected a file, found a link or something else")
    if found.st_size > _MOST_FILE_BYTES:
        raise _UnfitError(f"foreign: expected at most {_MOST_FILE_BYTES:,} bytes")
    content = part.read_bytes()
    if has_broken_seal(content):
        raise _UnfitError("damaged: its bytes are not those that were written")
    return content


def _opened(content: bytes, **options: Any) -> pq.ParquetFile:  # noqa: ANN401
    source = pa.BufferReader(content)
    return pq.ParquetFile(source, page_checksum_verification=True, **options)


def _version(schema: pa.Schema) -> int:
    text = (schema.metadata or {}).get(VERSION_KEY, b"").decode(errors="replace")
    version = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    if version < OLDEST:
        found = repr(text[:20]) if text else "none"
        raise _UnfitError(f"foreign: expected a schema version of kdbench's, found {found}")
    if version > SCHEMA_VERSION:
        problem = (
            f"a newer kdbench wrote it: schema version {version}, this one reads up to "
            f"{SCHEMA_VERSION}"
        )
        raise _UnfitError(problem, newer=True)
    return version


def _check_size(metadata: pq.FileMetaData, table: str) -> None:
    # Of the row groups alone: with some damage, asking for a column's ends the process.
    rows = metadata.num_rows
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    unpacked = sum(group.total_byte_size for group in groups)
    most = 1 if table == "cells" else _MOST_VALUES // max(1, metadata.num_columns)
    if rows > most:
        raise _UnfitError(f"foreign: expected at most {most:,} rows, found {rows:,}")
    if unpacked > _MOST_BYTES:
        raise _UnfitError("foreign: it would unpack to more than any run writes")


def _rows(
    file: pq.ParquetFile, content: bytes, columns: Sequence[str] | None, version: int
) -> pa.Table:
    """Read the rows; of today's version only the columns that are asked for."""
    wanted = None
    if columns is not None and version == SCHEMA_VERSION:
        wanted = [*dict.fromkeys(("run_key", *columns))]
    for field in file.schema_arrow:
        if field.type not in _KNOWN_TYPES and (wanted is None or field.name in wanted):
            raise _UnfitError(f"foreign: the column {field.name!r} is of the type {field.type}")
    if file.metadata.num_rows <= 1:
        return file.read(columns=wanted)
    # A text is kept once, as in the file, until it is known how much all rows of it would be.
    texts = [field.name for field in file.schema_arrow if field.type == pa.string()]
    with _opened(content, read_dictionary=texts, metadata=file.metadata) as kept:
        rows = kept.read(columns=wanted)
    if sum(_text_bytes(column) for column in rows.columns) > _MOST_TEXT_BYTES:
        raise _UnfitError("foreign: it would unpack to more than any run writes")
    plain = [f.with_type(pa.string()) if f.name in texts else f for f in rows.schema]
    return rows.cast(pa.schema(plain))


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Return an upper bound of the bytes of a column's texts, each in its own row."""
    if not pa.types.is_dictionary(column.type):
        return 0
    longest = (pc.max(pc.binary_length(c.dictionary)).as_py() or 0 for c in column.chunks)
    return sum(len(c) * length for c, length in zip(column.chunks, longest, strict=True))


def _check_key(rows: pa.Table, part: Path) -> None:
    """Refuse rows of other runs than the one that names the part: they would count twice."""
    if "run_key" not in rows.column_names:
        raise _UnfitError("damaged: it has no column 'run_key'")
    keys = set(rows.column("run_key").unique().to_pylist())
    named = set() if part.name == EMPTY_PART else {part.stem}
    if keys - named:
        found = ", ".join(sorted(repr(key) for key in keys)[:3])
        raise _UnfitError(f"foreign: expected the run that it is named after, found {found}")


def _cast(rows: pa.Table, table: str, columns: Sequence[str] | None) -> pa.Table:
    wanted = arrow_schema(table, columns)
    if rows.schema.equals(wanted):  # as usual, and quick; without the file's own metadata
        return pa.Table.from_arrays(rows.columns, schema=wanted)
    there = set(rows.column_names)
    missing = [name for name in wanted.names if name not in there]
    if missing:
        raise _UnfitError(f"not a part of the table {table!r}: it has no column {missing[0]!r}")
    return rows.select(wanted.names).cast(wanted)


def _checked(rows: pa.Table) -> pa.Table:
    """Refuse what Arrow holds and Python cannot: text in no encoding, dates beyond the calendar."""
    rows.validate(full=True)
    for field in rows.schema:
        if pa.types.is_timestamp(field.type):
            found = pc.min_max(rows.column(field.name))
            first, last = (pa.scalar(day, field.type) for day in (_FIRST, _LAST))
            low, high = found["min"], found["max"]
            if low.is_valid and (pc.less(low, first).as_py() or pc.greater(high, last).as_py()):
                raise _UnfitError(f"foreign: no run has such a date in {field.name!r}")
    return rows
