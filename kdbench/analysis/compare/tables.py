"""A comparison as tables, for people."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdbench.analysis import markup
from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.cell_tables import run_marks, starred
from kdbench.analysis.compare.comparison import Compared, Comparison, Pair, Sheet
from kdbench.analysis.compare.notes import elsewhere_notes, notes_of, place_lines, title_of
from kdbench.analysis.estimates import format_estimate
from kdbench.analysis.rich_tables import FittedTable, Label, new_table
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
        style = "red" if "environment differs" in line else "not bold dim"
        heading.append(f"\n{line}", style=style)
    parts: list[RenderableType] = [heading, ""]
    if sheet.pairs:

        def draw(shown: Sequence[str]) -> Table:
            return _table(sheet.pairs, shown)

        parts += [FittedTable(draw, {head: head for head in _HEAD}, _FIRST_LEFT_OUT), ""]
    return Group(*parts, Text("\n".join(notes_of(sheet)), style="dim"))


def _table(pairs: Sequence[Pair], shown: Sequence[str]) -> Table:
    # the last one's head is its longest text, by far
    table = new_table("cell", *(head.replace(", ", ",\n") for head in shown))
    places = [_HEAD.index(head) for head in shown]
    for pair in pairs:
        table.add_section()
        changes = [Text(f"  {change}", style="yellow") for change in pair.changed]
        label = Label(starred(pair.name, pair.before), below=changes, style="bold")
        runs = (_runs(pair.before), _runs(pair.after), "", "")
        table.add_row(label, *(runs[place] for place in places))
        for one in pair.compared:
            texts = [Text(t, style="bold" if one.is_significant else "") for t in _figures(one)]
            name = Label(one.metric.title.lower(), indent="  ")
            table.add_row(name, *(texts[place] for place in places))
    return table


def _runs(group: CellGroup) -> Text:
    text = Text(f"{group.runs} run{'' if group.runs == 1 else 's'}", style="dim")
    return Text().append_text(text).append_text(run_marks(group))


def _figures(one: Compared) -> tuple[str, str, str, str]:
    """Write before, after, ratio, and the interval or what stands in its place."""
    if one.exact:
        last = f"{one.difference:+,.0f} B" if one.difference else "the same"
    elif one.interval is not None:
        last = " to ".join(map(format_factor, one.interval))
    else:
        last = one.no_interval or ""
    before, after = (format_estimate(side, one.metric) for side in (one.before, one.after))
    return before, after, format_factor(one.ratio), last


def _markdown_rows(pair: Pair) -> Iterator[tuple[str, ...]]:
    changed = f" ({'; '.join(map(str, pair.changed))})" if pair.changed else ""
    name = starred(pair.name, pair.before) + changed
    runs = (_runs(group).plain.replace("\n", ", ") for group in (pair.before, pair.after))
    yield (name, "runs", *runs, "", "")
    for one in pair.compared:
        yield (name, one.metric.title.lower(), *_figures(one))
