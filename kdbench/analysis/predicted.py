"""Predictions as a table: what each cell needs, and what fits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from kdbench.analysis.rich_tables import new_table
from kdbench.common.errors import printable
from kdbench.common.text import fold_label
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
    *("label", "profile", "status", "error", *_SHOWN, "parameter_bytes"),
    *("first_reserved_peak_bytes", "flops_step", "operations_step", "bytes_moved_step", "caveats"),
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
    fitting = [] if capacity is None else [printable(capacity), "batch"]
    table = new_table("peak of a step", *(_SHOWN[name] for name in shown), *fitting)
    table.columns[0].no_wrap = True
    for cell, fit in zip(cells, fits, strict=True):
        if cell["status"] == "ok":
            label = Text("\n".join(fold_label(printable(cell["label"]), _LABEL_WIDTH)))
            sizes = (format_value(cell[name], "bytes") for name in shown)
            table.add_row(label, *sizes, *([] if capacity is None else _fit(fit)))
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
    text = "\n".join(printable(note) for note in notes)
    return [*parts, Text(text, style="dim")] if notes else parts


def _fit(fit: Row | None) -> list[str]:
    if fit is None:
        return [MISSING, MISSING]
    largest = fit["largest_batch"]
    least = ">= " if fit["whole_data"] else ""
    return ["fits" if fit["fits"] else "no", "none" if largest is None else f"{least}{largest:,}"]


def _notes(cells: Sequence[Row]) -> list[str]:
    """List each caveat once, with how many cells it is of."""
    counts = Counter(c for cell in cells for c in (cell["caveats"] or "").split("; ") if c)
    return [
        caveat if count == len(cells) else f"{caveat} ({count} of {len(cells)} cells)"
        for caveat, count in counts.items()
    ]
