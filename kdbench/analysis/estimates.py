"""One number from several runs, with its interval over processes or seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, TypeGuard

from kdbench.analysis.metrics import Metric
from kdbench.stats import FEWEST_PROCESSES, mean_interval, median_interval
from kdbench.words import printable


@dataclass(frozen=True)
class Estimate:
    """A metric of a cell, in base units.

    Attributes:
        value: median over the runs that finished; of accuracy the mean over seeds.
        interval: 95 % interval of that value over processes; None where there are too few.
        count: how many runs (of accuracy: seeds) are behind it.
        ends: the least and the greatest of them.
        extrapolated: some of it was worked out from fewer steps or batches.
        sources: how it was got, in the schema's words.
    """

    value: float
    interval: tuple[float, float] | None
    count: int
    ends: tuple[float, float]
    extrapolated: bool
    sources: tuple[str, ...]


def estimate_of(rows: Sequence[Mapping[str, Any]], metric: Metric) -> Estimate | None:
    """Put the finished runs of a cell into one number; None where none has one."""
    known = [row for row in rows if is_number(row[metric.column])]
    if not known:
        return None
    if metric.computed_once is not None:
        known = _computed_once(known, *metric.computed_once)
    values = [float(row[metric.column]) for row in known]
    if metric.over_seeds:
        values = seed_means(known, metric.column)
        value, interval = fmean(values), mean_interval(values)
    else:
        value = median(values)
        # The median's own interval: that of the mean need not even hold the median. By order
        # statistics it exists from 6 processes on.
        interval = median_interval(values) if len(values) >= FEWEST_PROCESSES else None
    kinds = {row[metric.kind_column] for row in known} if metric.kind_column else set()
    sources = {row[metric.source_column] for row in known} if metric.source_column else set()
    return Estimate(
        value=value,
        interval=interval,
        count=len(values),
        ends=(min(values), max(values)),
        extrapolated="extrapolated" in kinds,
        sources=tuple(sorted(map(printable, sources - {None}))),
    )


def _computed_once(
    rows: Sequence[Mapping[str, Any]], reused: str, key: str
) -> list[Mapping[str, Any]]:
    """Keep each computation once: runs that reuse one do not measure it again."""
    kept = [row for row in rows if row[reused] is not True]
    seen = {row[key] for row in kept}
    for row in rows:
        if row[reused] is True and row[key] not in seen:
            seen.add(row[key])
            kept.append(row)
    return kept


def seed_means(rows: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    """Average over the repeats of each seed: they are no independent trainings."""
    seeds: dict[int, list[float]] = {}
    for row in rows:
        if is_number(row[column]):
            seeds.setdefault(row["seed"], []).append(float(row[column]))
    return [fmean(seeds[seed]) for seed in sorted(seeds)]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is there and finite."""
    return isinstance(value, int | float) and math.isfinite(value)
