"""`python -m kdbench.worker.forker PARENT [--teacher]`: a warm process that forks a child per job.

It has imported what a worker imports, and has computed nothing: a fork of a process that has
started OpenMP's threads or CUDA does not work. It takes a line of JSON per job on its input, with
the paths `job` and `log`, and answers in lines of JSON: `ready` once it is warm, the child's `pid`
when that leads its own session, `returncode` when the child has ended. One child at a time.
"""

import json
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdbench.common.lifetime import die_with_parent, prefer_oom_kill
from kdbench.worker.job import read_job, run_job
from kdbench.worker.process import begin


def main(argv: list[str]) -> int:
    """Serve jobs until the input ends; in a child, run one and return its exit status."""
    leave = begin()
    die_with_parent(int(argv[0]))
    answers = Answers()
    warm_up(teacher="--teacher" in argv)
    answers.write(ready=True)
    leave.status = serve(answers)
    return leave.status


class Answers:
    """The pipe to the runner, out of the way of whatever prints."""

    def __init__(self) -> None:
        self._descriptor = os.dup(1)
        os.dup2(2, 1)

    def write(self, **values: Any) -> None:
        """Write one answer."""
        os.write(self._descriptor, json.dumps(values).encode() + b"\n")

    def close(self) -> None:
        """Leave the pipe to the others that have it: its end means that the warm process ended."""
        os.close(self._descriptor)


def warm_up(*, teacher: bool) -> None:
    """Import what a cell imports before its first step, and no more: the rest stays its own."""
    import torch  # noqa: PLC0415

    # what torch's optimizers import when the first is made
    import torch._dynamo  # noqa: PLC0415

    import kdbench.worker.measure  # noqa: PLC0415

    if teacher:
        import kdbench.worker.models.teacher  # noqa: F401, PLC0415
    if torch.cuda.is_initialized():
        raise RuntimeError("an import initialised CUDA, which does not survive a fork")
    if threading.active_count() > 1:
        names = [thread.name for thread in threading.enumerate()]
        raise RuntimeError(f"an import started threads, which do not survive a fork: {names}")


def serve(answers: Answers) -> int:
    """Fork a child per line of input; returns in the child when its job is done, too."""
    # From Python 3.12 on it warns of any second thread. Those here are numpy's OpenBLAS's, which
    # ends them before a fork and starts them again when they are needed.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    parent = os.getpid()
    for line in sys.stdin:
        request = json.loads(line)
        _to(request["log"], 2)
        os.dup2(2, 1)
        try:
            pid = os.fork()
        except OSError as error:
            answers.write(problem=f"cannot fork: {error}")
            continue
        if pid == 0:
            return _child(Path(request["job"]), answers, parent)
        answers.write(returncode=_wait(pid))
    return 0


def _child(job: Path, answers: Answers, parent: int) -> int:
    # In this order: once the runner knows the process, it can end it with its group.
    os.setsid()
    die_with_parent(parent)
    prefer_oom_kill()
    _to(os.devnull, 0, flags=os.O_RDONLY)
    answers.write(pid=os.getpid())
    answers.close()
    return run_job(read_job(job), job.parent)


def _wait(pid: int) -> int:
    """Wait for a child and end what it leaves behind; returns its status as `subprocess` does."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # before its id can be another's
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# a link in the place of a log may lead to any file
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW


def _to(path: str, descriptor: int, *, flags: int = _APPEND) -> None:
    opened = os.open(path, flags, 0o666)
    os.dup2(opened, descriptor)
    os.close(opened)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
