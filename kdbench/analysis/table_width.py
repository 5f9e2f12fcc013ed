"""Tables that fit their terminal: labels are folded first, then columns are left out."""

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kdbench.common.text import fold_label

LABEL_WIDTH = 34
# The widest table, of trainings on a GPU, then still fits a terminal of 100 columns.
_LEAST_LABEL_WIDTH = 13


def fit_columns(
    draw: Callable[[Sequence[str]], Table],
    columns: Sequence[str],
    first_left_out: Sequence[str],
    console: Console,
    options: ConsoleOptions,
) -> tuple[Table, list[str], list[str]]:
    """Draw a table with as many columns as fit; `first_left_out` go first, in that order.

    Returns the table, its columns, and those that were left out.
    """
    shown, left_out = list(columns), list[str]()
    table = draw(shown)
    for name in first_left_out:
        if _least_width(table, console, options) <= options.max_width:
            break
        if name in shown:
            shown.remove(name)
            left_out.append(name)
            table = draw(shown)
    return table, shown, left_out


def left_out_note(titles: Sequence[str]) -> str:
    """Say what a table lacks for want of room."""
    return f"too narrow for all: {'; '.join(titles)} (--format csv has them)"


def _least_width(table: Table, console: Console, options: ConsoleOptions) -> int:
    """Of a table of which only the labels, in the first column, may be folded."""
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

    Args:
        text: the name.
        below: whole lines under it, such as what changed.
        style: of the name.
        indent: of each line.
    """

    def __init__(
        self, text: str, *, below: Sequence[Text] = (), style: str = "", indent: str = ""
    ) -> None:
        self._text, self._below, self._style, self._indent = text, below, style, indent

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = self._lines(min(LABEL_WIDTH, options.max_width))
        yield Text("\n".join(lines), style=self._style)
        yield from self._below

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        lines = [*self._lines(LABEL_WIDTH), *(str(line) for line in self._below)]
        most = min(max(len(line) for line in lines), LABEL_WIDTH, options.max_width)
        return Measurement(min(_LEAST_LABEL_WIDTH, most), most)

    def _lines(self, width: int) -> list[str]:
        room = max(1, width - len(self._indent))
        return [self._indent + line for line in fold_label(self._text, room)]
