"""The runs of one cell in one environment, put together into one number per metric."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import fmean, median
from typing import Any

from kdbench.analysis.environments import Environment
from kdbench.analysis.metrics import METRICS, Metric
from kdbench.analysis.results import Results
from kdbench.schema import PLAN_COLUMNS
from kdbench.stats import FEWEST_PROCESSES, mean_interval, median_interval, ratio
from kdbench.words import printable

_METHOD_ORDER = ("teacher-kd", "embed-kd", "student-only")
# Not settings of a cell, or the same for all rows of a group.
_NOT_SETTINGS = ("label", "matrix", "seed", "repeat", "device", "launch")
SETTINGS = tuple(c.name for c in PLAN_COLUMNS if c.name not in _NOT_SETTINGS)


@dataclass(frozen=True)
class Estimate:
    """A metric of a cell, in base units.

    Attributes:
        value: median over the runs that finished; of accuracy the mean over seeds.
        interval: 95 % interval of that value over processes; None where there are too few.
        count: how many runs (of accuracy: seeds) are behind it.
        extrapolated: some of it was worked out from fewer steps or batches.
        sources: how it was got, in the schema's words.
    """

    value: float
    interval: tuple[float, float] | None
    count: int
    extrapolated: bool
    sources: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class CellGroup:
    """All runs of one cell in one environment.

    A label that several cells of a matrix share (its settings were changed between runs) makes a
    group for each; `name` then says what differs, and is unique within matrix and environment.

    Attributes:
        name: the label, made unique and safe to print.
        settings: the cell's columns of the plan.
        runs: how many count; of each seed and repeat the latest.
        finished: how many of those are ok; numbers come from these alone.
        older: how many earlier runs of the same seed and repeat were left out.
        problems: (status, error) of each run that is not ok, with how often.
        estimates: what there are numbers for, by metric name.
        revisions: the revisions of kdbench that measured.
        started: when its first and its last run started.
    """

    matrix: str
    environment: Environment
    label: str
    name: str
    settings: Mapping[str, Any]
    runs: int
    finished: int
    older: int
    problems: tuple[tuple[str, str | None, int], ...]
    estimates: Mapping[str, Estimate]
    student_parameters: int | None
    revisions: tuple[str, ...]
    started: tuple[datetime, datetime]

    @property
    def method(self) -> str:
        """How the teacher is used."""
        return str(self.settings["method"])

    def value(self, metric: str) -> float | None:
        """Return the value of a metric in base units; None where there is none."""
        estimate = self.estimates.get(metric)
        return estimate.value if estimate else None

    def ratio_to(self, reference: CellGroup | None, metric: str) -> float | None:
        """Divide the value by the reference's; None where either is missing."""
        return ratio(self.value(metric), reference.value(metric) if reference else None)


def group_cells(results: Results) -> list[CellGroup]:
    """Put runs together by matrix, environment and cell, never across.

    Returns:
        Groups in a fixed order: matrix, environment, then method, student (the smaller first),
        image size, teacher, label.
    """
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in results.records():
        # Mode and source are no part of cell_id, and still no two of them belong in one number.
        key = ("matrix", "environment_id", "label", "cell_id", "mode", "source")
        rows.setdefault(tuple(row[k] for k in key), []).append(row)
    groups = [_group(found, results.known[key[1]]) for key, found in rows.items()]
    sizes: dict[str, int] = {}
    for group in groups:
        if group.student_parameters is not None:
            student = str(group.settings["student"])
            sizes[student] = min(
                group.student_parameters, sizes.get(student, group.student_parameters)
            )
    return _with_names(sorted(groups, key=lambda group: _order(group, sizes)))


def _group(rows: list[dict[str, Any]], environment: Environment) -> CellGroup:
    # Another budget or another version of the worker leaves an earlier run of the same seed and
    # repeat in the store. Counting both would count one seed twice: the latest stands.
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["started_at"], row["run_key"])):
        latest[row["seed"], row["repeat"]] = row
    counted = list(latest.values())
    finished = [row for row in counted if row["status"] == "ok"]
    problems = Counter((row["status"], row["error"]) for row in counted if row["status"] != "ok")
    parameters = {row["student_parameters"] for row in counted} - {None}
    starts = [row["started_at"] for row in counted]
    first = rows[0]
    return CellGroup(
        matrix=first["matrix"],
        environment=environment,
        label=first["label"],
        name=printable(first["label"]),
        settings={name: first[name] for name in SETTINGS},
        runs=len(counted),
        finished=len(finished),
        older=len(rows) - len(counted),
        problems=tuple(
            (status, error, n) for (status, error), n in sorted(problems.items(), key=str)
        ),
        estimates={
            name: estimate
            for name, metric in METRICS.items()
            if (estimate := _estimate(finished, metric)) is not None
        },
        student_parameters=min(parameters, default=None),
        revisions=tuple(sorted({row["git_revision"] for row in counted} - {None})),
        started=(min(starts), max(starts)),
    )


def _estimate(rows: Sequence[Mapping[str, Any]], metric: Metric) -> Estimate | None:
    known = [row for row in rows if _is_number(row[metric.column])]
    if not known:
        return None
    values = [float(row[metric.column]) for row in known]
    if metric.over_seeds:
        seeds: dict[int, list[float]] = {}
        for row, value in zip(known, values, strict=True):
            seeds.setdefault(row["seed"], []).append(value)
        # Repeats of one seed are no independent trainings.
        values = [fmean(repeats) for repeats in seeds.values()]
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
        extrapolated="extrapolated" in kinds,
        sources=tuple(sorted(sources - {None})),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _order(group: CellGroup, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    settings = group.settings
    method = group.method
    rank = _METHOD_ORDER.index(method) if method in _METHOD_ORDER else len(_METHOD_ORDER)
    return (
        group.matrix,
        group.environment.name,
        group.environment.id,
        rank,
        method,
        sizes.get(str(settings["student"]), math.inf),
        settings["student"],
        settings["image_size"],
        settings["teacher"] or "",
        _natural(group.label),
        settings["mode"],
        settings["cell_id"],
    )


def _natural(label: str) -> list[tuple[int, str]]:
    """Order by the numbers in a label: batch_size=64 before batch_size=128."""
    parts = re.split(r"(\d+)", label)
    return [(int(part) if part.isdecimal() else 0, part) for part in parts]


def _with_names(groups: Sequence[CellGroup]) -> list[CellGroup]:
    """Tell cells apart that share a label: the settings that differ go behind it."""
    sharing: dict[tuple[str, str, str], list[CellGroup]] = {}
    for group in groups:
        sharing.setdefault((group.matrix, group.environment.id, group.label), []).append(group)
    named = []
    for group in groups:
        others = sharing[group.matrix, group.environment.id, group.label]
        named.append(group if len(others) == 1 else replace(group, name=_told_apart(group, others)))
    return named


def _told_apart(group: CellGroup, others: Sequence[CellGroup]) -> str:
    differing = [
        name
        for name in SETTINGS
        if name != "cell_id" and len({str(o.settings[name]) for o in others}) > 1
    ]
    own = tuple(str(group.settings[name]) for name in differing)
    told = [f"{name}={value}" for name, value in zip(differing, own, strict=True)]
    if [tuple(str(o.settings[n]) for n in differing) for o in others].count(own) > 1:
        told.append(f"cell {group.settings['cell_id'][:6]}")
    return printable(f"{group.label} ({', '.join(told)})")
