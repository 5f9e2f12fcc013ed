"""Text from results made safe to show, and folded where a reader expects it."""

from __future__ import annotations

from kdbench.errors import printable

__all__ = ["fold_label", "printable"]


def fold_label(label: str, width: int) -> list[str]:
    """Fold a label into lines of at most `width`.

    It is cut behind slashes and spaces, a longer part behind its hyphens, and what is longer
    still anywhere.
    """
    lines = [""]
    for part in _parts(label, "/ "):
        pieces = _parts(part, "-") if len(part.rstrip()) > width else [part]
        for piece in pieces:
            if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
                lines.append("")
            rest = lines.pop() + piece
            while len(rest.rstrip()) > width:
                lines.append(rest[:width])
                rest = rest[width:]
            lines.append(rest)
    return [line.strip() for line in lines if line.strip()]


def _parts(text: str, breaks: str) -> list[str]:
    """Cut behind each of some characters, keeping them."""
    parts = [""]
    for character in text:
        parts[-1] += character
        if character in breaks:
            parts.append("")
    return [part for part in parts if part]
