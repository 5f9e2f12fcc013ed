"""The results on disk: one parquet data set per table, a part per run, committed by rename.

`results/<matrix>/<table>/<run_key>.parquet`. The part in `cells` is renamed last and is the
commit: a reader ignores rows of other tables that have none. Temporary names start with a dot,
which pandas, pyarrow and duckdb all pass over, so the folders can be read at every moment.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdbench.errors import InputError, OtherSchemaError
from kdbench.schema import SCHEMA_VERSION, TABLES, Dtype

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]

# A zero-row part in every table: it can be read before the first run is committed.
_EMPTY_PART = "empty.parquet"
_ARROW: dict[Dtype, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


def arrow_schema(table: str) -> pa.Schema:
    """Return the Arrow schema of a table, with the version of the layout in its metadata."""
    fields = [pa.field(column.name, _ARROW[column.dtype]) for column in TABLES[table]]
    return pa.schema(fields, metadata={"kdbench_schema_version": str(SCHEMA_VERSION)})


@dataclass(frozen=True)
class Store:
    """The results of one matrix, for writing."""

    root: Path

    def prepare(self) -> None:
        """Create the folders, so that every table can be read from now on.

        Raises:
            InputError: the folder cannot be written to.
        """
        try:
            for table in TABLES:
                (self.root / table).mkdir(parents=True, exist_ok=True)
                if not (self.root / table / _EMPTY_PART).exists():
                    self._write(table, _EMPTY_PART, [])
            for folder in ("logs", ".spool", ".superseded"):
                (self.root / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise self._unwritable(error, "choose another folder with --out") from None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer: two runs in one folder would take each other's spool away.

        The lock goes with the process, however that ends.

        Raises:
            InputError: another run is writing here.
        """
        with (self.root / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise InputError(
                    f"another run is writing here (process {file.read().strip() or 'unknown'})",
                    where=self.root,
                    hint="wait until it is done, or choose another folder with --out",
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def spool(self, run_key: str) -> Path:
        """Return an empty folder for what a running cell writes line by line."""
        folder = self.root / ".spool" / run_key
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def log(self, run_key: str) -> Path:
        """Return the path of the worker's output."""
        return self.root / "logs" / f"{run_key}.log"

    def checkpoints(self, run_key: str) -> Path:
        """Return the folder of a training's checkpoints, which its worker makes and fills."""
        return self.root / "checkpoints" / run_key

    def drop_checkpoints(self, run_key: str) -> None:
        """Remove a training's checkpoints."""
        shutil.rmtree(self.checkpoints(run_key), ignore_errors=True)

    def commit(self, run_key: str, tables: Mapping[str, Sequence[Row]]) -> None:
        """Write a run's rows, `cells` last, then drop its spool.

        Every table gets its part, also one without rows: a part that is missing then means
        damage, not a quiet run.

        Raises:
            InputError: the folder cannot be written to any more, as when the disk is full.
        """
        try:
            for table in [*(name for name in TABLES if name != "cells"), "cells"]:
                rows = [{**row, "run_key": run_key} for row in tables.get(table, ())]
                self._write(table, f"{run_key}.parquet", rows)
        except OSError as error:
            spool = self.root / ".spool" / run_key
            raise self._unwritable(error, f"what was measured is kept in {spool}") from None
        self.drop_spool(run_key)

    def drop_spool(self, run_key: str) -> None:
        """Remove what a finished job wrote line by line."""
        shutil.rmtree(self.root / ".spool" / run_key, ignore_errors=True)

    def supersede(self, run_key: str) -> None:
        """Set a run's rows aside, its commit first, so that a read never sees two."""
        stamp = f"{run_key}.{time.time_ns()}"
        for table in ["cells", *(name for name in TABLES if name != "cells")]:
            part = self.root / table / f"{run_key}.parquet"
            if part.exists():
                aside = self.root / ".superseded" / table
                aside.mkdir(parents=True, exist_ok=True)
                part.replace(aside / f"{stamp}.parquet")
                _sync_folder(part.parent)

    def supersede_training(self, run_key: str) -> None:
        """Set a training's checkpoints aside, and then its rows.

        In this order: rows without weights are an old result, but weights without rows are those
        of a training that goes on.
        """
        folder = self.checkpoints(run_key)
        if folder.exists():
            aside = self.root / ".superseded" / "checkpoints"
            aside.mkdir(parents=True, exist_ok=True)
            folder.replace(aside / f"{run_key}.{time.time_ns()}")
            _sync_folder(folder.parent)
        self.supersede(run_key)

    def committed(self) -> dict[str, str]:
        """Return the status of every committed run by its run_key."""
        rows = _read(self.root, "cells", ["run_key", "status"]).to_pydict()
        return dict(zip(rows["run_key"], rows["status"], strict=True))

    def _write(self, table: str, name: str, rows: Iterable[Row]) -> None:
        schema = arrow_schema(table)
        folder = self.root / table
        unfinished = folder / f".{name}.{os.getpid()}"
        content = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        try:
            with unfinished.open("wb") as file:
                pq.write_table(content, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(folder / name)
        finally:  # still there only where it could not be finished
            unfinished.unlink(missing_ok=True)
        _sync_folder(folder)

    def _unwritable(self, error: OSError, hint: str) -> InputError:
        told = (error.strerror or str(error)).lower()
        return InputError(f"cannot write results here: {told}", where=self.root, hint=hint)


def is_store(root: Path) -> bool:
    """Whether a folder holds a matrix's results."""
    return (root / "cells").is_dir()


def find_stores(path: Path) -> list[Path]:
    """Find the results in a folder: itself, or the folders in it.

    Raises:
        InputError: there are none.
    """
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


def read_table(root: Path, table: str, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read one table of a store, committed or not, with nullable pandas types.

    Integers with nulls stay integers (Int64) and missing text is null.

    Raises:
        InputError: a part is damaged or has another schema.
    """
    whole = _read(root, table, columns)
    frame: pd.DataFrame = whole.to_pandas(types_mapper=_nullable)
    return frame


def _read(root: Path, table: str, columns: Sequence[str] | None) -> pa.Table:
    parts = sorted(p for p in (root / table).glob("*.parquet") if not p.name.startswith("."))
    read = (_read_part(part, table, columns) for part in parts)
    tables = [found for found in read if found is not None]
    return pa.concat_tables(tables) if tables else arrow_schema(table).empty_table()


def _read_part(part: Path, table: str, columns: Sequence[str] | None) -> pa.Table | None:
    expected = arrow_schema(table)
    try:
        found = pq.read_table(part, columns=list(columns) if columns else None, partitioning=None)
    except FileNotFoundError:
        return None  # a run that is going on has just set it aside
    except (OSError, pa.ArrowException) as error:
        told = str(error).splitlines()[0]
        raise InputError(
            f"damaged part: {told}", where=part, hint="move the file away to read the rest"
        ) from None
    version = (found.schema.metadata or {}).get(b"kdbench_schema_version", b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise OtherSchemaError(
            f"expected schema version {SCHEMA_VERSION}, found {version}", where=part
        )
    wanted = expected if columns is None else pa.schema([expected.field(c) for c in columns])
    try:
        return found.select(wanted.names).cast(wanted)
    except (KeyError, pa.ArrowException, ValueError) as error:
        raise InputError(f"not a part of the table {table!r}: {error}", where=part) from None


def _nullable(dtype: pa.DataType) -> Any:  # noqa: ANN401
    import pandas as pd  # noqa: PLC0415 - only readers need it

    return {
        pa.string(): pd.StringDtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.float64(): pd.Float64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }.get(dtype)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
