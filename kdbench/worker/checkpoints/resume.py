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
from kdbench.worker.checkpoints.durable import durably, make_folder
from kdbench.worker.checkpoints.files import (
    LOSSES,
    Header,
    Standing,
    UnusableError,
    read_checkpoint,
    write_checkpoint,
)
from kdbench.worker.checkpoints.history import History
from kdbench.worker.checkpoints.state import collect, restore, scaler_state
from kdbench.worker.events import Events
from kdbench.worker.training.session import Session


class Checkpoints:
    """The last and the best checkpoint of one run, and the history that the last one goes with.

    What is in the folder is read before the training is set up, so that the events of the set-up
    tell which attempt they are of. One that cannot be used is told in a line, and is no reason
    not to train: the training then starts anew.

    Args:
        folder: `results/<matrix>/checkpoints/<run_key>`; it need not be there.
        run: what is trained.
        events: where it is told, and whose lines are kept for a later attempt.
    """

    def __init__(self, folder: Path, run: CellRun, events: Events) -> None:
        self._folder, self._run, self._events = folder, run, events
        self._last, self._best = folder / "last.safetensors", folder / "best.safetensors"
        self._kept: list[str] = []
        self._written = monotonic()
        self._told = ""
        self._history, self._lines = History(folder / "history.jsonl"), b""
        self._found: Header | None = None
        _check_place(folder)
        for unfinished in folder.glob(".*.safetensors.*"):  # a process was killed while writing
            _remove(unfinished)
        self._find()
        events.kept = self._kept

    def _find(self) -> None:
        if not os.path.lexists(self._last):
            self._forget()  # a best one that no last one goes with is of a training that is gone
            return
        try:
            header, _ = read_checkpoint(self._last)
            header.check(self._folder.name, self._run.cell)
            self._lines = self._history.recover(
                header, steps_per_epoch=self._run.cell.steps_per_epoch
            )
        except UnusableError as error:
            self._refuse(error)
            return
        self._found = header
        self._events.attempt = header.attempt + 1

    def resume(self, session: Session) -> Standing:
        """Put a fresh session where the last checkpoint was written, and tell again its history.

        Returns:
            Where the training stands; at its start if there is nothing to go on from.
        """
        header, standing = self._found, None
        if header is not None:
            try:
                standing = self._restore(session, header)
            except UnusableError as error:
                # The set-up was told as this attempt's, and so will the training be: there is no
                # row of an earlier one.
                self._refuse(error)
        self._written = monotonic()
        return standing or Standing()

    def _restore(self, session: Session, header: Header) -> Standing:
        again, tensors = read_checkpoint(self._last)
        if again != header:
            raise UnusableError("it was changed just now")
        restore(session, header, tensors)
        standing = header.standing(tensors[LOSSES].tolist())
        steps = header.epoch * self._run.cell.steps_per_epoch + header.step
        self._events.emit("resumed", epoch=header.epoch, step=header.step, steps=steps)
        self._events.replay(self._lines)
        self._lines = b""
        if standing.just_best:  # perhaps it was stopped between the two
            self._attempt_to(self._copy_best)
        return standing

    def due(self) -> bool:
        """Whether so much time has passed that a checkpoint is worth it in mid-epoch."""
        return monotonic() - self._written >= self._run.budget.checkpoint_seconds

    def write(self, session: Session, standing: Standing) -> None:
        """Write the last checkpoint, and the best if the epoch that has just ended is.

        Where that fails, the training goes on: it has cost more than its checkpoint.
        """
        self._attempt_to(lambda: self._write(session, standing))
        self._written = monotonic()

    def _write(self, session: Session, standing: Standing) -> None:
        make_folder(self._folder)
        # First the history, then what counts on it: a checkpoint never names lines that are not
        # on the disk.
        self._history.extend(self._kept)
        self._kept.clear()
        write_checkpoint(self._last, self._header(session, standing), collect(session, standing))
        # After it: a best one must not be of an epoch that a resumed training does again.
        if standing.just_best:
            self._copy_best()

    def _header(self, session: Session, standing: Standing) -> Header:
        return Header(
            run_key=self._folder.name,
            attempt=self._events.attempt,
            epoch=standing.epoch,
            step=len(standing.losses),
            seconds=standing.seconds,
            right=standing.right,
            seen=standing.seen,
            best_accuracy=standing.best_accuracy,
            best_epoch=standing.best_epoch,
            scaler=scaler_state(session),
            history_bytes=self._history.length,
            history_digest=self._history.digest,
        )

    def _copy_best(self) -> None:
        durably(self._best, lambda unfinished: _same_file(self._last, unfinished))

    def _attempt_to(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, SafetensorError) as error:
            told = f"cannot write a checkpoint in {self._folder}: {error}; the training goes on"
            if told != self._told:  # once, not after every epoch
                self._told = told
                self._events.note(told)

    def _refuse(self, error: UnusableError) -> None:
        self._events.note(f"cannot go on from {self._last}: {error}; the training starts anew")
        self._found, self._lines = None, b""
        self._history = History(self._folder / "history.jsonl")
        self._forget()

    def _forget(self) -> None:
        for path in (self._last, self._best):
            _remove(path)


def _check_place(folder: Path) -> None:
    """Refuse a link: results are passed on, and nothing in them is to say where we write.

    Raises:
        InputError: the run's folder, or that of all checkpoints, is one.
    """
    for place in (folder, folder.parent):
        if place.is_symlink():
            raise InputError(
                "expected a folder for checkpoints, found a link",
                where=place,
                hint="remove it; --out names another folder for the results",
            )


def _remove(path: Path) -> None:
    with suppress(OSError):  # if it matters, the next checkpoint will tell
        path.unlink(missing_ok=True)


def _same_file(source: Path, target: Path) -> None:
    """Make the same content have a second name: a link where the file system has them.

    The last checkpoint is never changed, but replaced: a link to it stays what it was.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
