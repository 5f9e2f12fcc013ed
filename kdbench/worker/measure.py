"""A cell from its set-up to its figures: precompute, then profile or train, then account."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdbench.cell import CellRun
from kdbench.worker.account import account_step, profiled_peak
from kdbench.worker.augment import Draw
from kdbench.worker.data import load_data
from kdbench.worker.events import Events
from kdbench.worker.precision import check_precision, set_precision
from kdbench.worker.precompute import precompute
from kdbench.worker.probes import Probes
from kdbench.worker.profile import profile
from kdbench.worker.rates import measure_rates
from kdbench.worker.resume import Checkpoints
from kdbench.worker.timeline import timeline
from kdbench.worker.train import emit_step, train
from kdbench.worker.training import Session, build_session, parameter_bytes


def measure_cell(
    run: CellRun,
    *,
    events: Events,
    cache: Path,
    machine: Mapping[str, Any],
    checkpoints: Path | None = None,
    rates: bool = False,
) -> None:
    """Measure one run of a cell, telling everything through `events`.

    Args:
        run: what to measure.
        events: told everything.
        cache: folder of what is kept between runs.
        machine: the parts of the environment that a result depends on.
        checkpoints: folder of a training's checkpoints; None: it has none.
        rates: measure what the device reaches at best as well, once all else is done.
    """
    device = torch.device(run.device)
    kept = None if checkpoints is None else Checkpoints(checkpoints, run, events)
    probes = Probes(device)
    session = _set_up(run, device, probes, events, cache, machine)
    if run.mode == "profile":
        profile(session, run.budget, events)
        _account(session, events, next(session.draws(0)))
    else:
        train(session, events, kept)
        _account(session, events, next(session.draws(session.cell.training.epochs)))
    if rates:
        del session  # it may fill the card
        _release(device)
        with events.phase("rates", probes):
            measure_rates(run.cell.training.precision, device, events)


def _set_up(
    run: CellRun,
    device: torch.device,
    probes: Probes,
    events: Events,
    cache: Path,
    machine: Mapping[str, Any],
) -> Session:
    cell, teacher, embeddings = run.cell, None, None
    with events.phase("setup", probes):
        # before the teacher's work, which can take long...
        check_precision(cell.training.precision, device)
        # ...and is done in fp32, whatever the session computes in: cells share its result
        set_precision("fp32", device)
        data = load_data(cell, device=device)
        if cell.teacher is not None:
            # transformers takes seconds to import; a student alone does without
            from kdbench.worker.teacher import load_teacher  # noqa: PLC0415

            teacher = load_teacher(cell, device=device, cache=cache, class_names=data.class_names)
    events.emit(
        "result",
        data_storage=data.storage,
        teacher_revision=None if teacher is None else teacher.revision,
    )
    if cell.declared.precomputes and teacher is not None:
        embeddings = precompute(
            run, data, teacher, probes=probes, events=events, cache=cache, machine=machine
        )
        # The teacher has done its work: nothing of it stays for the training.
        teacher = None
        _release(device)
    with events.phase("setup", probes):
        session = build_session(
            cell,
            device=device,
            seed=run.seed,
            data=data,
            teacher=teacher,
            embeddings=embeddings,
            probes=probes,
        )
    if cell.training.compile:
        with events.phase("compile", probes):
            session.compile()
    events.emit(
        "result",
        parameter_bytes=parameter_bytes(session.student, session.teacher),
        student_parameters=sum(p.numel() for p in session.student.parameters()),
    )
    return session


def _release(device: torch.device) -> None:
    """Give back the memory of what is held no longer."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _account(session: Session, events: Events, draw: Draw) -> None:
    """Run the accounting step: after all that is timed or trained, so it disturbs neither."""
    if session.cell.training.compile:
        _account_compiled(session, events, draw)
        return
    with events.phase("account", session.probes) as phase:
        account = account_step(session, draw)
        emit_step(events, account.row, "account", 0)
        phase["units"] = 1
    for share in account.ledger.shares():
        events.emit("memory", **share.row())
    events.emit("timeline", **timeline(account.ledger.changes()))
    events.emit(
        "result",
        ledger_peak_bytes=account.ledger.peak_bytes(),
        second_peak_bytes=account.second_peak_bytes,
        flops_step=account.flops,
    )


def _account_compiled(session: Session, events: Events, draw: Draw) -> None:
    """Have torch's profiler tell a compiled step's peak; a card's allocator has told it already.

    torch would run the student uncompiled under a ledger, and count that.
    """
    if session.device.type != "cpu":
        return
    with events.phase("account", session.probes) as phase:
        peak = profiled_peak(session, draw)
        phase["units"] = 1
    events.emit("result", profiler_peak_bytes=peak)
