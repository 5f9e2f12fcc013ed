"""Workers forked from a warm process; `kdbench.worker.forker` is the other side."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdbench.common.errors import WorkerError
from kdbench.runner.process.child import Child, Start, end_group, open_log
from kdbench.runner.process.launcher import environment_of
from kdbench.runner.process.stop_request import StopRequest
from kdbench.runner.spool import last_words
from kdbench.spec.cell import CellRun

# Importing torch from a cold disk is slow, but not slower than this.
_READY_SECONDS = 120.0
_TICK_SECONDS = 0.25
_FORK_SECONDS = 20.0
_STOP_SECONDS = 5.0


class WarmProcesses:
    """The warm processes of a run, each started when the first cell needs it.

    There is one for each environment and set of imports, so that a forked cell sees and holds what
    a fresh process would: without a teacher no transformers, without the hub no token.
    """

    def __init__(self) -> None:
        self._warm: dict[tuple[Any, ...], _Warm] = {}

    def starter(self, run: CellRun, log: Path, stop: StopRequest) -> Start:
        """Return the function that forks a run from its warm process; start that if needed.

        The warm process writes to `log` until it forks.
        """
        environment, teacher = environment_of(run), run.cell.teacher is not None
        kind = (tuple(sorted(environment.items())), teacher)
        warm = self._warm.get(kind)
        if warm is None or not warm.alive():
            warm = self._warm[kind] = _Warm(environment, log, teacher=teacher)
            warm.await_ready(log, stop)
        return warm.fork

    def close(self) -> None:
        """End them all."""
        for warm in self._warm.values():
            warm.stop()
        self._warm.clear()


class _Warm:
    def __init__(self, environment: Mapping[str, str], log: Path, *, teacher: bool) -> None:
        command = [sys.executable, "-P", "-m", "kdbench.worker.forker", str(os.getpid())]
        command += ["--teacher"] if teacher else []
        with open_log(log) as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C reaches the runner alone
                bufsize=0,
            )
        self._partial = b""

    def alive(self) -> bool:
        return self._process.poll() is None

    def await_ready(self, log: Path, stop: StopRequest) -> None:
        """Wait until it is ready to fork; raises WorkerError if it ends or is too slow."""
        deadline, answer = time.monotonic() + _READY_SECONDS, None
        while answer is None and time.monotonic() < deadline and not stop.now:
            answer = self.answer(_TICK_SECONDS)
        if not answer:
            self.stop()
            why = stop.now or last_words(log)
            raise WorkerError(f"the warm process to fork from did not start: {why}")

    def fork(self, job: Path, log: Path) -> Child:
        """Fork a child for a job, with the environment of the warm process."""
        request = {"job": str(job.absolute()), "log": str(log.absolute())}
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
            answer = self.answer(_FORK_SECONDS)
        except OSError:
            answer = {}
        if not answer or "pid" not in answer:  # of a child that ended at once, only its status
            self.stop()
            why = answer.get("problem", f"it answered {answer}") if answer else "it did not answer"
            raise WorkerError(f"the warm process did not fork the cell: {why}")
        return _Forked(self, int(answer["pid"]))

    def answer(self, seconds: float | None) -> dict[str, Any] | None:
        """Wait for the next answer; None if there is none in time, empty if the process ended."""
        output = self._process.stdout
        if output is None:
            return {}
        while b"\n" not in self._partial:
            if not select.select([output], [], [], seconds)[0]:
                return None
            read = os.read(output.fileno(), 4096)
            if not read:
                return {}
            self._partial += read
        line, _, self._partial = self._partial.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the process, and with it a child that still runs."""
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        self._process.kill()
        self._process.wait()

    def exit_description(self) -> str:
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


class _Forked:
    """A child of the warm process: only that one can wait for it, and reports its status."""

    def __init__(self, warm: _Warm, pid: int) -> None:
        self._warm = warm
        self._code: int | None = None
        self.pid = pid
        self.problem: str | None = None

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        self.wait(0)
        return self._code

    def wait(self, seconds: float | None) -> bool:
        """Wait for the answer that reports its end."""
        if self._code is None:
            answer = self._warm.answer(seconds)
            if answer:
                self._code = int(answer["returncode"])
            elif answer is not None:  # the warm process is gone: the exit status stays unknown
                end_group(self.pid)
                self._code, why = -signal.SIGKILL, self._warm.exit_description()
                self.problem = f"the warm process that it was forked from {why}"
        return self._code is not None
