"""What there is of a matrix's runs before it starts: what is done, what is to do, and why."""

from __future__ import annotations

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

# Run again without being asked: they were stopped in the middle, and that was not their fault.
UNFINISHED = ("interrupted",)
# By these a run is recognised that was made before, with something else changed.
_WHICH = ("label", "mode", "seed", "repeat", "device", "launch", "source")
# What else may have changed is told by these, most telling first, then threads and settings; code
# and budget by nothing.
_CHANGED = {
    "torch_version": "another torch",
    "gpu_name": "another card",
    "driver_version": "another driver",
    "cpu_model": "another processor",
}
_LATER = ("threads", "runtime_settings", "environment")


@dataclass(frozen=True)
class ResumePlan:
    """How a matrix's runs stand.

    Attributes:
        todo: key and run of those to do, in order.
        known: status by key of all that is there and whole, of whatever matrix file.
        skipped: label and status of those that are there already.
        notes: what the user should know of it, a line each.
        latest: when the last of all that is there was started; None: nothing is.
    """

    todo: tuple[tuple[str, CellRun], ...]
    known: Mapping[str, str]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    latest: datetime | None


def plan_resume(
    store: Store,
    runs: Sequence[tuple[str, CellRun]],
    *,
    machine: Mapping[str, str | None],
    retry: Collection[str],
    fresh: bool,
) -> ResumePlan:
    """Look up which runs are there.

    A part of these runs that cannot be read is set aside, and its run is done again; others are
    left where they are, and warned of.

    Args:
        store: that nobody else is writing to.
        runs: with their keys.
        machine: the parts of the environment that are in the keys.
        retry: statuses that are run again.
        fresh: all are.

    Raises:
        InputError: the results cannot be written to.
    """
    own, notes = {key for key, _ in runs}, []
    damaged: list[Damage] = []
    columns = ["run_key", "status", "cell_id", "started_at", *_WHICH, *_CHANGED, *_LATER]
    rows = read_rows(store.root, "cells", columns, left_out=damaged.append).to_pylist()
    for damage in damaged:
        if damage.part.stem in own:
            aside = store.set_aside(damage.part)
            notes.append(f"{damage}; it is run again, and the file is kept in {aside}")
        else:
            warn_unreadable(damage)
    there = {row["run_key"]: row["status"] for row in rows}
    lacking = store.incomplete(own & there.keys())
    known = {key: status for key, status in there.items() if key not in lacking}
    again = {*retry, *UNFINISHED}
    todo = [(key, run) for key, run in runs if fresh or known.get(key, "interrupted") in again]
    left = {key for key, _ in todo}
    skipped = [(run.cell.label, known[key]) for key, run in runs if key not in left]
    if lacking:
        lacks = "lacks" if len(lacking) == 1 else "lack"
        notes.append(f"{_cells(len(lacking))} {lacks} a table's part, and will be measured again")
    if fresh and known.keys() & own:
        count = len(known.keys() & own)
        are = "is there and is" if count == 1 else "are there and are"
        notes.append(f"{_cells(count)} {are} set aside, in {store.root / SUPERSEDED}")
    notes += _skipped(Counter(status for _, status in skipped))
    notes += _made_before(todo, rows, machine)
    latest = max((row["started_at"] for row in rows if row["started_at"]), default=None)
    return ResumePlan(tuple(todo), known, tuple(skipped), tuple(notes), latest)


def _skipped(statuses: Counter[str]) -> list[str]:
    """Say what is there already, and how to have it again."""
    if not statuses:
        return []
    told = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    bad = ",".join(status for status in statuses if status != "ok")
    again = f"--retry {bad} runs those again, --fresh all" if bad else "--fresh runs all again"
    count = statuses.total()
    are = "is there already and is" if count == 1 else "are there already and are"
    return [f"{_cells(count)} {are} not run again ({told}); {again}"]


def _made_before(
    todo: Sequence[tuple[str, CellRun]],
    rows: Sequence[Mapping[str, Any]],
    machine: Mapping[str, str | None],
) -> list[str]:
    """Say why cells are measured that seem to be there: by which change their rows are stale."""
    earlier: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        earlier.setdefault(tuple(row[name] for name in _WHICH), []).append(row)
    reasons: Counter[str] = Counter()
    for key, run in todo:
        plan = run.plan_row()
        before = earlier.get(tuple(plan[name] for name in _WHICH), [])
        if before and all(row["run_key"] != key for row in before):
            reasons[_change(run, machine, before)] += 1
    if not reasons:
        return []
    told = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    count = reasons.total()
    were = "was measured before, otherwise" if count == 1 else "were measured before, otherwise"
    return [f"{_cells(count)} {were} ({told}); those rows stay"]


def _change(
    run: CellRun, machine: Mapping[str, str | None], before: Sequence[Mapping[str, Any]]
) -> str:
    same = [row for row in before if row["cell_id"] == run.cell.cell_id]
    if not same:
        return "other settings"
    for name, words in _CHANGED.items():
        if all(row[name] != machine.get(name) for row in same):
            return words
    if (threads := _threads(run, machine, same)) is not None:
        return threads
    name = "runtime_settings"
    if name in machine and all(row[name] != machine[name] for row in same):
        told = changed_settings(same[-1][name], machine[name])
        return f"other runtime settings: {told}"
    return "other code or budget"


def _threads(
    run: CellRun, machine: Mapping[str, str | None], same: Sequence[Mapping[str, Any]]
) -> str | None:
    """Say that none of the earlier runs was asked for as many threads, if so."""
    now = str(run.threads or machine.get("threads") or "")
    if not now:
        return None
    if now.isdecimal():
        others = all(str(row["threads"]) != now for row in same)
    else:  # torch's own choice: what it chose then is no sign of what it was asked for
        others = all(_asked(row["environment"]) not in (None, now) for row in same)
    return f"other threads: {same[-1]['threads']} then, {now} now" if others else None


def _asked(environment: str | None) -> str | None:
    """Read how many threads an earlier run was asked for; None where it does not say."""
    try:
        told = json.loads(environment or "{}")["threads"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(told)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"
