"""A child process that does a job, and the one that is started as a fresh interpreter."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from kdbench.common.errors import WorkerError, os_reason

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Child(Protocol):
    """A started process, the leader of its own process group."""

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""

    @property
    def problem(self) -> str | None:
        """Why the exit status does not describe the job; None if it does."""

    def poll(self) -> int | None:
        """Return the exit status, or a signal as a negative number; None while it runs."""

    def wait(self, seconds: float) -> bool:
        """Wait for its end, without a busy loop; return whether it has ended."""


#: Starts a job: from its file, into a log.
Start = Callable[[Path, Path], Child]


def open_log(path: Path) -> BinaryIO:
    """Open a log for appending, but follow no link: it may lead to any file of the user's."""
    try:
        return os.fdopen(os.open(path, _APPEND, 0o666), "ab")
    except OSError as error:
        raise WorkerError(f"cannot write the log {path}: {os_reason(error)}") from None


class Spawned:
    """A fresh interpreter."""

    problem = None

    def __init__(
        self,
        job: Path,
        log: Path,
        *,
        environment: Mapping[str, str],
        module: str = "kdbench.worker",
    ) -> None:
        with open_log(log) as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(job)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                # in its own group, Ctrl-C reaches only the runner, and one kill ends all of it
                start_new_session=True,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> bool:
        """Wait for its end on a descriptor, where the system has them."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # macOS, an old kernel, or a sandbox
            time.sleep(seconds)
            return self.poll() is not None
        try:
            select.select([descriptor], [], [], seconds)
        finally:
            os.close(descriptor)
        return self.poll() is not None


def end_group(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process and all that it started in its group; one that is gone is no error."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
