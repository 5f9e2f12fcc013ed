"""One process per job: started with a chosen environment, waited for, and always ended."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kdbench.cell import CellRun
from kdbench.orchestrate.child import Child, Spawned, Start
from kdbench.orchestrate.killer import Killer, Kills
from kdbench.orchestrate.spool import EventTail

# What a worker may know of the runner's environment: enough to find its libraries, devices and
# caches. Everything else could change what is measured, or is nobody's business.
_ALLOWED = frozenset(
    {
        # compilers for torch.compile, and where it keeps what it compiled
        "CC",
        "CXX",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "HOME",
        "LANG",
        "LD_LIBRARY_PATH",
        # by name: NVIDIA_API_KEY is a secret, and NVIDIA_TF32_OVERRIDE would make one precision
        # of fp32 and tf32
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_VISIBLE_DEVICES",
        "DYLD_LIBRARY_PATH",
        "PATH",
        "PYTHONPATH",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
    }
)
_ALLOWED_PREFIXES = (
    "CUBLAS_",
    "CUDA_",
    "CUDNN_",
    "GOMP_",
    "KMP_",
    "LC_",
    "MKL_",
    "OMP_",
    "OPENBLAS_",
    "PYTORCH_",
    "TORCH_",
    "XDG_",
)
# Only a cell that reads from the hub is let onto the network, and is given what that needs.
_NETWORK = (
    "HF_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "REQUESTS_CA_BUNDLE",
)

_TICK_SECONDS = 0.25
# How long an ended child gets after each signal, before the next, harder one.
_GRACE_SECONDS = 3.0

Task = Literal["cell", "fit"]


@dataclass(frozen=True)
class Outcome:
    """How a job's process ended."""

    returncode: int
    timed_out: bool
    #: the user asked to stop; the job itself may have been done by then
    interrupted: bool
    wall_seconds: float
    events: tuple[dict[str, Any], ...]
    #: why `returncode` says nothing of the job; None: it does
    problem: str | None = None
    #: what the kernel's killer ended while it ran; None: the kernel does not tell
    kills: Kills | None = None


def launch(
    task: Task,
    run: CellRun,
    *,
    spool: Path,
    log: Path,
    cache: Path,
    machine: Mapping[str, str | None],
    on_start: Callable[[int], None],
    on_tick: Callable[[Iterable[dict[str, Any]]], None],
    checkpoints: Path | None = None,
    start: Start | None = None,
    rates: bool = False,
) -> Outcome:
    """Run one job in a process of its own and wait for it.

    Args:
        task: measure a cell, or fit its teacher.
        run: what to do.
        spool: folder for the job and its events.
        log: where the process's output goes.
        cache: folder of what is kept between runs.
        machine: the parts of the environment that a result depends on.
        on_start: told the process's id.
        on_tick: told the new events, a few times a second.
        checkpoints: folder of the run's checkpoints; None: it neither reads nor writes any.
        start: starts the process; None: a fresh one.
        rates: have it measure what the device reaches at best as well.

    Raises:
        WorkerError: it could not be started.
    """
    job = {
        "task": task,
        "run": run.model_dump(mode="json"),
        "cache": str(cache),
        "machine": dict(machine),
        "checkpoints": None if checkpoints is None else str(checkpoints.absolute()),
        "rates": rates,
        "parent": os.getpid(),
    }
    (spool / "job.json").write_text(json.dumps(job))
    tail, events = EventTail(spool / "events.jsonl"), []
    killer, started, interrupted = Killer(), time.monotonic(), False
    deadline = started + run.budget.timeout_seconds
    child = (start or spawn(run))(spool / "job.json", log)
    try:
        on_start(child.pid)
        while not child.wait(_TICK_SECONDS) and time.monotonic() < deadline:
            new = tail.read()
            events += new
            on_tick(new)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        timed_out = child.poll() is None and not interrupted
        _end(child)
    new = tail.read()
    try:
        on_tick(new)
    except KeyboardInterrupt:
        interrupted = True
    return Outcome(
        returncode=child.reap(),
        timed_out=timed_out,
        interrupted=interrupted,
        wall_seconds=time.monotonic() - started,
        events=(*events, *new),
        problem=child.problem,
        kills=killer.kills(),
    )


def spawn(run: CellRun) -> Start:
    """Return what starts a run in a fresh process."""
    return partial(Spawned, environment=environment_of(run))


def environment_of(run: CellRun) -> dict[str, str]:
    """Return what the process of a run sees of this one's environment."""
    return worker_environment(os.environ, network=uses_hub(run))


def worker_environment(environment: Mapping[str, str], *, network: bool) -> dict[str, str]:
    """Pick what a worker may see of the environment.

    Args:
        environment: the runner's.
        network: whether it may use the hub; if not, the hub's libraries are told to stay offline.
    """
    prefixes = _ALLOWED_PREFIXES + (_NETWORK if network else ())
    allowed = {
        name: value
        for name, value in environment.items()
        if name in _ALLOWED or name.startswith(prefixes)
    }
    if not network:
        allowed |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        # where the hub's files are kept is no secret, and local data sets are cached there too
        allowed |= {
            name: environment[name]
            for name in ("HF_HOME", "HF_DATASETS_CACHE")
            if name in environment
        }
    # The child must find the very kdbench that started it.
    package = str(Path(__file__).parents[2])
    allowed["PYTHONPATH"] = os.pathsep.join(filter(None, (package, allowed.get("PYTHONPATH"))))
    allowed["PYTHONUNBUFFERED"] = "1"
    return allowed


def uses_hub(run: CellRun) -> bool:
    """Whether a run reads a checkpoint or data set that is no local file or folder."""
    cell = run.cell
    teacher = cell.teacher is not None and cell.teacher.weights == "pretrained"
    names = [
        cell.teacher.checkpoint if teacher and cell.teacher else None,
        cell.data.path if cell.data.source == "datasets" else None,
    ]
    return any(name is not None and not Path(name).exists() for name in names)


def _end(child: Child) -> None:
    """Interrupt, terminate, kill: the whole group, each a little later than the one before."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            break
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        deadline = time.monotonic() + _GRACE_SECONDS
        while child.poll() is None and time.monotonic() < deadline:
            with suppress(KeyboardInterrupt):
                child.wait(0.1)
    child.reap()
    # whatever the worker itself started goes with it
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
