"""The standard streams of a command.

Their reader may go, the file behind them may be full, and their encoding may lack what is printed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from kdbench.common.errors import OutputError, os_reason
from kdbench.common.text import fit_encoding

if TYPE_CHECKING:
    from rich.console import Console


class Output:
    """A standard stream that takes any text, and whose errors are not taken for another file's.

    Args:
        file: the stream.
        steady: leave out what cannot be written, and end nothing.
    """

    def __init__(self, file: TextIO, *, steady: bool = False) -> None:
        self._file = file
        self.steady = steady
        #: why something could not be written, in words; None: all was, or its reader has gone
        self.problem: str | None = None

    @property
    def encoding(self) -> str:
        """What those who print may count on: what the file's own encoding lacks is written anew.

        Told of another one, they would write around this stream, or leave letters out.
        """
        return "utf-8"

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever else a stream has
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write as the stream does; raises OutputError if that fails, unless it is steady."""
        try:
            self._file.write(fit_encoding(text, self._file.encoding))
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Write what is held back, with the same errors."""
        try:
            self._file.flush()
        except OSError as error:
            self._failed(error)

    def finish(self) -> None:
        """Write what is held back, or give it up: at its own end Python would fail over it."""
        self.steady = True
        self.flush()
        if self.problem is not None:
            self._give_up()

    def _failed(self, error: OSError) -> None:
        gone = isinstance(error, BrokenPipeError)
        if not gone:
            self.problem = os_reason(error)
        # A disk may have room again later, and a run's later lines are tried; no reader comes back.
        if gone or not self.steady:
            self._give_up()
        if self.steady:
            return
        if gone:
            raise error
        raise OutputError(f"cannot write the output: {self.problem}") from None

    def _give_up(self) -> None:
        """Have what is held back, and what is still printed, go nowhere."""
        with suppress(OSError):  # no file of the system's is behind it
            number = self._file.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


@contextmanager
def standard_streams() -> Iterator[Output | None]:
    """Guard the standard streams; yields the standard output, None where there is none.

    What cannot be written to the standard error is left out: there is nobody left to tell.
    """
    with ExitStack() as stack:
        out = None
        if cast("TextIO | None", sys.stdout) is not None:
            out = Output(sys.stdout)
            stack.enter_context(redirect_stdout(cast("TextIO", out)))
        if cast("TextIO | None", sys.stderr) is not None:
            err = Output(sys.stderr, steady=True)
            stack.callback(err.finish)
            stack.enter_context(redirect_stderr(cast("TextIO", err)))
        yield out


def run_console() -> Console:
    """Return the console of what goes on whether its lines can be written or not."""
    from rich.console import Console

    if isinstance(sys.stdout, Output):
        sys.stdout.steady = True
    return Console()
