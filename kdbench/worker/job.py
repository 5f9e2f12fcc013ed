"""One job of a worker's process, from the file that describes it to its exit status."""

from __future__ import annotations

import json
import os
import signal
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.worker.suspension import watch_stops

if TYPE_CHECKING:
    from kdbench.cell import CellRun
    from kdbench.worker.events import Events

# Exit codes that the launcher tells apart; how a run ended is in its events.
DONE, REPORTED = 0, 1


def read_job(path: Path) -> dict[str, Any]:
    """Read what the launcher wrote."""
    job: dict[str, Any] = json.loads(path.read_text())
    return job


def run_job(job: dict[str, Any], folder: Path) -> int:
    """Run a job; its events go to `events.jsonl` in `folder`. Returns the exit status."""
    # A run in the background of a shell ignores Ctrl-C, and so would its workers; but the signal
    # that the runner sends them is meant.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch_stops()
    # Imported only now: the parent's death is noticed from the first moment on.
    import torch  # noqa: PLC0415

    from kdbench.cell import CellRun  # noqa: PLC0415
    from kdbench.errors import KdbenchError  # noqa: PLC0415
    from kdbench.worker.events import Events  # noqa: PLC0415
    from kdbench.worker.train import DivergedError  # noqa: PLC0415

    run = CellRun.model_validate_json(json.dumps(job["run"]))
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    events = Events(folder / "events.jsonl")
    events.emit(
        "started", pid=os.getpid(), threads=torch.get_num_threads(), torch_version=torch.__version__
    )
    try:
        _do(job, run, events)
    except DivergedError as error:
        return _report(events, "diverged", error)
    except KdbenchError as error:
        return _report(events, "failed", error)
    except Exception as error:  # noqa: BLE001 - whatever it was, it becomes the cell's row
        return _report(events, "oom" if _out_of_memory(error) else "failed", error)
    events.emit("end", status="ok")
    return DONE


def _do(job: dict[str, Any], run: CellRun, events: Events) -> None:
    import torch  # noqa: PLC0415

    cache = Path(str(job["cache"]))
    if job["task"] == "fit":
        from kdbench.worker.fit import ensure_fitted  # noqa: PLC0415

        ensure_fitted(run.cell, device=torch.device(run.device), cache=cache, events=events)
        return
    from kdbench.worker.measure import measure_cell  # noqa: PLC0415

    kept = job["checkpoints"]
    measure_cell(
        run,
        events=events,
        cache=cache,
        machine=dict(job["machine"]),
        checkpoints=None if kept is None else Path(str(kept)),
        rates=bool(job["rates"]),
    )


def _report(events: Events, status: str, error: Exception) -> int:
    traceback.print_exc()
    first = (str(error).splitlines() or [""])[0]
    events.emit("end", status=status, error=f"{type(error).__name__}: {first}")
    return REPORTED


def _out_of_memory(error: Exception) -> bool:
    import torch  # noqa: PLC0415

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator has no exception of its own.
    told = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in told or "not enough memory" in told
    )
