"""A training's checkpoints in their folder: found again at the start, written on the way."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic

from safetensors import SafetensorError

from kdbench.common.errors import InputError
from kdbench.spec.cell import CellRun
from kdbench.worker.checkpoints import files
from kdbench.worker.checkpoints.durable import durably, make_folder
from kdbench.worker.checkpoints.history import History
from kdbench.worker.checkpoints.state import collect, restore, scaler_state
from kdbench.worker.events import Events
from kdbench.worker.training.session import Session


class Checkpoints:
    """The last and the best checkpoint of one run, and the history that the last one goes with.

    What is in the folder is read before the training is set up, so that the events of the set-up
    have the right attempt. A checkpoint that cannot be used is noted, and the training starts anew.
    """

    def __init__(self, folder: Path, run: CellRun, events: Events) -> None:
        self._folder, self._run, self._events = folder, run, events
        self._last, self._best = folder / "last.safetensors", folder / "best.safetensors"
        self._new_lines: list[str] = []
        self._written = monotonic()
        self._problem = ""
        self._history, self._old_lines = History(folder / "history.jsonl"), b""
        self._found: files.Header | None = None
        for place in (folder, folder.parent):
            # results are passed on, and nothing in them is to say where we write
            if place.is_symlink():
                raise InputError(
                    "expected a folder for checkpoints, found a link",
                    where=place,
                    hint="remove it; --out names another folder for the results",
                )
        _remove(*folder.glob(".*.safetensors.*"))  # a process was killed while writing
        self._find()
        events.kept = self._new_lines

    def _find(self) -> None:
        if not os.path.lexists(self._last):
            _remove(self._best)  # the training that it is of is gone
            return
        try:
            header, _ = files.read_checkpoint(self._last)
            header.check(self._folder.name, self._run.cell)
            steps = self._run.cell.steps_per_epoch
            self._old_lines = self._history.recover(header, steps_per_epoch=steps)
        except files.UnusableError as error:
            self._refuse(error)
            return
        self._found = header
        self._events.attempt = header.attempt + 1

    def resume(self, session: Session) -> files.Progress:
        """Put a fresh session where the last checkpoint was written, and emit its history again."""
        header, progress = self._found, None
        if header is not None:
            try:
                progress = self._restore(session, header)
            except files.UnusableError as error:
                # Events of the set-up have this attempt, and so will the training's: there is no
                # row of an earlier one.
                self._refuse(error)
        self._written = monotonic()
        return progress or files.Progress()

    def _restore(self, session: Session, header: files.Header) -> files.Progress:
        again, tensors = files.read_checkpoint(self._last)
        if again != header:
            raise files.UnusableError("it was changed just now")
        restore(session, header, tensors)
        progress = header.progress(tensors[files.LOSSES].tolist())
        steps = header.epoch * self._run.cell.steps_per_epoch + header.step
        self._events.emit("resumed", epoch=header.epoch, step=header.step, steps=steps)
        self._events.replay(self._old_lines)
        self._old_lines = b""
        if progress.just_best:  # perhaps it was stopped between the two
            self._attempt_to(self._copy_best)
        return progress

    def due(self) -> bool:
        """Whether so much time has passed that a checkpoint is worth it in mid-epoch."""
        return monotonic() - self._written >= self._run.budget.checkpoint_seconds

    def write(self, session: Session, progress: files.Progress) -> None:
        """Write the last checkpoint, and the best if the epoch that has just ended is.

        Where that fails, the training goes on: it has cost more than its checkpoint.
        """
        self._attempt_to(lambda: self._write(session, progress))
        self._written = monotonic()

    def _write(self, session: Session, progress: files.Progress) -> None:
        make_folder(self._folder)
        # First the history, then what counts on it: a checkpoint never names lines that are not
        # on the disk.
        self._history.extend(self._new_lines)
        self._new_lines.clear()
        header = files.Header(
            run_key=self._folder.name,
            attempt=self._events.attempt,
            scaler=scaler_state(session),
            history_bytes=self._history.length,
            history_digest=self._history.digest,
            **files.progress_fields(progress),
        )
        files.write_checkpoint(self._last, header, collect(session, progress))
        # After it: a best one must not be of an epoch that a resumed training does again.
        if progress.just_best:
            self._copy_best()

    def _copy_best(self) -> None:
        durably(self._best, lambda unfinished: _link_or_copy(self._last, unfinished))

    def _attempt_to(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, SafetensorError) as error:
            problem = f"cannot write a checkpoint in {self._folder}: {error}; the training goes on"
            if problem != self._problem:  # once, not after every epoch
                self._problem = problem
                self._events.note(problem)

    def _refuse(self, error: files.UnusableError) -> None:
        self._events.note(f"cannot go on from {self._last}: {error}; the training starts anew")
        self._found, self._old_lines = None, b""
        self._history = History(self._folder / "history.jsonl")
        _remove(self._last, self._best)


def _remove(*paths: Path) -> None:
    for path in paths:
        with suppress(OSError):  # if it matters, the next checkpoint will show it
            path.unlink(missing_ok=True)


def _link_or_copy(source: Path, target: Path) -> None:
    # The last checkpoint is never changed, but replaced: a link to it stays what it was.
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # the file system has no links
        shutil.copyfile(source, target)
