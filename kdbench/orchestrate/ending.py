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
    if outcome.stopped is not None:
        return "interrupted", outcome.stopped
    if outcome.timed_out is not None:
        kept = "; what it measured until then is kept"
        return "timeout", outcome.timed_out + kept + (
            f"; {outcome.problem}" if outcome.problem else ""
        )
    if outcome.problem is not None or outcome.returncode is None:
        return "failed", outcome.problem
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
