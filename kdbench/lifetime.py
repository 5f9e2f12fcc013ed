"""Children that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import platform
import signal

_PR_SET_PDEATHSIG = 1


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
