"""Children that do not outlive their parent, nor have it die in their place."""

import ctypes
import os
import platform
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: How a user, a scheduler, a service manager or a terminal that goes away asks a run to end.
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU")
#: Those of them that only warn of an end to come, and mean nothing to a process by themselves.
WARNING_SIGNALS = ("SIGUSR1", "SIGUSR2")

_PR_SET_PDEATHSIG = 1
# Thousandths of the memory there is, which the kernel's killer takes the process to use besides.
_FIRST = 500


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux; elsewhere a no-op).

    Called by the child itself, early: the alternative, a hook between fork and exec, is not safe
    in a parent that has threads. `parent` is the process that started this one: if that is gone
    already, no signal will come, and the child ends here.
    """
    if platform.system() != "Linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the process that started this one is gone")


def ignore_signals(names: Iterable[str]) -> None:
    """Let signals pass: a scheduler sends them to all processes of a job, and the runner answers.

    Called by the child itself, early, and inherited by what it forks.
    """
    for name in names:
        signal.signal(signal.Signals[name], signal.SIG_IGN)


@contextmanager
def signals_blocked(names: Iterable[str]) -> Iterator[None]:
    """Start children that a signal cannot end before they have called `ignore_signals`.

    They inherit that the signals wait; those that waited here are delivered afterwards.
    """
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.Signals[name] for name in names})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


def prefer_oom_kill() -> None:
    """Have the kernel's killer choose this process where memory runs out (Linux).

    It takes the largest, by default. The worker is what was asked for too much; the runner, which
    keeps what was measured, and whatever else is on the machine are to live on.
    """
    score = Path("/proc/self/oom_score_adj")
    with suppress(OSError, ValueError):
        score.write_text(str(min(1000, int(score.read_text(encoding="utf-8")) + _FIRST)))
