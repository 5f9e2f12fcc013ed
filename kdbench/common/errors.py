"""The errors that a user can meet, each with its exit code; `cli.main` catches them once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice

# What a message may be long. Names and values in it may be a stranger's, and a megabyte each.
_LONGEST = 4000
_LONGEST_PLACE = 500
_LONGEST_VALUE = 200
# A near match is looked for among so many names, each no longer than that.
_MOST_NAMES, _LONGEST_NAME = 2000, 200
_MOST_QUOTED = 40


class KdbenchError(Exception):
    """Anything that kdbench itself reports; `exit_code` is what the process then returns.

    The message is a line that is safe to print, whatever was found: files come from other people.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(truncate(printable(message), _LONGEST))


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
        self.where, self.key, self.problem, self.hint = where, key, problem, hint
        place = [truncate(str(part), _LONGEST_PLACE) for part in (where, key) if part is not None]
        parts = [part for part in (*place, problem) if part]
        super().__init__(": ".join(parts) + (f"; {hint}" if hint else ""))

    def at(self, where: object) -> InputError:
        """Return the same error of an input that something else holds."""
        return type(self)(self.problem, where=where, key=self.key, hint=self.hint)


@contextmanager
def located(where: object) -> Iterator[None]:
    """Name the file, folder or option in the input errors inside that name none."""
    try:
        yield
    except InputError as error:
        if error.where is not None:
            raise
        raise error.at(where) from None


class OutputError(KdbenchError):
    """What a command prints cannot be written: a full disk, a terminal that is gone."""

    exit_code = 2


class UnreadableFileWarning(UserWarning):
    """A file among results that cannot be read, and is left out; the rest is read."""


class IncomparableError(InputError):
    """There is nothing that could be compared, although nothing is broken."""

    exit_code = 3


class WorkerError(KdbenchError):
    """A child process that was to answer did not; the message holds the end of what it printed."""


def first_line(error: BaseException, otherwise: str = "") -> str:
    """Return the first line of a library's message, or `otherwise` where it has none."""
    return (str(error).splitlines() or [otherwise])[0]


def os_reason(error: OSError | ValueError) -> str:
    """Say why the system refused, without Python's number and path of it."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def did_you_mean(found: object, known: Iterable[object]) -> str | None:
    """Near matches of `found` among `known`, as a question; None where nothing is near."""
    meant = str(found)
    if len(meant) > _LONGEST_NAME:
        return None
    names = [name for name in map(str, islice(known, _MOST_NAMES)) if len(name) <= _LONGEST_NAME]
    near = get_close_matches(meant, names, n=3, cutoff=0.6)
    return f"did you mean {quoted(near, ' or ')}?" if near else None


def near_or_all(found: object, known: Collection[object], several: str) -> str:
    """Near matches as `did_you_mean` writes them, or else all that is known, of several such."""
    return did_you_mean(found, known) or f"the {several} are {quoted(known) or 'none'}"


def check_name(
    found: str, known: Iterable[str], what: str, where: str, *, several: str | None = None
) -> None:
    """Raise InputError unless `found` is among the known; `several` is the plural of `what`."""
    names = list(known)
    if found not in names:
        hint = near_or_all(found, names, several or f"{what}s")
        raise InputError(f"unknown {what} {found!r}", where=where, hint=hint)


def quoted(names: Iterable[object], joint: str = ", ") -> str:
    """Join names, each in single quotes with control characters escaped, for a message.

    Of very many, the first are named and the rest is counted.
    """
    each = [short_repr(str(name)) for name in names]
    more = len(each) - _MOST_QUOTED
    return joint.join(each[:_MOST_QUOTED]) + (f" and {more} more" if more > 0 else "")


def short_repr(value: object) -> str:
    """Write a value from a file for a message, as Python does, and no more of it than fits."""
    try:
        return truncate(repr(value), _LONGEST_VALUE)
    except (RecursionError, ValueError):  # an integer of very many digits has no decimal text
        return f"a value ({type(value).__name__}) too large to be shown"


def truncate(text: str, most: int) -> str:
    """Cut a text that is longer than `most` letters, and say so."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} letters)"


def printable(text: object) -> str:
    r"""Escape what a terminal would obey or garble: `\x1b`, `\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
