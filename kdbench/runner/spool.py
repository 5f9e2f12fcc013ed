"""Reads what processes write: JSON lines, of which the last may be incomplete, and logs."""

import json
from pathlib import Path
from typing import Any


class EventTail:
    """Reads the lines that were added since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the new complete lines."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        return parse_lines(whole)


def parse_lines(text: bytes) -> list[dict[str, Any]]:
    """Parse JSON lines; drop what is no object, such as the line in which the writer died."""
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; return none if it does not exist."""
    try:
        return parse_lines(path.read_bytes())
    except FileNotFoundError:
        return []


def last_words(log: Path, otherwise: str = "it said nothing") -> str:
    """Return a log's last line of text; `otherwise` for an empty one."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else otherwise


def last_line(path: Path) -> dict[str, Any] | None:
    """Return the newest complete line of a growing file, or None."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            end = file.read()
    except OSError:
        return None
    rows = parse_lines(end[: end.rfind(b"\n") + 1])
    return rows[-1] if rows else None
