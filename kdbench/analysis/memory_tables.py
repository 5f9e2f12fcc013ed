"""Tables of where each cell's memory is at its peak: by category, and the heaviest modules."""

from collections.abc import Iterator, Sequence

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from kdbench.analysis.aggregate import CellGroup, group_cells
from kdbench.analysis.breakdown import Breakdown, breakdowns, folded, missing_note
from kdbench.analysis.results import Results
from kdbench.analysis.rich_tables import new_table
from kdbench.common.errors import InputError, printable
from kdbench.common.units import format_value

MOST_MODULES = 10


def summary(results: Results) -> pd.DataFrame:
    """Put the peaks into one row per part of a cell's memory.

    Returns:
        `matrix`, `environment_id`, `environment_name`, `label` and `name` of the cell, the
        `run_key` that it is of, `kind` (category, module, unattributed, or scratch, which is a
        part of unattributed), `part` (its name), `bytes`, `blocks` (how many storages) and
        `share` of the ledger's peak (0 to 1). The categories of a cell come to its peak; of its
        modules the ten with most bytes are there. Raises InputError if no cell has a ledger's rows.
    """
    rows = [row for item in _found(results, group_cells(results)) for row in _rows(item)]
    return pd.DataFrame(rows).convert_dtypes()


def render(results: Results) -> list[RenderableType]:
    """Draw one table per cell; raises InputError if none has a ledger's rows."""
    groups = group_cells(results)
    found = _found(results, groups)
    notes = missing_note(groups, found)
    tables = [_table(item) for item in found]
    return [*tables, Text(printable("; ".join(notes)), style="dim")] if notes else tables


def _found(results: Results, groups: Sequence[CellGroup]) -> list[Breakdown]:
    found = breakdowns(results, groups)
    if not found:
        raise InputError(
            "no run that finished has a ledger's rows of memory",
            where="--memory",
            hint="kdbench show without it lists what there is",
        )
    return found


def _rows(item: Breakdown) -> Iterator[dict[str, object]]:
    group = item.group
    cell = {
        "matrix": group.matrix,
        "environment_id": group.environment.id,
        "environment_name": group.environment.name,
        "label": group.label,
        "name": group.name,
        "run_key": item.run_key,
    }
    found: list[tuple[str, str | None, int | None, int | None]] = [
        *(("category", part.name, part.size, part.blocks) for part in item.categories),
        *(("module", part.name, part.size, part.blocks) for part in item.modules[:MOST_MODULES]),
        ("unattributed", None, item.unattributed, None),
        ("scratch", None, item.scratch, None),
    ]
    for kind, name, size, blocks in found:
        if size is not None:
            own = {"kind": kind, "part": name, "bytes": size, "blocks": blocks}
            yield {**cell, **own, "share": size / item.attributed}


def _table(item: Breakdown) -> RenderableType:
    group = item.group
    table = new_table("", "bytes", "share", "blocks")

    def add(name: str, size: int, blocks: object, style: str | None = None) -> None:
        share = format_value(size / item.attributed, "fraction")
        figures = (format_value(size, "bytes"), share, str(blocks))
        table.add_row(Text(printable(name)), *figures, style=style)

    for part in item.categories:
        add(part.name, part.size, part.blocks)
    if item.unattributed is not None:
        add("unattributed, beyond the peak", item.unattributed, "", "dim")
    if item.scratch:
        add("  of it scratch within operations", item.scratch, "", "dim")
    table.add_section()
    kinds = folded(item.modules)
    for kind, count in kinds[:MOST_MODULES]:
        name = f"{kind.name} ({count} of them)" if count > 1 else kind.name
        add(name, kind.size, kind.blocks)
    more = sum(count for _, count in kinds[MOST_MODULES:])
    title = f"{group.name}: {format_value(item.attributed, 'bytes')} at the peak of a step"
    where = f"{printable(group.matrix)}, {group.origin}"
    rest = f"; {more} more modules hold less" if more > 0 else ""
    return Group(Text(printable(title), style="bold"), table, Text(where + rest, style="dim"), "")
