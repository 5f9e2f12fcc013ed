"""A comparison as a tidy frame, for programs."""

from collections.abc import Iterator, Sequence

import pandas as pd

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.cell_tables import count_flagged, status_of
from kdbench.analysis.compare.comparison import Compared, Comparison, Pair, Sheet
from kdbench.analysis.compare.notes import SIDES
from kdbench.analysis.compare.places import Place
from kdbench.analysis.metrics import Metric

_Row = dict[str, object]


def summary(comparison: Comparison) -> pd.DataFrame:
    """Join the two sides on matrix, label and metric: a row for each that either side has.

    Returns:
        `matrix`, `label`, `metric`, its `column` of `cells` and `unit`, `has` (both, before or
        after), `before` and `after` in base units, `ratio` (after over before) with `ratio_low` and
        `ratio_high` (95 % interval over processes) or `no_interval` (why there is none),
        `difference` (after minus before) and `exact`; `changed_settings` and `environment_differs`
        in words; then what is known of each side, its name behind `before_` or `after_`. A cell
        without any of the metrics has one row, without a metric. Missing is null.
    """
    rows: list[_Row] = []
    for sheet in comparison.sheets:
        rows += [row for pair in sheet.pairs for row in _pair_rows(sheet, pair)]
        alone = [sheet.only, *sheet.unclear]
        both = ([group for cells in alone for group in cells[side]] for side in (0, 1))
        rows += _lone_rows(comparison.metrics, *both)
    rows += _lone_rows(comparison.metrics, *comparison.only)
    return pd.DataFrame(rows).convert_dtypes()


def _pair_rows(sheet: Sheet, pair: Pair) -> Iterator[_Row]:
    words = {
        "changed_settings": "; ".join(map(str, pair.changed)) or None,
        "environment_differs": "; ".join(map(str, sheet.changed)) or None,
    }
    found: list[tuple[Metric | None, Compared | None]] = [(c.metric, c) for c in pair.compared]
    found += [(metric, None) for metric, _ in pair.missing]
    for metric, compared in found or [(None, None)]:
        yield _row(pair.before, pair.after, metric, compared) | words


def _lone_rows(
    metrics: Sequence[Metric], before: Sequence[CellGroup], after: Sequence[CellGroup]
) -> Iterator[_Row]:
    alone = [(group, None) for group in before] + [(None, group) for group in after]
    for one, other in alone:
        group = one or other
        found = [metric for metric in metrics if group and metric.name in group.estimates]
        yield from (_row(one, other, metric) for metric in found or (None,))


def _row(
    before: CellGroup | None,
    after: CellGroup | None,
    metric: Metric | None = None,
    compared: Compared | None = None,
) -> _Row:
    cells = [group for group in (before, after) if group is not None]
    low, high = (compared.interval if compared else None) or (None, None)
    row: _Row = {
        "matrix": cells[0].matrix,
        "label": cells[0].label,
        "metric": metric.name if metric else None,
        "column": metric.column if metric else None,
        "unit": metric.unit if metric else None,
        "has": _has(before, after, metric),
        "before": before.value(metric.name) if before and metric else None,
        "after": after.value(metric.name) if after and metric else None,
        "ratio": compared.ratio if compared else None,
        "ratio_low": low,
        "ratio_high": high,
        "no_interval": compared.no_interval if compared else None,
        "difference": compared.difference if compared else None,
        "exact": compared.exact if compared else None,
        "changed_settings": None,
        "environment_differs": None,
    }
    for side, group in zip(SIDES, (before, after), strict=True):
        row |= {f"{side}_{key}": value for key, value in _known(group, metric).items()}
    return row


def _has(before: CellGroup | None, after: CellGroup | None, metric: Metric | None) -> str:
    there = [
        g is not None and (metric is None or metric.name in g.estimates) for g in (before, after)
    ]
    return "both" if all(there) else SIDES[there.index(True)]


def _known(group: CellGroup | None, metric: Metric | None) -> _Row:
    """Say how one side came to its value; all null of a side without the cell."""
    estimate = group.estimates.get(metric.name) if group and metric else None
    low, high = (estimate.interval if estimate else None) or (None, None)
    environment, settings = group and group.environment, group.settings if group else {}
    return {
        "low": low,
        "high": high,
        "count": estimate.count if estimate else None,
        "how": ", ".join(estimate.sources) or None if estimate else None,
        "extrapolated": estimate.extrapolated if estimate else None,
        "matrix": group and group.matrix,
        "label": group and group.label,
        "cell_id": settings.get("cell_id"),
        "source": settings.get("source"),
        "profile": settings.get("profile"),
        "runs": group and group.runs,
        "finished": group and group.finished,
        "status": group and status_of(group),
        "contended": group and count_flagged(group, "contended"),
        "unstable": group and count_flagged(group, "unstable"),
        "environment_id": environment and environment.id,
        "place": group and Place.of(group).title,
    }
