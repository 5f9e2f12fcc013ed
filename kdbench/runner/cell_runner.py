"""Runs one cell at a time: fits its teacher, measures it and returns its rows."""

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kdbench.common.environment import cache_folder
from kdbench.common.errors import WorkerError
from kdbench.runner.device import ResolvedDevice
from kdbench.runner.outcome import Outcome, judge_outcome
from kdbench.runner.process.child import Start
from kdbench.runner.process.forked import WarmProcesses
from kdbench.runner.process.launcher import ProcessResult, Task, launch
from kdbench.runner.process.stop_request import StopRequest
from kdbench.runner.progress import Progress
from kdbench.runner.rates import BestRates, reported_rates
from kdbench.runner.recovery import SAMPLES, Record
from kdbench.runner.resume_plan import keeps_checkpoints
from kdbench.runner.rows import Rows, by_kind, failed_rows, summarise
from kdbench.runner.spool import last_line, read_lines
from kdbench.runner.telemetry.nvml import why_lost
from kdbench.runner.telemetry.sampler_process import SamplerProcess
from kdbench.spec.cell import CellRun, digest
from kdbench.store import Store

# The system cannot start another process now: that is not the fault of the results folder.
_NO_PROCESS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# The statuses that the loss of a card can cause.
_LOST_CARD_STATUSES = ("failed", "killed", "timeout")


@dataclass(kw_only=True)
class CellRunner:
    """Measures runs one after another, and keeps what they share."""

    store: Store  #: holds spools and logs
    device: ResolvedDevice  #: where the runs are measured
    progress: Progress  #: receives what happens
    stop: StopRequest  #: says when to stop
    environment: Mapping[str, Any]  #: the machine
    machine: Mapping[str, str | None]  #: the parts of the environment that results depend on
    latest: datetime | None = None  #: start of the newest run in the store; None if it is empty
    lost_card: str | None = None  #: why the card no longer answers; None if it does
    _rates: BestRates = field(default_factory=BestRates)
    #: by teacher: how fitting it ended, if not well
    _fits: dict[str, Outcome | None] = field(default_factory=dict)
    _warm: WarmProcesses = field(default_factory=WarmProcesses)
    _cache: Path = field(default_factory=cache_folder)
    _announced_stop: bool = False

    def close(self) -> None:
        """End the warm processes."""
        self._warm.close()

    def rows(self, key: str, run: CellRun, problem: Outcome | None) -> Rows:
        """Measure a cell, unless it has a problem already, and return its rows."""
        rows = self._rows(key, run, problem)
        cell = rows["cells"][0]
        if self.device.gpu is not None and cell["status"] in _LOST_CARD_STATUSES:
            self.lost_card = why_lost(self.device.gpu.uuid)
            if self.lost_card is not None:  # then the cell is run again
                cell["error"] = f"{self.lost_card}; it ended as {cell['status']}: {cell['error']}"
                cell["status"] = "interrupted"
        return rows

    def _rows(self, key: str, run: CellRun, problem: Outcome | None) -> Rows:
        started_at = self._now()
        if problem is None:
            try:
                result, samples = self._measure(key, run, started_at)
            except WorkerError as error:
                problem = Outcome("failed", str(error))
        if problem is not None:
            if self.stop.now:
                problem = Outcome("interrupted", self.stop.now)
            return failed_rows(run, problem, environment=self.environment, started_at=started_at)
        return summarise(
            run,
            result,
            samples=samples,
            environment=self.environment,
            started_at=started_at,
            log=self.store.log(key),
            rates=self._rates.of(run.cell.training.precision),
        )

    def ensure_teacher(self, run: CellRun) -> Outcome | None:
        """Fit the run's teacher if it is not fitted yet; return the outcome if it is not ok.

        A process of its own fits it, so that no cell's memory or time contains the fitting.
        """
        teacher = run.cell.teacher
        if teacher is None or teacher.weights != "fitted":
            return None
        key = digest([teacher.model_dump(), run.cell.data.model_dump(), run.device])
        if key not in self._fits:
            self.progress.fit_started(str(run.cell.teacher_name))
            outcome, teacher_event = self._fit(run, f"fit-{key}")
            note, problem = None, None
            if outcome.status != "ok":
                error = f"fitting the teacher {run.cell.teacher_name!r}: {outcome.error}"
                problem = replace(outcome, error=error)
                log = self.store.log(f"fit-{key}")
                note = f"{error}, log: {log}" if log.exists() else error
            self.progress.fit_finished(str(run.cell.teacher_name), teacher_event, note)
            self._fits[key] = problem
        return self._fits[key]

    def _now(self) -> datetime:
        """Return the time, but always one after `latest`: the clock may be set back.

        Of two runs of one cell, the one that started later counts.
        """
        now = datetime.now(UTC)
        if self.latest is not None:
            now = max(now, self.latest + timedelta(milliseconds=1))
        self.latest = now
        return now

    def _fit(self, run: CellRun, key: str) -> tuple[Outcome, dict[str, Any] | None]:
        """Return the outcome, and the event that describes the teacher."""
        spool, log = self.store.spool(key), self.store.log(key)
        try:
            with self.store.reporting_errors("a teacher was being fitted"), _process_started():
                log.unlink(missing_ok=True)
                result = self._launch("fit", run, spool, log)
        except WorkerError as error:
            return Outcome("failed", str(error)), None
        self.store.drop_spool(key)
        events = by_kind(result.events)
        return judge_outcome(result, events, log), next(iter(events.get("teacher", [])), None)

    def _measure(
        self, key: str, run: CellRun, started_at: datetime
    ) -> tuple[ProcessResult, list[dict[str, Any]]]:
        spool, log = self.store.spool(key), self.store.log(key)
        checkpoints = self.store.checkpoints(key) if keeps_checkpoints(run) else None
        kept = f"what was measured is kept in {spool}"
        with self.store.reporting_errors(kept), _process_started():
            Record(key, run, started_at, dict(self.environment)).write(spool)
            if checkpoints is None or not checkpoints.exists():
                log.unlink(missing_ok=True)  # a log belongs to one run, with all its attempts
            return self._launch_cell(run, spool, log, checkpoints)

    def _launch_cell(
        self, run: CellRun, spool: Path, log: Path, checkpoints: Path | None
    ) -> tuple[ProcessResult, list[dict[str, Any]]]:
        # The warm process starts before the sampler: its start is no part of the cell.
        start = self._warm.starter(run, log, self.stop) if run.launch == "fork" else None
        samples_path, gpu = spool / SAMPLES, self.device.gpu
        precision = run.cell.training.precision
        wants_rates = self._rates.wanted(precision)
        sampler = SamplerProcess(samples_path, gpu_uuid=gpu.uuid if gpu else None)
        try:
            result = self._launch(
                "cell",
                run,
                spool,
                log,
                on_start=sampler.watch,
                samples=samples_path,
                checkpoints=checkpoints,
                start=start,
                rates=wants_rates,
            )
        finally:
            sampler.stop()
        if result.returncode is None:  # a warm process would wait for its child for ever
            self._warm.close()
        if sampler.problem is not None:
            self.progress.note(sampler.problem)
        samples = read_lines(samples_path)
        events = by_kind(result.events)
        # a cell that ended before it measured the rates leaves them to the next one
        if wants_rates and any(p["phase"] == "rates" for p in events.get("phase_start", [])):
            self._rates.add(precision, reported_rates(events, samples, run.device))
        return result, samples

    def _launch(
        self,
        task: Task,
        run: CellRun,
        spool: Path,
        log: Path,
        *,
        on_start: Callable[[int], None] = lambda _pid: None,
        samples: Path | None = None,
        checkpoints: Path | None = None,
        start: Start | None = None,
        rates: bool = False,
    ) -> ProcessResult:
        return launch(
            task,
            run,
            spool=spool,
            log=log,
            cache=self._cache,
            machine=self.machine,
            on_start=on_start,
            on_tick=lambda events: self._tick(events, last_line(samples) if samples else None),
            stop=self.stop,
            checkpoints=checkpoints,
            start=start,
            rates=rates,
        )

    def _tick(self, events: Iterable[dict[str, Any]], sample: dict[str, Any] | None) -> None:
        self.progress.tick(events, sample)
        if self.stop.after_cell() and not self.stop.now and not self._announced_stop:
            self._announced_stop = True
            self.progress.note("this cell is finished first; Ctrl-C again stops it now")


@contextmanager
def _process_started() -> Iterator[None]:
    """Raise WorkerError where the system refuses another process; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PROCESS:
            raise
        raise WorkerError(f"its process could not be started: {error}") from None
