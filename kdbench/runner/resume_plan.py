"""Which runs of a matrix are done already, which are still to do, and why."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kdbench.common.runtime_settings import changed_settings
from kdbench.spec.cell import CellRun
from kdbench.store import Store
from kdbench.store.layout import SUPERSEDED
from kdbench.store.parts import Damage
from kdbench.store.reading import read_rows, warn_unreadable

# Statuses that are always run again: these runs were stopped half-way.
UNFINISHED = ("interrupted",)
# Statuses after which a training starts from nothing: a diverged one would diverge again.
_FINISHED = ("ok", "diverged")
# The columns by which an earlier run with other settings is recognised.
_IDENTITY = ("label", "mode", "seed", "repeat", "device", "launch", "source")
# The changes that a note can name, the most telling first.
_CHANGES = {
    "torch_version": "another torch",
    "gpu_name": "another card",
    "driver_version": "another driver",
    "cpu_model": "another processor",
}
_COLUMNS = (
    *("run_key", "status", "cell_id", "started_at", *_IDENTITY, *_CHANGES),
    *("threads", "runtime_settings", "environment"),
)


def keeps_checkpoints(run: CellRun) -> bool:
    """Whether a run leaves checkpoints."""
    return run.mode == "train" and run.budget.checkpoints != "none"


def starts_anew(run: CellRun, status: str | None) -> bool:
    """Whether a run that ended with this status ignores its earlier checkpoints."""
    return keeps_checkpoints(run) and status in _FINISHED


def can_drop_checkpoints(run: CellRun, status: str) -> bool:
    """Whether a run that has ended so needs its checkpoints no more."""
    return run.budget.checkpoints == "resume" and status in _FINISHED


@dataclass(frozen=True)
class ResumePlan:
    """What to run of a matrix, and what to skip."""

    todo: tuple[tuple[str, CellRun], ...]  #: key and run of each to do, in order
    #: status by key of every complete run in the store, of any matrix file
    known: Mapping[str, str]
    skipped: tuple[tuple[str, str], ...]  #: label and status of each run that is done already
    notes: tuple[str, ...]  #: lines for the user
    latest: datetime | None  #: start of the newest run in the store; None if it is empty


def plan_resume(
    store: Store,
    runs: Sequence[tuple[str, CellRun]],
    *,
    machine: Mapping[str, str | None],
    retry: Collection[str],
    fresh: bool,
) -> ResumePlan:
    """Look up which runs are done; the store is locked for writing.

    An unreadable part of one of these runs is set aside, and the run is done again; unreadable
    parts of other runs stay, with a warning. `machine` holds the parts of the environment that are
    in the keys.
    """
    own, notes = {key for key, _ in runs}, []
    damaged: list[Damage] = []
    rows = read_rows(store.root, "cells", [*_COLUMNS], left_out=damaged.append).to_pylist()
    for damage in damaged:
        if damage.part.stem in own:
            aside = store.set_aside(damage.part)
            notes.append(f"{damage}; it is run again, and the file is kept in {aside}")
        else:
            warn_unreadable(damage)
    found = {row["run_key"]: row["status"] for row in rows}
    incomplete = store.incomplete(own & found.keys())
    known = {key: status for key, status in found.items() if key not in incomplete}
    again = {*retry, *UNFINISHED}
    todo = [(key, run) for key, run in runs if fresh or known.get(key, "interrupted") in again]
    todo_keys = {key for key, _ in todo}
    skipped = [(run.cell.label, known[key]) for key, run in runs if key not in todo_keys]
    if count := len(incomplete):
        lack = "lacks" if count == 1 else "lack"
        notes.append(f"{_cells(count)} {lack} a table's part, and will be measured again")
    if fresh and (count := len(known.keys() & own)):
        are = "is there and is" if count == 1 else "are there and are"
        notes.append(f"{_cells(count)} {are} set aside, in {store.root / SUPERSEDED}")
    notes += _note_skipped(Counter(status for _, status in skipped))
    notes += _note_changes(todo, rows, machine)
    latest = max((row["started_at"] for row in rows if row["started_at"]), default=None)
    return ResumePlan(tuple(todo), known, tuple(skipped), tuple(notes), latest)


def _note_skipped(statuses: Counter[str]) -> list[str]:
    if not statuses:
        return []
    counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    bad = ",".join(status for status in statuses if status != "ok")
    again = f"--retry {bad} runs those again, --fresh all" if bad else "--fresh runs all again"
    count = statuses.total()
    are = "is there already and is" if count == 1 else "are there already and are"
    return [f"{_cells(count)} {are} not run again ({counts}); {again}"]


def _note_changes(
    todo: Sequence[tuple[str, CellRun]],
    rows: Sequence[Mapping[str, Any]],
    machine: Mapping[str, str | None],
) -> list[str]:
    """Explain why cells are measured that seem to be done: what has changed since."""
    earlier: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        earlier.setdefault(tuple(row[name] for name in _IDENTITY), []).append(row)
    reasons: Counter[str] = Counter()
    for key, run in todo:
        plan = run.plan_row()
        before = earlier.get(tuple(plan[name] for name in _IDENTITY), [])
        if before and all(row["run_key"] != key for row in before):
            reasons[_change(run, machine, before)] += 1
    if not reasons:
        return []
    counts, count = ", ".join(f"{why}: {n}" for why, n in reasons.most_common()), reasons.total()
    were = "was" if count == 1 else "were"
    return [f"{_cells(count)} {were} measured before, otherwise ({counts}); those rows stay"]


def _change(
    run: CellRun, machine: Mapping[str, str | None], before: Sequence[Mapping[str, Any]]
) -> str:
    same = [row for row in before if row["cell_id"] == run.cell.cell_id]
    if not same:
        return "other settings"
    for name, words in _CHANGES.items():
        if all(row[name] != machine.get(name) for row in same):
            return words
    if (threads := _threads(run, machine, same)) is not None:
        return threads
    name = "runtime_settings"
    if name in machine and all(row[name] != machine[name] for row in same):
        return f"other runtime settings: {changed_settings(same[-1][name], machine[name])}"
    return "other code or budget"


def _threads(
    run: CellRun, machine: Mapping[str, str | None], same: Sequence[Mapping[str, Any]]
) -> str | None:
    """Report the change if no earlier run was asked for as many threads."""
    now = str(run.threads or machine.get("threads") or "")
    if not now:
        return None
    if now.isdecimal():
        others = all(str(row["threads"]) != now for row in same)
    else:  # torch chose: the number it chose does not tell what it was asked for
        others = all(_requested_threads(row["environment"]) not in (None, now) for row in same)
    return f"other threads: {same[-1]['threads']} then, {now} now" if others else None


def _requested_threads(environment: str | None) -> str | None:
    try:
        return str(json.loads(environment or "{}")["threads"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"
