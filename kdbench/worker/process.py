"""How a worker's process begins and ends."""

import atexit
import os
import sys
from contextlib import suppress

from kdbench.common.lifetime import WARNING_SIGNALS, ignore_signals
from kdbench.worker.secrets import hide


class Exit:
    """Leaves the process without taking the interpreter apart.

    Freeing torch's modules one by one takes a second or more, and a cell would pay it. Whatever
    asked to be called at exit still is, and other threads are waited for: made before anything
    else is imported, this comes last of the exit functions.
    """

    def __init__(self) -> None:
        #: the exit status; None: an exception is on its way out, whose status only Python knows
        self.status: int | None = None
        atexit.register(self._leave)

    def _leave(self) -> None:
        if self.status is None:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.status)


def begin() -> Exit:
    """Prepare this process for a worker's work; the caller sets the status that it returns."""
    ignore_signals(WARNING_SIGNALS)
    hide()
    return Exit()
