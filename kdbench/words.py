"""Text from results made safe to show, and folded where a reader expects it."""

from __future__ import annotations

from kdbench.errors import printable

__all__ = ["encodable", "fold_label", "printable"]

# What stands in for signs that a stream's encoding lacks. None of it means anything to CSV, JSON,
# markdown or LaTeX.
_PLAIN = str.maketrans(
    {
        **dict(zip("×÷·⋅•−–—‐‑‘’“”µμ₁₂", "x/..*-----''''uu12", strict=True)),
        "\N{NO-BREAK SPACE}": " ",
        "…": "...",
        "±": "+/-",
        "α": "alpha",
        "→": "->",
        "←": "<-",
        "≥": ">=",
        "≤": "<=",
        "✓": "ok",
        "✗": "no",
        # rich's frames of a spinner, bars and rules
        **dict(zip("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\|/-\\|/", strict=True)),
        **dict.fromkeys("─━═╸╺", "-"),
        **dict.fromkeys("│┃║", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╇╪╋┏┓┗┛┡┩", "+"),
    }
)


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


def encodable(text: str, encoding: str | None) -> str:
    r"""Write a text in what an encoding has: `×` as `x`, a letter without any likeness as `\u5b66`.

    Args:
        text: what is to be written.
        encoding: its name; None takes everything.
    """
    if encoding is None or _fits(text, encoding):
        return text
    return "".join(c if _fits(c, encoding) else _escaped(c.translate(_PLAIN)) for c in text)


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _escaped(text: str) -> str:
    return text if text.isascii() else text.encode("unicode_escape").decode("ascii")


def _parts(text: str, breaks: str) -> list[str]:
    """Cut behind each of some characters, keeping them."""
    parts = [""]
    for character in text:
        parts[-1] += character
        if character in breaks:
            parts.append("")
    return [part for part in parts if part]
