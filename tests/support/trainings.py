"""Trainings in this very process, which tests can stop where they like."""

from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from kdbench import load_matrix
from kdbench.runner.process.launcher import ProcessResult
from kdbench.runner.rows import summarise
from kdbench.runner.spool import read_lines
from kdbench.store import Store
from kdbench.worker.events import Events
from kdbench.worker.measure import measure_cell
from kdbench.worker.training.session import Session

KEY = "0123456789abcdef"
ENVIRONMENT = {
    "cpu_model": "a processor",
    "gpu_name": None,
    "driver_version": None,
    "torch_version": torch.__version__,
    "git_revision": None,
}


class StoppedError(Exception):
    """The test stops the training here."""


def training_run(matrix, method, *assignments):
    """One run of a matrix file by its method, with the first seed."""
    loaded = load_matrix(matrix, assignments=[f'axes.method="{method}"', *assignments])
    return next(iter(loaded.runs()))


def attempt(run, root, *, stop_after=None):
    """Train as a worker does, into a results folder; stop in the step after so many.

    Returns:
        The events of this attempt, those that it told again included.
    """
    store = Store(root)
    store.prepare()
    path, taken, step = store.spool(KEY) / "events.jsonl", [], Session.timed_step

    def counted(session, draw):
        if stop_after is not None and len(taken) == stop_after:
            step(session, draw)  # it is done, and nobody hears of it
            raise StoppedError
        taken.append(draw)
        return step(session, draw)

    events = Events(path)
    with pytest.MonkeyPatch.context() as patch, suppress(StoppedError), one_thread():
        patch.setattr(Session, "timed_step", counted)
        events.emit("started", pid=0, threads=1)
        measure_cell(
            run,
            events=events,
            cache=root / ".cache",
            machine={},
            checkpoints=store.checkpoints(KEY),
        )
        events.emit("end", status="ok")
    told = tuple(read_lines(path))
    rows = summarise(
        run,
        ProcessResult(returncode=0, wall_seconds=1.0, events=told),
        samples=(),
        environment=ENVIRONMENT,
        started_at=datetime(2026, 1, 2, tzinfo=UTC),
        log=store.log(KEY),
        rates={},
    )
    store.supersede(KEY)
    store.commit(KEY, rows)
    return told


@contextmanager
def one_thread():
    """Compute on one thread, as the workers of the tiny matrix do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def result_of(root):
    """All that a training has come to: its weights, its epochs, the losses of its steps."""
    (folder,) = (root / "checkpoints").iterdir()
    weights = {
        which: {
            name: tensor.numpy().tobytes()
            for name, tensor in load_file(folder / f"{which}.safetensors").items()
        }
        for which in ("last", "best")
    }
    epochs = pd.read_parquet(root / "epochs").drop(
        columns=["run_key", "train_seconds", "evaluate_seconds"]
    )
    steps = pd.read_parquet(root / "steps")[["phase", "epoch", "step", "loss"]]
    # the accounting step, which is of no epoch, has the same loss too
    return weights, epochs.to_dict("list"), steps.fillna({"epoch": -1}).to_dict("list")


def cell_of(root):
    """The only row of `cells`."""
    (cell,) = pd.read_parquet(root / "cells").to_dict("records")
    return cell
