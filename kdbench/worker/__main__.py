"""`python -m kdbench.worker JOB.json`: run one job beside the file that describes it."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.lifetime import die_with_parent

if TYPE_CHECKING:
    from kdbench.worker.events import Events

# Exit codes that the launcher tells apart; how a run ended is in its events.
DONE, REPORTED = 0, 1


def main(argv: list[str]) -> int:
    """Run the job; its events go to `events.jsonl` in the same folder."""
    path = Path(argv[0])
    job = json.loads(path.read_text())
    die_with_parent(job["parent"])
    # A run in the background of a shell ignores Ctrl-C, and so would its workers; but the signal
    # that the runner sends them is meant.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return _run(job, path.parent / "events.jsonl")


def _run(job: dict[str, Any], spool: Path) -> int:
    # Imported only now: the parent's death is noticed from the first moment on.
    import torch  # noqa: PLC0415

    from kdbench.cell import CellRun  # noqa: PLC0415
    from kdbench.errors import KdbenchError  # noqa: PLC0415
    from kdbench.worker.events import Events  # noqa: PLC0415
    from kdbench.worker.measure import measure_cell  # noqa: PLC0415
    from kdbench.worker.train import DivergedError  # noqa: PLC0415

    run = CellRun.model_validate_json(json.dumps(job["run"]))
    cache = Path(str(job["cache"]))
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    events = Events(spool)
    events.emit(
        "started", pid=os.getpid(), threads=torch.get_num_threads(), torch_version=torch.__version__
    )
    try:
        if job["task"] == "fit":
            from kdbench.worker.fit import ensure_fitted  # noqa: PLC0415

            ensure_fitted(run.cell, device=torch.device(run.device), cache=cache, events=events)
        else:
            kept = job["checkpoints"]
            measure_cell(
                run,
                events=events,
                cache=cache,
                machine=dict(job["machine"]),
                checkpoints=None if kept is None else Path(str(kept)),
                rates=bool(job["rates"]),
            )
    except DivergedError as error:
        return _report(events, "diverged", error)
    except KdbenchError as error:
        return _report(events, "failed", error)
    except Exception as error:  # noqa: BLE001 - whatever it was, it becomes the cell's row
        return _report(events, "oom" if _out_of_memory(error) else "failed", error)
    events.emit("end", status="ok")
    return DONE


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
