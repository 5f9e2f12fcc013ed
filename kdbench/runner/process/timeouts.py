"""How long a job may take, as a whole and in each of its phases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kdbench.spec.budget import Budget

# Phases in which every step or batch is told as it is done.
_STEPPED = ("warmup", "measure", "train")


class TimeLimits:
    """Follows a job by its events, and says when it has taken too long.

    Times are seconds of one clock that the caller reads, and that does not go on while the machine
    is suspended.

    Args:
        budget: of the run.
        started: when its process was started.
    """

    def __init__(self, budget: Budget, started: float) -> None:
        self._budget, self._started = budget, started
        self._phase, self._since, self._stepped = "start", started, started
        #: the phase it is in, or came out of last, in words
        self._where = "in the phase start"

    def follow(self, events: Iterable[Mapping[str, Any]], now: float) -> None:
        """Take in what the job has told until now."""
        for event in events:
            kind = event.get("event")
            if kind == "phase_start":
                self._phase = str(event.get("phase"))
                self._since = self._stepped = now
                self._where = f"in the phase {self._phase}"
            elif kind in ("phase", "started"):
                # between two phases nothing takes long; what does is the next one's
                self._phase, self._since = "between", now
                self._where = f"after the phase {event.get('phase', 'start')}"
            elif kind == "step":
                self._stepped = now

    def exceeded(self, now: float) -> str | None:
        """Say which limit is exceeded, in words; None: none is."""
        phases = self._budget.phase_timeouts
        spent, whole = now - self._since, self._budget.timeout_seconds
        own = phases.model_dump().get(self._phase)
        if own is not None and spent >= own:
            return (
                f"{self._phase} not done after {spent:.0f} s (budget.phase_timeouts.{self._phase})"
            )
        waited = now - self._stepped
        if self._phase in _STEPPED and phases.step is not None and waited >= phases.step:
            return (
                f"no step done for {waited:.0f} s in the phase {self._phase} "
                "(budget.phase_timeouts.step)"
            )
        if now - self._started >= whole:
            return (
                f"not done after {now - self._started:.0f} s, {self._where} "
                "(budget.timeout_seconds)"
            )
        return None
