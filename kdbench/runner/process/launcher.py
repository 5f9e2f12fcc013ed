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

from kdbench.common.environment import has_home, user_cache
from kdbench.common.lifetime import STOP_SIGNALS
from kdbench.common.runtime_settings import VARIABLE_FAMILIES, is_withheld
from kdbench.runner.process.child import Child, Spawned, Start
from kdbench.runner.process.oom_killer import OomKillCounter, OomKills
from kdbench.runner.process.stop_request import StopRequest
from kdbench.runner.process.timeouts import TimeLimits
from kdbench.runner.spool import EventTail
from kdbench.spec.cell import CellRun

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
        # by name: NVIDIA_API_KEY is a secret
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
# What decides figures is let through by its family, and recorded: see `runtime_settings`.
_ALLOWED_PREFIXES = ("LC_", "XDG_", *(p for family in VARIABLE_FAMILIES for p in family.prefixes))
# Only a cell that reads from the hub is let onto the network, and is given what that needs.
_NETWORK = (
    "HF_",
    "ALL_PROXY",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "REQUESTS_CA_BUNDLE",
)

_TICK_SECONDS = 0.25
# How long a child that is to end gets after each signal, before the next, harder one: in order,
# and where a scheduler that wants the run to stop will not wait long.
_GRACE_SECONDS = 3.0
_HASTY_SECONDS = 1.0
# After the last of them only the kernel can keep it.
_KILLED_SECONDS = 10.0
# A scheduler signals all processes of a job at once, and the worker may be the first to end.
_BOTH_TOLD_SECONDS = 0.2
_TOLD_TO_END = tuple(-signal.Signals[name] for name in STOP_SIGNALS)

Task = Literal["cell", "fit"]


@dataclass(frozen=True)
class ProcessResult:
    """How a job's process ended."""

    #: a signal's number below 0; None: it has not ended, although it was killed
    returncode: int | None
    wall_seconds: float
    events: tuple[dict[str, Any], ...]
    #: which limit it exceeded, in words; None: none
    timed_out: str | None = None
    #: who wanted it to be stopped, in words; None: nobody. It may have been done by then
    stopped: str | None = None
    #: why `returncode` says nothing of the job; None: it does
    problem: str | None = None
    #: what the kernel's killer ended while it ran; None: the kernel does not tell
    kills: OomKills | None = None


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
    stop: StopRequest,
    checkpoints: Path | None = None,
    start: Start | None = None,
    rates: bool = False,
) -> ProcessResult:
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
        stop: says when the job is to be stopped.
        checkpoints: folder of the run's checkpoints; None: it neither reads nor writes any.
        start: starts the process; None: a fresh one.
        rates: have it measure what the device reaches at best as well.

    Raises:
        OSError: its files cannot be written.
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
    (spool / "job.json").write_text(json.dumps(job), encoding="utf-8")
    tail, events = EventTail(spool / "events.jsonl"), []
    killer, started = OomKillCounter(), time.monotonic()
    limits, timed_out = TimeLimits(run.budget, started), None
    child = (start or spawn(run))(spool / "job.json", log)
    try:
        on_start(child.pid)
        while not child.wait(_TICK_SECONDS):
            new, now = tail.read(), time.monotonic()
            events += new
            limits.follow(new, now)
            on_tick(new)
            timed_out = limits.exceeded(now)
            if timed_out or stop.now:
                break
    finally:
        ended = _end(child, hasty=stop.now is not None)
    new = tail.read()
    on_tick(new)
    returncode = child.poll()
    return ProcessResult(
        returncode=returncode,
        timed_out=timed_out,
        stopped=_stopped(stop, returncode),
        wall_seconds=time.monotonic() - started,
        events=(*events, *new),
        problem=child.problem if ended else _KEPT,
        kills=killer.kills(),
    )


_KEPT = "its process does not end although it was killed: something in the kernel keeps it"


def _stopped(stop: StopRequest, returncode: int | None) -> str | None:
    """Say who wanted the job to end; one that was told so itself waits for word of the runner."""
    if returncode in _TOLD_TO_END and stop.now is None:
        time.sleep(_BOTH_TOLD_SECONDS)
    return stop.now


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
        if name in _ALLOWED or (name.startswith(prefixes) and not _kept_back(name, network=network))
    }
    if not network:
        allowed |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        # where the hub's files are kept is no secret, and local data sets are cached there too
        allowed |= {
            name: environment[name]
            for name in ("HF_HOME", "HF_DATASETS_CACHE")
            if name in environment
        }
    if not has_home():  # libraries would make a folder called ~ where they run
        allowed.setdefault("XDG_CACHE_HOME", str(user_cache()))
    # The child must find the very kdbench that started it.
    # An empty item would be the current folder, where anybody's files may lie.
    others = filter(None, allowed.get("PYTHONPATH", "").split(os.pathsep))
    allowed["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parents[3]), *others))
    allowed["PYTHONUNBUFFERED"] = "1"
    # Files and logs are in UTF-8, whatever the user's terminal takes.
    allowed |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    return allowed


def _kept_back(name: str, *, network: bool) -> bool:
    return is_withheld(name) and not (network and name.startswith(_NETWORK))


def uses_hub(run: CellRun) -> bool:
    """Whether a run reads a checkpoint or data set that is no local file or folder."""
    cell = run.cell
    teacher = cell.teacher is not None and cell.teacher.weights == "pretrained"
    names = [
        cell.teacher.checkpoint if teacher and cell.teacher else None,
        cell.data.path if cell.data.source == "datasets" else None,
    ]
    return any(name is not None and not Path(name).exists() for name in names)


def _end(child: Child, *, hasty: bool) -> bool:
    """Interrupt, terminate, kill: the whole group, each a little later than the one before.

    Returns:
        Whether it has ended.
    """
    grace = _HASTY_SECONDS if hasty else _GRACE_SECONDS
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            break
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        last = number == signal.SIGKILL
        deadline = time.monotonic() + (_KILLED_SECONDS if last else grace)
        while not child.wait(0.1) and time.monotonic() < deadline:
            pass
    # whatever the worker itself started goes with it
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.poll() is not None
