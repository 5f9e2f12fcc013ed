"""Predictions as a table: what each cell needs, and what fits."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kdbench.common.text import fold_label, printable
from kdbench.common.units import MISSING, format_value

Row = Mapping[str, Any]

# What the table shows, and under which heading; csv and json have more.
_SHOWN = {
    "allocated_peak_bytes": "allocated",
    "reserved_peak_bytes": "reserved",
    "first_allocated_peak_bytes": "first step",
    "precompute_peak_bytes": "precompute",
}
_LABEL_WIDTH = 28
_FIT = ("needs_bytes", "fits", "largest_batch", "whole_data")
COLUMNS = (
    "label",
    "profile",
    "status",
    "error",
    *_SHOWN,
    "parameter_bytes",
    "first_reserved_peak_bytes",
    "flops_step",
    "operations_step",
    "bytes_moved_step",
    "caveats",
)


def records(cells: Sequence[Row], fits: Sequence[Row | None]) -> list[dict[str, Any]]:
    """Put the figures of each predicted cell into one record, with those of any fit."""
    return [
        {name: cell[name] for name in COLUMNS}
        | ({} if fit is None else {name: fit[name] for name in _FIT})
        for cell, fit in zip(cells, fits, strict=True)
    ]


def render(
    cells: Sequence[Row], fits: Sequence[Row | None], *, title: str, capacity: str | None
) -> list[RenderableType]:
    """Draw the table of predicted cells, its notes below; `capacity` is as the user wrote it."""
    known = [cell for cell in cells if cell["status"] == "ok"]
    shown = [name for name in _SHOWN if any(cell[name] is not None for cell in known)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("peak of a step", no_wrap=True)
    for name in shown:
        table.add_column(_SHOWN[name], justify="right", no_wrap=True)
    if capacity is not None:
        table.add_column(printable(capacity), justify="right", no_wrap=True)
        table.add_column("batch", justify="right", no_wrap=True)
    for cell, fit in zip(cells, fits, strict=True):
        if cell["status"] == "ok":
            table.add_row(*_cells(cell, shown), *([] if capacity is None else _fit(fit)))
    parts: list[RenderableType] = [Text(printable(title), style="bold")]
    if known:
        parts.append(table)
    parts += [
        Text(printable(f"{cell['label']}: {cell['error']}"), style="red")
        for cell in cells
        if cell["status"] != "ok"
    ]
    notes = _notes(known)
    if capacity is not None:
        notes.insert(0, f"batch: the largest that fits into {capacity}, all phases included")
    told = "\n".join(printable(note) for note in notes)
    return [*parts, Text(told, style="dim")] if notes else parts


def _cells(cell: Row, shown: Sequence[str]) -> list[Text | str]:
    sizes = [format_value(cell[name], "bytes") for name in shown]
    label = fold_label(printable(cell["label"]), _LABEL_WIDTH)
    return [Text("\n".join(label)), *sizes]


def _fit(fit: Row | None) -> list[str]:
    if fit is None:
        return [MISSING, MISSING]
    largest = fit["largest_batch"]
    least = ">= " if fit["whole_data"] else ""
    return [
        "fits" if fit["fits"] else "no",
        "none" if largest is None else f"{least}{largest:,}",
    ]


def _notes(cells: Sequence[Row]) -> list[str]:
    """Tell each caveat once, with how many cells it is of."""
    told: dict[str, int] = {}
    for cell in cells:
        for caveat in (cell["caveats"] or "").split("; "):
            if caveat:
                told[caveat] = told.get(caveat, 0) + 1
    return [
        caveat if count == len(cells) else f"{caveat} ({count} of {len(cells)} cells)"
        for caveat, count in told.items()
    ]
