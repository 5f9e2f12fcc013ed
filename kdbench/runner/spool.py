"""What a running cell has written so far: JSON lines that grow, the last one perhaps cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class EventTail:
    """Reads the lines that were added since the last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the new whole lines; half a line waits for its other half."""
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
    """Parse JSON lines; a line that is not one object is dropped: its writer died in it."""
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
    """Read a whole file of JSON lines; none where there is no file."""
    try:
        return parse_lines(path.read_bytes())
    except FileNotFoundError:
        return []


def last_line(path: Path) -> dict[str, Any] | None:
    """Return the newest whole line of a file that is being written; None if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            end = file.read()
    except OSError:
        return None
    rows = parse_lines(end[: end.rfind(b"\n") + 1])
    return rows[-1] if rows else None
