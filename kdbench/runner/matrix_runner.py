"""Cells -> launcher -> committed parts; what is committed already is not run again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.common.environment import collect_environment, environment_identity
from kdbench.common.errors import InputError, did_you_mean, quoted
from kdbench.common.fingerprint import worker_digest
from kdbench.common.runtime_settings import PRECISION
from kdbench.matrix.file import Matrix
from kdbench.runner.cell_runner import CellRunner
from kdbench.runner.checkpoints import needs_no_more, starts_anew
from kdbench.runner.device import ResolvedDevice
from kdbench.runner.outcome import Outcome
from kdbench.runner.process.launcher import worker_environment
from kdbench.runner.process.stop_request import StopRequest
from kdbench.runner.progress import Progress
from kdbench.runner.recovery import recover
from kdbench.runner.resume_plan import ResumePlan, plan_resume
from kdbench.runner.telemetry.host import busy_note
from kdbench.spec.cell import CellRun, describe_dropped_images
from kdbench.store import Store
from kdbench.store.schema import STATUSES

# What goes on with a run that has begun, by whether it starts all over.
_AGAIN = {False: "the same command", True: "the same command without --fresh"}


@dataclass
class RunSummary:
    """How a matrix's runs stand after `run_matrix`."""

    folder: Path
    done: int = 0
    skipped: int = 0
    #: label and status of what did not end well, now or earlier and skipped
    failed: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False
    #: why the rest was not run, in words; None: it was, or the user stopped it
    given_up: str | None = None

    @property
    def exit_code(self) -> int:
        """Return 0 for all well, 1 for failed or missing cells, 130 for stopped by the user."""
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

    Args:
        matrix: the cells.
        out: results root; the rows go to a folder of the matrix's name in it.
        device: where to run.
        progress: is told what happens.
        retry: run cells again that ended with one of these statuses.
        fresh: run everything again; what there is, is set aside at once.

    Raises:
        InputError: an unknown status in `retry`, or a folder that cannot be written to, now or
            any more.
    """
    for status in retry:
        if status not in STATUSES:
            raise InputError(
                f"unknown status {status!r}",
                where="--retry",
                hint=did_you_mean(status, STATUSES) or f"the statuses are {quoted(STATUSES)}",
            )
    return _Runner(matrix, out, device, progress).run(retry=set(retry), fresh=fresh)


def _card(device: ResolvedDevice) -> dict[str, Any] | None:
    """Describe a run's card for its environment; None on the CPU."""
    gpu = device.gpu
    if gpu is None and device.name is None:
        return None
    return {
        "name": device.card_name,
        "uuid": gpu and gpu.uuid,
        "driver_version": gpu and gpu.driver_version,
        "memory_bytes": gpu and gpu.memory_total_bytes,
    }


def _kept_back() -> str | None:
    """Say which of the user's settings no cell computes with."""
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
        self._stopping = StopRequest()
        told = worker_environment(os.environ, network=False)
        self._environment = collect_environment(_card(device), told)
        worker = worker_digest()
        self._machine = environment_identity(self._environment)
        if matrix.threads is None:  # else a run's own settings say it
            self._machine["threads"] = self._environment["threads"]
        self._runs = [
            (run.run_key(worker_digest=worker, environment=self._machine), run)
            for run in matrix.runs(device.device)
        ]

    def run(self, *, retry: set[str], fresh: bool) -> RunSummary:
        self._store.prepare()
        with self._store.writing(), self._stopping:
            recover(self._store, self._progress.note)
            self._store.tidy()
            plan = plan_resume(
                self._store, self._runs, machine=self._machine, retry=retry, fresh=fresh
            )
            return self._run_missing(plan, fresh=fresh)

    def _run_missing(self, plan: ResumePlan, *, fresh: bool) -> RunSummary:
        summary = RunSummary(folder=self._store.root, skipped=len(plan.skipped))
        summary.failed += [found for found in plan.skipped if found[1] != "ok"]
        self._progress.begin(
            total=len(plan.todo),
            folder=self._store.root,
            environment=self._environment,
            device=self._device.device,
        )
        left_out = describe_dropped_images(run.cell for _, run in plan.todo)
        for note in (self._device.note, _kept_back(), busy_note(), left_out, *plan.notes):
            if note:
                self._progress.note(note)
        cell_runner = CellRunner(
            store=self._store,
            device=self._device,
            progress=self._progress,
            stop=self._stopping,
            environment=self._environment,
            machine=self._machine,
            latest=plan.latest,
        )
        try:
            self._run_all(plan, cell_runner, summary, fresh=fresh)
        finally:
            cell_runner.close()
            self._progress.finish()
        return summary

    def _run_all(
        self, plan: ResumePlan, cell_runner: CellRunner, summary: RunSummary, *, fresh: bool
    ) -> None:
        known = dict(plan.known)
        if fresh:
            # At once, and rows with their weights: what begins now is gone on with, however it is
            # stopped, by the same command without --fresh, and never taken for the old one.
            for key, _ in plan.todo:
                self._store.supersede_training(key)
                known.pop(key, None)
        for number, (key, run) in enumerate(plan.todo, start=1):
            problem = cell_runner.ensure_teacher(run)
            if self._stopping.after_cell():
                summary.interrupted = True
                return
            if starts_anew(run, known.get(key)):
                self._store.supersede_training(key)
            status = self._run_one(cell_runner, key, run, problem, again=_AGAIN[fresh])
            summary.done += 1
            if status not in ("ok", "interrupted"):
                summary.failed.append((run.cell.label, status))
            if self._stopping.after_cell():
                # when the last cell is whole, nothing was left out
                summary.interrupted = status == "interrupted" or number < len(plan.todo)
                return
            if cell_runner.lost_card is not None:
                summary.given_up = cell_runner.lost_card
                return

    def _run_one(
        self,
        cell_runner: CellRunner,
        key: str,
        run: CellRun,
        problem: Outcome | None,
        *,
        again: str,
    ) -> str:
        """Run and commit one cell; returns its status."""
        self._progress.cell_started(run)
        rows = cell_runner.rows(key, run, problem)
        self._store.commit(key, rows, again=again)
        cell = rows["cells"][0]
        if needs_no_more(run, cell["status"]):
            self._store.drop_checkpoints(key)
        self._progress.cell_finished(cell)
        return str(cell["status"])
