"""The accounting step: one un-timed step that tells where its memory goes, and how much it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

import torch

from kdbench.worker.data.augment import Draw
from kdbench.worker.probes.held_tensors import held_tensors
from kdbench.worker.probes.ledger import Ledger
from kdbench.worker.probes.oracle import HostRecord, renew_gradients, storage_bytes
from kdbench.worker.probes.suspension import Suspension
from kdbench.worker.probes.work import WorkCounter
from kdbench.worker.training.session import Session


@dataclass(frozen=True)
class Account:
    """What an accounting step found."""

    ledger: Ledger
    #: the step's row, without a time: the ledger slows it
    row: dict[str, Any]
    #: its arithmetic, operations and bytes
    work: WorkCounter
    #: the step's peak by a source that shares nothing with the ledger: torch's profiler on a CPU,
    #: the allocator on CUDA, which rounds each block up to 512 B; None: there is none
    second_peak_bytes: int | None
    #: how much of that peak is for what operations take and give back within themselves, which no
    #: ledger sees and each processor has more or less of; None: not told, as off the CPU
    scratch_bytes: int | None


def account_step(session: Session, draw: Draw) -> Account:
    """Run one step under the ledger, and beside it under torch's own record of memory.

    Raises:
        RuntimeError: the student is compiled. torch runs no compiled code under a ledger, so
            the figures would be those of another student.
    """
    if session.cell.training.compile:
        raise RuntimeError("no ledger sees into a compiled student")
    ledger, work, record = Ledger(session.device), WorkCounter(), HostRecord(session.device)

    def mark(part: str) -> None:
        if part == "optimizer":  # before the optimizer's own temporaries
            adopt_gradients(session, ledger)
        ledger.mark(part)

    with record:
        if session.device.type == "cpu":
            _renew_gradients(session)
        session.strays.look_again()
        adopt_session(session, draw, ledger)
        before = _held_bytes(session, draw)
        session.probes.start_step()
        started, suspension = monotonic_ns(), Suspension()
        record.begin()
        with record.operations(), work, ledger:
            result, _ = session.step(draw, mark)
        session.probes.synchronize()
        peaks = session.probes.step_peaks()
        told = {"started_ns": started, "seconds": None, "suspended": suspension.passed()}
    adopt_state(session, ledger)
    growth = record.growth()
    on_host = None if growth is None else before + growth.peak_bytes
    return Account(
        ledger=ledger,
        row={**told, **peaks, "loss": float(result.loss)},
        work=work,
        second_peak_bytes=on_host
        if session.device.type == "cpu"
        else peaks["allocated_peak_bytes"],
        scratch_bytes=None if growth is None else growth.scratch_bytes,
    )


def profiled_peak(session: Session, draw: Draw) -> int | None:
    """Run one step on a CPU as it is, compiled or not; its peak as torch's profiler tells it.

    Returns:
        Bytes; None where this torch has no profiler.
    """
    with HostRecord(session.device) as record:
        _renew_gradients(session)
        before = _held_bytes(session, draw)
        record.begin()
        session.step(draw)
    growth = record.growth()
    return None if growth is None else before + growth.peak_bytes


def adopt_session(session: Session, draw: Draw, ledger: Ledger) -> None:
    """Name to the ledger all that the step finds there."""
    for name, module in session.trained.items():
        ledger.adopt_module(module, "parameters", prefix=name)
    if session.teacher is not None:
        ledger.adopt_module(session.teacher, "teacher", prefix="teacher")
    if session.embeddings is not None:
        name = session.cell.method_spec.teacher.replace("-", "_")
        ledger.adopt([session.embeddings], "teacher", name)
    ledger.adopt(session.data.tensors(), "inputs", "data")
    ledger.adopt(draw.tensors(), "inputs")
    adopt_state(session, ledger)
    adopt_gradients(session, ledger)


def adopt_gradients(session: Session, ledger: Ledger) -> None:
    """Name to the ledger the gradients that there are now."""
    for module in session.trained.values():
        ledger.adopt_gradients(module)


def adopt_state(session: Session, ledger: Ledger) -> None:
    """Name to the ledger what a step leaves behind: the optimizer's state, and the method's."""
    ledger.adopt(_held(session), "other", "method")
    ledger.adopt(_optimizer_state(session), "optimizer_state", "optimizer")


def _optimizer_state(session: Session) -> Iterator[torch.Tensor]:
    for state in session.optimizer.state.values():
        yield from (v for v in state.values() if isinstance(v, torch.Tensor))
    if session.scaler is not None:  # no state_dict of it has its tensors as they are
        own = (session.scaler._scale, session.scaler._growth_tracker)
        yield from (v for v in own if v is not None)


def _renew_gradients(session: Session) -> None:
    for module in session.trained.values():
        renew_gradients(module)


def _held(session: Session) -> list[torch.Tensor]:
    """Find what the method keeps that is nobody else's."""
    modules = [*session.trained.values(), *([] if session.teacher is None else [session.teacher])]
    parameters = [p for module in modules for p in module.parameters()]
    buffers = [buffer for module in modules for buffer in module.buffers()]
    gradients = [p.grad for p in parameters if p.grad is not None]
    known = [*modules, *parameters, *buffers, *gradients, *session.data.tensors()]
    return held_tensors(session.forward, [*known, session.embeddings, session.data])


def _held_bytes(session: Session, draw: Draw) -> int:
    """Bytes on the CPU that a training holds between two steps: found anew, not by the ledger."""
    teacher = session.teacher
    trained = [part for module in session.trained.values() for part in module.parameters()]
    tensors = [
        *trained,
        *(buffer for module in session.trained.values() for buffer in module.buffers()),
        *(p.grad for p in trained if p.grad is not None),
        *([] if teacher is None else [*teacher.parameters(), *teacher.buffers()]),
        *([] if session.embeddings is None else [session.embeddings]),
        *session.data.tensors(),
        *draw.tensors(),
        *_optimizer_state(session),
        *_held(session),
    ]
    return storage_bytes(tensor for tensor in tensors if tensor.device.type == "cpu")
