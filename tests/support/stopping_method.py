"""A method in one of whose steps the process is stopped, and goes on after a second."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from kdbench.plugin import Method

#: a file beside this one says which call of the method stops it, from 1
CALL = Path(__file__).with_name("call")
STOPPED_SECONDS = 1.0
WAKE = f"""
import os, pathlib, signal, sys, time
pid = int(sys.argv[1])
while pathlib.Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] != "T":
    time.sleep(0.01)
time.sleep({STOPPED_SECONDS})
os.kill(pid, signal.SIGCONT)
"""

METHOD = Method(step="stopping_method:stopped", teacher="none")


def stopped(parts):
    from kdbench.worker.training.methods import student_only  # noqa: PLC0415 - planning imports no torch

    forward, calls, last = student_only(parts), [], int(CALL.read_text())

    def stopping(batch, mark):
        calls.append(None)
        if len(calls) == last:
            with subprocess.Popen([sys.executable, "-c", WAKE, str(os.getpid())]):
                os.kill(os.getpid(), signal.SIGSTOP)
        return forward(batch, mark)

    return stopping
