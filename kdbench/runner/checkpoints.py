"""Which runs leave checkpoints, and until when."""

from __future__ import annotations

from kdbench.spec.cell import CellRun

# Trainings that are over: one that ended so starts anew when it is run again. A diverged one would
# go on to diverge again.
_OVER = ("ok", "diverged")


def keeps_checkpoints(run: CellRun) -> bool:
    """Whether a run leaves checkpoints."""
    return run.mode == "train" and run.budget.checkpoints != "none"


def starts_anew(run: CellRun, status: str | None) -> bool:
    """Whether a run that ended so before begins from nothing, its checkpoints set aside."""
    return keeps_checkpoints(run) and status in _OVER


def needs_no_more(run: CellRun, status: str) -> bool:
    """Whether a run that has ended so has no use for its checkpoints any more."""
    return run.budget.checkpoints == "resume" and status in _OVER
