"""Tables for a terminal: one look, and columns that fit its width."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kdbench.common.text import fold_label

_LABEL_WIDTH = 34
# The widest table, of trainings on a GPU, then still fits a terminal of 100 columns.
_LEAST_LABEL_WIDTH = 13


def new_table(first: str, *numbers: str, **look: Any) -> Table:  # noqa: ANN401 - rich's own options
    """Make an empty table of a column of names and some of numbers, by their heads."""
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), **look
    )
    table.add_column(first, overflow="fold")
    for head in numbers:
        table.add_column(head, justify="right", no_wrap=True)
    return table


class FittedTable:
    """A table that fits its terminal: labels are folded first, then columns are left out.

    Args:
        draw: draws it with some of its columns.
        columns: what a note calls each column that is left out.
        first_left_out: the columns that may be, the first one first.
        notes: writes the notes below it, a line each, for the columns that are there.
    """

    def __init__(
        self,
        draw: Callable[[Sequence[str]], Table],
        columns: Mapping[str, str],
        first_left_out: Sequence[str],
        notes: Callable[[Sequence[str]], list[str]] | None = None,
    ) -> None:
        self._draw, self._columns, self._notes = draw, columns, notes
        self._first_left_out = [name for name in first_left_out if name in columns]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        shown, left_out = list(self._columns), list[str]()
        table = self._draw(shown)
        for name in self._first_left_out:
            if _least_width(table, console, options) <= options.max_width:
                break
            shown.remove(name)
            left_out.append(self._columns[name])
            table = self._draw(shown)
        yield table
        lines = []
        if self._notes is not None:
            yield ""
            lines = self._notes(shown)
        if left_out:
            lines.append(f"too narrow for all: {'; '.join(left_out)} (--format csv has them)")
        if lines:
            yield Text("\n".join(lines), style="dim")


def _least_width(table: Table, console: Console, options: ConsoleOptions) -> int:
    """Measure a table of which only the labels, in the first column, may be folded."""
    widest = options.update(width=1000)
    labels = [
        Measurement.get(console, widest, cell)
        for cell in table.columns[0].cells
        if isinstance(cell, Label)
    ]
    folded = max(label.maximum for label in labels) - max(label.minimum for label in labels)
    return Measurement.get(console, widest, table).maximum - folded


class Label:
    """A name, folded behind its slashes into whatever width the table leaves it.

    `below` are whole lines under it, such as what changed.
    """

    def __init__(
        self, text: str, *, below: Sequence[Text] = (), style: str = "", indent: str = ""
    ) -> None:
        self._text, self._below, self._style, self._indent = text, below, style, indent

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = self._lines(min(_LABEL_WIDTH, options.max_width))
        yield Text("\n".join(lines), style=self._style)
        yield from self._below

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        lines = [*self._lines(_LABEL_WIDTH), *(str(line) for line in self._below)]
        most = min(max(len(line) for line in lines), _LABEL_WIDTH, options.max_width)
        return Measurement(min(_LEAST_LABEL_WIDTH, most), most)

    def _lines(self, width: int) -> list[str]:
        room = max(1, width - len(self._indent))
        return [self._indent + line for line in fold_label(self._text, room)]
