"""A matrix file as a document: read, a preset laid over it, single values set."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.common.errors import (
    InputError,
    did_you_mean,
    located,
    os_reason,
    quoted,
    short_repr,
    truncate,
)
from kdbench.common.text import decode_text

Document = dict[str, Any]

# A matrix file is a page of text; whatever is larger is not one.
MAX_BYTES = 1_000_000
STANDARD_INPUT = Path("-")
# where a process finds what it has open
_OWN_FILES = (Path("/dev/fd"), Path("/proc/self/fd"))
# So deep nobody nests on purpose, and every preset is checked whenever the file is read.
_MOST_LEVELS = 16
_MOST_PRESETS = 256
# What TOML promises of an integer; Python reads others, and cannot even write them in a message.
_LARGEST = 2**63 - 1


def read_document(path: Path, *, kind: str = "matrix file") -> Document:
    """Read a TOML file (`-`: the standard input; a pipe will do); `kind` names it in messages.

    Raises InputError if it is missing, unreadable, too large or not TOML, or holds what no TOML
    file of ours can: nesting without end, integers of more than 64 bits.
    """
    with located(display_path(path)):
        text = _read_text(path, kind)
        try:
            document = tomllib.loads(text)
        except (RecursionError, ValueError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            raise InputError(f"not valid TOML: {reason}") from None
        _check_values(document)
    return document


def is_stream(path: Path) -> bool:
    """Whether a path is the standard input or a pipe: it is read once, and has no name to keep."""
    return path == STANDARD_INPUT or (path.parent in _OWN_FILES and not path.is_file())


def display_path(path: Path) -> Path:
    """Return how messages name a file."""
    return Path("standard input") if path == STANDARD_INPUT else path


def _read_text(path: Path, kind: str) -> str:
    try:
        raw = _read(path)
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        hint = _near_files(path) if isinstance(error, FileNotFoundError) else None
        raise InputError(f"cannot read the {kind}: {os_reason(error)}", hint=hint) from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"expected a {kind} of at most {MAX_BYTES} bytes, found more")
    try:
        text = decode_text(raw)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not text.strip():
        raise InputError(f"expected a {kind}, found it empty")
    return text


def _read(path: Path) -> bytes:
    if path == STANDARD_INPUT:
        with open(0, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.toml"))
        hint = f"it has {quoted(names)}" if names else None
        raise InputError("expected a TOML file, found a folder", hint=hint)
    # Any other pipe or device may never end; one of this process's own has somebody who writes.
    own = path.parent in _OWN_FILES and path.is_fifo()
    if path.exists() and not path.is_file() and not own:
        raise InputError("expected a TOML file, found something else")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _near_files(path: Path) -> str:
    near = did_you_mean(path.name, [file.name for file in path.parent.glob("*.toml")])
    return near or "the benchmarks/ folder has some to start from"


def _check_values(node: object, key: str = "", level: int = 0) -> None:
    """Check nesting and integers; `key` is where in the file the node is."""
    if isinstance(node, int) and abs(node) > _LARGEST:
        raise InputError("expected at most 64 bits, found more", key=key)
    if not isinstance(node, dict | list):
        return
    if level == _MOST_LEVELS:
        problem = f"expected at most {_MOST_LEVELS} levels of tables and lists, found more"
        raise InputError(problem, key=key)
    if isinstance(node, dict):
        inside = [(f"{key}.{name}" if key else name, value) for name, value in node.items()]
    else:
        inside = [(f"{key}[{index}]", value) for index, value in enumerate(node)]
    for name, value in inside:
        _check_values(value, name, level + 1)


def apply_preset(document: Document, preset: str | None) -> Document:
    """Lay `[presets.NAME]` over the file: tables merge, everything else is replaced."""
    presets = _table(document.get("presets", {}), "presets")
    base = {key: value for key, value in document.items() if key != "presets"}
    if len(presets) > _MOST_PRESETS:
        problem = f"expected at most {_MOST_PRESETS} presets, found {len(presets)}"
        raise InputError(problem, key="presets")
    if preset is None:
        return base
    if preset not in presets:
        hint = did_you_mean(preset, presets) or f"this file has {quoted(presets) or 'none'}"
        raise InputError(f"unknown preset {preset!r}", key="presets", hint=hint)
    return _merged(base, _table(presets[preset], f"presets.{preset}"))


def _table(value: object, key: str) -> Document:
    if not isinstance(value, dict):
        raise InputError(f"expected a table, found {short_repr(value)}", key=key)
    return value


def apply_assignments(document: Document, assignments: Sequence[str]) -> Document:
    """Apply `KEY=VALUE` strings: a dotted path into the file and a TOML value each."""
    with located("--set"):
        for assignment in assignments:
            document = _merged(document, _override(document, assignment))
    return document


def _override(document: Document, assignment: str) -> Document:
    """Make the tables around an assigned value; none of them may be a value in the document."""
    key, equals, text = assignment.partition("=")
    key = key.strip()
    *outer, last = key.split(".")
    if not equals or not last or not all(outer):
        raise InputError(
            f"expected KEY=VALUE, found {short_repr(assignment)}",
            hint="for instance --set training.batch_size=32",
        )
    if len(outer) >= _MOST_LEVELS:
        problem = f"expected at most {_MOST_LEVELS} parts of a key, found {len(outer) + 1}"
        raise InputError(problem, key=key)
    override: Document = {last: _toml_value(text, key)}
    _check_values(override, ".".join(outer))
    node: Any = document
    for depth, part in enumerate(outer, start=1):
        node = node.get(part, {})
        if not isinstance(node, dict):
            found = f"{'.'.join(outer[:depth])} is {short_repr(node)}"
            raise InputError(f"{found}, no table to set a key in", key=key)
    for part in reversed(outer):
        override = {part: override}
    return override


def _toml_value(text: str, key: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (RecursionError, ValueError):
        parsed = {}
    if set(parsed) != {"value"}:
        raise InputError(
            f"expected a TOML value, found {short_repr(text)}",
            key=key,
            hint=f"""a string needs quotes: --set '{key}="{truncate(text.strip(), 80)}"'""",
        )
    return parsed["value"]


def _merged(base: Document, override: Document) -> Document:
    result = dict(base)
    for key, value in override.items():
        known = result.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        result[key] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return result
