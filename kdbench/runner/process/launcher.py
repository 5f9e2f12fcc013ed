"""Runs each job in a process of its own: chooses its environment, waits for it and ends it."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kdbench.common.environment import has_home, user_cache
from kdbench.common.lifetime import STOP_SIGNALS
from kdbench.common.runtime_settings import VARIABLE_FAMILIES, is_withheld
from kdbench.runner.process.child import Child, Spawned, Start, end_group
from kdbench.runner.process.oom_killer import OomKillCounter, OomKills
from kdbench.runner.process.stop_request import StopRequest
from kdbench.runner.process.timeouts import TimeLimits
from kdbench.runner.spool import EventTail
from kdbench.spec.cell import CellRun

# What a worker sees of the runner's environment: enough to find its libraries, devices and caches.
# Anything else could change what is measured, or is a secret (such as NVIDIA_API_KEY).
_ALLOWED = (
    # compilers for torch.compile, and where it keeps what it compiled
    *("CC", "CXX", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
    *("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV"),
    *("NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_VISIBLE_DEVICES"),
    *("HOME", "LANG", "SSL_CERT_FILE", "TMPDIR", "TZ", "USER"),
)
# Settings that can change results pass by family, and are recorded: see `runtime_settings`.
_ALLOWED_PREFIXES = ("LC_", "XDG_", *(p for family in VARIABLE_FAMILIES for p in family.prefixes))
# Only a cell that reads from the hub may use the network, and sees the settings for that.
_NETWORK = (
    *("HF_", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "no_proxy", "REQUESTS_CA_BUNDLE"),
)

_TICK_SECONDS = 0.25
# How long a child gets after each signal before the next, harder one. A scheduler that stops the
# run will not wait long: then it gets less.
_GRACE_SECONDS = 3.0
_HASTY_SECONDS = 1.0
# After SIGKILL only the kernel can keep a process alive.
_KILLED_SECONDS = 10.0
# A scheduler signals all processes of a job at once, and the worker may be the first to end.
_SIGNAL_DELAY_SECONDS = 0.2
_END_CODES = tuple(-signal.Signals[name] for name in STOP_SIGNALS)

_UNKILLABLE = "its process does not end although it was killed: something in the kernel keeps it"

Task = Literal["cell", "fit"]


@dataclass(frozen=True)
class ProcessResult:
    """How a job's process ended."""

    #: a signal is a negative number; None if it has not ended, although it was killed
    returncode: int | None
    wall_seconds: float
    events: tuple[dict[str, Any], ...]
    #: which limit it exceeded; None for none
    timed_out: str | None = None
    #: who stopped it; None for nobody. It may have been done by then
    stopped: str | None = None
    #: why `returncode` does not describe the job; None if it does
    problem: str | None = None
    #: what the kernel's killer ended while it ran; None where that is unknown
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

    `spool` is the folder for the job and its events, `cache` that of what is kept between runs,
    `machine` the parts of the environment that results depend on. `on_start` receives the process's
    id, `on_tick` the new events, a few times a second. `start` starts the process (None: a fresh
    one); `rates` asks it for the device's highest rates as well. Raises OSError if its files cannot
    be written, WorkerError if it did not start.
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
    if returncode in _END_CODES and stop.now is None:  # the runner may hear the signal later
        time.sleep(_SIGNAL_DELAY_SECONDS)
    return ProcessResult(
        returncode=returncode,
        timed_out=timed_out,
        stopped=stop.now,
        wall_seconds=time.monotonic() - started,
        events=(*events, *new),
        problem=child.problem if ended else _UNKILLABLE,
        kills=killer.kills(),
    )


def spawn(run: CellRun) -> Start:
    """Return the function that starts a run in a fresh process."""
    return partial(Spawned, environment=environment_of(run))


def environment_of(run: CellRun) -> dict[str, str]:
    """Return the environment for the process of a run."""
    return worker_environment(os.environ, network=uses_hub(run))


def worker_environment(environment: Mapping[str, str], *, network: bool) -> dict[str, str]:
    """Filter an environment for a worker; without `network`, the hub's libraries stay offline."""
    hub = _NETWORK if network else ()
    allowed = {
        name: value
        for name, value in environment.items()
        if name in _ALLOWED
        or name.startswith(hub)
        or (name.startswith(_ALLOWED_PREFIXES) and not is_withheld(name))
    }
    if not network:
        allowed |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        # local data sets are cached in the hub's folders too
        folders = ("HF_HOME", "HF_DATASETS_CACHE")
        allowed |= {name: environment[name] for name in folders if name in environment}
    if not has_home():  # or libraries create a folder called ~
        allowed.setdefault("XDG_CACHE_HOME", str(user_cache()))
    # The child must find the same kdbench. An empty item would be the current folder, where
    # anybody's files may be.
    others = filter(None, allowed.get("PYTHONPATH", "").split(os.pathsep))
    allowed["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parents[3]), *others))
    allowed["PYTHONUNBUFFERED"] = "1"
    # Files and logs are in UTF-8, whatever the terminal's encoding.
    allowed |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    return allowed


def uses_hub(run: CellRun) -> bool:
    """Whether a run reads a checkpoint or data set that is not a local file or folder."""
    cell = run.cell
    names = [cell.data.path if cell.data.source == "datasets" else None]
    if cell.teacher is not None and cell.teacher.weights == "pretrained":
        names.append(cell.teacher.checkpoint)
    return any(name is not None and not Path(name).exists() for name in names)


def _end(child: Child, *, hasty: bool) -> bool:
    """Interrupt, terminate, then kill the whole group; return whether it has ended."""
    grace = _HASTY_SECONDS if hasty else _GRACE_SECONDS
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if child.poll() is not None:
            break
        end_group(child.pid, number)
        last = number == signal.SIGKILL
        deadline = time.monotonic() + (_KILLED_SECONDS if last else grace)
        while not child.wait(0.1) and time.monotonic() < deadline:
            pass
    # and what the worker itself started
    end_group(child.pid)
    return child.poll() is not None
