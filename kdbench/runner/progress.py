"""Shows a run's progress: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from kdbench.common.errors import printable
from kdbench.common.text import fit_encoding
from kdbench.common.units import format_value
from kdbench.runner.estimate import Estimate
from kdbench.spec.cell import CellRun

if TYPE_CHECKING:
    from rich.console import Console

Event = Mapping[str, Any]

_NOTED_PHASES = ("precompute", "warmup", "measure", "account")
# How often a log without a terminal shows a training's epoch.
_EPOCH_EVERY_SECONDS = 300.0


class Progress:
    """Hears what happens in a run; shows nothing of it."""

    def begin(
        self, *, total: int, folder: Path, environment: Mapping[str, Any], device: str
    ) -> None:
        """Hear that a run begins, with `total` cells to do."""

    def fit_started(self, teacher: str) -> None:
        """Hear that a teacher is being fitted, or looked up in the cache."""

    def fit_finished(self, teacher: str, result: Event | None, problem: str | None) -> None:
        """Hear that a teacher was fitted, and how well."""

    def cell_started(self, run: CellRun) -> None:
        """Hear that a cell's process is being started."""

    def tick(self, events: Iterable[Event], sample: Mapping[str, Any] | None) -> None:
        """Take the new events and the newest sample of memory, a few times a second."""

    def cell_finished(self, cell: Mapping[str, Any], log: Path | None = None) -> None:
        """Hear that a cell's rows are on disk; `log` has its process's output, if there was one."""

    def note(self, text: str) -> None:
        """Hear something else that the user should know."""

    def finish(self) -> None:
        """Hear that the run has ended, however it did."""


class ConsoleProgress(Progress):
    """Prints a line per cell; on a terminal, the running cell's state below them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Any = None
        self._total = self._started = 0
        self._walls: list[float] = []
        self._noted: set[str] = set()
        self._title = ""
        self._since = monotonic()
        self._estimate = Estimate()
        #: when a plain line last showed the training; None: not yet
        self._epoch_noted: float | None = None
        self._sample: Mapping[str, Any] | None = None

    def begin(
        self, *, total: int, folder: Path, environment: Mapping[str, Any], device: str
    ) -> None:
        """Print the device and the folder of results."""
        from rich.live import Live  # noqa: PLC0415

        self._total = total
        where = environment["gpu_name" if device != "cpu" else "cpu_model"] or "name unknown"
        self.note(f"{device} ({where}), torch {environment['torch_version']}; results in {folder}")
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._state,
                console=self._console,
                refresh_per_second=2,
                transient=True,
            )
            self._live.start()

    def fit_started(self, teacher: str) -> None:
        """Show the fitting as the running job."""
        self._begin_job(f"fitting the teacher {teacher}")

    def fit_finished(self, teacher: str, result: Event | None, problem: str | None) -> None:
        """Print the teacher's accuracy, or that it was cached."""
        if problem is not None:
            self.note(problem)
        elif result is None or result.get("cached"):
            self.note(f"teacher {teacher}: from the cache")
        else:
            fitted = f"fitted in {result['seconds']:.0f} s"
            self.note(f"teacher {teacher}: {fitted}, test accuracy {result['accuracy']:.3f}")

    def cell_started(self, run: CellRun) -> None:
        """Show the cell as the running job."""
        self._started += 1
        seed = f" seed {run.seed}" if run.seed else ""
        repeat = f" repeat {run.repeat}" if run.repeat else ""
        self._begin_job(f"[{self._started}/{self._total}] {run.cell.label}{seed}{repeat}")

    def tick(self, events: Iterable[Event], sample: Mapping[str, Any] | None) -> None:
        """Update the view; without a terminal, print a line when a phase begins."""
        state = self._estimate
        for event in events:
            state.follow(event)
            if state.is_replayed(event):
                continue
            kind = event.get("event")
            if kind == "note":
                if event["text"] not in self._noted:  # every cell repeats the notes on its data
                    self.note(f"  {event['text']}")
                self._noted.add(event["text"])
            elif kind == "resumed":
                self.note(f"  goes on after {event['steps']} steps, in epoch {state.epoch_of}")
            elif self._live is None and kind == "phase_start":
                self._phase_started(event["phase"])
        if self._live is None:
            self._note_epoch()
        self._sample = sample or self._sample

    def cell_finished(self, cell: Mapping[str, Any], log: Path | None = None) -> None:
        """Print the cell's line; of one that did not end well, with its log."""
        self._walls.append(float(cell["wall_seconds"]))
        parts = [cell["status"]]
        if cell.get("step_seconds_median") is not None:
            step = format_value(cell["step_seconds_median"], "seconds")
            parts.append(f"{step} per step ({cell['steps_measured']} timed)")
        if cell.get("allocated_peak_bytes") is not None:
            parts.append(f"peak allocated {format_value(cell['allocated_peak_bytes'], 'bytes')}")
        if cell.get("accuracy") is not None:
            parts.append(f"accuracy {cell['accuracy']:.3f}")
        if cell.get("contended"):
            parts.append(f"contended: {cell['contention']}")
        if cell.get("unstable"):
            parts.append("unstable")
        if cell.get("suspended_steps"):
            parts.append(f"suspended in mid-step ({cell['suspended_steps']} not counted)")
        if cell.get("error"):
            parts.append(str(cell["error"]))
        if log is not None and cell["status"] not in ("ok", "interrupted"):
            parts.append(f"log: {log}")
        self.note(f"{self._title}: {', '.join(parts)} [{cell['wall_seconds']:.0f} s]")
        self._title = ""

    def note(self, text: str) -> None:
        """Print one line above the live view; a console that fails ends no run."""
        with suppress(OSError):
            line = fit_encoding(printable(text), self._console.encoding)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def finish(self) -> None:
        """End the live view."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _begin_job(self, title: str) -> None:
        self._title, self._since = title, monotonic()
        self._estimate, self._sample, self._epoch_noted = Estimate(), None, None
        if self._live is None:
            self.note(title)

    def _phase_started(self, phase: str) -> None:
        """Print which phase begins; each epoch is a phase, but only the first is printed."""
        first = phase == "train" and self._epoch_noted is None
        if first:
            self._epoch_noted = monotonic()
        if first or phase in _NOTED_PHASES:
            self.note(f"  {phase} ...{self._left()}")

    def _note_epoch(self) -> None:
        """Print a training's epoch now and then."""
        now, epoch = monotonic(), self._estimate.epoch_of
        if self._epoch_noted is None or now - self._epoch_noted < _EPOCH_EVERY_SECONDS:
            return
        if epoch is not None and self._estimate.phase in ("train", "evaluate"):
            self._epoch_noted = now
            self.note(f"  train: epoch {epoch.replace('/', ' of ')}{self._left()}")

    def _state(self) -> Any:  # noqa: ANN401 - rich's renderable is a union of many
        from rich.spinner import Spinner  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        state, parts = self._estimate, [self._estimate.phase]
        if state.epoch_of is not None:
            parts.append(f"epoch {state.epoch_of}")
        if state.step is not None:
            parts.append(f"step {state.step}" + (f"/{state.steps}" if state.steps else ""))
        sample = self._sample or {}
        parts += [
            f"{name} {format_value(sample[f'{name}_bytes'], 'bytes')}"
            for name in ("host", "process", "device")
            if sample.get(f"{name}_bytes") is not None
        ]
        spent = monotonic() - self._since
        line = f"{self._title}: {', '.join(parts)}{self._left()} [{spent:.0f} s]"
        frames = "line" if self._console.options.ascii_only else "dots"
        return Spinner(frames, text=Text(fit_encoding(printable(line), self._console.encoding)))

    def _left(self) -> str:
        """Return how long the cell and the whole run still take, as text."""
        cell = self._estimate.seconds_left()
        waiting = self._total - self._started
        left = []
        if cell is not None and cell >= 1:
            left.append(f"cell {format_value(cell, 'seconds')} left")
        if self._walls and waiting:
            mean = sum(self._walls) / len(self._walls)
            own = cell if cell is not None else max(0.0, mean - (monotonic() - self._since))
            left.append(f"run about {format_value(own + waiting * mean, 'seconds')} left")
        return f"; {', '.join(left)}" if left else ""
