"""How a run ended, from what its process told and how that itself came to its end."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.common.memory_limits import find_limits, process_limits
from kdbench.common.out_of_memory import (
    REMEDY,
    OutOfMemory,
    may_be_out_of_memory,
    parse_out_of_memory,
)
from kdbench.common.units import format_value
from kdbench.runner.process.launcher import ProcessResult
from kdbench.runner.process.oom_killer import OomKills

# A failing program's last words are its last lines; C++ puts a page of stack frames behind them.
_LAST_LINES, _LAST_BYTES = 4, 16_384
_FATAL = "terminate called"


@dataclass(frozen=True)
class Outcome:
    """A run's status, and what went wrong in one line."""

    status: str
    error: str | None = None
    #: of a run that ended for want of memory
    shortage: OutOfMemory | None = None

    def columns(self) -> dict[str, Any]:
        """Return what `cells` keeps of it."""
        return {
            "status": self.status,
            # a file's name may hold bytes that are no text, and no table holds those
            "error": self.error and self.error.encode(errors="backslashreplace").decode(),
            **(self.shortage.columns() if self.shortage else {}),
        }


def judge_outcome(
    outcome: ProcessResult, events: Mapping[str, Sequence[Mapping[str, Any]]], log: Path
) -> Outcome:
    """Say how a run ended.

    Args:
        outcome: of its process.
        events: what it told, by kind.
        log: what its process printed.
    """
    killed = outcome.kills if outcome.kills and outcome.kills.count else None
    told = events.get("end", [])
    # What ends it on our signals is ours: some library makes an error of its own of an interrupt.
    ours = outcome.stopped is not None or outcome.timed_out is not None
    if told and not (ours and told[-1]["status"] == "failed"):
        return _as_told(told[-1], killed)
    if outcome.stopped is not None:
        return Outcome("interrupted", outcome.stopped)
    if outcome.timed_out is not None:
        problem = f"; {outcome.problem}" if outcome.problem else ""
        return Outcome(
            "timeout", f"{outcome.timed_out}; what it measured until then is kept{problem}"
        )
    if killed and outcome.returncode == -signal.SIGKILL:
        return _by_the_kernel("the worker", killed, REMEDY)
    if outcome.problem is not None or outcome.returncode is None:
        return Outcome("failed", outcome.problem)
    return _without_a_word(outcome.returncode, outcome.kills, log)


def _as_told(told: Mapping[str, Any], killed: OomKills | None) -> Outcome:
    """Take a worker's own word, but for what only the kernel knows."""
    if told["status"] == "oom":
        source, *sizes = (
            told.get(f"oom_{name}") for name in ("source", "asked_bytes", "free_bytes")
        )
        return Outcome("oom", told.get("error"), OutOfMemory(source or "host", *sizes))
    if told.get("child_died") and killed:
        remedy = f"fewer data.workers need less; {REMEDY}"
        return _by_the_kernel("a process that prepares images", killed, remedy)
    return Outcome(str(told["status"]), told.get("error"))


def _by_the_kernel(whom: str, killed: OomKills, remedy: str) -> Outcome:
    """Say that the killer did it: by whose count, and what the least limit is.

    What was asked for and free is not told: memory is promised, and used up page by page later.
    """
    least = min(find_limits(own=False), key=lambda room: room.limit_bytes)
    error = (
        f"out of memory: the kernel's killer ended {whom} (oom_kill of {killed.where} rose by "
        f"{killed.count} meanwhile); the least limit is {format_value(least.limit_bytes, 'bytes')} "
        f"({least.name}); {remedy}"
    )
    return Outcome("oom", error, OutOfMemory("kernel"))


def _without_a_word(code: int, kills: OomKills | None, log: Path) -> Outcome:
    """Judge a process that told no end, by its exit status and the last of what it printed."""
    words = _last_words(log)
    last = words.rpartition("\n")[2][:500] or "it said nothing"
    # These print what they end for. Other signals come without a word, and the log's last lines may
    # be an earlier attempt's.
    found = _shortage_in(words) if code > 0 or code == -signal.SIGABRT else None
    if found is not None:
        line = next((line for line in words.splitlines() if _shortage_in(line)), last)
        return Outcome(
            "oom", found.message(f"the worker's last words: {line.strip()[:300]}"), found
        )
    if code < 0:
        return Outcome("killed", _killed(-code, kills))
    return Outcome("failed", f"the worker ended with exit code {code}: {last}")


def _shortage_in(words: str) -> OutOfMemory | None:
    found, own = parse_out_of_memory(words), process_limits()
    if found is None and may_be_out_of_memory(words) and own:
        found = OutOfMemory("host")  # the worker is under the same limits, and these are likely why
    if found is None or found.source == "cuda" or not own:
        return found
    # What was free in a process that is gone, nobody knows.
    least = min(own, key=lambda room: room.limit_bytes)
    return replace(found, limit_bytes=least.limit_bytes, limit=least.name)


def _killed(number: int, kills: OomKills | None) -> str:
    """Say which signal it was, and what is known of who sent it."""
    hint = ""
    if number == signal.SIGKILL:
        hint = ": often the system's answer to memory running out, see its log"
        if kills is not None:
            hint = (
                f", not by the kernel's killer (oom_kill of {kills.where} did not rise): by a "
                "user, a job's manager, or a program that watches memory"
            )
    try:
        name = signal.Signals(number).name
    except ValueError:  # most real-time signals have no name of their own
        name = f"signal {number}"
    return f"the worker was killed by {name}{hint}"


def _last_words(log: Path) -> str:
    """Return the end of what a process printed, without empty lines."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    if _FATAL in text:
        return text[text.rindex(_FATAL) :].strip()
    return "\n".join([line for line in text.splitlines() if line.strip()][-_LAST_LINES:])
