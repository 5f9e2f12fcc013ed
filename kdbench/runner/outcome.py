"""How a run ended, judged from its process's events, exit status and log."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.common import out_of_memory
from kdbench.common.memory_limits import find_limits, process_limits
from kdbench.common.units import format_value
from kdbench.runner.process.launcher import ProcessResult
from kdbench.runner.process.oom_killer import OomKills

# An error message is in a program's last lines; C++ prints a page of stack frames after it.
_LAST_LINES, _LAST_BYTES = 4, 16_384
_FATAL = "terminate called"


@dataclass(frozen=True)
class Outcome:
    """A run's status, and its error in one line."""

    status: str
    error: str | None = None
    #: of a run that ran out of memory
    shortage: out_of_memory.OutOfMemory | None = None

    def columns(self) -> dict[str, Any]:
        """Return the columns of `cells`."""
        return {
            "status": self.status,
            # a file's name may hold bytes that no table can
            "error": self.error and self.error.encode(errors="backslashreplace").decode(),
            **(self.shortage.columns() if self.shortage else {}),
        }


def judge_outcome(
    result: ProcessResult, events: Mapping[str, Sequence[Mapping[str, Any]]], log: Path
) -> Outcome:
    """Judge how a run ended, from its process, its events by kind and its log."""
    kills = result.kills if result.kills and result.kills.count else None
    ends = events.get("end", [])
    # Some libraries turn our signals into errors of their own: those are not failures.
    stopped_by_us = result.stopped is not None or result.timed_out is not None
    if ends and not (stopped_by_us and ends[-1]["status"] == "failed"):
        return _reported(ends[-1], kills)
    if result.stopped is not None:
        return Outcome("interrupted", result.stopped)
    if result.timed_out is not None:
        error = f"{result.timed_out}; what it measured until then is kept"
        return Outcome("timeout", "; ".join(filter(None, (error, result.problem))))
    if kills and result.returncode == -signal.SIGKILL:
        return _killed_by_kernel("the worker", kills, out_of_memory.REMEDY)
    if result.problem is not None or result.returncode is None:
        return Outcome("failed", result.problem)
    return _unreported(result.returncode, result.kills, log)


def _reported(end: Mapping[str, Any], kills: OomKills | None) -> Outcome:
    """Take the worker's own report, except where only the kernel knows better."""
    if end["status"] == "oom":
        sizes = end.get("oom_asked_bytes"), end.get("oom_free_bytes")
        shortage = out_of_memory.OutOfMemory(end.get("oom_source") or "host", *sizes)
        return Outcome("oom", end.get("error"), shortage)
    if end.get("child_died") and kills:
        remedy = f"fewer data.workers need less; {out_of_memory.REMEDY}"
        return _killed_by_kernel("a process that prepares images", kills, remedy)
    return Outcome(str(end["status"]), end.get("error"))


def _killed_by_kernel(process: str, kills: OomKills, remedy: str) -> Outcome:
    # Asked and free bytes stay null: the kernel promises memory first and runs out page by page.
    least = min(find_limits(own=False), key=lambda limit: limit.limit_bytes)
    error = (
        f"out of memory: the kernel's killer ended {process} (oom_kill of {kills.where} rose by "
        f"{kills.count} meanwhile); the least limit is {format_value(least.limit_bytes, 'bytes')} "
        f"({least.name}); {remedy}"
    )
    return Outcome("oom", error, out_of_memory.OutOfMemory("kernel"))


def _unreported(code: int, kills: OomKills | None, log: Path) -> Outcome:
    """Judge a process that reported no end, by its exit status and its last output."""
    output = _last_output(log)
    last = output.rpartition("\n")[2][:500] or "it said nothing"
    # Other signals print nothing, so the log's last lines may be an earlier attempt's.
    shortage = _shortage_in(output) if code > 0 or code == -signal.SIGABRT else None
    if shortage is not None:
        line = next((line for line in output.splitlines() if _shortage_in(line)), last)
        error = shortage.message(f"the worker's last words: {line.strip()[:300]}")
        return Outcome("oom", error, shortage)
    if code < 0:
        return Outcome("killed", _killed(-code, kills))
    return Outcome("failed", f"the worker ended with exit code {code}: {last}")


def _shortage_in(output: str) -> out_of_memory.OutOfMemory | None:
    shortage, own = out_of_memory.parse_out_of_memory(output), process_limits()
    if shortage is None and out_of_memory.may_be_out_of_memory(output) and own:
        shortage = out_of_memory.OutOfMemory(
            "host"
        )  # the worker shares this process's limits: the likely cause
    if shortage is None or shortage.source == "cuda" or not own:
        return shortage
    least = min(own, key=lambda limit: limit.limit_bytes)
    return replace(shortage, limit_bytes=least.limit_bytes, limit=least.name)


def _killed(number: int, kills: OomKills | None) -> str:
    """Name the signal, and who may have sent it."""
    hint = ""
    if number == signal.SIGKILL and kills is not None:
        hint = f", not by the kernel's killer (oom_kill of {kills.where} did not rise): by a "
        hint += "user, a job's manager, or a program that watches memory"
    elif number == signal.SIGKILL:
        hint = ": often the system's answer to memory running out, see its log"
    try:
        name = signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        name = f"signal {number}"
    return f"the worker was killed by {name}{hint}"


def _last_output(log: Path) -> str:
    """Return the end of a log, without empty lines."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    if _FATAL in text:
        return text[text.rindex(_FATAL) :].strip()
    return "\n".join([line for line in text.splitlines() if line.strip()][-_LAST_LINES:])
