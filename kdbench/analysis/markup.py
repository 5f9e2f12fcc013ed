"""A table written as markdown or LaTeX, with all that these would obey escaped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kdbench.common.errors import printable


@dataclass(frozen=True)
class Table:
    """A table as text, before it is written in some format."""

    title: str  #: its caption
    head: tuple[str, ...]  #: the columns' heads
    numeric: tuple[bool, ...]  #: which columns are numbers, and so stand at the right
    rows: tuple[tuple[str, ...], ...]  #: the cells, as plain text
    notes: tuple[str, ...] = ()  #: what its marks mean


def markdown(table: Table) -> str:
    """Write a table with its title above and its notes below."""
    rows = [[markdown_text(text) for text in row] for row in (table.head, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(table.head))]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if numeric else text.ljust(width)
            for text, width, numeric in zip(row, widths, table.numeric, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + ":" if numeric else "-" * width
        for width, numeric in zip(widths, table.numeric, strict=True)
    ]
    body = [line(rows[0]), line(rule), *(line(row) for row in rows[1:])]
    notes = [text for note in table.notes for text in ("", markdown_text(note))]
    return "\n".join([f"**{markdown_text(table.title)}**", "", *body, *notes])


def markdown_text(text: str) -> str:
    """Escape what markdown would obey."""
    return _escaped(text, _MARKDOWN)


def latex(table: Table) -> str:
    """Write a `table` with the rules of the booktabs package."""
    columns = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [
        " & ".join(_escaped(text, _LATEX) for text in row) for row in (table.head, *table.rows)
    ]
    # a bracket or an asterisk would go to the end of the row before
    rows = ["{}" * line.startswith(("[", "*")) + line + r" \\" for line in lines]
    notes = [rf"\par\smallskip\footnotesize {_escaped(note, _LATEX)}" for note in table.notes]
    head = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(table.title, _LATEX)}}}"]
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    foot = [r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}"]
    return "\n".join([*head, *body, *foot])


# One letter at a time, so that what an escape puts in is never escaped again.
_LATEX = {
    **{c: rf"\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "|": r"\textbar{}",
}
_MARKDOWN = {c: rf"\{c}" for c in "\\|*_`<[]&~$#"}


def _escaped(text: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(c, c) for c in printable(text))


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex}
