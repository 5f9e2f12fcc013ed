"""Where each cell's memory is at its peak, as tables: by category, and the heaviest modules."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdbench.analysis.aggregate import CellGroup, group_cells
from kdbench.analysis.breakdown import Breakdown, Part, breakdowns, folded, missing_note
from kdbench.analysis.results import Results
from kdbench.common.errors import InputError
from kdbench.common.text import printable
from kdbench.common.units import format_value

MOST_MODULES = 10
_COLUMNS = (
    "matrix",
    "environment_id",
    "environment_name",
    "label",
    "name",
    "run_key",
    "kind",
    "part",
    "bytes",
    "blocks",
    "share",
)


def summary(results: Results) -> pd.DataFrame:
    """Put the peaks into one row per part of a cell's memory.

    Returns:
        `matrix`, `environment_id`, `environment_name`, `label` and `name` of the cell, the
        `run_key` that it is of, `kind` (category, module, unattributed, or scratch, which is a
        part of unattributed), `part` (its name), `bytes`, `blocks` (how many storages) and
        `share` of the ledger's peak (0 to 1). The
        categories of a cell come to its peak; of its modules the ten with most bytes are there.

    Raises:
        InputError: no cell has a ledger's rows.
    """
    rows = [row for item in _found(results, group_cells(results)) for row in _rows(item)]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).convert_dtypes()


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
        "mode": group.mode,
        "run_key": item.run_key,
    }
    for kind, parts in (("category", item.categories), ("module", item.modules[:MOST_MODULES])):
        for part in parts:
            share = part.size / item.attributed
            own = {"kind": kind, "part": part.name, "bytes": part.size, "blocks": part.blocks}
            yield {**cell, **own, "share": share}
    for kind, size in (("unattributed", item.unattributed), ("scratch", item.scratch)):
        if size is not None:
            share = size / item.attributed
            own = {"kind": kind, "part": None, "bytes": size, "blocks": None}
            yield {**cell, **own, "share": share}


def _table(item: Breakdown) -> RenderableType:
    group = item.group
    title = f"{group.name}: {format_value(item.attributed, 'bytes')} at the peak of a step"
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", overflow="fold")
    for name in ("bytes", "share", "blocks"):
        table.add_column(name, justify="right", no_wrap=True)
    _add(table, item.categories, item)
    beyond = (
        ("unattributed, beyond the peak", item.unattributed),
        ("  of it scratch within operations", item.scratch or None),
    )
    for name, size in beyond:
        if size is not None:
            table.add_row(*_cells(Part(name, size, 0), item)[:3], "", style="dim")
    table.add_section()
    kinds = folded(item.modules)
    for kind, count in kinds[:MOST_MODULES]:
        name = f"{kind.name} ({count} of them)" if count > 1 else kind.name
        table.add_row(*_cells(replace(kind, name=name), item))
    more = sum(count for _, count in kinds[MOST_MODULES:])
    where = f"{printable(group.matrix)}, {group.origin}"
    rest = f"; {more} more modules hold less" if more > 0 else ""
    return Group(Text(printable(title), style="bold"), table, Text(where + rest, style="dim"), "")


def _add(table: Table, parts: Sequence[Part], item: Breakdown) -> None:
    for part in parts:
        table.add_row(*_cells(part, item))


def _cells(part: Part, item: Breakdown) -> tuple[Text, str, str, str]:
    share = format_value(part.size / item.attributed, "fraction")
    return Text(printable(part.name)), format_value(part.size, "bytes"), share, str(part.blocks)
