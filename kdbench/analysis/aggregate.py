"""The runs of one cell in one environment, put together into one number per metric."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from kdbench.analysis.environments import Environment
from kdbench.analysis.estimates import OFF, Estimate, estimate_of, is_number, seed_means
from kdbench.analysis.metrics import METRICS
from kdbench.analysis.results import Results
from kdbench.common.errors import printable
from kdbench.common.stats import ratio
from kdbench.store.schema import PLAN_COLUMNS

Row = dict[str, Any]
Key = tuple[Any, ...]

_METHOD_ORDER = ("teacher-kd", "vanilla-kd", "cached-kd", "embed-kd", "student-only")
#: How rows of a mode came to be, where they were measured.
MODES = {"profile": "profiled", "train": "trained"}
# Not settings of a cell, or the same for all rows of a group.
_NOT_SETTINGS = ("label", "matrix", "seed", "repeat", "device")
SETTINGS = tuple(c.name for c in PLAN_COLUMNS if c.name not in _NOT_SETTINGS)
# Not all of these are parts of cell_id, and still no two runs in one number may differ in them.
_APART = ("mode", "launch", "source", "profile")
_GROUP = ("matrix", "environment_id", "label", "cell_id", *_APART)
# A mistake is corrected by whatever change made the label's cell run. Running out of memory or
# time, or diverging, is a finding about these very settings, and stays until these have run.
_MISTAKES = ("failed", "interrupted")
_SETTINGS = tuple(c.name for c in PLAN_COLUMNS if c.name not in ("cell_id", "student_inferred"))
_SAME = ("matrix", "label", "mode", "source", "profile", "seed", "repeat", "device", "cpu_model")


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
    retried: int  #: how many earlier failed attempts its runs corrected
    #: (status, error, number of runs) of those that are not ok
    problems: tuple[tuple[str, str | None, int], ...]
    #: (contended, suspended or unstable; by what; number of runs) of the finished ones
    flags: tuple[tuple[str, str | None, int], ...]
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
    #: optimizer steps in an epoch; None where they are unknown, or differ between runs
    steps_per_epoch: int | None

    @property
    def method(self) -> str:
        """How the teacher is used."""
        return str(self.settings["method"])

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

    def value(self, metric: str) -> float | None:
        """Return the value of a metric in base units; None where there is none."""
        estimate = self.estimates.get(metric)
        return estimate.value if estimate else None

    def ratio_to(self, reference: CellGroup | None, metric: str) -> float | None:
        """Divide the value by the reference's.

        None where either is missing or marked, or one was profiled and the other trained.
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
    rows: dict[Key, list[Row]] = defaultdict(list)
    kept, corrected = _without_corrected(results.records())
    for row in kept:
        rows[tuple(row[name] for name in _GROUP)].append(row)
    steps = _epoch_steps(results)
    groups = [_group(found, results.known[key[1]], steps, corrected) for key, found in rows.items()]
    sizes: dict[str, int] = {}
    for group in groups:
        student, size = str(group.settings["student"]), group.student_parameters
        if size is not None:
            sizes[student] = min(size, sizes.get(student, size))
    return _with_names(sorted(groups, key=lambda group: _order(group, sizes)))


def _without_corrected(rows: Sequence[Row]) -> tuple[list[Row], Mapping[Key, int]]:
    """Drop failed attempts that a later run of the same cell, seed and repeat corrected.

    Another budget, driver, torch, number of threads or version of kdbench may have done so; a run
    on another machine or card corrects nothing. Returns the other rows of `cells`, and how many
    attempts each (matrix, run_key) corrected.
    """

    def attempt(row: Row) -> Key:
        # a card that is not used decides nothing
        card = row["gpu_name"] if str(row["device"]).startswith("cuda") else None
        return (*(row[name] for name in _SAME), card)

    def corrects(run: Row, failed: Row) -> bool:
        alike = all(run[name] == failed[name] for name in _SETTINGS)
        return run["started_at"] > failed["started_at"] and (alike or failed["status"] in _MISTAKES)

    done: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            done[attempt(row)].append(row)
    kept, counts = list[Row](), Counter[Key]()
    for row in rows:
        later = [run for run in done.get(attempt(row), ()) if corrects(run, row)]
        if row["status"] == "ok" or not later:
            kept.append(row)
        else:
            last = max(later, key=lambda run: (run["started_at"], run["run_key"]))
            counts[last["matrix"], last["run_key"]] += 1
    return kept, counts


def _group(
    rows: list[Row],
    environment: Environment,
    steps: Mapping[Key, int],
    corrected: Mapping[Key, int],
) -> CellGroup:
    # Another budget or another version of the worker leaves an earlier run of the same seed and
    # repeat in the store. Counting both would count one seed twice: the latest stands.
    latest: dict[Key, Row] = {}
    for row in sorted(rows, key=lambda row: (row["started_at"], row["run_key"])):
        latest[row["seed"], row["repeat"]] = row
    counted = list(latest.values())
    finished = [row for row in counted if row["status"] == "ok"]
    problems = Counter((row["status"], row["error"]) for row in counted if row["status"] != "ok")
    flags = Counter(("contended", row["contention"]) for row in finished if row["contended"])
    flags.update(("unstable", None) for row in finished if row["unstable"])
    flags.update(("suspended", None) for row in finished if row["suspended_steps"])
    parameters = {row["student_parameters"] for row in counted} - {None}
    starts = [row["started_at"] for row in counted]
    per_epoch = {steps.get((row["matrix"], row["run_key"])) for row in finished} - {None}
    estimates = {name: estimate_of(finished, metric) for name, metric in METRICS.items()}
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
        retried=sum(corrected.get((row["matrix"], row["run_key"]), 0) for row in rows),
        problems=tuple((*key, n) for key, n in sorted(problems.items(), key=str)),
        flags=tuple((*key, n) for key, n in sorted(flags.items(), key=str)),
        caveats=tuple(sorted({row["caveats"] for row in finished} - {None})),
        estimates={name: found for name, found in estimates.items() if found is not None},
        yardstick=max((r["yardstick"] for r in finished if r["yardstick"]), default=None),
        yardstick_off=any(row["utilisation_issue"] == OFF for row in finished),
        student_parameters=min(parameters, default=None),
        revisions=tuple(sorted({row["git_revision"] for row in counted} - {None})),
        started=(min(starts), max(starts)),
        members=tuple(Run(row["run_key"], row["seed"], row["status"]) for row in counted),
        accuracies=tuple(seed_means(finished, "accuracy")),
        steps_per_epoch=per_epoch.pop() if len(per_epoch) == 1 else None,
    )


def _epoch_steps(results: Results) -> dict[Key, int]:
    """Find each run's steps per epoch: a training's rows count them, a profile's epoch says."""
    found: dict[Key, int] = {}
    rows = results.records()
    for row in rows:
        step, epoch = row["step_seconds_median"], row["epoch_seconds"]
        # An extrapolated epoch is the median step times the steps, so their ratio is exact.
        known = is_number(step) and is_number(epoch) and step > 0
        if row["epoch_seconds_kind"] == "extrapolated" and known:
            found[row["matrix"], row["run_key"]] = max(1, round(epoch / step))
    if any(row["epoch_seconds_kind"] == "measured" for row in rows):
        # profiles alone need not read another table
        epochs = results.epochs.dropna(subset=["steps"])
        most = epochs.groupby(["matrix", "run_key"])["steps"].max()
        found |= dict(zip(most.index.tolist(), most.astype(int).tolist(), strict=True))
    return found


def _order(group: CellGroup, sizes: Mapping[str, int]) -> Key:
    settings, method = group.settings, group.method
    return (
        group.matrix,
        group.environment.name,
        group.environment.id,
        settings["mode"],
        _METHOD_ORDER.index(method) if method in _METHOD_ORDER else len(_METHOD_ORDER),
        method,
        sizes.get(str(settings["student"]), math.inf),
        settings["student"],
        settings["image_size"],
        settings["teacher"] or "",
        # by the numbers in a label: batch_size=64 before batch_size=128
        [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", group.label)],
        *(str(settings[name]) for name in _APART),
        settings["cell_id"],
    )


def _with_names(groups: Sequence[CellGroup]) -> list[CellGroup]:
    """Tell cells apart that share a label: the settings that differ go behind it."""
    sharing: dict[Key, list[CellGroup]] = defaultdict(list)
    for group in groups:
        sharing[group.matrix, group.environment.id, group.mode, group.label].append(group)
    names = {id(group): _distinct_name(group, own) for own in sharing.values() for group in own}
    return [replace(group, name=names[id(group)]) for group in groups]


def _distinct_name(group: CellGroup, sharing: Sequence[CellGroup]) -> str:
    if len(sharing) == 1:
        return group.name
    differing = [
        name
        for name in SETTINGS
        if name != "cell_id" and len({str(other.settings[name]) for other in sharing}) > 1
    ]
    parts = [f"{name}={group.settings[name]}" for name in differing]
    alike = [all(str(o.settings[n]) == str(group.settings[n]) for n in differing) for o in sharing]
    if sum(alike) > 1:
        parts.append(f"cell {group.settings['cell_id'][:6]}")
    return printable(f"{group.label} ({', '.join(parts)})")
