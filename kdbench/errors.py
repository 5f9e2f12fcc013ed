"""The errors that a user can meet, each with its exit code; `cli.main` catches them once."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class KdbenchError(Exception):
    """Anything that kdbench itself reports; `exit_code` is what the process then returns."""

    exit_code = 1


class InputError(KdbenchError):
    """Broken input or usage: one line that says where, what was expected and what was found.

    Args:
        problem: what is wrong, what was expected and what was found.
        where: the file, folder or option that holds the input.
        key: the dotted key inside it (`axes.student[1]`).
        hint: what to do next, such as the near matches that `did_you_mean` writes.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        where: object | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        parts = [str(part) for part in (where, key, problem) if part is not None and str(part)]
        super().__init__(": ".join(parts) + (f"; {hint}" if hint else ""))


class LeftOutWarning(UserWarning):
    """A file among results that cannot be read, and is left out; the rest is read."""


class IncomparableError(InputError):
    """There is nothing that could be compared, although nothing is broken."""

    exit_code = 3


class WorkerError(KdbenchError):
    """A child process that was to answer did not; the message holds the end of what it printed."""


def did_you_mean(found: object, known: Iterable[object]) -> str | None:
    """Near matches of `found` among `known`, as a question; None where nothing is near."""
    names = [str(name) for name in known]
    near = get_close_matches(str(found), names, n=3, cutoff=0.6)
    return f"did you mean {quoted(near, ' or ')}?" if near else None


def quoted(names: Iterable[object], joint: str = ", ") -> str:
    """Join names, each in single quotes with control characters escaped, for a message."""
    return joint.join(repr(str(name)) for name in names)
