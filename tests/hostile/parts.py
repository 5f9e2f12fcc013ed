"""Parquet parts: real ones of a results folder, and a child process in which they are read.

The parquet library is not ours, and has crashed on damage before: so it is not this process that
reads. `python -m tests.hostile.parts` takes a line with a command on its input, and answers one.
"""

import json
import os
import resource
import select
import subprocess
import sys
import traceback
from pathlib import Path

from kdbench.store import read_table
from kdbench.store.schema import TABLES
from tests.hostile.readers import commanded, survives

_MEMORY = 6 * 2**30
_SECONDS = 60


class Reader:
    """A child that reads; `crash` tells of one that died, and another one takes its place."""

    def __init__(self):
        self._child = None

    def read(self, root: Path, *, show: bool = True) -> str:
        """Read a results folder; returns `read`, `refused` or what went wrong."""
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.hostile.parts"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._child.stdin.write(json.dumps({"root": str(root), "show": show}).encode() + b"\n")
        self._child.stdin.flush()
        if not select.select([self._child.stdout], [], [], _SECONDS)[0]:
            self._end()
            return f"crash: no answer in {_SECONDS} s"
        line = self._child.stdout.readline()
        if not line:
            code = self._end()
            return f"crash: ended with {code}"
        return json.loads(line)

    def _end(self):
        self._child.kill()
        self._child.stdin.close()
        self._child.stdout.close()
        code, self._child = self._child.wait(), None
        return code

    def close(self):
        if self._child is not None:
            self._end()


def _answer(root: Path, *, show: bool) -> str:
    told = "read"
    for table in TABLES:
        if survives(read_table, root, table) == "refused":
            told = "refused"
    if show:
        commanded("show", root)
        commanded("show", root, "--memory", "--format", "json")
    return told


def _serve() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            told = _answer(Path(asked["root"]), show=asked["show"])
        except BaseException:  # noqa: BLE001 - whatever it is, it is what is looked for
            told = "wrong: " + traceback.format_exc()[-3000:]
        answers.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    _serve()
