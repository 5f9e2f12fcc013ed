"""Recorded processes: what a study keeps of a results folder."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

DATA = Path(__file__).with_name("data")


def gather(folder: Path) -> pd.DataFrame:
    """One row for each process of a results folder, in the order of time, all of them ok.

    `step_seconds` has every timed step of the process, in order.
    """
    cells = pd.read_parquet(folder / "cells").sort_values("started_at")
    steps = pd.read_parquet(folder / "steps")
    if set(cells["status"]) != {"ok"}:
        raise SystemExit(f"{folder}: expected runs that are all of them ok")
    timed = steps[steps["phase"].isin(("measure", "train")) & ~steps["suspended"].astype(bool)]
    series = timed.sort_values(["run_key", "epoch", "step"]).groupby("run_key")["seconds"]
    return cells.set_index("run_key").assign(step_seconds=series.apply(list)).reset_index()


def keep(processes: pd.DataFrame, columns: list[str], path: Path) -> None:
    """Write these columns and every timed step, with the environment of the first process."""
    table = processes[[*columns, "step_seconds"]]
    table.attrs = {"environment": json.loads(processes["environment"].iloc[0])}
    path.parent.mkdir(exist_ok=True)
    table.to_parquet(path, index=False, compression="zstd")
