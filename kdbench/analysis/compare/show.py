"""A comparison as tables, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdbench.analysis import markup
from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.compare.comparison import Compared, Comparison, Pair, Sheet
from kdbench.analysis.compare.notes import elsewhere_notes, notes_of, place_lines, title_of
from kdbench.analysis.doubts import format_estimate
from kdbench.analysis.estimates import Estimate
from kdbench.analysis.metrics import Metric
from kdbench.analysis.show import run_marks
from kdbench.units import format_factor
from kdbench.words import fold_label

_HEAD = ("before", "after", "ratio", "95 % interval, or difference")
_LABEL_WIDTH = 34


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
        parts += [_table(sheet.pairs), ""]
    return Group(*parts, Text("\n".join(notes_of(sheet)), style="dim"))


def _table(pairs: Sequence[Pair]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("cell", overflow="fold", max_width=_LABEL_WIDTH)
    for head in _HEAD:
        table.add_column(head, justify="right")
    for pair in pairs:
        table.add_section()
        table.add_row(_label(pair), _runs(pair.before), _runs(pair.after))
        for one in pair.compared:
            style = "bold" if one.tells else ""
            texts = [Text(text, style=style) for text in _figures(one)]
            table.add_row(Text(f"  {one.metric.title.lower()}"), *texts)
    return table


def _label(pair: Pair) -> Text:
    mark = "*" if pair.before.settings["student_inferred"] else ""
    text = Text("\n".join(fold_label(pair.name + mark, _LABEL_WIDTH)), style="bold")
    for change in pair.changed:
        text.append(f"\n  {change}", style="not bold yellow")
    return text


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
