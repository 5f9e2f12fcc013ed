"""Text: read from files of users, names that they give, lines safe to show and folded well."""

import re
import unicodedata

from kdbench.common.errors import short_repr

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

# A name becomes part of a label and of a file's path.
_NAME, _LONGEST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*"), 80
_MARKS = ((b"\xff\xfe\0\0", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


def decode_text(raw: bytes) -> str:
    """Decode UTF-8 with or without a byte order mark; a ValueError names what else it is."""
    for mark, name in _MARKS:
        if raw.startswith(mark):
            raise ValueError(
                f"expected UTF-8 text, found {name}, which PowerShell's > writes; save it as UTF-8"
            )
    if b"\0" in raw:
        raise ValueError("expected text, found binary data")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from None


def validate_name(text: str) -> str:
    """Return a valid name; raises ValueError, suggesting a near one."""
    if is_name(text):
        return text
    near = suggest_name(text)
    raise ValueError(
        "expected a name of letters from A to Z, digits and any of . _ + -, with a letter or digit "
        f"first and at most {_LONGEST_NAME} in all, found {short_repr(text)}"
        + (f"; {near!r} would do" if near else "")
    )


def is_name(text: str) -> bool:
    """Whether a text may be a name."""
    return bool(_NAME.fullmatch(text)) and len(text) <= _LONGEST_NAME


def suggest_name(text: str) -> str | None:
    """Make a name of a text that is none; None where nothing of it may be in a name."""
    plain = unicodedata.normalize("NFKD", text[: 4 * _LONGEST_NAME])
    plain = plain.encode("ascii", "ignore").decode()
    parts = re.findall(r"[A-Za-z0-9._+-]+", plain)
    name = "-".join(parts).lstrip("._+-")[:_LONGEST_NAME].rstrip("._+-")
    return name or None


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


def fit_encoding(text: str, encoding: str | None) -> str:
    r"""Write a text in what an encoding has: `×` as `x`, a letter without likeness as `\u5b66`."""
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
    return re.findall(rf"[^{breaks}]*[{breaks}]|[^{breaks}]+", text)
