"""How a worker ends: at once, when all that has to be put in order is."""

import atexit
import os
import sys
from contextlib import suppress


class Ending:
    """Leaves the process without taking the interpreter apart.

    Freeing torch's modules one by one takes a second or more, and a cell would pay it. Whatever
    asked to be called at exit still is, and other threads are waited for: made before anything
    else is imported, this comes last of the exit functions.
    """

    def __init__(self) -> None:
        self._code: int | None = None
        atexit.register(self._leave)

    def settle(self, code: int) -> None:
        """Say the exit status; without it the interpreter ends as it always does."""
        self._code = code

    def _leave(self) -> None:
        if self._code is None:  # an exception on its way out, whose status only Python knows
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(self._code)
