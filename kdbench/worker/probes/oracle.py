"""The independent check of the ledger on a CPU: the memory events of torch's profiler.

The profiler reports every block that torch's allocator hands out and takes back, also those below
dispatch, such as oneDNN's scratch, whose size depends on the processor's kernels. So its record is
read twice, at every moment and between operations alone; the difference is scratch.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd import profiler

from kdbench.worker.probes.dispatch import OperationMode

_BEGIN = "kdbench.step"
_OPERATION = "kdbench.operation"
_MEMORY = "[memory]"


@dataclass(frozen=True)
class Growth:
    """How far the CPU's memory grew in a step, beyond what it was at the step's beginning."""

    #: most bytes at once
    peak_bytes: int
    #: most bytes at once while no operation ran, so without their internal buffers
    between_bytes: int

    @property
    def scratch_bytes(self) -> int:
        """The part of the peak that operations allocate and free internally."""
        return self.peak_bytes - self.between_bytes


class HostRecord:
    """Records the CPU memory that this thread allocates and frees while it is entered.

    torch does not report the free of a block that is older than its profiler's first run. So
    reallocate under the record what a step will free; then call `begin`, and count from there.
    """

    def __init__(self, device: torch.device) -> None:
        self._wanted = device.type == "cpu"
        self._profile: profiler.profile | None = None

    def __enter__(self) -> Self:
        if self._wanted and torch.profiler.kineto_available():  # a torch may be built without it
            self._profile = profiler.profile(use_kineto=True, profile_memory=True)
            self._profile.__enter__()
        return self

    def begin(self) -> None:
        """Mark where the step begins."""
        if self._profile is not None:
            with profiler.record_function(_BEGIN):
                pass

    def operations(self) -> AbstractContextManager[object]:
        """Return a mode that marks dispatched operations; without it nothing counts as scratch.

        Enter it before any other dispatch mode.
        """
        return nullcontext() if self._profile is None else _OperationMarks()

    def __exit__(self, *reason: object) -> None:
        if self._profile is not None:
            self._profile.__exit__(*reason)

    def growth(self) -> Growth | None:
        """Return the growth since `begin`; None where nothing was recorded."""
        found = self._profile and self._profile.kineto_results
        return growth_of(host_changes(found.events())) if found else None


class _OperationMarks(OperationMode):
    """Marks in torch's profile where each dispatched operation begins and ends.

    The mode that was entered first is called last, with nothing but the kernel below it.
    """

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        # The public `record_function` takes seven times as long, and is an operation itself.
        with torch._C._profiler._RecordFunctionFast(_OPERATION):
            return func(*args, **kwargs)


def host_changes(events: Sequence[Any]) -> list[tuple[int, int | None]]:
    """Find the changes of the CPU's memory from the step's beginning on, in one thread's events.

    Each is its bytes and the number of the operation it belongs to; None: between two.
    """
    (begun,) = (event.start_ns() for event in events if event.name() == _BEGIN)
    ran = sorted((e.start_ns(), e.end_ns()) for e in events if e.name() == _OPERATION)
    starts = [start for start, _ in ran]

    def operation(when: int) -> int | None:
        number = bisect_right(starts, when) - 1
        return number if number >= 0 and when <= ran[number][1] else None

    found = [
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == _MEMORY and event.device_type() == torch.profiler.DeviceType.CPU
    ]
    # One thread's clock only goes forward: events of one nanosecond keep their order.
    found.sort(key=lambda pair: pair[0])
    return [(size, operation(when)) for when, size in found if when >= begun]


def growth_of(changes: Iterable[tuple[int, int | None]]) -> Growth:
    """Add up changes from `host_changes`; neither peak is less than 0."""
    live = peak = between = 0
    for operation, own in groupby(changes, key=lambda change: change[1]):
        highest = live
        for size, _ in own:
            live += size
            highest = max(highest, live)
        peak = max(peak, highest)
        # What an operation leaves behind counts from its end on, as it does in a ledger.
        between = max(between, live if operation is not None else highest)
    return Growth(peak, between)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Sum the bytes of the storages behind tensors; shared ones count once."""
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())


def renew_gradients(*modules: torch.nn.Module) -> None:
    """Reallocate each gradient, so that a running record will see it freed."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
