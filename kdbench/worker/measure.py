"""A cell from its set-up to its figures: precompute, then profile or train, then account."""

import gc
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.spec.cell import CellRun
from kdbench.worker.checkpoints.resume import Checkpoints
from kdbench.worker.data.augment import Draw
from kdbench.worker.data.dataset import DataSet, load_data
from kdbench.worker.events import Events
from kdbench.worker.probes.account import account_step, profiled_peak
from kdbench.worker.probes.memory import Probes
from kdbench.worker.probes.rates import measure_rates
from kdbench.worker.profile import profile
from kdbench.worker.training.precompute import precompute
from kdbench.worker.training.session import Session, parameter_columns
from kdbench.worker.training.setup import set_up
from kdbench.worker.training.train import train


def measure_cell(
    run: CellRun,
    *,
    events: Events,
    cache: Path,
    machine: Mapping[str, Any],
    checkpoints: Path | None = None,
    rates: bool = False,
) -> None:
    """Measure one run of a cell; all that is found goes to `events`.

    `machine` are the parts of the environment that a result depends on. With `rates`, what the
    device reaches at best is measured as well, once all else is done.
    """
    device = torch.device(run.device)
    kept = None if checkpoints is None else Checkpoints(checkpoints, run, events)
    probes = Probes(device)
    loader = _Loader(run, device, probes, events, cache, machine)
    session = set_up(run, loader, device=device, probes=probes)
    if run.cell.training.compile:
        with events.phase("compile", probes):
            session.compile()
    events.emit("result", **parameter_columns(session))
    if run.mode == "profile":
        profile(session, run.budget, events)
        _account(session, events, next(session.draws(0)))
    else:
        train(session, events, kept)
        _account(session, events, next(session.draws(session.cell.training.epochs)))
    if rates:
        del session  # it may fill the card
        loader.release()
        with events.phase("rates", probes):
            measure_rates(run.cell.training.precision, device, events)


@dataclass(frozen=True)
class _Loader:
    """Loads what a training is set up from, from where the matrix file says."""

    run: CellRun
    device: torch.device
    probes: Probes
    events: Events
    cache: Path
    machine: Mapping[str, Any]

    def phase(self, name: str) -> AbstractContextManager[dict[str, Any]]:
        return self.events.phase(name, self.probes)

    def data(self) -> DataSet:
        data = load_data(self.run.cell, device=self.device)
        self.events.emit("result", data_storage=data.storage)
        for note in data.notes:
            self.events.note(note)
        return data

    def teacher(self, data: DataSet) -> nn.Module:
        # transformers takes seconds to import; a student alone does without
        from kdbench.worker.models.teacher import load_teacher  # noqa: PLC0415

        teacher = load_teacher(
            self.run.cell, device=self.device, cache=self.cache, class_names=data.class_names
        )
        size = self.run.cell.required_teacher.image_size
        self.events.emit(
            "result",
            teacher_revision=teacher.revision,
            teacher_preprocessing=teacher.preprocessing.summary(size),
            teacher_preprocessing_source=teacher.preprocessing.source,
        )
        return teacher

    def embeddings(self, data: DataSet, teacher: nn.Module) -> Tensor:
        return precompute(
            self.run,
            data,
            teacher,
            probes=self.probes,
            events=self.events,
            cache=self.cache,
            machine=self.machine,
        )

    def release(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _account(session: Session, events: Events, draw: Draw) -> None:
    """Run the accounting step: after all that is timed or trained, so it disturbs neither."""
    if session.cell.training.compile:
        _account_compiled(session, events, draw)
        return
    with events.phase("account", session.probes) as phase:
        account = account_step(session, draw)
        events.emit("step", phase="account", step=0, epoch=None, **account.row)
        phase["units"] = 1
    for share in account.ledger.shares():
        events.emit("memory", stage="steady", **share.row())
    events.emit("timeline", **account.ledger.timeline())
    events.emit(
        "result",
        ledger_peak_bytes=account.ledger.peak_bytes(),
        second_peak_bytes=account.second_peak_bytes,
        scratch_bytes=account.scratch_bytes,
        flops_step=account.work.flops,
        operations_step=account.work.operations,
        bytes_moved_step=account.work.bytes_moved,
    )


def _account_compiled(session: Session, events: Events, draw: Draw) -> None:
    """Get a compiled step's peak from torch's profiler; on a card the allocator has it already.

    torch would run the student uncompiled under a ledger, and count that.
    """
    if session.device.type != "cpu":
        return
    with events.phase("account", session.probes) as phase:
        peak = profiled_peak(session, draw)
        phase["units"] = 1
    events.emit("result", profiler_peak_bytes=peak)
