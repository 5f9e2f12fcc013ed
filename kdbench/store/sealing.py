"""A part's bytes and their seal: a digest of the whole file, which finds a single flipped bit.

Parquet's own checksums cover its pages alone. The footer says where a column's pages are and has
none: a flipped bit there can make one column's value another's, without any error.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdbench.store.layout import arrow_schema

Row = Mapping[str, Any]

_FEW_ROWS = 8
# The key of the seal in the file's metadata.
_SEAL = "kdbench_seal"
# No text of a row may contain it: a part without a seal would seem to have a broken one.
_MARK = b"kdbench blake2b:"
_DIGITS = 64
#: stands in the seal's place while the file is digested
BLANK = (_MARK + b"0" * _DIGITS).decode()


def add_seal(content: bytes) -> bytes:
    """Return a file with its seal in the place of the blank one."""
    place = content.rindex(BLANK.encode()) + len(_MARK)
    return content[:place] + _digest(content) + content[place + _DIGITS :]


def pack(table: str, rows: Sequence[Row]) -> bytes:
    """Return a part's sealed bytes; raises ValueError if a value is not of its column's type.

    A few rows are not compressed: for the one of `cells`, a compressor, a dictionary and statistics
    for each of a hundred columns are twice the work of writing it, and of reading it.
    """
    try:
        content = pa.Table.from_pylist([dict(row) for row in rows], schema=arrow_schema(table))
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"a row that {table!r} cannot hold: {error}") from error
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    how: dict[str, Any] = plain if len(content) <= _FEW_ROWS else {"compression": "zstd"}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, content.schema, write_page_checksum=True, **how) as writer:
        writer.write_table(content)
        writer.add_key_value_metadata({_SEAL: BLANK})
    return add_seal(sink.getvalue().to_pybytes())


def has_broken_seal(content: bytes) -> bool:
    """Whether a file has a seal that does not match its content; an older kdbench's has none."""
    place = content.rfind(_MARK) + len(_MARK)
    if place < len(_MARK):
        return _SEAL.encode() in content  # the damaged bit is in the mark
    blank = content[:place] + b"0" * _DIGITS + content[place + _DIGITS :]
    return _digest(blank) != content[place : place + _DIGITS]


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGITS // 2).hexdigest().encode()
