"""A method as a package would add it: the student alone, until it is told how to fail.

The file `sabotage` in the worker's working folder says it; the first step that sees it takes it.
"""

import os
import resource
import signal
import time
from pathlib import Path

from kdbench.spec.method import Method

ALONE = Method(step="sabotaged:alone", teacher="none")

ORDER, TAKEN = Path("sabotage"), Path("sabotage.taken")


def alone(parts):
    from kdbench.worker.training.methods import student_only  # noqa: PLC0415 - planning imports no torch

    forward = student_only(parts)

    def step(batch, mark):
        try:
            ORDER.replace(TAKEN)
        except FileNotFoundError:
            return forward(batch, mark)
        WAYS[TAKEN.read_text()]()
        return forward(batch, mark)

    return step


def hang():
    while True:
        time.sleep(60)


def hang_deaf():
    """As one does that is stuck in a kernel's or library's call."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    hang()


def hang_in_child():
    """As a loader's process that never hands its batch over."""
    child = os.fork()
    if child == 0:
        hang_deaf()
    os.waitpid(child, 0)


def exhaust():
    """Have the allocator refuse, for lack of address space."""
    import torch  # noqa: PLC0415

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    torch.ones(1 << 30)


WAYS = {"hang": hang, "hang-deaf": hang_deaf, "hang-in-child": hang_in_child, "exhaust": exhaust}
