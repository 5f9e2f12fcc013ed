"""A worker's process as the launcher sees it, however it was started."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from kdbench.common.errors import WorkerError

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Child(Protocol):
    """A started process that leads a process group of its own."""

    @property
    def pid(self) -> int:
        """Its id, and that of its group."""

    @property
    def problem(self) -> str | None:
        """Why its end says nothing of the job, in one line; None where its status is its own."""

    def poll(self) -> int | None:
        """Return its exit status, a signal's number below 0; None while it runs."""

    def wait(self, seconds: float) -> bool:
        """Wait without busy-waiting beside what it measures; whether it has ended."""


#: Starts a job: from its file, into a log.
Start = Callable[[Path, Path], Child]


def open_log(path: Path) -> BinaryIO:
    """Open a log to write behind what is in it; a link there may lead to any file of the user's.

    Raises:
        WorkerError: it is a link, or cannot be written to.
    """
    try:
        return os.fdopen(os.open(path, _APPEND, 0o666), "ab")
    except OSError as error:
        told = (error.strerror or str(error)).lower()
        raise WorkerError(f"cannot write the log {path}: {told}") from None


class Spawned:
    """A fresh interpreter."""

    #: its exit status is always its own
    problem = None

    def __init__(self, job: Path, log: Path, *, environment: Mapping[str, str]) -> None:
        with open_log(log) as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kdbench.worker", str(job)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                # its own process group: Ctrl-C reaches the runner alone, and a kill them all
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its id, and that of its group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return its exit status; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> bool:
        """Wait for its end on a descriptor, where the system has them."""
        if hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(self.pid)
            except OSError:  # a kernel without it, or a sandbox that forbids it
                descriptor = -1
            if descriptor >= 0:
                try:
                    select.select([descriptor], [], [], seconds)
                finally:
                    os.close(descriptor)
                return self.poll() is not None
        time.sleep(seconds)
        return self.poll() is not None
