"""The write side of the store: a single writer, and rows that are wholly there or not at all."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from kdbench.common.errors import InputError, os_reason
from kdbench.store import layout
from kdbench.store.parts import is_readable, is_whole
from kdbench.store.schema import TABLES
from kdbench.store.sealing import Row, pack

_LOCK_TRIES = 5
_ELSEWHERE = "choose another folder with --out"
#: `cells` first: whoever takes a run away takes its commit first
_COMMIT_FIRST = ("cells", *(name for name in TABLES if name != "cells"))


@dataclass(frozen=True)
class Store:
    """The results of one matrix, for writing.

    Every method that writes raises an InputError if the folder cannot be written to any more, such
    as a full disk. What was measured is in the spool then, where the next run finds it.
    """

    root: Path

    def prepare(self) -> None:
        """Create the folders, so that every table can be read from now on."""
        with self.reporting_errors(_ELSEWHERE):
            for folder in (self.root, self.root / layout.CHECKPOINTS, self.root / layout.SET_ASIDE):
                _refuse_link(folder)
            for table in TABLES:
                _make_own(self.root / table)
                if not (empty := self.root / table / layout.EMPTY_PART).exists():
                    with self._staged(table, layout.EMPTY_PART, []) as unfinished:
                        self._put(unfinished, empty)
            for name in (layout.LOGS, layout.SPOOL, layout.SUPERSEDED):
                _make_own(self.root / name)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer: two runs in one folder would take each other's spool away."""
        with self.reporting_errors(_ELSEWHERE):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.root / layout.LOCK, flags, 0o666)
        with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
            if not _locked(file):
                raise InputError(
                    f"another run is writing here (process {file.read(20).strip() or 'unknown'})",
                    where=self.root,
                    hint=f"wait until it is done, or {_ELSEWHERE}",
                )
            with self.reporting_errors(_ELSEWHERE):
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
            yield

    def spool(self, run_key: str) -> Path:
        """Return an empty folder for what a running cell writes line by line."""
        folder = self.root / layout.SPOOL / run_key
        with self.reporting_errors(_ELSEWHERE):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        return folder

    def spools(self) -> list[Path]:
        """Find the spools of runs that were not committed."""
        return sorted(
            p for p in (self.root / layout.SPOOL).glob("*") if p.is_dir() and not p.is_symlink()
        )

    def log(self, run_key: str) -> Path:
        """Return the path of the worker's output."""
        return self.root / layout.LOGS / f"{run_key}.log"

    def checkpoints(self, run_key: str) -> Path:
        """Return the folder of a training's checkpoints, which its worker makes and fills."""
        return self.root / layout.CHECKPOINTS / run_key

    def drop_checkpoints(self, run_key: str) -> None:
        """Remove a training's checkpoints."""
        shutil.rmtree(self.checkpoints(run_key), ignore_errors=True)

    def commit(
        self, run_key: str, tables: Mapping[str, Sequence[Row]], *, again: str = "the same command"
    ) -> None:
        """Write a run's rows, set earlier ones of the same key aside, and drop its spool.

        All parts are on the disk, under temporary names, before anything earlier moves; that of
        `cells` is put in place last. Every table gets its part, also one without rows: a missing
        part then means damage. `again` says what resumes the run if it cannot be committed now.
        Raises ValueError, with nothing changed, for rows that the tables cannot hold.
        """
        name = layout.part_name(run_key)
        with self.reporting_errors(self._kept(run_key, again)), ExitStack() as staged:
            unfinished = {}
            for table in _COMMIT_FIRST:
                rows = [{**row, "run_key": run_key} for row in tables.get(table, ())]
                unfinished[table] = staged.enter_context(self._staged(table, name, rows))
            self.supersede(run_key)
            for table in reversed(_COMMIT_FIRST):
                self._put(unfinished[table], self.root / table / name)
        self.drop_spool(run_key)

    def drop_spool(self, run_key: str) -> None:
        """Remove what a finished job wrote line by line."""
        shutil.rmtree(self.root / layout.SPOOL / run_key, ignore_errors=True)

    def supersede(self, run_key: str) -> None:
        """Set a run's rows aside, its commit first, so that a read never sees two."""
        for table in _COMMIT_FIRST:
            part = self.root / table / layout.part_name(run_key)
            if part.exists():
                self._move(part, self.root / layout.SUPERSEDED / table)

    def supersede_training(self, run_key: str) -> None:
        """Set a training's checkpoints aside, and then its rows.

        In this order: weights without rows would be those of a training that goes on.
        """
        if (folder := self.checkpoints(run_key)).exists():
            self._move(folder, self.root / layout.SUPERSEDED / layout.CHECKPOINTS)
        self.supersede(run_key)

    def set_aside(self, path: Path) -> Path:
        """Move away a file that is no part, keeping it; returns its new path."""
        return self._move(path, self.root / layout.SET_ASIDE / path.parent.name)

    def tidy(self) -> None:
        """Remove a killed run's temporary files, and set its rows without a commit aside.

        Such rows are of a run that was being set aside, or committed: recover it from its spool
        before. Files that are no parts stay, for readers to name.
        """
        committed = {part.name for part in layout.part_files(self.root, "cells")}
        with self.reporting_errors(_ELSEWHERE):
            for table in TABLES:
                for unfinished in layout.unfinished_files(self.root, table):
                    unfinished.unlink(missing_ok=True)
                for part in layout.part_files(self.root, table):
                    if part.name not in committed and is_readable(part, table):
                        self._move(part, self.root / layout.SUPERSEDED / table)

    def incomplete(self, keys: Iterable[str]) -> set[str]:
        """Return those of committed runs of which another table's part is gone, or not whole."""
        return {
            key
            for key in keys
            for table in _COMMIT_FIRST[1:]
            if not is_whole(self.root / table / layout.part_name(key), table)
        }

    @contextmanager
    def reporting_errors(self, hint: str) -> Iterator[None]:
        """Turn the system's errors into an InputError with a hint."""
        try:
            yield
        except BrokenPipeError:  # of the standard output, not of this folder
            raise
        except OSError as error:
            problem = f"cannot write results here: {os_reason(error)}"
            raise InputError(problem, where=self.root, hint=hint) from None

    def _kept(self, run_key: str, again: str) -> str:
        """Say where the measurements of a run are that cannot be committed."""
        if not (spool := self.root / layout.SPOOL / run_key).exists():
            return _ELSEWHERE
        goes_on = f"when there is room again, {again} goes on from there"
        return f"what was measured is kept in {spool}; {goes_on}"

    @contextmanager
    def _staged(self, table: str, name: str, rows: Sequence[Row]) -> Iterator[Path]:
        """Write a part under a temporary name, which is gone in the end, and flush it."""
        unfinished = self.root / table / f".{name}.{os.getpid()}"
        content = pack(table, rows)
        try:
            unfinished.unlink(missing_ok=True)  # a killed process's of this number, or a trap
            with unfinished.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield unfinished
        finally:  # still there only where it was not put in place
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def _put(self, unfinished: Path, part: Path) -> None:
        """Put a part in its place, for good."""
        unfinished.replace(part)
        _sync_folder(part.parent)

    def _move(self, path: Path, folder: Path) -> Path:
        """Move a file or folder into a folder of ours, under a name that is free there."""
        with self.reporting_errors(_ELSEWHERE):
            _make_own(folder.parent)
            _make_own(folder)
            # the clock may have been set back: a name is taken by what is there, not by the time
            stamp = time.time_ns()
            while os.path.lexists(target := folder / f"{path.stem}.{stamp}{path.suffix}"):
                stamp += 1
            path.rename(target)
            _sync_folder(folder)
            _sync_folder(path.parent)
        return target


def _locked(file: TextIO) -> bool:
    """Take the lock; whoever only looks whether it is taken holds it for a moment."""
    for _ in range(_LOCK_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _make_own(folder: Path) -> None:
    """Make a folder inside the results, and refuse a link in its place: it would lead elsewhere."""
    _refuse_link(folder)
    for path in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)  # or it is gone after a power cut, with all that is in it
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"expected {folder.name} to be a folder")


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise OSError(errno.ELOOP, f"expected {folder.name} to be a folder, found a link")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
