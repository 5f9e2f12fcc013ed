"""One run of a cell, from its teacher to its rows, whatever becomes of its process."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kdbench.common.environment import cache_folder
from kdbench.common.errors import WorkerError
from kdbench.runner.checkpoints import keeps_checkpoints
from kdbench.runner.device import ResolvedDevice
from kdbench.runner.outcome import Outcome, judge_outcome
from kdbench.runner.process.forked import WarmProcesses
from kdbench.runner.process.launcher import ProcessResult, launch
from kdbench.runner.process.stop_request import StopRequest
from kdbench.runner.progress import Progress
from kdbench.runner.rates import BestRates, reported_rates
from kdbench.runner.recovery import SAMPLES, Record
from kdbench.runner.rows import Rows, by_kind, failed_rows, summarise
from kdbench.runner.spool import last_line, read_lines
from kdbench.runner.telemetry.nvml import why_lost
from kdbench.runner.telemetry.sampler_process import SamplerProcess
from kdbench.spec.cell import CellRun, digest
from kdbench.store import Store

# The system refuses another process, for now: no fault of the folder that results go to.
_NO_PROCESS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# What a card that is gone makes of a run.
_CARDS_FAULT = ("failed", "killed", "timeout")


@dataclass(kw_only=True)
class CellRunner:
    """Measures runs one after another, and keeps between them what they share.

    Attributes:
        store: where spools and logs are.
        device: where they run.
        progress: is told what happens.
        stop: says when to stop.
        environment: the machine.
        machine: the parts of it that a result depends on.
        latest: when the last run that is there was started; None: none is.
        lost_card: why the card does not answer any more; None: it does.
    """

    store: Store
    device: ResolvedDevice
    progress: Progress
    stop: StopRequest
    environment: Mapping[str, Any]
    machine: Mapping[str, str | None]
    latest: datetime | None = None
    lost_card: str | None = None
    #: what the device reaches at best, measured by this run's first cell of each precision
    _rates: BestRates = field(default_factory=BestRates)
    #: by teacher: how its fitting ended, where it did not end well
    _unfitted: dict[str, Outcome | None] = field(default_factory=dict)
    _warm: WarmProcesses = field(default_factory=WarmProcesses)
    _cache: Path = field(default_factory=cache_folder)
    _told_to_wait: bool = False

    def close(self) -> None:
        """End the processes that outlive a run."""
        self._warm.close()

    def rows(self, key: str, run: CellRun, problem: Outcome | None) -> Rows:
        """Measure a cell, unless it has a problem already.

        Raises:
            InputError: the results cannot be written to any more.
        """
        rows = self._rows(key, run, problem)
        self._look_after_the_card(rows["cells"][0])
        return rows

    def _rows(self, key: str, run: CellRun, problem: Outcome | None) -> Rows:
        started_at = self._now()
        if problem is None:
            try:
                outcome, samples = self._measure(key, run, started_at)
            except WorkerError as error:
                problem = Outcome("failed", str(error))
        if problem is not None:
            stopped = self.stop.now
            return failed_rows(
                run,
                Outcome("interrupted", stopped) if stopped else problem,
                environment=self.environment,
                started_at=started_at,
            )
        return summarise(
            run,
            outcome,
            samples=samples,
            environment=self.environment,
            started_at=started_at,
            log=self.store.log(key),
            rates=self._rates.of(run.cell.training.precision),
        )

    def ensure_teacher(self, run: CellRun) -> Outcome | None:
        """Fit the run's teacher before its first cell; return how that ended, if not well.

        It is a process of its own, so that no cell's memory or time has the fitting in it.
        """
        teacher = run.cell.teacher
        if teacher is None or teacher.weights != "fitted":
            return None
        key = digest([teacher.model_dump(), run.cell.data.model_dump(), run.device])
        if key not in self._unfitted:
            self.progress.fit_started(str(run.cell.teacher_name))
            end, result = self._fit(run, f"fit-{key}")
            told, problem = None, None
            if end.status != "ok":
                told = f"fitting the teacher {run.cell.teacher_name!r}: {end.error}"
                problem = replace(end, error=told)
            self.progress.fit_finished(str(run.cell.teacher_name), result, told)
            self._unfitted[key] = problem
        return self._unfitted[key]

    def _now(self) -> datetime:
        """Tell the time, but never one before an earlier run's: the clock may be set back.

        Of two runs of one cell, the one that was started later counts.
        """
        now = datetime.now(UTC)
        if self.latest is not None:
            now = max(now, self.latest + timedelta(milliseconds=1))
        self.latest = now
        return now

    def _fit(self, run: CellRun, key: str) -> tuple[Outcome, dict[str, Any] | None]:
        """Return how it ended, and what is told of the teacher."""
        spool, log = self.store.spool(key), self.store.log(key)
        try:
            with self.store.reporting_errors("a teacher was being fitted"), _process_started():
                log.unlink(missing_ok=True)
                outcome = launch(
                    "fit",
                    run,
                    spool=spool,
                    log=log,
                    cache=self._cache,
                    machine=self.machine,
                    on_start=lambda _pid: None,
                    on_tick=lambda events: self._tick(events, None),
                    stop=self.stop,
                )
        except WorkerError as error:
            return Outcome("failed", str(error)), None
        self.store.drop_spool(key)
        events = by_kind(outcome.events)
        return judge_outcome(outcome, events, log), next(iter(events.get("teacher", [])), None)

    def _measure(
        self, key: str, run: CellRun, started_at: datetime
    ) -> tuple[ProcessResult, list[dict[str, Any]]]:
        spool, log = self.store.spool(key), self.store.log(key)
        checkpoints = self.store.checkpoints(key) if keeps_checkpoints(run) else None
        with (
            self.store.reporting_errors(f"what was measured is kept in {spool}"),
            _process_started(),
        ):
            Record(key, run, started_at, dict(self.environment)).write(spool)
            if checkpoints is None or not checkpoints.exists():
                log.unlink(missing_ok=True)  # the log is of the run whose rows these are
            return self._launched(run, spool, log, checkpoints)

    def _launched(
        self, run: CellRun, spool: Path, log: Path, checkpoints: Path | None
    ) -> tuple[ProcessResult, list[dict[str, Any]]]:
        # warm before the sampler starts: what that takes is no part of the cell
        start = self._warm.starter(run, log, self.stop) if run.launch == "fork" else None
        path, gpu = spool / SAMPLES, self.device.gpu
        precision = run.cell.training.precision
        wanted = self._rates.wanted(precision)
        sampler = SamplerProcess(path, gpu_uuid=gpu.uuid if gpu else None)
        try:
            outcome = launch(
                "cell",
                run,
                spool=spool,
                log=log,
                cache=self._cache,
                machine=self.machine,
                on_start=sampler.watch,
                on_tick=lambda events: self._tick(events, last_line(path)),
                stop=self.stop,
                checkpoints=checkpoints,
                start=start,
                rates=wanted,
            )
        finally:
            sampler.stop()
        if outcome.returncode is None:  # a warm process would wait for its child for ever
            self._warm.close()
        if sampler.problem is not None:
            self.progress.note(sampler.problem)
        samples = read_lines(path)
        events = by_kind(outcome.events)
        # a cell that ended before it came to measure them leaves it to the next
        if wanted and any(phase["phase"] == "rates" for phase in events.get("phase_start", [])):
            self._rates.add(precision, reported_rates(events, samples, run.device))
        return outcome, samples

    def _tick(self, events: Iterable[dict[str, Any]], sample: dict[str, Any] | None) -> None:
        self.progress.tick(events, sample)
        if self.stop.after_cell() and not self.stop.now and not self._told_to_wait:
            self._told_to_wait = True
            self.progress.note("this cell is finished first; Ctrl-C again stops it now")

    def _look_after_the_card(self, cell: dict[str, Any]) -> None:
        """See whether the card is why a run did not end well: then it is to be run again."""
        if self.device.gpu is None or cell["status"] not in _CARDS_FAULT:
            return
        self.lost_card = why_lost(self.device.gpu.uuid)
        if self.lost_card is not None:
            cell["error"] = f"{self.lost_card}; it ended as {cell['status']}: {cell['error']}"
            cell["status"] = "interrupted"


@contextmanager
def _process_started() -> Iterator[None]:
    """Tell a system that refuses another process from a folder that cannot be written to.

    Raises:
        WorkerError: it did.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PROCESS:
            raise
        raise WorkerError(f"its process could not be started: {error}") from None
