"""A baseline's text before its lines are read: is it one, is it ours, is it whole?"""

import re
from collections.abc import Sequence
from pathlib import Path

from kdbench.common.errors import InputError
from kdbench.common.text import decode_text

# Thousands of cells; whatever is larger was not written by a gate, and is not read into memory.
MAX_BYTES = 64_000_000

# What people name instead of a baseline, by how it begins.
_FOREIGN = (
    (r"<{7}|={7}|>{7}", "an unresolved merge conflict", "resolve it, or write it anew: --update"),
    (r"version https://git-lfs", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
    (r"\s*[\[{]\s*(\"|$|[\]}\d-])", "JSON", None),
    (r"\s*(\[|[\w.-]+\s*=)", "TOML", "the matrix file goes to --matrix"),
    (r"\s*<", "XML or HTML", None),
)


def read_text(path: Path) -> str:
    """Read a baseline's text; raises InputError if it is missing, too large, empty or no text."""
    if path.is_dir():
        raise InputError("expected a baseline file, found a folder", where=path)
    if path.exists() and not path.is_file():  # a pipe or a device: it may never end
        raise InputError("expected a baseline file, found something else", where=path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        hint = "the same command with --update writes one"
        raise InputError("no baseline there", where=path, hint=hint) from None
    except OSError as error:
        told = (error.strerror or str(error)).lower()
        raise InputError(f"cannot read the baseline: {told}", where=path) from None
    if len(raw) > MAX_BYTES:
        raise InputError(
            f"expected a baseline of at most {MAX_BYTES} bytes, found more", where=path
        )
    try:
        text = decode_text(raw).replace("\r\n", "\n")
    except ValueError as error:
        raise InputError(f"not a baseline: {error}", where=path) from None
    if not text.strip():
        hint = "--update writes it anew"
        raise InputError("the baseline is empty", where=path, hint=hint)
    return text


def check_first_line(line: str, path: Path, *, magic: str, version: int) -> None:
    """Raise InputError unless the file is a baseline of the format that is read here."""
    name, _, told = line.partition(" ")
    if name != magic:
        kind, hint = next(
            ((kind, hint) for begin, kind, hint in _FOREIGN if re.match(begin, line)),
            (repr(line[:40]), None),
        )
        problem = f"not a baseline: expected its first line to be '{magic} {version}', found {kind}"
        raise InputError(problem, where=path, hint=hint)
    if not re.fullmatch(r"[0-9]{1,9}", told):
        raise _wrong(path, 1, f"expected a format version, found {told[:40]!r}")
    if int(told) > version:
        hint = "use that newer kdbench, or write the baseline anew: --update"
        raise _wrong(path, 1, f"format {told} is newer than {version}, which is read here", hint)
    if int(told) < version:
        hint = "write the baseline anew: --update"
        raise _wrong(path, 1, f"format {told} is older than {version}, which is read here", hint)


def check_last_line(lines: Sequence[str], path: Path) -> int:
    """Check the count of lines at the file's end, and return the index of that line."""
    end = max(index for index, line in enumerate(lines) if line.strip())
    found = re.fullmatch(r"end ([0-9]{1,9}) lines", lines[end])
    hint = "restore it, or write it anew: --update"
    if found is None:
        problem = f"expected 'end N lines' as the last line, found {lines[end][:40]!r}: cut off"
        raise _wrong(path, end + 1, problem, hint)
    there = sum(not is_idle(line) for line in lines[1:end])
    if there != int(found[1]):
        problem = f"expected {found[1]} lines above, found {there}"
        raise _wrong(path, end + 1, problem, hint)
    return end


def is_idle(line: str) -> bool:
    """Whether a line says nothing: blank, or a comment."""
    return not line.strip() or line.startswith("#")


def _wrong(path: Path, number: int, problem: str, hint: str | None = None) -> InputError:
    return InputError(problem, where=f"{path}: line {number}", hint=hint)
