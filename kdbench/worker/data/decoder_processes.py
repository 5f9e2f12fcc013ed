"""Processes that decode batches of pictures ahead, into memory that they share with the training.

Neither POSIX shared memory nor a semaphore is behind this: both lie in /dev/shm, of which a
container has 64 MB, and some sandboxes have none. Memory that is mapped before a fork is bounded by
the machine and its limits alone, and the end of a pipe shows at once that a process died.
"""

import json
import math
import mmap
import multiprocessing
import os
import platform
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.common.errors import WorkerError
from kdbench.common.lifetime import STOP_SIGNALS, die_with_parent, ignore_signals, signals_blocked

# Batches that each process keeps ready.
_AHEAD = 2
# A process that has closed its pipe takes no longer to end.
_END_SECONDS = 10.0

#: Decodes rows into uint8, [rows, 3, side, side]; returns a JSON value.
Fill = Callable[[Sequence[int], Tensor], Any]


class DecoderDiedError(WorkerError):
    """A process that decodes images died."""


def decode_ahead(
    fill: Fill, batches: Sequence[Sequence[int]], *, side: int, workers: int, pin: bool
) -> Iterator[tuple[Tensor, Any]]:
    """Have batches decoded by processes that read ahead.

    Yields, in order, each batch's pixels, uint8, [batch, 3, side, side], on the host (page-locked
    with `pin`, for fast copies to a GPU), and what `fill` returned.
    """
    shape = (workers * _AHEAD, max(map(len, batches)), 3, side, side)
    # macOS's system libraries do not survive a fork.
    context = multiprocessing.get_context("spawn" if platform.system() == "Darwin" else "fork")
    memory = _shared(context, math.prod(shape))
    with ExitStack() as stack:
        decoders = [
            stack.enter_context(
                _Decoder(context, partial(_serve, fill, batches, memory, shape, first, os.getpid()))
            )
            for first in range(workers)
        ]

        def ask_for(number: int) -> None:
            if number < len(batches):
                decoders[number % workers].ask()

        slots = _slots(memory, shape)
        for number in range(len(slots)):
            ask_for(number)
        for number, rows in enumerate(batches):
            result = decoders[number % workers].answer()
            slot = slots[_slot(number, workers)][: len(rows)]
            taken = [torch.empty(slot.shape, dtype=torch.uint8, pin_memory=pin)]
            np.copyto(taken[0].numpy(), slot)  # torch would wake all its threads for it
            ask_for(number + len(slots))
            yield taken.pop(), result  # the batch is the caller's alone


def _shared(context: Any, size: int) -> Any:  # any buffer
    """Return memory that this process and those of the context see alike."""
    if context.get_start_method() == "fork":
        return mmap.mmap(-1, size)
    return context.RawArray("B", size)  # a file in the folder for temporary ones, where it is


def _slots(memory: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    # No tensor: a ledger would take it for one that the step allocates.
    return np.frombuffer(memory, dtype=np.uint8, count=math.prod(shape)).reshape(shape)


def _slot(number: int, workers: int) -> int:
    """Where a batch lies: each process has places of its own, and takes them in turn."""
    return number % workers * _AHEAD + number // workers % _AHEAD


class _Decoder:
    """One process: it is asked for its next batch, and answers once that is in its place."""

    def __init__(self, context: Any, serve: Callable[[Connection], None]) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        with signals_blocked(STOP_SIGNALS):
            self._process.start()
        # No other process holds that end, the ones forked later neither: it closes with this one.
        theirs.close()
        # Before Python's own at exit, which asks by a signal and waits.
        self._end = Finalize(self, _end, (self._process, self._pipe), exitpriority=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self) -> None:
        """Let it decode its next batch, into the place of one that was taken."""
        with suppress(BrokenPipeError, ConnectionResetError):  # the next answer reports it
            self._pipe.send_bytes(b"next")

    def answer(self) -> Any:
        """Wait until its next batch is decoded, and return what `fill` did."""
        try:
            done, result = json.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            raise DecoderDiedError(
                f"a process that decodes images died: it {self._how()}; fewer of them need less "
                "memory (data.workers)"
            ) from None
        if not done:
            raise RuntimeError(result)
        return result

    def _how(self) -> str:
        self._process.join(_END_SECONDS)
        code = self._process.exitcode
        if code is None:
            return "closed its pipe"
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal
            return f"was killed by signal {-code}"


def _end(process: Any, pipe: Connection) -> None:
    process.kill()
    process.join()
    process.close()
    pipe.close()


def _serve(
    fill: Fill,
    batches: Sequence[Sequence[int]],
    memory: Any,
    shape: tuple[int, ...],
    first: int,
    parent: int,
    pipe: Connection,
) -> None:
    """Decode every n-th batch from the first one on; the process's whole work."""
    ignore_signals(STOP_SIGNALS)  # the training ends it
    die_with_parent(parent)
    torch.set_num_threads(1)  # OpenMP's threads are not here after a fork
    slots, workers = _slots(memory, shape), shape[0] // _AHEAD
    for number in range(first, len(batches), workers):
        try:
            pipe.recv_bytes()
        except (EOFError, ConnectionResetError):  # nobody waits any more
            return
        rows = batches[number]
        try:
            place = torch.from_numpy(slots[_slot(number, workers)][: len(rows)])
            answer = True, fill(rows, place)
        except Exception as error:  # noqa: BLE001 - the training raises it
            answer = False, f"a process that decodes images failed: {type(error).__name__}: {error}"
        pipe.send_bytes(json.dumps(answer).encode())
