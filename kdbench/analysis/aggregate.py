"""The runs of one cell in one environment, put together into one number per metric."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from kdbench.analysis.environments import Environment
from kdbench.analysis.estimates import OFF, Estimate, estimate_of, is_number, seed_means
from kdbench.analysis.metrics import METRICS
from kdbench.analysis.results import Results
from kdbench.analysis.superseded import without_put_right
from kdbench.common.stats import ratio
from kdbench.common.text import printable
from kdbench.store.schema import PLAN_COLUMNS

_METHOD_ORDER = ("teacher-kd", "vanilla-kd", "cached-kd", "embed-kd", "student-only")
#: How rows of a mode came to be, where they were measured.
MODES = {"profile": "profiled", "train": "trained"}
# Not settings of a cell, or the same for all rows of a group.
_NOT_SETTINGS = ("label", "matrix", "seed", "repeat", "device")
# Beside the cell itself, what no two runs in one number may differ in.
_APART = ("mode", "launch", "source", "profile")
SETTINGS = tuple(c.name for c in PLAN_COLUMNS if c.name not in _NOT_SETTINGS)


@dataclass(frozen=True)
class Run:
    """One run that counts: what joins the other tables to its cell."""

    run_key: str
    seed: int
    status: str


@dataclass(frozen=True, eq=False)
class CellGroup:
    """All runs of one cell in one environment.

    A label that several cells of a matrix share (its settings were changed between runs) makes a
    group for each; `name` then says what differs, and is unique within matrix, environment and
    mode.
    """

    matrix: str
    environment: Environment
    label: str
    name: str  #: the label, made unique and safe to print
    settings: Mapping[str, Any]  #: the cell's columns of the plan
    runs: int  #: how many count; of each seed and repeat the latest
    finished: int  #: how many of those are ok; numbers come from these alone
    older: int  #: how many earlier runs of the same seed and repeat were left out
    put_right: int  #: how many earlier attempts failed, which its runs put right
    #: (status, error) of each run that is not ok, with how often
    problems: tuple[tuple[str, str | None, int], ...]
    #: ("contended", by what), ("suspended", None) and ("unstable", None) of the finished runs, with
    #: how often
    doubts: tuple[tuple[str, str | None, int], ...]
    caveats: tuple[str, ...]  #: what of its predictions is outside of what was verified, in words
    estimates: Mapping[str, Estimate]  #: what there are numbers for, by metric name
    #: what its utilisation is a share of, in operations per second; None: not known
    yardstick: float | None
    yardstick_off: bool  #: its steps, or others', beat that, so that it is none
    student_parameters: int | None
    revisions: tuple[str, ...]  #: the revisions of kdbench that measured
    started: tuple[datetime, datetime]  #: when its first and its last run started
    members: tuple[Run, ...]  #: the runs that count
    accuracies: tuple[float, ...]  #: of each seed, in the order of the seeds; 0 to 1
    #: optimizer steps in an epoch; None where no run tells, or they disagree
    steps_per_epoch: int | None

    @property
    def method(self) -> str:
        """How the teacher is used."""
        return str(self.settings["method"])

    def value(self, metric: str) -> float | None:
        """Return the value of a metric in base units; None where there is none."""
        estimate = self.estimates.get(metric)
        return estimate.value if estimate else None

    @property
    def mode(self) -> str:
        """Whether it was profiled or trained, in the schema's words."""
        return str(self.settings["mode"])

    @property
    def is_predicted(self) -> bool:
        """Whether its figures are of a prediction: nothing was run for them."""
        return self.environment.profile is not None

    @property
    def made(self) -> str:
        """How its figures came to be: profiled, trained or predicted."""
        return "predicted" if self.is_predicted else MODES[self.mode]

    @property
    def origin(self) -> str:
        """How and on what its figures came to be, for the title of a table."""
        how = "" if self.is_predicted else f"{self.made}, on "  # the name says what is predicted
        return f"{how}{self.environment.name} [{self.environment.id}]"

    def ratio_to(self, reference: CellGroup | None, metric: str) -> float | None:
        """Divide the value by the reference's; None where either is missing or marked.

        A profiled cell and a trained one have no ratio either.
        """
        if reference is None or reference.mode != self.mode:
            return None
        pair = [group.estimates.get(metric) for group in (self, reference)]
        if any(estimate is not None and estimate.marks for estimate in pair):
            return None
        return ratio(self.value(metric), reference.value(metric))


def group_cells(results: Results) -> list[CellGroup]:
    """Put runs together by matrix, environment and cell, never across.

    The order is fixed: matrix, environment, mode, method, student (the smaller first), image size,
    teacher, label.
    """
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    kept, put_right = without_put_right(results.records())
    for row in kept:
        # Not all of these are parts of cell_id, and still no two belong in one number.
        key = ("matrix", "environment_id", "label", "cell_id", *_APART)
        rows.setdefault(tuple(row[k] for k in key), []).append(row)
    steps = _epoch_steps(results)
    groups = [_group(found, results.known[key[1]], steps, put_right) for key, found in rows.items()]
    sizes: dict[str, int] = {}
    for group in groups:
        if group.student_parameters is not None:
            student = str(group.settings["student"])
            sizes[student] = min(
                group.student_parameters, sizes.get(student, group.student_parameters)
            )
    return _with_names(sorted(groups, key=lambda group: _order(group, sizes)))


def _group(
    rows: list[dict[str, Any]],
    environment: Environment,
    steps: Mapping[tuple[str, str], int],
    put_right: Mapping[tuple[Any, ...], int],
) -> CellGroup:
    # Another budget or another version of the worker leaves an earlier run of the same seed and
    # repeat in the store. Counting both would count one seed twice: the latest stands.
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["started_at"], row["run_key"])):
        latest[row["seed"], row["repeat"]] = row
    counted = list(latest.values())
    finished = [row for row in counted if row["status"] == "ok"]
    problems = Counter((row["status"], row["error"]) for row in counted if row["status"] != "ok")
    doubts = Counter(("contended", row["contention"]) for row in finished if row["contended"])
    doubts.update(("unstable", None) for row in finished if row["unstable"])
    doubts.update(("suspended", None) for row in finished if row["suspended_steps"])
    parameters = {row["student_parameters"] for row in counted} - {None}
    starts = [row["started_at"] for row in counted]
    told = {steps.get((row["matrix"], row["run_key"])) for row in finished} - {None}
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
        put_right=sum(put_right.get((row["matrix"], row["run_key"]), 0) for row in rows),
        problems=tuple(
            (status, error, n) for (status, error), n in sorted(problems.items(), key=str)
        ),
        caveats=tuple(sorted({row["caveats"] for row in finished} - {None})),
        doubts=tuple((doubt, words, n) for (doubt, words), n in sorted(doubts.items(), key=str)),
        estimates={
            name: estimate
            for name, metric in METRICS.items()
            if (estimate := estimate_of(finished, metric)) is not None
        },
        yardstick=max((r["yardstick"] for r in finished if r["yardstick"]), default=None),
        yardstick_off=any(row["utilisation_doubt"] == OFF for row in finished),
        student_parameters=min(parameters, default=None),
        revisions=tuple(sorted({row["git_revision"] for row in counted} - {None})),
        started=(min(starts), max(starts)),
        members=tuple(Run(row["run_key"], row["seed"], row["status"]) for row in counted),
        accuracies=tuple(seed_means(finished, "accuracy")),
        steps_per_epoch=told.pop() if len(told) == 1 else None,
    )


def _epoch_steps(results: Results) -> dict[tuple[str, str], int]:
    """Find each run's steps per epoch: a training's rows count them, a profile's epoch says."""
    found: dict[tuple[str, str], int] = {}
    trained = False
    for row in results.records():
        step, epoch = row["step_seconds_median"], row["epoch_seconds"]
        trained = trained or row["epoch_seconds_kind"] == "measured"
        # An extrapolated epoch is the median step times the steps, so their ratio is exact.
        known = is_number(step) and is_number(epoch) and step > 0
        if row["epoch_seconds_kind"] == "extrapolated" and known:
            found[row["matrix"], row["run_key"]] = max(1, round(epoch / step))
    if trained:  # profiles alone need not read another table
        epochs = results.epochs.dropna(subset=["steps"])
        most = epochs.groupby(["matrix", "run_key"])["steps"].max()
        for (matrix, run_key), n in zip(most.index.tolist(), most.tolist(), strict=True):
            found[str(matrix), str(run_key)] = int(n)
    return found


def _order(group: CellGroup, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    settings = group.settings
    method = group.method
    rank = _METHOD_ORDER.index(method) if method in _METHOD_ORDER else len(_METHOD_ORDER)
    return (
        group.matrix,
        group.environment.name,
        group.environment.id,
        settings["mode"],
        rank,
        method,
        sizes.get(str(settings["student"]), math.inf),
        settings["student"],
        settings["image_size"],
        settings["teacher"] or "",
        _natural(group.label),
        *(str(settings[name]) for name in _APART),
        settings["cell_id"],
    )


def _natural(label: str) -> list[tuple[int, str]]:
    """Order by the numbers in a label: batch_size=64 before batch_size=128."""
    parts = re.split(r"(\d+)", label)
    return [(int(part) if part.isdecimal() else 0, part) for part in parts]


def _with_names(groups: Sequence[CellGroup]) -> list[CellGroup]:
    """Tell cells apart that share a label: the settings that differ go behind it."""
    sharing: dict[tuple[str, str, str, str], list[CellGroup]] = {}

    def place(group: CellGroup) -> tuple[str, str, str, str]:
        return group.matrix, group.environment.id, group.mode, group.label

    for group in groups:
        sharing.setdefault(place(group), []).append(group)
    named = []
    for group in groups:
        others = sharing[place(group)]
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
