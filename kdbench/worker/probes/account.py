"""The accounting step: one untimed step that shows where its memory goes and how much it does."""

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic_ns
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import Tensor

from kdbench.worker.data.augment import Draw
from kdbench.worker.probes.dispatch import storage_of
from kdbench.worker.probes.ledger import Ledger
from kdbench.worker.probes.oracle import HostRecord, renew_gradients, storage_bytes
from kdbench.worker.probes.suspension import SuspensionDetector
from kdbench.worker.probes.work import WorkCounter
from kdbench.worker.training.session import Session

# References that would lead to everything in the process.
_NOT_INTO = (ModuleType, type, CodeType, FrameType)


@dataclass(frozen=True)
class Account:
    """What an accounting step found."""

    ledger: Ledger
    #: without a time: the ledger slows the step down
    row: dict[str, Any]
    work: WorkCounter
    #: the peak by a source that shares nothing with the ledger: torch's profiler on a CPU, the
    #: allocator on CUDA, which rounds each block up to 512 B; None: not available
    second_peak_bytes: int | None
    #: the part of that peak that operations allocate and free internally. No ledger sees it, and
    #: it depends on the processor. None: unknown, as off the CPU
    scratch_bytes: int | None


def account_step(session: Session, draw: Draw) -> Account:
    """Run one step under the ledger and under torch's own record of memory."""
    if session.cell.training.compile:
        raise RuntimeError("no ledger sees into a compiled student")
    ledger, work, record = Ledger(session.device), WorkCounter(), HostRecord(session.device)
    with record:
        if session.device.type == "cpu":
            renew_gradients(*session.trained.values())
        session.strays.look_again()
        register_session(session, draw, ledger)
        before = _host_bytes(session, draw)
        session.probes.start_step()
        started, suspension = monotonic_ns(), SuspensionDetector()
        record.begin()
        with record.operations(), work, ledger:
            result, _ = session.step(draw, naming_mark(session, ledger))
        session.probes.synchronize()
        peaks = session.probes.step_peaks()
        suspended = suspension.occurred()
    register_state(session, ledger)
    growth = record.growth()
    second = peaks["allocated_peak_bytes"]
    if session.device.type == "cpu":
        second = None if growth is None else before + growth.peak_bytes
    return Account(
        ledger=ledger,
        row={"started_ns": started, "seconds": None, "suspended": suspended, **peaks}
        | {"loss": float(result.loss)},
        work=work,
        second_peak_bytes=second,
        scratch_bytes=None if growth is None else growth.scratch_bytes,
    )


def profiled_peak(session: Session, draw: Draw) -> int | None:
    """Run one step on a CPU as it is, compiled or not, and return its peak by torch's profiler."""
    with HostRecord(session.device) as record:
        renew_gradients(*session.trained.values())
        before = _host_bytes(session, draw)
        record.begin()
        session.step(draw)
    growth = record.growth()
    return None if growth is None else before + growth.peak_bytes


def naming_mark(session: Session, ledger: Ledger) -> Callable[[str], None]:
    """Return a mark for the ledger that names gradients before the optimizer's temporaries."""

    def mark(part: str) -> None:
        if part == "optimizer":
            ledger.register_gradients(*session.trained.values())
        ledger.mark(part)

    return mark


def register_session(session: Session, draw: Draw, ledger: Ledger) -> None:
    """Name to the ledger all that exists before the step."""
    for name, module in session.trained.items():
        ledger.register_module(module, "parameters", prefix=name)
    if session.teacher is not None:
        ledger.register_module(session.teacher, "teacher", prefix="teacher")
    if session.embeddings is not None:
        name = session.cell.method_spec.teacher.replace("-", "_")
        ledger.register([session.embeddings], "teacher", name)
    ledger.register(session.data.tensors(), "inputs", "data")
    ledger.register(draw.tensors(), "inputs")
    register_state(session, ledger)
    ledger.register_gradients(*session.trained.values())


def register_state(session: Session, ledger: Ledger) -> None:
    """Name to the ledger what a step leaves behind: the optimizer's state, and the method's."""
    ledger.register(_kept_by_method(session), "other", "method")
    ledger.register(_optimizer_state(session), "optimizer_state", "optimizer")


def _optimizer_state(session: Session) -> Iterator[Tensor]:
    for state in session.optimizer.state.values():
        yield from (v for v in state.values() if isinstance(v, Tensor))
    if session.scaler is not None:  # its state_dict has numbers, not its tensors
        own = (session.scaler._scale, session.scaler._growth_tracker)
        yield from (v for v in own if v is not None)


def _module_tensors(session: Session) -> Iterator[Tensor]:
    """Yield parameters, their gradients and buffers of all modules in the step."""
    teacher = [] if session.teacher is None else [session.teacher]
    for module in (*session.trained.values(), *teacher):
        for parameter in module.parameters():
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
        yield from module.buffers()


def _kept_by_method(session: Session) -> list[Tensor]:
    """Find tensors that the method alone keeps."""
    known = [*_module_tensors(session), *session.data.tensors(), session.embeddings, session.data]
    return kept_tensors(session.forward, [*known, *session.trained.values(), session.teacher])


def _host_bytes(session: Session, draw: Draw) -> int:
    """Bytes on the CPU that a training holds between two steps, found without the ledger."""
    embeddings = [] if session.embeddings is None else [session.embeddings]
    tensors = [
        *_module_tensors(session),
        *embeddings,
        *session.data.tensors(),
        *draw.tensors(),
        *_optimizer_state(session),
        *_kept_by_method(session),
    ]
    return storage_bytes(tensor for tensor in tensors if tensor.device.type == "cpu")


def kept_tensors(step: Callable[..., Any], known: Iterable[object]) -> list[Tensor]:
    """Find the tensors that a method's step keeps from one call to the next.

    It may have a queue of embeddings or a copy of weights, in its closure or object; `known` are
    objects not to search, and a tensor among them stands for its whole storage.
    """
    seen = {id(thing): thing for thing in known}
    storages = {_storage_key(thing) for thing in seen.values() if isinstance(thing, Tensor)}
    found: list[Tensor] = []
    left: list[Any] = [step]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, _NOT_INTO):
            continue
        seen[id(thing)] = thing  # kept: an id is unique only while its object lives
        if isinstance(thing, FunctionType):  # all but the globals of its module
            left += [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
        elif not isinstance(thing, Tensor):
            left += gc.get_referents(thing)
        elif (storage := _storage_key(thing)) is not None and storage not in storages:
            found.append(thing)
    return found


def _storage_key(tensor: Tensor) -> int | None:
    storage = storage_of(tensor)
    return None if storage is None else storage._cdata
