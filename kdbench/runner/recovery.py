"""Runs that were killed together with kdbench: their spools become rows, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.common.errors import KdbenchError
from kdbench.runner.checkpoints import needs_no_more
from kdbench.runner.process.launcher import ProcessResult
from kdbench.runner.rates import reported_rates
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
# A training of weeks tells less than this. Whatever is larger is not ours, and is not read.
_MOST_BYTES = 2**30


@dataclass(frozen=True)
class Record:
    """What a spool is of, written before its run starts."""

    run_key: str
    run: CellRun
    started_at: datetime
    environment: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Put it into the run's spool.

        Raises:
            OSError: it cannot be written.
        """
        told = {
            "run_key": self.run_key,
            "run": self.run.model_dump(mode="json"),
            "started_at": self.started_at.isoformat(),
            "environment": self.environment,
        }
        (folder / _RECORD).write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read a spool's record.

        Raises:
            ValueError: there is none that can be read.
        """
        try:
            told = json.loads(_limited(folder / _RECORD))
            started_at = datetime.fromisoformat(told["started_at"])
            run = CellRun.model_validate_json(json.dumps(told["run"]))
            environment = dict(told["environment"])
        except (OSError, KeyError, TypeError, ValidationError, RecursionError) as error:
            raise ValueError(f"no record of its run: {_first_line(error)}") from None
        if told.get("run_key") != folder.name or started_at.tzinfo is None:
            raise ValueError("the record is of another run")
        return cls(folder.name, run, started_at, environment)


def recover(store: Store, tell: Callable[[str], None]) -> None:
    """Make rows of what runs left behind that were killed together with kdbench.

    A run that its worker had finished gets its row; every other becomes `interrupted`, which the
    next run of its matrix does again. What cannot be understood is set aside.

    Args:
        store: that nobody else is writing to.
        tell: is told, in a line, what was found.

    Raises:
        InputError: the results cannot be written to.
    """
    committed = _starts(store)
    for folder in store.spools():
        key = folder.name
        if key.startswith("fit-"):  # a fitted teacher is kept elsewhere, or was not yet
            store.drop_spool(key)
            continue
        try:
            record = Record.read(folder)
            if committed.get(key) == record.started_at:  # dropping it is all that was left to do
                store.drop_spool(key)
                continue
            rows = _rows(record, folder, store.log(key))
        # events of another version, or of somebody else: whatever they lead to
        except Exception as error:  # noqa: BLE001
            _set_aside(store, folder, error, tell)
            continue
        try:
            store.commit(key, rows)
        except ValueError as error:  # values that no table holds; what was there before stays
            _set_aside(store, folder, error, tell)
            continue
        status = rows["cells"][0]["status"]
        if needs_no_more(record.run, status):
            store.drop_checkpoints(key)
        did = "had finished" if status == "ok" else "was not done"
        tell(f"{record.run.cell.label} {did} when kdbench ended without it; kept as {status}")


def _set_aside(store: Store, folder: Path, error: Exception, tell: Callable[[str], None]) -> None:
    aside = store.set_aside(folder)
    tell(f"what a run left behind cannot be read ({_first_line(error)}); it is in {aside}")


def _rows(record: Record, folder: Path, log: Path) -> Rows:
    samples, events = _lines(folder / SAMPLES), _lines(folder / EVENTS)
    outcome = ProcessResult(
        returncode=None,
        wall_seconds=_wall_seconds(samples),
        events=tuple(events),
        stopped=_KILLED,
    )
    return summarise(
        record.run,
        outcome,
        samples=samples,
        environment=record.environment,
        started_at=record.started_at,
        log=log,
        # measured by a run's first cell of a precision; of another, they went with the run
        rates=reported_rates(by_kind(events), samples, record.run.device),
    )


def _starts(store: Store) -> dict[str, datetime]:
    rows = read_rows(store.root, "cells", ["run_key", "started_at"], left_out=lambda _: None)
    return dict(zip(*(rows.column(n).to_pylist() for n in ("run_key", "started_at")), strict=True))


def _wall_seconds(samples: Sequence[dict[str, Any]]) -> float:
    """How long it is known to have run: its samples begin before it and go on until its end."""
    times = [sample["monotonic_ns"] for sample in samples]
    return (max(times) - min(times)) / 1e9 if times else 0.0


def _lines(path: Path) -> list[dict[str, Any]]:
    if path.exists():
        _check_size(path)
    return read_lines(path)


def _limited(path: Path) -> str:
    _check_size(path)
    return path.read_text(encoding="utf-8")


def _check_size(path: Path) -> None:
    if not path.is_file() or path.is_symlink():
        raise ValueError(f"expected a file, found something else: {path.name}")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"expected at most {_MOST_BYTES:,} bytes in {path.name}")


def _first_line(error: Exception) -> str:
    if isinstance(error, KdbenchError | ValueError | OSError):
        return (str(error).splitlines() or ["unknown"])[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]
