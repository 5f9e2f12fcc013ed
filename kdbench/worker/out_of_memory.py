"""Which of the errors that end a worker are memory that ran out."""

import errno
import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from math import prod

import torch

from kdbench.common.errors import KdbenchError
from kdbench.common.memory_limits import process_limits, tightest_limit
from kdbench.common.out_of_memory import OutOfMemory, may_be_out_of_memory, parse_out_of_memory
from kdbench.worker.data.decoder_processes import DecoderDiedError

# What a new thread takes of address space, unless something else is set.
_STACK_BYTES = 8 * 2**20
# The largest that torch's dependents load late.
_LIBRARY_BYTES = 256 * 2**20
# Enough to say in a line that the rest is gone.
_RESERVE_BYTES = 4 * 2**20


class Reserve:
    """Address space that is kept for the report of how the worker ended.

    It is never written to, so that it takes no memory and shows in no figure; under a limit of
    address space or data it is what the last words are written with.
    """

    def __init__(self) -> None:
        self._kept: mmap.mmap | None = None
        with suppress(OSError):
            self._kept = mmap.mmap(-1, _RESERVE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def release(self) -> None:
        """Give it back."""
        if self._kept is not None:
            self._kept.close()


def is_shortage(error: BaseException) -> bool:
    """Whether memory that ran out is behind an error, whatever it looks like."""
    return any(_of(link) is not None for link in _chain(error))


def shortage_behind(error: BaseException, device: str) -> OutOfMemory | None:
    """Find what ran out of memory behind an error; None: that was not it.

    What was free is what torch's message says, else what is free while the error is handled: more
    than when it came up, if what an operation had is given back already.
    """
    found = next((found for link in _chain(error) if (found := _of(link))), None)
    if found is None or found.free_bytes is not None:
        return found
    if found.source == "cuda":
        return _with_card(found, device)
    room, asked = tightest_limit(), found.asked_bytes
    free: int | None = room.free_bytes
    if asked is not None and room.free_bytes >= asked:
        # What the step had was given back on the way here; the least there was is known of some.
        free = room.least_free_bytes
    return replace(found, free_bytes=free, limit_bytes=room.limit_bytes, limit=room.name)


def child_died(error: BaseException) -> bool:
    """Whether an error is that a process which prepares data has died."""
    return any(
        isinstance(link, DecoderDiedError) or "DataLoader worker (pid" in str(link)
        for link in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what is behind it; `from None` hides a traceback and no cause."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _of(error: BaseException) -> OutOfMemory | None:
    """Judge one error alone."""
    if isinstance(error, KdbenchError):  # our own words, such as a refusal with sizes in it
        return None
    message = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return parse_out_of_memory(message) or OutOfMemory("cuda")
    if isinstance(error, MemoryError):
        return _of_array(error) or parse_out_of_memory(message) or OutOfMemory("host")
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return parse_out_of_memory(message) or OutOfMemory("host")
    if may_be_out_of_memory(message) or getattr(error, "errno", None) == errno.EAGAIN:
        # Under a limit of its own that leaves no room for a stack, or a library, it is memory.
        needed = _LIBRARY_BYTES if isinstance(error, ImportError) else _STACK_BYTES
        return OutOfMemory("host") if any(r.free_bytes < needed for r in process_limits()) else None
    return parse_out_of_memory(message) if isinstance(error, Exception) else None


def _of_array(error: MemoryError) -> OutOfMemory | None:
    """Read numpy's, whose text is rounded and whose shape is not."""
    shape, kind = getattr(error, "shape", None), getattr(error, "dtype", None)
    if shape is None or kind is None:
        return None
    return OutOfMemory("host", asked_bytes=prod(shape) * int(kind.itemsize))


def _with_card(found: OutOfMemory, device: str) -> OutOfMemory:
    """Ask the driver what its message did not say; after such an error it may not answer."""
    with suppress(Exception):
        if torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info(torch.device(device))
            return replace(found, free_bytes=free, limit_bytes=total)
    return found
