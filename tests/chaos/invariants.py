"""What must hold of a results folder after every fault, and once its matrix is complete."""

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kdbench.store.schema import TABLES
from tests.chaos.ledger import OTHERS, Problem
from tests.support.consistency import check_results


def check_folder(root, *, settled):
    """Check all tables; `settled`: a run has come to its own end, so that nothing is left over."""
    if not (root / ".superseded").is_dir():  # the last that a run prepares
        return []
    problems = [*_unreadable(root)]
    if problems:
        return problems
    keys = pd.read_parquet(root / "cells")["run_key"].tolist()
    problems += [
        Problem("doubled", f"{keys.count(key)} rows of {key} in cells")
        for key in sorted(set(keys))
        if keys.count(key) > 1
    ]
    for name in OTHERS:
        parts = {part.stem for part in (root / name).glob("[!.]*.parquet")} - {"empty"}
        problems += [Problem("lost", f"{key} has no part in {name}") for key in {*keys} - parts]
        if settled:
            problems += [
                Problem("left", f"{name}/{key} without its commit") for key in parts - {*keys}
            ]
    if settled:
        left = [*root.glob("*/.*"), *root.glob(".spool/*"), *root.glob("checkpoints/*/.*")]
        problems += [Problem("left", str(path.relative_to(root))) for path in set(left)
                     if path.parts[-2] not in (".superseded", ".set-aside")]  # fmt: skip
    return problems


def _unreadable(root):
    for name in TABLES:
        for part in (root / name).glob("[!.]*.parquet"):
            try:
                rows = pq.read_table(part, partitioning=None).num_rows
            except (OSError, pa.ArrowException) as error:
                yield Problem("unreadable", f"{name}/{part.name}: {error}")
                continue
            if name == "cells" and rows != (part.stem != "empty"):
                yield Problem("doubled", f"cells/{part.name} has {rows} rows")
        try:
            rows = len(pd.read_parquet(root / name))
            (count,) = duckdb.execute(
                f"select count(*) from read_parquet('{root}/{name}/*.parquet')"
            ).fetchone()
        except Exception as error:  # noqa: BLE001 - whatever a reader says of it
            yield Problem("unreadable", f"{name}: {type(error).__name__}: {error}")
            continue
        if rows != count:
            yield Problem("unreadable", f"{name}: pandas has {rows} rows, duckdb {count}")


def check_complete(root, sweep, *, unsampled):
    """Check a complete matrix: a row of each run, all ok, each in agreement with itself.

    Args:
        root: the results.
        sweep: what was run.
        unsampled: runs whose sampler was killed.
    """
    cells, problems = pd.read_parquet(root / "cells"), []
    counts = cells.groupby(["method", "seed", "repeat"]).size()
    if len(counts) != sweep.runs:
        problems.append(Problem("lost", f"{len(counts)} of {sweep.runs} runs at the end"))
    if (counts > 1).any():
        problems.append(Problem("doubled", f"runs more than once at the end: {counts[counts > 1]}"))
    if set(cells["status"]) != {"ok"}:
        problems.append(Problem("result", f"statuses at the end: {set(cells['status'])}"))
    try:
        check_results(root, unsampled=unsampled)
    except AssertionError as error:
        problems.append(Problem("result", f"does not agree with itself: {_where(error)}"))
    return problems


def check_undisturbed(root, reference):
    """Check a complete matrix against the results of an undisturbed run."""
    cells, wanted = pd.read_parquet(root / "cells"), pd.read_parquet(reference / "cells")
    if set(cells["run_key"]) != set(wanted["run_key"]):
        return [Problem("result", "other run_keys than an undisturbed run's")]
    if (cells["mode"] == "train").all() and _learned(root) != _learned(reference):
        return [Problem("result", "losses or accuracies differ from an undisturbed run's")]
    return []


def _learned(root):
    """The losses of all steps and the figures of all epochs, by run."""
    epochs = pd.read_parquet(root / "epochs").sort_values(["run_key", "epoch"])
    steps = pd.read_parquet(root / "steps")[["run_key", "phase", "epoch", "step", "loss"]]
    # The accounting step is of no epoch; one that was done again before a stop is no other step.
    steps = steps[steps["phase"] == "train"].sort_values(["run_key", "epoch", "step"])
    epochs = epochs.drop(columns=[name for name in epochs if name.endswith("_seconds")])
    return epochs.to_dict("list"), steps.to_dict("list")


def _where(error):
    """The line of the check that failed."""
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno} {error}"
