"""A comparison as tables, for people."""

from collections.abc import Iterator, Sequence
from functools import partial

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdbench.analysis import markup
from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.cell_tables import run_marks
from kdbench.analysis.compare.comparison import Compared, Comparison, Pair, Sheet
from kdbench.analysis.compare.notes import elsewhere_notes, notes_of, place_lines, title_of
from kdbench.analysis.estimates import Estimate
from kdbench.analysis.metrics import Metric
from kdbench.analysis.table_width import Label, fit_columns, left_out_note
from kdbench.analysis.uncertainty import format_estimate
from kdbench.common.units import format_factor

_HEAD = ("before", "after", "ratio", "95 % interval, or difference")
# Where a terminal is too narrow for all, these go in this order.
_FIRST_LEFT_OUT = (_HEAD[3], _HEAD[0], _HEAD[1])


def render(comparison: Comparison) -> list[RenderableType]:
    """Draw a table for each matrix and environment, its notes below it."""
    parts = [_rendered(comparison, sheet) for sheet in comparison.sheets]
    lines = elsewhere_notes(comparison)
    return [*parts, Text("\n".join(lines), style="dim")] if lines else parts


def markdown(comparison: Comparison) -> str:
    """Write the same tables as markdown."""
    written = []
    for sheet in comparison.sheets:
        table = markup.Table(
            title=title_of(comparison, sheet),
            head=("cell", "metric", *_HEAD),
            numeric=(False, False, True, True, True, True),
            rows=tuple(row for pair in sheet.pairs for row in _markdown_rows(pair)),
            notes=(*place_lines(sheet), *notes_of(sheet)),
        )
        written.append(markup.markdown(table))
    return "\n\n".join([*written, *map(markup.markdown_text, elsewhere_notes(comparison))])


def _rendered(comparison: Comparison, sheet: Sheet) -> RenderableType:
    before, after = sheet.places
    loud = bool(sheet.changed) or before.source != after.source
    heading = Text(title_of(comparison, sheet), style="bold red" if loud else "italic")
    for line in place_lines(sheet):
        heading.append(
            f"\n{line}", style="red" if "environment differs" in line else "not bold dim"
        )
    parts: list[RenderableType] = [heading, ""]
    if sheet.pairs:
        parts += [_Fitting(sheet.pairs), ""]
    return Group(*parts, Text("\n".join(notes_of(sheet)), style="dim"))


class _Fitting:
    """The table of a sheet, with as many columns as there is room for."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        draw = partial(_table, self._pairs)
        table, _, left_out = fit_columns(draw, _HEAD, _FIRST_LEFT_OUT, console, options)
        yield table
        if left_out:
            yield Text(left_out_note(left_out), style="dim")


def _table(pairs: Sequence[Pair], shown: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("cell", overflow="fold")
    for head in shown:
        # the last one's head is its longest text, by far
        table.add_column(head.replace(", ", ",\n"), justify="right", no_wrap=True)
    places = [_HEAD.index(head) for head in shown]
    for pair in pairs:
        table.add_section()
        runs = (_runs(pair.before), _runs(pair.after), Text(), Text())
        table.add_row(_label(pair), *(runs[place] for place in places))
        for one in pair.compared:
            style = "bold" if one.tells else ""
            texts = [Text(text, style=style) for text in _figures(one)]
            name = Label(one.metric.title.lower(), indent="  ")
            table.add_row(name, *(texts[place] for place in places))
    return table


def _label(pair: Pair) -> Label:
    mark = "*" if pair.before.settings["student_inferred"] else ""
    changes = [Text(f"  {change}", style="yellow") for change in pair.changed]
    return Label(pair.name + mark, below=changes, style="bold")


def _runs(group: CellGroup) -> Text:
    text = Text(f"{group.runs} run{'' if group.runs == 1 else 's'}", style="dim")
    return Text().append_text(text).append_text(run_marks(group))


def _figures(one: Compared) -> tuple[str, str, str, str]:
    """Write before, after, ratio, and the interval or what stands in its place."""
    return (
        _value(one.before, one.metric),
        _value(one.after, one.metric),
        format_factor(one.ratio),
        _last(one),
    )


def _value(estimate: Estimate, metric: Metric) -> str:
    return format_estimate(estimate, metric)


def _last(one: Compared) -> str:
    if one.exact:
        return f"{one.difference:+,.0f} B" if one.difference else "the same"
    if one.interval is None:
        return one.no_interval or ""
    low, high = one.interval
    return f"{format_factor(low)} to {format_factor(high)}"


def _markdown_rows(pair: Pair) -> Iterator[tuple[str, ...]]:
    changed = f" ({'; '.join(map(str, pair.changed))})" if pair.changed else ""
    name = pair.name + ("*" if pair.before.settings["student_inferred"] else "") + changed
    runs = (_runs(group).plain.replace("\n", ", ") for group in (pair.before, pair.after))
    yield (name, "runs", *runs, "", "")
    for one in pair.compared:
        yield (name, one.metric.title.lower(), *_figures(one))
