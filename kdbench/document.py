"""A matrix file as a document: read, a preset laid over it, single values set."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import InputError, did_you_mean, quoted

Document = dict[str, Any]

# A matrix file is a page of text; whatever is larger is not one.
MAX_BYTES = 1_000_000


def read_document(path: Path) -> Document:
    """Read a TOML file.

    Raises:
        InputError: it is missing, unreadable, too large or not TOML.
    """
    try:
        if path.is_dir():
            raise InputError("expected a TOML file, found a folder", where=path)
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"cannot read the matrix file: {reason}",
            where=path,
            hint="the benchmarks/ folder has some to start from",
        ) from None
    if len(raw) > MAX_BYTES:
        raise InputError(
            f"expected a matrix file of at most {MAX_BYTES} bytes, found more", where=path
        )
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", where=path) from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"not valid TOML: {error or 'nested too deeply'}", where=path) from None


def with_preset(document: Document, preset: str | None, *, where: object) -> Document:
    """Lay `[presets.NAME]` over the file: tables merge, everything else is replaced."""
    presets = document.get("presets", {})
    base = {key: value for key, value in document.items() if key != "presets"}
    if not isinstance(presets, dict):
        raise InputError(f"expected a table, found {presets!r}", where=where, key="presets")
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
            f"expected a table, found {override!r}", where=where, key=f"presets.{preset}"
        )
    return _merged(base, override)


def with_assignments(document: Document, assignments: Sequence[str]) -> Document:
    """Apply `KEY=VALUE` strings: a dotted path into the file and a TOML value each.

    Raises:
        InputError: no `=`, a value that is not TOML, or a path through something not a table.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise InputError(
                f"expected KEY=VALUE, found {assignment!r}",
                where="--set",
                hint="for instance --set training.batch_size=32",
            )
        override: Document = {key.split(".")[-1]: _toml_value(text, key)}
        for part in reversed(key.split(".")[:-1]):
            override = {part: override}
        _check_path(document, key)
        document = _merged(document, override)
    return document


def _toml_value(text: str, key: str) -> Any:  # noqa: ANN401
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = {}
    if set(parsed) != {"value"}:
        raise InputError(
            f"expected a TOML value, found {text!r}",
            where="--set",
            key=key,
            hint=f"""a string needs quotes: --set '{key}="{text.strip()}"'""",
        )
    return parsed["value"]


def _check_path(document: Mapping[str, Any], key: str) -> None:
    node: Any = document
    for depth, part in enumerate(key.split(".")[:-1], start=1):
        node = node.get(part, {})
        if not isinstance(node, dict):
            raise InputError(
                f"{'.'.join(key.split('.')[:depth])} is {node!r}, no table to set a key in",
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
