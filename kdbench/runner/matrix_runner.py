"""Runs a matrix: each cell is measured and committed unless its result is there already."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.common.environment import collect_environment, environment_identity
from kdbench.common.errors import check_name
from kdbench.common.fingerprint import worker_digest
from kdbench.common.runtime_settings import PRECISION
from kdbench.matrix.file import Matrix
from kdbench.runner.cell_runner import CellRunner
from kdbench.runner.device import ResolvedDevice
from kdbench.runner.outcome import Outcome
from kdbench.runner.process.launcher import worker_environment
from kdbench.runner.process.stop_request import StopRequest
from kdbench.runner.progress import Progress
from kdbench.runner.recovery import recover
from kdbench.runner.resume_plan import ResumePlan, can_drop_checkpoints, plan_resume, starts_anew
from kdbench.runner.telemetry.host import busy_note
from kdbench.spec.cell import CellRun, describe_dropped_images
from kdbench.store import Store
from kdbench.store.schema import STATUSES

# The command that continues a run, by whether it was started with --fresh.
_AGAIN = {False: "the same command", True: "the same command without --fresh"}


@dataclass
class RunSummary:
    """What `run_matrix` did."""

    folder: Path
    done: int = 0
    skipped: int = 0
    #: label and status of each cell that did not end well, now or in an earlier run
    failed: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False
    #: why the remaining cells were not run; None if they were, or if the user stopped the run
    given_up: str | None = None

    @property
    def exit_code(self) -> int:
        """Return 0 if all went well, 1 for failed or missing cells, 130 if interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.failed or self.given_up else 0


def run_matrix(
    matrix: Matrix,
    *,
    out: Path,
    device: ResolvedDevice,
    progress: Progress,
    retry: Sequence[str] = (),
    fresh: bool = False,
) -> RunSummary:
    """Run what is missing of a matrix; each result is on disk before the next cell starts.

    The rows go to the subfolder of `out` with the matrix's name. Cells with a status in `retry` run
    again; with `fresh` all do, and existing results are set aside first. Raises InputError for an
    unknown status, or a folder that is not writable.
    """
    for status in retry:
        check_name(status, STATUSES, "status", "--retry", several="statuses")
    return _Runner(matrix, out, device, progress).run(retry=set(retry), fresh=fresh)


def _card(device: ResolvedDevice) -> dict[str, Any] | None:
    gpu = device.gpu
    if gpu is None and device.name is None:
        return None
    return {
        "name": device.card_name,
        "uuid": gpu and gpu.uuid,
        "driver_version": gpu and gpu.driver_version,
        "memory_bytes": gpu and gpu.memory_total_bytes,
    }


def _ignored_settings() -> str | None:
    """Name the user's precision settings, which no cell sees."""
    found = [name for name in PRECISION if os.environ.get(name, "0") not in ("", "0")]
    if not found:
        return None
    are = "is" if len(found) == 1 else "are"
    return f"{' and '.join(found)} {are} kept from the cells: training.precision says it"


class _Runner:
    def __init__(
        self, matrix: Matrix, out: Path, device: ResolvedDevice, progress: Progress
    ) -> None:
        self._store = Store(out / matrix.name)
        self._device = device
        self._progress = progress
        self._stop = StopRequest()
        worker = worker_environment(os.environ, network=False)
        self._environment = collect_environment(_card(device), worker)
        self._machine = environment_identity(self._environment)
        if matrix.threads is None:  # else each run's own settings have it
            self._machine["threads"] = self._environment["threads"]
        digest, machine = worker_digest(), self._machine
        self._runs = [
            (run.run_key(worker_digest=digest, environment=machine), run)
            for run in matrix.runs(device.device)
        ]
        self._cell_runner = CellRunner(
            store=self._store,
            device=device,
            progress=progress,
            stop=self._stop,
            environment=self._environment,
            machine=self._machine,
        )

    def run(self, *, retry: set[str], fresh: bool) -> RunSummary:
        self._store.prepare()
        with self._store.writing(), self._stop:
            recover(self._store, self._progress.note)
            self._store.tidy()
            plan = plan_resume(
                self._store, self._runs, machine=self._machine, retry=retry, fresh=fresh
            )
            failed = [found for found in plan.skipped if found[1] != "ok"]
            summary = RunSummary(self._store.root, skipped=len(plan.skipped), failed=failed)
            self._announce(plan)
            self._cell_runner.latest = plan.latest
            try:
                self._run_all(plan, summary, fresh=fresh)
            finally:
                self._cell_runner.close()
                self._progress.finish()
            return summary

    def _announce(self, plan: ResumePlan) -> None:
        self._progress.begin(
            total=len(plan.todo),
            folder=self._store.root,
            environment=self._environment,
            device=self._device.device,
        )
        left_out = describe_dropped_images(run.cell for _, run in plan.todo)
        for note in (self._device.note, _ignored_settings(), busy_note(), left_out, *plan.notes):
            if note:
                self._progress.note(note)

    def _run_all(self, plan: ResumePlan, summary: RunSummary, *, fresh: bool) -> None:
        known = dict(plan.known)
        if fresh:
            # All at once, rows and weights: however this run is stopped, the same command without
            # --fresh continues it, and old results are never taken for new ones.
            for key, _ in plan.todo:
                self._store.supersede_training(key)
                known.pop(key, None)
        for number, (key, run) in enumerate(plan.todo, start=1):
            problem = self._cell_runner.ensure_teacher(run)
            if self._stop.after_cell():
                summary.interrupted = True
                return
            if starts_anew(run, known.get(key)):
                self._store.supersede_training(key)
            status = self._run_one(key, run, problem, again=_AGAIN[fresh])
            summary.done += 1
            if status not in ("ok", "interrupted"):
                summary.failed.append((run.cell.label, status))
            if self._stop.after_cell():
                # a run stopped after its last cell is complete
                summary.interrupted = status == "interrupted" or number < len(plan.todo)
                return
            if self._cell_runner.lost_card is not None:
                summary.given_up = self._cell_runner.lost_card
                return

    def _run_one(self, key: str, run: CellRun, problem: Outcome | None, *, again: str) -> str:
        """Run and commit one cell; return its status."""
        self._progress.cell_started(run)
        rows = self._cell_runner.rows(key, run, problem)
        self._store.commit(key, rows, again=again)
        cell, log = rows["cells"][0], self._store.log(key)
        if can_drop_checkpoints(run, cell["status"]):
            self._store.drop_checkpoints(key)
        own_log = problem is None and log.exists()  # else it is an earlier run's, or none
        self._progress.cell_finished(cell, log if own_log else None)
        return str(cell["status"])
