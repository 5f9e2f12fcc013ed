"""One number from several runs, with its interval over processes or seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, TypeGuard

from kdbench.analysis.metrics import Metric
from kdbench.common.errors import printable
from kdbench.common.stats import MAX_AGREEING_RATIO, MIN_PROCESSES, mean_interval, median_interval
from kdbench.common.units import format_interval, format_value

# What is wrong with a yardstick: a step beats it; or it was measured with others at work, or its
# best tries disagreed, in every run.
OFF, UNSURE = "yardstick off", "yardstick unsure"


@dataclass(frozen=True)
class Estimate:
    """A metric of a cell, in base units."""

    value: float  #: median over the runs that finished; of accuracy the mean over seeds
    #: 95 % interval of that value over processes; None where there are too few
    interval: tuple[float, float] | None
    values: tuple[float, ...]  #: of each run behind it (of accuracy: each seed)
    #: of each run that is not, since it was contended and others were not
    disturbed: tuple[float, ...]
    extrapolated: bool  #: some of it was worked out from fewer steps or batches
    sources: tuple[str, ...]  #: how it was measured, in the schema's words
    #: why no ratio is drawn from it: contended (every run behind it was), disagree (its runs lie
    #: too far apart), or what is wrong with the yardstick of a utilisation; empty: one is
    marks: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many runs (of accuracy: seeds) are behind it."""
        return len(self.values)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest of them."""
        return min(self.values), max(self.values)


def estimate_of(rows: Sequence[Mapping[str, Any]], metric: Metric) -> Estimate | None:
    """Put the finished runs of a cell into one number; None where none has one."""
    known = [row for row in rows if is_number(row[metric.column])]
    if not known:
        return None
    if metric.computed_once is not None:
        known = _computed_once(known, *metric.computed_once)
    # A contended run only says how long it takes at most: it counts where there is no other.
    contended = [row for row in known if metric.is_disturbed and row["contended"]]
    marks, disturbed = list[str](), tuple[float, ...]()
    if len(contended) == len(known):
        marks.append("contended")
    elif contended:
        disturbed = tuple(float(row[metric.column]) for row in contended)
        known = [row for row in known if not row["contended"]]
    values = [float(row[metric.column]) for row in known]
    if metric.over_seeds:
        values = seed_means(known, metric.column)
        value, interval = fmean(values), mean_interval(values)
    else:
        value = median(values)
        # The median's own interval: that of the mean need not even hold the median. By order
        # statistics it exists from 6 processes on.
        interval = median_interval(values) if len(values) >= MIN_PROCESSES else None
        if not agree(interval or (min(values), max(values))):
            marks.append("disagree")
    if metric.name == "utilisation":
        marks += sorted({row["utilisation_issue"] for row in known} - {None})
    kinds = {row[metric.kind_column] for row in known} if metric.kind_column else set()
    sources = {row[metric.source_column] for row in known} if metric.source_column else set()
    return Estimate(
        value=value,
        interval=interval,
        values=tuple(values),
        disturbed=disturbed,
        extrapolated="extrapolated" in kinds,
        sources=tuple(sorted(map(printable, sources - {None}))),
        marks=tuple(marks),
    )


def agree(ends: tuple[float, float]) -> bool:
    """Whether runs lie no further apart than processes that measure the same may."""
    low, high = ends
    return high <= MAX_AGREEING_RATIO * low if low > 0 else low == high


def format_estimate(estimate: Estimate, metric: Metric) -> str:
    """Write a number with its marks: `~` for extrapolated, `?` for one that has no ratio."""
    before, behind = "~" * estimate.extrapolated, "?" * bool(estimate.marks)
    return f"{before}{format_value(estimate.value, metric.unit)}{behind}"


def format_spread(estimate: Estimate, metric: Metric) -> str:
    """Write an interval, `264–271`, or the range of too few runs for one, `264 to 271`.

    Empty for one run, and where the ends do not differ in the digits shown.
    """
    if estimate.interval is not None:
        return format_interval(estimate.interval, estimate.value, metric.unit)
    return format_interval(estimate.ends, estimate.value, metric.unit).replace("–", " to ")


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
