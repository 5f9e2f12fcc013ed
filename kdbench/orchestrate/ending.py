"""How a run ended, from what its process told and how that itself came to its end."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.orchestrate.launcher import Outcome


def ending(
    outcome: Outcome, events: Mapping[str, Sequence[Mapping[str, Any]]], log: Path
) -> tuple[str, str | None]:
    """Say how a run ended: its status, and what went wrong in one line.

    Args:
        outcome: of its process.
        events: what it told, by kind.
        log: what its process printed.
    """
    told = events.get("end", [])
    if told:
        return str(told[-1]["status"]), told[-1].get("error")
    if outcome.problem is not None:
        return "failed", outcome.problem
    if outcome.interrupted:
        return "interrupted", "stopped by the user"
    if outcome.timed_out:
        return "timeout", (
            f"not done after {outcome.wall_seconds:.0f} s "
            "(budget.timeout_seconds); what it measured until then is kept"
        )
    if outcome.returncode < 0:
        name = _signal_name(-outcome.returncode)
        hint = (
            ": often the system's answer to memory running out, see its log"
            if -outcome.returncode == signal.SIGKILL
            else ""
        )
        return "killed", f"the worker was killed by {name}{hint}"
    return "failed", f"the worker ended with exit code {outcome.returncode}: {_last_words(log)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name of their own
        return f"signal {number}"


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:500] if lines else "it said nothing"
