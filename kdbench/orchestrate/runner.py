"""Cells -> launcher -> committed parts; what is committed already is not run again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdbench.cell import CellRun, digest
from kdbench.environment import cache_folder, collect_environment, decisive
from kdbench.errors import InputError, WorkerError, did_you_mean, quoted
from kdbench.fingerprint import worker_digest
from kdbench.matrix import Matrix
from kdbench.orchestrate.forked import WarmProcesses
from kdbench.orchestrate.host import busy_note
from kdbench.orchestrate.launcher import Outcome, launch
from kdbench.orchestrate.probe import ResolvedDevice
from kdbench.orchestrate.progress import Progress
from kdbench.orchestrate.sampling import SamplerProcess
from kdbench.orchestrate.spool import last_line, read_lines
from kdbench.orchestrate.summary import Rows, failed_rows, summarise
from kdbench.schema import STATUSES
from kdbench.store import Store

# Run again without being asked: the user stopped these in the middle.
_UNFINISHED = ("interrupted",)
# Trainings that are over: one that ended so starts anew when it is run again. A diverged one would
# go on to diverge again.
_OVER = ("ok", "diverged")


@dataclass
class Tally:
    """How a matrix's runs stand after `run_matrix`."""

    folder: Path
    done: int = 0
    skipped: int = 0
    #: label and status of what did not end well, now or earlier and skipped
    failed: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """Return 0 for all well, 1 for failed cells, 130 for stopped by the user."""
        if self.interrupted:
            return 130
        return 1 if self.failed else 0


def run_matrix(
    matrix: Matrix,
    *,
    out: Path,
    device: ResolvedDevice,
    progress: Progress,
    retry: Sequence[str] = (),
    fresh: bool = False,
) -> Tally:
    """Run what is missing of a matrix; each result is on disk before the next cell starts.

    Args:
        matrix: the cells.
        out: results root; the rows go to a folder of the matrix's name in it.
        device: where to run.
        progress: is told what happens.
        retry: run cells again that ended with one of these statuses.
        fresh: run everything again; what there is, is set aside.

    Raises:
        InputError: an unknown status in `retry`, or a folder that cannot be written to.
    """
    for status in retry:
        if status not in STATUSES:
            raise InputError(
                f"unknown status {status!r}",
                where="--retry",
                hint=did_you_mean(status, STATUSES) or f"the statuses are {quoted(STATUSES)}",
            )
    return _Runner(matrix, out, device, progress).run(retry=set(retry), fresh=fresh)


class _Runner:
    def __init__(
        self, matrix: Matrix, out: Path, device: ResolvedDevice, progress: Progress
    ) -> None:
        self._store = Store(out / matrix.name)
        self._device = device
        self._progress = progress
        self._cache = cache_folder()
        self._warm = WarmProcesses()
        # by precision: what the device reaches at best, measured by this run's first cell of it
        self._rates: dict[str, dict[str, Any]] = {}
        gpu = device.gpu
        self._environment = collect_environment(
            None
            if gpu is None
            else {
                "name": gpu.name,
                "uuid": gpu.uuid,
                "driver_version": gpu.driver_version,
                "memory_bytes": gpu.memory_total_bytes,
            }
        )
        worker, self._machine = worker_digest(), decisive(self._environment)
        self._runs = [
            (run.run_key(worker_digest=worker, environment=self._machine), run)
            for run in matrix.runs(device.device)
        ]

    def run(self, *, retry: set[str], fresh: bool) -> Tally:
        self._store.prepare()
        with self._store.writing():
            return self._run_missing(retry, fresh=fresh)

    def _run_missing(self, retry: set[str], *, fresh: bool) -> Tally:
        tally = Tally(folder=self._store.root)
        known = self._store.committed()
        again = {*retry, *_UNFINISHED}
        todo = []
        for key, run in self._runs:
            status = known.get(key)
            if status is None or fresh or status in again:
                todo.append((key, run))
                continue
            tally.skipped += 1
            if status != "ok":
                tally.failed.append((run.cell.label, status))
        for note in (self._device.note, busy_note()):
            if note:
                self._progress.note(note)
        self._progress.begin(
            total=len(todo),
            skipped=tally.skipped,
            folder=self._store.root,
            environment=self._environment,
            device=self._device.device,
        )
        try:
            self._run_all(todo, known, tally, fresh=fresh)
        finally:
            self._warm.close()
            self._progress.finish()
        return tally

    def _run_all(
        self,
        todo: Sequence[tuple[str, CellRun]],
        known: Mapping[str, str],
        tally: Tally,
        *,
        fresh: bool,
    ) -> None:
        unfitted: dict[str, str | None] = {}
        try:
            for key, run in todo:
                problem = self._ensure_teacher(run, unfitted)
                replaces = key in known
                if _keeps_checkpoints(run) and (fresh or known.get(key) in _OVER):
                    # Rows and weights go together, and at once: what begins now is then gone on
                    # with, however it is stopped, and is never taken for the old one.
                    self._store.supersede_training(key)
                    replaces = False
                status, stopped = self._run_one(key, run, problem, replaces=replaces)
                tally.done += 1
                if status not in ("ok", "interrupted"):
                    tally.failed.append((run.cell.label, status))
                if stopped:  # perhaps when the cell was done already: then its rows are whole
                    tally.interrupted = True
                    return
        except KeyboardInterrupt:  # between two cells
            tally.interrupted = True

    def _run_one(
        self, key: str, run: CellRun, problem: str | None, *, replaces: bool
    ) -> tuple[str, bool]:
        """Run and commit one cell; returns its status, and whether the user asked to stop."""
        self._progress.cell_started(run)
        rows, stopped = self._rows(key, run, problem)
        if replaces:  # only now: until there is something new, the old stays
            self._store.supersede(key)
        self._store.commit(key, rows)
        cell = rows["cells"][0]
        if run.budget.checkpoints == "resume" and cell["status"] in _OVER:
            self._store.drop_checkpoints(key)
        self._progress.cell_finished(cell)
        return str(cell["status"]), stopped

    def _rows(self, key: str, run: CellRun, problem: str | None) -> tuple[Rows, bool]:
        """Measure a cell unless it has a problem already; also whether the user asked to stop."""
        started_at = datetime.now(UTC)
        if problem is None:
            try:
                outcome, samples = self._measure(key, run)
            except WorkerError as error:  # its process could not be started
                problem = str(error)
        if problem is not None:
            rows = failed_rows(
                run, error=problem, environment=self._environment, started_at=started_at
            )
            return rows, False
        rows = summarise(
            run,
            outcome,
            samples=samples,
            environment=self._environment,
            started_at=started_at,
            log=self._store.log(key),
            rates=self._rates.get(run.cell.training.precision, {}),
        )
        return rows, outcome.interrupted

    def _measure(self, key: str, run: CellRun) -> tuple[Outcome, list[dict[str, Any]]]:
        spool, log = self._store.spool(key), self._store.log(key)
        checkpoints = self._store.checkpoints(key) if _keeps_checkpoints(run) else None
        if checkpoints is None or not checkpoints.exists():
            log.unlink(missing_ok=True)  # the log is of the run whose rows these are
        # warm before the sampler starts: what that takes is no part of the cell
        start = self._warm.starter(run, log) if run.launch == "fork" else None
        path, gpu = spool / "samples.jsonl", self._device.gpu
        precision = run.cell.training.precision
        sampler = SamplerProcess(path, gpu_uuid=gpu.uuid if gpu else None)

        def tick(events: Iterable[dict[str, Any]]) -> None:
            self._progress.tick(events, last_line(path))

        try:
            outcome = launch(
                "cell",
                run,
                spool=spool,
                log=log,
                cache=self._cache,
                machine=self._machine,
                on_start=sampler.watch,
                on_tick=tick,
                checkpoints=checkpoints,
                start=start,
                rates=precision not in self._rates,
            )
        finally:
            sampler.stop()
        for event in outcome.events:
            if event.get("event") == "rates":
                self._rates[precision] = event
        if sampler.problem is not None:
            self._progress.note(sampler.problem)
        return outcome, read_lines(path)

    def _ensure_teacher(self, run: CellRun, unfitted: dict[str, str | None]) -> str | None:
        """Fit the run's teacher before its first cell; return what went wrong, if anything.

        It is a process of its own, so that no cell's memory or time has the fitting in it.
        """
        teacher = run.cell.teacher
        if teacher is None or teacher.weights != "fitted":
            return None
        key = digest([teacher.model_dump(), run.cell.data.model_dump(), run.device])
        if key in unfitted:
            return unfitted[key]
        spool = self._store.spool(f"fit-{key}")
        log = self._store.log(f"fit-{key}")
        log.unlink(missing_ok=True)
        self._progress.fit_started(str(run.cell.teacher_name))
        outcome = launch(
            "fit",
            run,
            spool=spool,
            log=log,
            cache=self._cache,
            machine=self._machine,
            on_start=lambda _pid: None,
            on_tick=lambda events: self._progress.tick(events, None),
        )
        if outcome.interrupted:
            raise KeyboardInterrupt
        rows = {event["event"]: event for event in outcome.events}
        end = rows.get("end", {"status": "failed", "error": f"see {log}"})
        problem = (
            None
            if end["status"] == "ok"
            else (f"fitting the teacher {run.cell.teacher_name!r}: {end.get('error')}")
        )
        self._progress.fit_finished(str(run.cell.teacher_name), rows.get("teacher"), problem)
        unfitted[key] = problem
        self._store.drop_spool(f"fit-{key}")
        return problem


def _keeps_checkpoints(run: CellRun) -> bool:
    return run.mode == "train" and run.budget.checkpoints != "none"
