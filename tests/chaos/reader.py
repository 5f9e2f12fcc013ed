"""A reader that never stops: `python -m tests.chaos.reader OUT FOLDER`.

It reads OUT as users do, while runs start, are killed and go on, and writes a line per problem to
FOLDER/problems. It pauses while there is FOLDER/pause, and ends with FOLDER/stop.
"""

import json
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import duckdb
import pandas as pd

from kdbench.analysis.results import load_results
from kdbench.cli import main
from kdbench.common.errors import InputError
from kdbench.store.schema import TABLES

_PAUSE_SECONDS = 0.3
# The sweep wants the processors: it reads a tenth of the time.
_SHARE = 0.1
# A run may set rows aside between a reader's listing and its opening of a file: it looks again.
_LOOKS = 5


def read_forever(out, folder):
    root, rounds, pause = out / "tiny", 0, _PAUSE_SECONDS
    with (folder / "problems").open("a", buffering=1) as problems:
        while not (folder / "stop").exists():
            time.sleep(pause)
            if (folder / "pause").exists() or not (root / ".superseded").is_dir():
                (folder / "paused").touch()
                continue
            (folder / "paused").unlink(missing_ok=True)
            began = time.monotonic()
            try:
                told = [*as_files(root), *as_tables(out), *as_command(out)]
            except Exception as error:  # noqa: BLE001 - that is what it is here to tell
                told = [f"{type(error).__name__}: {error}"]
            problems.writelines(" ".join(line.split()) + "\n" for line in told)
            pause = max(_PAUSE_SECONDS, (time.monotonic() - began) / _SHARE)
            rounds += 1
            (folder / "rounds").write_text(str(rounds))


def as_files(root):
    """With pandas and duckdb, as the folders are."""
    for name in TABLES:
        keys = looked(lambda: pd.read_parquet(root / name)["run_key"])  # noqa: B023
        query = f"select count(*) from read_parquet('{root}/{name}/*.parquet')"
        looked(lambda: duckdb.execute(query).fetchone())  # noqa: B023
        if name == "cells" and not keys.is_unique:
            yield f"pandas reads runs twice: {sorted(keys[keys.duplicated()])}"


def looked(read):
    for _ in range(_LOOKS - 1):
        try:
            return read()
        except (FileNotFoundError, duckdb.IOException):
            continue
    return read()


def as_tables(out):
    """With kdbench's own reader: a run is there with all that it measured, once, or not at all."""
    try:
        before = load_results(out)
        steps = before.steps
        after = set(load_results(out).cells["run_key"])
    except InputError as error:
        if "no " in str(error):  # nothing is committed yet
            return
        raise
    cells = before.cells
    if not cells["run_key"].is_unique:
        yield f"kdbench reads runs twice: {sorted(cells['run_key'])}"
    timed = steps[steps["phase"].isin(["measure", "train"])].groupby("run_key").size()
    for key, status, count in zip(
        cells["run_key"], cells["status"], cells["steps_measured"], strict=True
    ):
        if status == "ok" and key in after and timed.get(key, 0) != count:
            yield f"{key} has {timed.get(key, 0)} of {count} steps"


def as_command(out):
    """With the command line."""
    told, errors = StringIO(), StringIO()
    with redirect_stdout(told), redirect_stderr(errors):
        code = main(["show", str(out), "--format", "json"])
    if code == 0:
        json.loads(told.getvalue())
    elif "no " not in errors.getvalue():
        yield f"kdbench show ended with {code}: {errors.getvalue()}"


if __name__ == "__main__":
    read_forever(Path(sys.argv[1]), Path(sys.argv[2]))
