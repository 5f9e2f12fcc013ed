"""The runner's handle on the sampler's process."""

import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from kdbench.runner.spool import last_words

# The sampler starts in a tenth of a second; a machine that needs longer is in trouble.
_READY_SECONDS = 20.0
_STOP_SECONDS = 5.0


class SamplerProcess:
    """Samples into a file from before the worker starts until after it has ended.

    A sampler that cannot start is no reason not to measure: its columns are then null, and
    `problem` says why.
    """

    def __init__(self, out: Path, *, gpu_uuid: str | None) -> None:
        command = [sys.executable, "-P", "-m", "kdbench.runner.telemetry.sampler", str(out)]
        command += ["--parent", str(os.getpid())]
        if gpu_uuid is not None:
            command += ["--gpu-uuid", gpu_uuid]
        package = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self._errors = out.with_suffix(".err")
        self.problem: str | None = None
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path},
            )
        if not self._ready():
            self.problem = f"the sampler did not start: {self._last_words()}"

    def watch(self, pid: int) -> None:
        """Say which process is the worker."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.write(f"watch {pid}\n".encode())
                self._process.stdin.flush()

    def stop(self) -> None:
        """Let it take its last sample and end."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        died = self._process.returncode
        if self.problem is None and (died or self._errors.stat().st_size):
            self.problem = f"{'the sampler died' if died else 'sampler'}: {self._last_words()}"
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ready(self) -> bool:
        output = self._process.stdout
        if output is None:
            return False
        readable, _, _ = select.select([output], [], [], _READY_SECONDS)
        return bool(readable) and output.readline() == b"ready\n"

    def _last_words(self) -> str:
        return last_words(self._errors, f"exit code {self._process.poll()}")
