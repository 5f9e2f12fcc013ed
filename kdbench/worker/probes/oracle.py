"""What the ledger is held against: torch's own records of memory, which share no code with it.

On a CPU the profiler tells of every block that torch's allocator gives and takes back, also of
those below dispatch: oneDNN's scratch comes from that allocator too, and there is as much of it as
the processor's kernels ask for. So the record is read twice, at every moment and between operations
alone; what lies between the two is scratch, whatever the processor. On CUDA the caching allocator
keeps a history of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.utils._python_dispatch import TorchDispatchMode

_BEGIN = "kdbench.step"
_OPERATION = "kdbench.operation"
_MEMORY = "[memory]"


class ProfilerEvent(Protocol):
    """What is read of an event of torch's profiler."""

    def name(self) -> str:
        """Return the operation's name; memory's events have one of their own."""

    def start_ns(self) -> int:
        """Return when it was, or began, in nanoseconds."""

    def end_ns(self) -> int:
        """Return when it ended, in nanoseconds."""

    def nbytes(self) -> int:
        """Return the bytes gained, or lost where negative."""

    def device_type(self) -> Any:  # noqa: ANN401 - torch's own enumeration
        """Return whose memory it is."""


@dataclass(frozen=True)
class Growth:
    """How far the CPU's memory grew in a step, beyond what it was at the step's begin."""

    #: most bytes at once
    peak_bytes: int
    #: most bytes at once while no operation ran: what each had taken for itself alone is left out
    between_bytes: int

    @property
    def scratch_bytes(self) -> int:
        """How much higher the peak is for what operations take and give back within themselves."""
        return self.peak_bytes - self.between_bytes


class HostRecord:
    """Records the CPU memory that this thread takes and gives back while it is entered.

    torch does not tell when a block goes that was there before its profiler ran first. So what
    will be freed in a step is to be taken anew under the record; then call `begin`, and count
    from there.

    Args:
        device: whose steps it is for; off the CPU it records nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._wanted = device.type == "cpu"
        self._profile: profiler.profile | None = None

    def __enter__(self) -> Self:
        """Start torch's profiler; a torch that was built without it records nothing."""
        if self._wanted and torch.profiler.kineto_available():
            self._profile = profiler.profile(use_kineto=True, profile_memory=True)
            self._profile.__enter__()
        return self

    def begin(self) -> None:
        """Mark where the step begins."""
        if self._profile is None:
            return
        with profiler.record_function(_BEGIN):
            pass

    def operations(self) -> AbstractContextManager[object]:
        """Return what marks the operations that are dispatched while it is entered.

        Enter it before any other mode of dispatch. Without it all is taken for between operations.
        """
        return nullcontext() if self._profile is None else _Operations()

    def __exit__(self, *reason: object) -> None:
        """Stop the profiler."""
        if self._profile is not None:
            self._profile.__exit__(*reason)

    def growth(self) -> Growth | None:
        """Growth since `begin`; None where nothing was recorded."""
        found = self._profile and self._profile.kineto_results
        if not found:
            return None
        # torch's own types leave out `nbytes`
        return growth_of(host_changes(cast("Sequence[ProfilerEvent]", found.events())))


class _Operations(TorchDispatchMode):
    """Marks in torch's profile where each dispatched operation begins and ends.

    The mode that was entered first is called last, with nothing but the kernel below it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Run the operation between two marks."""
        # The public `record_function` takes seven times as long, and is an operation itself.
        with torch._C._profiler._RecordFunctionFast(_OPERATION):
            return func(*args, **(kwargs or {}))


def host_changes(events: Sequence[ProfilerEvent]) -> list[tuple[int, int | None]]:
    """Find what the CPU's memory gained or lost from the step's begin on.

    Args:
        events: the raw events of one thread's record, which holds the mark that `begin` leaves.

    Returns:
        In order, bytes and the number of the operation that took or gave them; None: between two.
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
    # Of one thread, and its clock only goes forward: events of one nanosecond stay as they came.
    found.sort(key=lambda pair: pair[0])
    return [(size, operation(when)) for when, size in found if when >= begun]


def growth_of(changes: Iterable[tuple[int, int | None]]) -> Growth:
    """Add changes up, as `host_changes` finds them; neither peak is less than 0."""
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
    """Bytes of the storages behind tensors, those that several share counted once."""
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(held.values())


def renew_gradients(module: torch.nn.Module) -> None:
    """Put each gradient into new memory, so that a record that runs will see it go."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


def cuda_blocks(snapshot: Mapping[str, Any], device: int) -> dict[int, int]:
    """Find what the CUDA allocator had handed out: bytes asked for, by address.

    Args:
        snapshot: as `torch.cuda.memory._snapshot()` returns it.
        device: the card's index.
    """
    return {
        block["address"]: block["requested_size"]
        for segment in snapshot["segments"]
        if segment.get("device", device) == device  # a card's own snapshot need not tell
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }


def cuda_peak(blocks: Mapping[int, int], trace: Iterable[Mapping[str, Any]]) -> int:
    """Replay a history of the CUDA allocator; returns the most bytes asked for at once.

    Args:
        blocks: what was live when the history began, as `cuda_blocks` finds it.
        trace: the card's entry of a later snapshot's `device_traces`: mappings with `action`,
            `addr` and `size`. Sizes are those asked for, which the allocator rounds up to 512 B;
            a block counts as gone when it is given back, not when its stream is done with it.

    Raises:
        ValueError: a block is freed that was not live: the history is not whole.
    """
    live = dict(blocks)
    now = highest = sum(live.values())
    for entry in trace:
        if entry["action"] == "alloc":
            live[entry["addr"]] = entry["size"]
            now += entry["size"]
            highest = max(highest, now)
        elif entry["action"] == "free_requested":
            if entry["addr"] not in live:
                raise ValueError(f"a block is freed that was never live: {entry['addr']:#x}")
            now -= live.pop(entry["addr"])
    return highest
