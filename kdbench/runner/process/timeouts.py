"""How long a job may take, in total and in each phase."""

from collections.abc import Iterable, Mapping
from typing import Any

from kdbench.spec.budget import Budget

# The phases that report every step or batch.
_STEPPED = ("warmup", "measure", "train")


class TimeLimits:
    """Follows a job's events, and says when it has taken too long.

    Times are seconds of one clock of the caller's that stands still while the machine is suspended.
    """

    def __init__(self, budget: Budget, started: float) -> None:
        self._budget, self._started = budget, started
        self._phase, self._since, self._stepped = "start", started, started
        self._where = "in the phase start"

    def follow(self, events: Iterable[Mapping[str, Any]], now: float) -> None:
        """Process the job's new events."""
        for event in events:
            kind = event.get("event")
            if kind == "phase_start":
                self._phase = str(event.get("phase"))
                self._since = self._stepped = now
                self._where = f"in the phase {self._phase}"
            elif kind in ("phase", "started"):
                # what takes long after a phase belongs to the next one
                self._phase, self._since = "between", now
                self._where = f"after the phase {event.get('phase', 'start')}"
            elif kind == "step":
                self._stepped = now

    def exceeded(self, now: float) -> str | None:
        """Return which limit is exceeded, as text; None for none."""
        phases = self._budget.phase_timeouts
        spent, whole = now - self._since, self._budget.timeout_seconds
        own = phases.model_dump().get(self._phase)
        if own is not None and spent >= own:
            limit = f"budget.phase_timeouts.{self._phase}"
            return f"{self._phase} not done after {spent:.0f} s ({limit})"
        waited = now - self._stepped
        if self._phase in _STEPPED and phases.step is not None and waited >= phases.step:
            where = f"in the phase {self._phase} (budget.phase_timeouts.step)"
            return f"no step done for {waited:.0f} s {where}"
        total = now - self._started
        if total >= whole:
            return f"not done after {total:.0f} s, {self._where} (budget.timeout_seconds)"
        return None
