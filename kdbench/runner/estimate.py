"""Estimates how long a cell will still take, from its events so far."""

from collections.abc import Mapping
from statistics import median
from time import monotonic
from typing import Any


class Estimate:
    """Follows one cell's events: its phase, its step, and the seconds left."""

    def __init__(self) -> None:
        self.phase = "starting"
        self.step: int | None = None
        #: steps expected in the phase; None if the budget's time decides
        self.steps: int | None = None
        self.epoch: int | None = None
        self.epochs: int | None = None
        #: how often the training was resumed
        self.attempt = 0
        self._seconds: list[float] = []
        self._plan: Mapping[str, Any] = {}
        #: steps of training done in all epochs; `step` restarts in each phase
        self._trained = 0
        self._measuring_since: float | None = None

    def follow(self, event: Mapping[str, Any]) -> None:
        """Process one event."""
        kind = event.get("event")
        if self.is_replayed(event):
            return
        if kind == "phase_start":
            self.phase, self.step, self.steps = str(event["phase"]), None, None
            if self.phase == "warmup":  # repeated after a suspension: a new plan follows
                self._plan = {}
            elif self.phase == "measure":
                self._measuring_since = monotonic()
            elif self.phase == "train":
                self.steps = self._plan.get("steps")
        elif kind == "plan":
            self._plan = event
            self.epochs = event.get("epochs")
        elif kind == "step":
            self.step, self.epoch = int(event["step"]) + 1, event.get("epoch")
            if event["phase"] == "train":
                self._trained += 1
            valid = event.get("seconds") is not None and not event.get("suspended")
            if event["phase"] != "account" and valid:
                self._seconds.append(float(event["seconds"]))
        elif kind == "resumed":
            self.attempt = int(event["attempt"])
            self._trained, self.epoch = int(event["steps"]), int(event["epoch"])
        elif kind == "progress":
            self.step, self.steps = int(event["done"]), int(event["total"])

    @property
    def epoch_of(self) -> str | None:
        """The current epoch, from 1, and their number, as "3/20"; None before the first."""
        if self.epoch is None:
            return None
        # a training that was complete when it was resumed is past the last epoch
        number = self.epoch + 1 if self.epochs is None else min(self.epoch + 1, self.epochs)
        return f"{number}/{self.epochs}"

    def is_replayed(self, event: Mapping[str, Any]) -> bool:
        """Whether an event repeats what an earlier process did."""
        return int(event.get("attempt") or 0) < self.attempt

    def seconds_left(self) -> float | None:
        """Return the seconds until the cell is done; None while unknown."""
        if not self._seconds or not self._plan:
            return None
        step = median(self._seconds[-50:])
        if self.phase == "account":
            return step
        if self.epochs is not None:
            return max(0.0, (self.epochs * int(self._plan["steps"]) - self._trained) * step)
        return self._measure_left(step) + step

    def _measure_left(self, step: float) -> float:
        fewest, most = (
            max(0, int(self._plan[name]) - (self.step or 0)) * step
            for name in ("min_steps", "steps")
        )
        spent = monotonic() - (self._measuring_since or monotonic())
        return max(fewest, min(most, float(self._plan["seconds"]) - spent))
