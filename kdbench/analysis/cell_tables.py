"""Results as tables: a tidy frame for programs, rich tables for people."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kdbench.analysis.aggregate import CellGroup, group_cells
from kdbench.analysis.estimates import OFF, format_estimate, format_spread
from kdbench.analysis.metrics import METRICS, Metric
from kdbench.analysis.notes import table_notes
from kdbench.analysis.reference import Payback, check_reference, find_reference, payback
from kdbench.analysis.results import Results
from kdbench.analysis.rich_tables import FittedTable, Label, new_table
from kdbench.common.errors import printable
from kdbench.common.units import MISSING, format_ratio

# Shown always; the others only where some cell has a number.
_MAIN = ("step_time", "epoch_time", "parameters", "allocated", "host")
_COLUMNS = (
    "step_time",
    "fastest_step",
    *_MAIN[1:],
    "process",
    "device",
    "precompute_time",
    "utilisation",
    "accuracy",
)
# Where a terminal is too narrow for all, these go in this order; a table says less without a label.
_FIRST_LEFT_OUT = (
    *("utilisation", "host", "device", "precompute_time", "process", "fastest_step"),
    *("parameters", "epoch_time", "accuracy", "allocated", "step_time"),
)


def summary(results: Results, *, reference: str | None = None) -> pd.DataFrame:
    """Put the results into one row per cell and environment.

    `reference` is the label of the cell that ratios are taken to; by default the first Teacher-KD
    cell of each matrix and environment. Raises InputError if no cell has it.

    Returns:
        The cell's settings, `runs`, `finished`, `retried` (earlier attempts that failed, and are
        not in `runs`), `status`, `error`, `contended`, `unstable` and `suspended` (how many of the
        finished runs are), `contention`, `reference`, `yardstick` (what utilisation is a share of,
        in operations per second), then for each metric its column of `cells` in base units,
        `<column>_low` and `_high` (95 % interval over processes), `_n` (runs behind it, of
        accuracies seeds), `_min` and `_max` of these, `_marks` (why it has no ratio: contended,
        disagree, yardstick unsure, yardstick off) and `_ratio` (over the reference), then
        `payback_steps` and `payback_epochs`, where the runs agree about them, and the `_low` and
        `_high` ends of what they allow for. Missing is null.
    """
    groups = group_cells(results)
    check_reference(groups, reference)
    rows = []
    for sheet in _sheets(groups):
        against = find_reference(sheet, reference)
        rows += [_summary_row(group, sheet, against) for group in sheet]
    return pd.DataFrame(rows).convert_dtypes()


def render(results: Results, *, reference: str | None = None) -> list[RenderableType]:
    """Draw one table per matrix, environment and mode, its notes below it."""
    groups = group_cells(results)
    check_reference(groups, reference)
    return [_rendered(sheet, find_reference(sheet, reference)) for sheet in _sheets(groups)]


def _sheets(groups: Sequence[CellGroup]) -> Iterable[list[CellGroup]]:
    sheets: dict[tuple[str, str, str], list[CellGroup]] = {}
    for group in groups:
        sheets.setdefault((group.matrix, group.environment.id, group.mode), []).append(group)
    return sheets.values()


def _summary_row(
    group: CellGroup, sheet: Sequence[CellGroup], reference: CellGroup | None
) -> dict[str, object]:
    row: dict[str, object] = {
        "matrix": group.matrix,
        "environment_id": group.environment.id,
        "environment_name": group.environment.name,
        "label": group.label,
        "name": group.name,
        **group.settings,
        "runs": group.runs,
        "finished": group.finished,
        "retried": group.retried,
        "status": status_of(group),
        "error": "; ".join(error for _, error, _ in group.problems if error) or None,
        "contended": count_flagged(group, "contended"),
        "contention": "; ".join(words for _, words, _ in group.flags if words) or None,
        "unstable": count_flagged(group, "unstable"),
        "suspended": count_flagged(group, "suspended"),
        "reference": reference.name if reference else None,
        "yardstick": group.yardstick,
    }
    for name, metric in METRICS.items():
        estimate = group.estimates.get(name)
        low, high = (estimate.interval if estimate else None) or (None, None)
        least, most = estimate.ends if estimate else (None, None)
        off = OFF if _is_off(group, metric) else None
        figures: dict[str, object] = {
            "": estimate.value if estimate else None,
            "_low": low,
            "_high": high,
            "_n": estimate.count if estimate else None,
            "_min": least,
            "_max": most,
            "_marks": (", ".join(estimate.marks) or None) if estimate else off,
            "_ratio": group.ratio_to(reference, name),
        }
        row |= {f"{metric.column}{end}": value for end, value in figures.items()}
        # Several metrics share a source or a kind: one that has no number says nothing of it.
        if metric.source_column and (estimate or metric.source_column not in row):
            row[metric.source_column] = ", ".join(estimate.sources) if estimate else None
        if metric.kind_column and (estimate or metric.kind_column not in row):
            kinds = {True: "extrapolated", False: "measured"}
            row[metric.kind_column] = kinds[estimate.extrapolated] if estimate else None
    return row | _payback_columns(payback(group, sheet))


def _is_off(group: CellGroup, metric: Metric) -> bool:
    """Whether a cell's utilisation would be above 1, or another's by the same yardstick."""
    return metric.name == "utilisation" and group.yardstick_off


def _payback_columns(found: Payback | None) -> dict[str, object]:
    """Say when a precompute pays. Never is no number: what saves nothing pays nothing back."""
    low, high = found.ends if found and not found.contended else (math.inf, math.inf)
    steps = found.steps if found and found.is_one_number else math.inf
    per_epoch = found.per_epoch if found else None
    row: dict[str, object] = {}
    for end, count in (("", steps), ("_low", low), ("_high", high)):
        known = math.isfinite(count)
        row[f"payback_steps{end}"] = count if known else None
        row[f"payback_epochs{end}"] = count / per_epoch if known and per_epoch else None
    return row


def count_flagged(group: CellGroup, flag: str) -> int:
    """Count the finished runs that are contended, unstable, or have suspended steps."""
    return sum(count for name, _, count in group.flags if name == flag)


def status_of(group: CellGroup) -> str:
    """Say `ok`, or how the runs ended: `2 ok, 1 oom`."""
    counts = Counter({"ok": group.finished} if group.finished else {})
    for status, _, count in group.problems:
        counts[status] += count
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _rendered(sheet: Sequence[CellGroup], reference: CellGroup | None) -> FittedTable:
    columns = {
        name: METRICS[name].title.lower()
        for name in _COLUMNS
        if name in _MAIN or any(name in g.estimates or _is_off(g, METRICS[name]) for g in sheet)
    }

    def draw(shown: Sequence[str]) -> Table:
        heads = (METRICS[name].short for name in shown)
        title = Text(printable(f"{sheet[0].matrix}, {sheet[0].origin}"))
        table = new_table("cell", "runs", *heads, title=title, title_justify="left", leading=1)
        for group in sheet:
            numbers = (_figure(group, reference, METRICS[name]) for name in shown)
            runs = Text(str(group.runs)).append_text(run_marks(group))
            table.add_row(Label(starred(group.name, group)), runs, *numbers)
        return table

    def notes(shown: Sequence[str]) -> list[str]:
        return table_notes(sheet, reference, [METRICS[name] for name in shown])

    return FittedTable(draw, columns, _FIRST_LEFT_OUT, notes)


def starred(name: str, group: CellGroup) -> str:
    """Mark the name of a cell whose student's shape is inferred; a footnote explains the mark."""
    return name + "*" * bool(group.settings["student_inferred"])


def run_marks(group: CellGroup) -> Text:
    """Say how runs ended, if not well, and how many are flagged: a line each, behind a break."""
    text = Text()
    if group.problems:
        text.append("\n" + printable(status_of(group)).replace(", ", "\n"), style="bold red")
    for flag in dict.fromkeys(name for name, _, _ in group.flags):
        count = count_flagged(group, flag)
        counted = flag if group.finished == 1 else f"{count} {flag}"
        text.append(f"\n{counted}", style="yellow")
    return text


def _figure(group: CellGroup, reference: CellGroup | None, metric: Metric) -> Text:
    estimate = group.estimates.get(metric.name)
    if estimate is None:
        return Text("off" if _is_off(group, metric) else MISSING, style="dim")
    text = Text(format_estimate(estimate, metric), style="dim" if estimate.marks else "")
    between = format_spread(estimate, metric)
    text.append(f"\n{between}" if between else "", style="dim")
    if group is reference:
        return text.append("\nref", style="dim")
    against = format_ratio(group.ratio_to(reference, metric.name))
    return text.append(f"\n{against}", style="dim") if against else text
