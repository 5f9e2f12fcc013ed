"""Recovers runs that were killed together with kdbench: their spools become rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.common.errors import KdbenchError, first_line
from kdbench.runner.process.launcher import ProcessResult
from kdbench.runner.rates import reported_rates
from kdbench.runner.resume_plan import can_drop_checkpoints
from kdbench.runner.rows import Rows, by_kind, summarise
from kdbench.runner.spool import read_lines
from kdbench.spec.cell import CellRun
from kdbench.store import Store
from kdbench.store.reading import read_rows

EVENTS, SAMPLES, _RECORD = "events.jsonl", "samples.jsonl", "record.json"
_KILLED = (
    "kdbench itself ended while this ran: it was killed, had no room to write, or the machine "
    "stopped"
)
# More than a training of weeks writes: a larger file is not ours, and is not read.
_MAX_BYTES = 2**30


@dataclass(frozen=True)
class Record:
    """Which run a spool belongs to, written before the run starts."""

    run_key: str
    run: CellRun
    started_at: datetime
    environment: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the record into the run's spool."""
        record = {
            "run_key": self.run_key,
            "run": self.run.model_dump(mode="json"),
            "started_at": self.started_at.isoformat(),
            "environment": self.environment,
        }
        (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read a spool's record; raises ValueError where it is missing or broken."""
        try:
            _check_size(folder / _RECORD)
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            started_at = datetime.fromisoformat(record["started_at"])
            run = CellRun.model_validate_json(json.dumps(record["run"]))
            environment = dict(record["environment"])
        except (OSError, KeyError, TypeError, ValidationError, RecursionError) as error:
            raise ValueError(f"no record of its run: {_first_line(error)}") from None
        if record.get("run_key") != folder.name or started_at.tzinfo is None:
            raise ValueError("the record is of another run")
        return cls(folder.name, run, started_at, environment)


def recover(store: Store, tell: Callable[[str], None]) -> None:
    """Make rows of the spools of runs that were killed together with kdbench; the store is locked.

    A run whose worker had finished is committed as it ended; any other becomes `interrupted`, and
    the next run of its matrix repeats it. What cannot be read is set aside. `tell` receives a line
    for each.
    """
    committed = _start_times(store)
    for folder in store.spools():
        key = folder.name
        if key.startswith("fit-"):  # the cache holds the teacher if it was fitted
            store.drop_spool(key)
            continue
        try:
            record = Record.read(folder)
            if committed.get(key) == record.started_at:  # killed between the commit and this
                store.drop_spool(key)
                continue
            rows = _rows(record, folder, store.log(key))
        except Exception as error:  # noqa: BLE001 - events of another version may break anything
            _set_aside(store, folder, error, tell)
            continue
        try:
            store.commit(key, rows)
        except ValueError as error:  # values that do not fit the table
            _set_aside(store, folder, error, tell)
            continue
        status = rows["cells"][0]["status"]
        if can_drop_checkpoints(record.run, status):
            store.drop_checkpoints(key)
        did = "had finished" if status == "ok" else "was not done"
        tell(f"{record.run.cell.label} {did} when kdbench ended without it; kept as {status}")


def _set_aside(store: Store, folder: Path, error: Exception, tell: Callable[[str], None]) -> None:
    aside = store.set_aside(folder)
    tell(f"what a run left behind cannot be read ({_first_line(error)}); it is in {aside}")


def _rows(record: Record, folder: Path, log: Path) -> Rows:
    samples, events = _lines(folder / SAMPLES), _lines(folder / EVENTS)
    times = [sample["monotonic_ns"] for sample in samples]
    wall_seconds = (max(times) - min(times)) / 1e9 if times else 0.0
    result = ProcessResult(None, wall_seconds, tuple(events), stopped=_KILLED)
    return summarise(
        record.run,
        result,
        samples=samples,
        environment=record.environment,
        started_at=record.started_at,
        log=log,
        # rates that another cell measured are lost with the run
        rates=reported_rates(by_kind(events), samples, record.run.device),
    )


def _start_times(store: Store) -> dict[str, datetime]:
    rows = read_rows(store.root, "cells", ["run_key", "started_at"], left_out=lambda _: None)
    return dict(zip(*(rows.column(n).to_pylist() for n in ("run_key", "started_at")), strict=True))


def _lines(path: Path) -> list[dict[str, Any]]:
    if path.exists():
        _check_size(path)
    return read_lines(path)


def _check_size(path: Path) -> None:
    if not path.is_file() or path.is_symlink():
        raise ValueError(f"expected a file, found something else: {path.name}")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"expected at most {_MAX_BYTES:,} bytes in {path.name}")


def _first_line(error: Exception) -> str:
    if isinstance(error, KdbenchError | ValueError | OSError):
        return first_line(error, "unknown")
    return f"{type(error).__name__}: {error}".splitlines()[0]
