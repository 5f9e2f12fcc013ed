"""One job of a worker's process, from the file that describes it to its exit status."""

from __future__ import annotations

import json
import os
import signal
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.common.errors import first_line
from kdbench.worker.probes.suspension import watch_stops

if TYPE_CHECKING:
    from kdbench.spec.cell import CellRun
    from kdbench.worker.events import Events

# The launcher distinguishes these exit codes; how a run ended is in its events.
DONE, REPORTED = 0, 1


def read_job(path: Path) -> dict[str, Any]:
    """Read what the launcher wrote."""
    job: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return job


def run_job(job: dict[str, Any], folder: Path) -> int:
    """Run a job; its events go to `events.jsonl` in `folder`. Returns the exit status."""
    # A run in the background of a shell ignores Ctrl-C, and so would its workers; but the signal
    # that the runner sends them is meant.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch_stops()
    # Imported only now: the parent's death is noticed from the first moment on.
    import torch  # noqa: PLC0415

    from kdbench.spec.cell import CellRun  # noqa: PLC0415
    from kdbench.worker.events import Events  # noqa: PLC0415
    from kdbench.worker.out_of_memory import Reserve  # noqa: PLC0415
    from kdbench.worker.training.train import DivergedError  # noqa: PLC0415

    reserve = Reserve()
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
    except Exception as error:  # noqa: BLE001 - whatever it was, it becomes the cell's row
        reserve.release()
        return _report_failure(events, error, run.device)
    events.emit("end", status="ok")
    return DONE


def _do(job: dict[str, Any], run: CellRun, events: Events) -> None:
    import torch  # noqa: PLC0415

    cache = Path(str(job["cache"]))
    if job["task"] == "fit":
        from kdbench.worker.models.fit_teacher import ensure_fitted  # noqa: PLC0415

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


def _report_failure(events: Events, error: Exception, device: str) -> int:
    """Report what went wrong, and whether that was memory; perhaps none is left to report it."""
    from kdbench.worker.out_of_memory import child_died, shortage_behind  # noqa: PLC0415 - torch's home

    try:
        found = shortage_behind(error, device)
        if found is None:
            # The runner knows whether it was the kernel's killer who ended the child.
            return _report(events, "failed", error, child_died=child_died(error))
        problem = found.message(_describe(error)[:300])
        return _report(events, "oom", error, problem=problem, **found.columns())
    except MemoryError:
        os.write(2, b"\nMemoryError: while the end was being told\n")  # for the runner to read
        return REPORTED


def _report(
    events: Events, status: str, error: Exception, *, problem: str | None = None, **more: Any
) -> int:
    events.emit("end", status=status, error=problem or _describe(error), **more)
    traceback.print_exc()
    return REPORTED


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")
