"""A matrix file as a document: read, a preset laid over it, single values set."""

import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.common.errors import InputError, did_you_mean, quoted, short_repr, truncate
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
    where = display_path(path)
    try:
        raw = _read(path)
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        hint = _near_files(path) if isinstance(error, FileNotFoundError) else None
        raise InputError(f"cannot read the {kind}: {reason}", where=where, hint=hint) from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"expected a {kind} of at most {MAX_BYTES} bytes, found more", where=where)
    try:
        text = decode_text(raw)
    except ValueError as error:
        raise InputError(str(error), where=where) from None
    if not text.strip():
        raise InputError(f"expected a {kind}, found it empty", where=where)
    try:
        document = tomllib.loads(text)
    except (RecursionError, ValueError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"not valid TOML: {told}", where=where) from None
    _check_values(document, where=where)
    return document


def is_stream(path: Path) -> bool:
    """Whether a path is the standard input or a pipe: it is read once, and has no name to keep."""
    return path == STANDARD_INPUT or (path.parent in _OWN_FILES and not path.is_file())


def display_path(path: Path) -> Path:
    """Return how messages name a file."""
    return Path("standard input") if path == STANDARD_INPUT else path


def _read(path: Path) -> bytes:
    if path == STANDARD_INPUT:
        with open(0, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    if path.is_dir():
        raise InputError("expected a TOML file, found a folder", where=path, hint=_inside(path))
    # Any other pipe or device may never end; one of this process's own has somebody who writes.
    if path.exists() and not path.is_file():
        own = path.parent in _OWN_FILES and stat.S_ISFIFO(path.stat().st_mode)
        if not own:
            raise InputError("expected a TOML file, found something else", where=path)
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _near_files(path: Path) -> str:
    folder = path.parent
    names = [file.name for file in folder.glob("*.toml")] if folder.is_dir() else []
    near = did_you_mean(path.name, names)
    return near or "the benchmarks/ folder has some to start from"


def _inside(folder: Path) -> str | None:
    names = sorted(file.name for file in folder.glob("*.toml"))
    return f"it has {quoted(names)}" if names else None


def _check_values(document: Document, *, where: object, prefix: str = "") -> None:
    """Check nesting and integers, table by table and not by recursion."""
    waiting: list[tuple[str, int, Any]] = [(prefix, 0, document)]
    while waiting:
        key, level, node = waiting.pop()
        if isinstance(node, dict):
            inside = [(f"{key}.{name}" if key else name, value) for name, value in node.items()]
        elif isinstance(node, list):
            inside = [(f"{key}[{index}]", value) for index, value in enumerate(node)]
        else:
            if isinstance(node, int) and abs(node) > _LARGEST:
                raise InputError("expected at most 64 bits, found more", where=where, key=key)
            continue
        if level == _MOST_LEVELS:
            raise InputError(
                f"expected at most {_MOST_LEVELS} levels of tables and lists, found more",
                where=where,
                key=key,
            )
        waiting += [(name, level + 1, value) for name, value in inside]


def apply_preset(document: Document, preset: str | None, *, where: object) -> Document:
    """Lay `[presets.NAME]` over the file: tables merge, everything else is replaced."""
    presets = document.get("presets", {})
    base = {key: value for key, value in document.items() if key != "presets"}
    if not isinstance(presets, dict):
        raise InputError(
            f"expected a table, found {short_repr(presets)}", where=where, key="presets"
        )
    if len(presets) > _MOST_PRESETS:
        problem = f"expected at most {_MOST_PRESETS} presets, found {len(presets)}"
        raise InputError(problem, where=where, key="presets")
    if preset is None:
        return base
    if preset not in presets:
        hint = did_you_mean(preset, presets) or (
            f"this file has {quoted(presets)}" if presets else "this file has none"
        )
        raise InputError(f"unknown preset {preset!r}", where=where, key="presets", hint=hint)
    override = presets[preset]
    if not isinstance(override, dict):
        raise InputError(
            f"expected a table, found {short_repr(override)}", where=where, key=f"presets.{preset}"
        )
    return _merged(base, override)


def apply_assignments(document: Document, assignments: Sequence[str]) -> Document:
    """Apply `KEY=VALUE` strings: a dotted path into the file and a TOML value each."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise InputError(
                f"expected KEY=VALUE, found {short_repr(assignment)}",
                where="--set",
                hint="for instance --set training.batch_size=32",
            )
        parts = key.split(".")
        if len(parts) > _MOST_LEVELS:
            problem = f"expected at most {_MOST_LEVELS} parts of a key, found {len(parts)}"
            raise InputError(problem, where="--set", key=key)
        override: Document = {parts[-1]: _toml_value(text, key)}
        _check_values(override, where="--set", prefix=".".join(parts[:-1]))
        for part in reversed(parts[:-1]):
            override = {part: override}
        _check_path(document, key)
        document = _merged(document, override)
    return document


def _toml_value(text: str, key: str) -> Any:  # noqa: ANN401
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        parsed = {}
    if set(parsed) != {"value"}:
        raise InputError(
            f"expected a TOML value, found {short_repr(text)}",
            where="--set",
            key=key,
            hint=f"""a string needs quotes: --set '{key}="{truncate(text.strip(), 80)}"'""",
        )
    return parsed["value"]


def _check_path(document: Mapping[str, Any], key: str) -> None:
    node: Any = document
    for depth, part in enumerate(key.split(".")[:-1], start=1):
        node = node.get(part, {})
        if not isinstance(node, dict):
            raise InputError(
                f"{'.'.join(key.split('.')[:depth])} is {short_repr(node)}, "
                "no table to set a key in",
                where="--set",
                key=key,
            )


def _merged(base: Document, override: Document) -> Document:
    result = dict(base)
    for key, value in override.items():
        known = result.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        result[key] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return result
