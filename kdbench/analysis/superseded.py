"""Failed attempts that were put right: a later run of the same cell made them history.

`Results` keep them, and so does the store. What is shown is how things stand.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.store.schema import PLAN_COLUMNS

Row = dict[str, Any]
Key = tuple[Any, ...]

# A mistake is put right by whatever change made the label's cell run. What ran out of memory or
# time, or diverged, is told of these very settings, and stays until these have run.
_MISTAKES = ("failed", "interrupted")
_SETTINGS = tuple(c.name for c in PLAN_COLUMNS if c.name not in ("cell_id", "student_inferred"))
_SAME = ("matrix", "label", "mode", "source", "profile", "seed", "repeat", "device", "cpu_model")


def without_put_right(rows: Sequence[Row]) -> tuple[list[Row], Mapping[Key, int]]:
    """Drop failed attempts that a later run of the same cell, seed and repeat put right.

    Another budget, driver, torch, number of threads or version of kdbench may have done so; a run
    on another machine or card puts nothing right. Returns the other rows of `cells`, and how many
    attempts each (matrix, run_key) put right.
    """
    done: dict[Key, list[Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            done.setdefault(_attempted(row), []).append(row)
    kept, counts = list[Row](), Counter[Key]()
    for row in rows:
        later = [run for run in done.get(_attempted(row), ()) if _puts_right(run, row)]
        if row["status"] == "ok" or not later:
            kept.append(row)
        else:
            last = max(later, key=lambda run: (run["started_at"], run["run_key"]))
            counts[last["matrix"], last["run_key"]] += 1
    return kept, counts


def _attempted(row: Row) -> Key:
    # a card that is not used decides nothing
    card = row["gpu_name"] if str(row["device"]).startswith("cuda") else None
    return (*(row[name] for name in _SAME), card)


def _puts_right(run: Row, failed: Row) -> bool:
    alike = all(run[name] == failed[name] for name in _SETTINGS)
    return run["started_at"] > failed["started_at"] and (alike or failed["status"] in _MISTAKES)
