"""Runs that were killed together with kdbench: nothing that they had measured is lost."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdbench.common.errors import InputError, WorkerError
from kdbench.runner import cell_runner
from kdbench.runner.device import ResolvedDevice
from kdbench.runner.matrix_runner import run_matrix
from kdbench.runner.progress import Progress
from kdbench.runner.recovery import Record, recover
from kdbench.runner.resume_plan import plan_resume
from kdbench.store import Store, arrow_schema, read_table
from kdbench.store.inspection import inspect_store
from kdbench.store.schema import TABLES
from tests.support.consistency import check_results
from tests.support.models import tiny_matrix
from tests.support.stores import statuses

pytestmark = pytest.mark.usefixtures("forked_workers")

LABEL = "embed-kd/small/8px/dwarf"


class Notes(Progress):
    def __init__(self):
        self.told = []

    def note(self, text):
        self.told.append(text)


def matrix_in(folder):
    return tiny_matrix(folder, 'axes.method="embed-kd"')


@pytest.fixture
def matrix(tmp_path):
    return matrix_in(tmp_path)


def run_in(folder, matrix, **options):
    notes, device = Notes(), ResolvedDevice("cpu")
    summary = run_matrix(matrix, out=folder / "results", device=device, progress=notes, **options)
    return summary, notes.told


@pytest.fixture
def run(matrix, tmp_path):
    """Run the matrix; returns how it went and what was noted."""
    return partial(run_in, tmp_path, matrix)


@pytest.fixture(scope="module")
def done_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    assert run_in(folder, matrix_in(folder))[0].exit_code == 0
    return folder / "results"


@pytest.fixture
def done(done_once, tmp_path):
    """The results of a run that has ended well; `run` goes on with them."""
    return shutil.copytree(done_once, tmp_path / "results") / "tiny"


class PowerCut(BaseException):
    """Ends the runner as a kill would: whatever it was about to do is not done."""


def cut_at(monkeypatch, name, times=1):
    """Have the power go when one of the store's methods is called for the n-th time."""
    done, left = getattr(Store, name), [times]

    def dies(store, *arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            raise PowerCut
        return done(store, *arguments, **options)

    monkeypatch.setattr(Store, name, dies)


def test_a_runner_that_is_killed_leaves_a_row(tiny, tmp_path, kdbench):
    arguments = ["run", "--matrix", str(tiny), "--device", "cpu", "--only", "method=embed-kd"]
    long = ["--set", "budget.max_steps=1000000", "--set", "budget.measure_seconds=600"]
    root = tmp_path / "results/tiny"
    child = subprocess.Popen([sys.executable, "-m", "kdbench", *arguments, *long])
    deadline = time.monotonic() + 240
    while not any(b'"phase": "measure", "step": 3' in p.read_bytes() for p in events(root)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert statuses(root) == {}
    said = kdbench("doctor", tmp_path / "results")
    assert said.code == 1
    assert "left behind by a run that was killed" in said.out
    said = kdbench(*arguments)
    assert said.code == 0, said
    assert f"{LABEL} was not done when kdbench ended without it; kept as interrupted" in said.out
    cells = read_table(root, "cells").set_index("status")
    assert cells.loc["interrupted", "error"].startswith("kdbench itself ended while this ran")
    assert cells.loc["interrupted", "steps_measured"] >= 4
    assert cells.loc["interrupted", "wall_seconds"] > 0
    # another budget is another run: the first is still to be done
    assert set(cells.index) == {"interrupted", "ok"}
    assert cells["run_key"].is_unique
    assert inspect_store(root).good


def events(root):
    return list((root / ".spool").glob("*/events.jsonl"))


@pytest.mark.parametrize(
    ("where", "times", "kept"),
    [
        ("commit", 1, "ok"),  # before anything of it is written
        # in mid-commit; an empty part of each table comes first
        ("_put", len(TABLES) + 3, "ok"),
        ("drop_spool", 1, None),  # it is committed, and only its spool is left
    ],
)
def test_what_a_worker_had_finished_is_kept(where, times, kept, run, tmp_path, monkeypatch):
    cut_at(monkeypatch, where, times)
    with pytest.raises(PowerCut):
        run()
    monkeypatch.undo()
    root = tmp_path / "results/tiny"
    assert len(events(root)) == 1
    summary, notes = run()
    assert (summary.done, summary.skipped, summary.exit_code) == (0, 1, 0), "it was whole"
    told = [f"{LABEL} had finished when kdbench ended without it; kept as {kept}"] if kept else []
    assert [note for note in notes if "ended without it" in note] == told
    assert list(statuses(root).values()) == ["ok"]
    assert check_results(root) == 1
    assert not events(root)
    assert inspect_store(root).good


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("commit", ["failed"]),  # nothing is written yet
        ("_staged", ["failed"]),
        ("supersede", ["failed"]),  # all is written, and nothing has moved
        ("_put", []),  # the old row has just been set aside
    ],
)
def test_a_retry_that_is_killed_leaves_the_old_row_or_the_new(
    where, left, run, tmp_path, monkeypatch
):
    root = tmp_path / "results/tiny"
    monkeypatch.setattr(cell_runner, "launch", fail)
    assert run()[0].failed == [(LABEL, "failed")]
    monkeypatch.undo()
    cut_at(monkeypatch, where)
    with pytest.raises(PowerCut):
        run(retry=["failed"])
    monkeypatch.undo()
    assert list(statuses(root).values()) == left
    summary, _ = run()
    assert (summary.done, summary.skipped) == (0, 1)
    assert list(statuses(root).values()) == ["ok"]
    aside = list((root / ".superseded/cells").iterdir())
    assert [pd.read_parquet(part)["status"][0] for part in aside] == ["failed"]


def fail(*_, **__):
    raise WorkerError("not today")


def test_a_fresh_run_that_is_killed_goes_on_without_fresh(tmp_path, monkeypatch):
    sets = ('axes.method="student-only"', "seeds=[0, 1]")
    matrix = tiny_matrix(tmp_path, *sets, *(['launch="fork"'] if sys.platform == "linux" else []))

    def call(**options):
        place = {"out": tmp_path / "results", "device": ResolvedDevice("cpu")}
        return run_matrix(matrix, progress=Progress(), **place, **options)

    root = call().folder
    first = read_table(root, "cells")["started_at"].max()
    cut_at(monkeypatch, "commit", times=2)
    with pytest.raises(PowerCut):
        call(fresh=True)
    monkeypatch.undo()
    summary = call()
    assert (summary.done, summary.skipped) == (0, 2), "one was committed, one recovered"
    assert (read_table(root, "cells")["started_at"] > first).all()
    for table in TABLES:
        assert len(list((root / ".superseded" / table).iterdir())) == 2


@pytest.mark.usefixtures("done")
def test_a_disk_that_is_full_goes_on_without_fresh(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_put", full)
        told = (
            r"no space left .*\.spool.*when there is room again, the same command without --fresh"
        )
        with pytest.raises(InputError, match=told):
            run(fresh=True)
    assert statuses(tmp_path / "results/tiny") == {}
    summary, _ = run()
    assert (summary.done, summary.skipped) == (0, 1)
    assert list(statuses(tmp_path / "results/tiny").values()) == ["ok"]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


BROKEN = {
    "no record": lambda folder: (folder / "record.json").unlink(),
    "half a record": lambda folder: (folder / "record.json").write_text('{"run_key": '),
    "a deep record": lambda folder: (folder / "record.json").write_text("[" * 100_000),
    "no run": lambda folder: edit(folder, run={"cell": 1}),
    "of another run": lambda folder: edit(folder, run_key="f" * 16),
    "no time": lambda folder: edit(folder, started_at="soon"),
    "a link": lambda folder: (
        (folder / "record.json").unlink(),
        (folder / "record.json").symlink_to("/dev/zero"),
    ),
    "events of a stranger": lambda folder: (folder / "events.jsonl").write_text(
        '{"event": "step", "seconds": "many"}\n{"event": "step"}\n'
    ),
    "a number beyond all": lambda folder: step(folder, started_ns=2**70),
    "text for a number": lambda folder: step(folder, step="one"),
    "no text": lambda folder: step(folder, phase="\ud800"),
    "samples of a stranger": lambda folder: (folder / "samples.jsonl").write_text('{"a": 1}\n'),
}


def edit(folder, **changes):
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def step(folder, **values):
    tell(folder, {"event": "step", "attempt": 0, "phase": "measure", **STEP, **values})


STEP = {"step": 0, "started_ns": 2000, "seconds": 0.1, "suspended": False}


def tell(folder, *events):
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


@pytest.fixture
def left_behind(matrix, tmp_path):
    """A store with the spool of a run that has begun; the run's folder in it."""
    store = Store(tmp_path / "results/tiny")
    store.prepare()
    (planned,) = matrix.runs("cpu")

    def make(planned=planned):
        folder = store.spool("a" * 16)
        environment = dict.fromkeys(
            ("cpu_model", "gpu_name", "driver_version", "torch_version", "git_revision")
        )
        Record("a" * 16, planned, datetime.now(UTC), environment).write(folder)
        tell(folder, {"event": "started", "pid": 1, "threads": 1})
        return store, folder

    return make


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("before", [None, "ok"])
def test_what_cannot_be_understood_is_set_aside(damage, before, left_behind):
    store, folder = left_behind()
    root = store.root
    if before is not None:  # of the same run, which was being done again
        kept = folder.rename(root / "kept")
        store.commit("a" * 16, {"cells": [{"status": before, "started_at": datetime.now(UTC)}]})
        kept.rename(folder)
    BROKEN[damage](folder)
    told = []
    recover(store, told.append)
    (line,) = told
    assert line.startswith("what a run left behind cannot be read (")
    assert len(line.splitlines()) == 1
    assert statuses(root) == ({} if before is None else {"a" * 16: before})
    (aside,) = (root / ".set-aside" / ".spool").iterdir()
    assert aside.is_dir()
    assert store.spools() == []


def test_a_run_that_is_recovered_keeps_what_the_device_reaches_at_best(left_behind):
    store, folder = left_behind()
    rates = {"matmul_flops_per_second": 3e9, "copy_bytes_per_second": 2e9, "rates_steady": True}
    tell(folder, {"event": "rates", **rates}, {"event": "end", "status": "ok"})
    recover(store, lambda _: None)
    (cell,) = read_table(store.root, "cells").to_dict("records")
    assert {name: cell[name] for name in rates} == rates


@pytest.mark.parametrize(("keeps", "left"), [("resume", False), ("keep", True)])
def test_checkpoints_of_a_recovered_training_go_as_those_of_another_do(
    keeps, left, left_behind, tmp_path
):
    (profiled,) = tiny_matrix(
        tmp_path, 'axes.method="student-only"', f'budget.checkpoints="{keeps}"'
    ).runs("cpu")
    planned = profiled.model_copy(update={"mode": "train"})
    store, folder = left_behind(planned)
    store.checkpoints("a" * 16).mkdir(parents=True)
    tell(folder, {"event": "end", "status": "ok"})
    recover(store, lambda _: None)
    assert list(statuses(store.root).values()) == ["ok"]
    assert store.checkpoints("a" * 16).exists() is left


def test_a_run_is_never_dated_before_an_earlier_one(run, done, monkeypatch):
    # The later of two is the one that counts, whatever the clock was set to in between.
    before = read_table(done, "cells")["started_at"].max()

    class SetBack(datetime):
        @classmethod
        def now(cls, zone=None):
            return super().now(zone) - timedelta(days=365)

    monkeypatch.setattr(cell_runner, "datetime", SetBack)
    again, _ = run(fresh=True)
    assert read_table(again.folder, "cells")["started_at"].min() > before


# --- what is run again, and why


@pytest.mark.parametrize("damage", ["cut", "one bit of the rows", "one bit of the footer"])
def test_a_damaged_row_is_set_aside_and_its_run_done_again(damage, run, done):
    root = done
    (part,) = [p for p in (root / "cells").glob("*.parquet") if p.stem != "empty"]
    content = bytearray(part.read_bytes())
    if damage == "cut":
        del content[300:]
    else:  # of a column that no run looks at before it starts
        content[600 if damage == "one bit of the rows" else -5000] ^= 1
    part.write_bytes(content)
    summary, notes = run()
    assert (summary.done, summary.exit_code) == (1, 0)
    (note,) = [note for note in notes if "damaged" in note]
    assert f"{part}: damaged: " in note
    assert "it is run again, and the file is kept in " in note
    (aside,) = (root / ".set-aside/cells").iterdir()
    assert aside.read_bytes() == content
    assert list(statuses(root).values()) == ["ok"]


def test_a_run_of_which_a_table_is_gone_is_done_again(run, done, kdbench, tmp_path):
    root = done
    (part,) = [p for p in (root / "steps").glob("*.parquet") if p.stem != "empty"]
    part.write_bytes(b"not parquet")
    said = kdbench("doctor", tmp_path / "results", "--repair")
    assert said.code == 1, "its rows are to be measured again"
    assert f"moved {part} to " in said.out
    told = f"{LABEL} ({part.stem}) has no part in steps: the command that it came from measures it"
    assert told in said.out
    assert "as it was called for these results, measures again what they lack" in said.err
    assert "--repair" not in said.err, "there is nothing more to move"
    summary, notes = run()
    assert (summary.done, summary.exit_code) == (1, 0)
    assert "1 cell lacks a table's part, and will be measured again" in notes
    assert not any("measured before" in note for note in notes)
    assert inspect_store(root).good
    assert check_results(root) == 1


@pytest.mark.parametrize("damage", [b"", b"not parquet", None])
def test_a_run_whose_other_table_is_damaged_is_done_again(damage, done, matrix):
    (part,) = [p for p in (done / "memory").glob("*.parquet") if p.stem != "empty"]
    runs = [(part.stem, planned) for planned in matrix.runs("cpu")]
    known = {"machine": {}, "retry": (), "fresh": False}
    assert plan_resume(Store(done), runs, **known).todo == ()
    part.write_bytes(part.read_bytes()[:-9] if damage is None else damage)
    plan = plan_resume(Store(done), runs, **known)
    assert list(plan.todo) == runs
    assert plan.notes == ("1 cell lacks a table's part, and will be measured again",)
    assert inspect_store(done).runs == 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"training": {"batch_size": 4}}, "other settings: 1"),
        ({"torch_version": "1.0"}, "another torch: 1"),
        ({"cpu_model": "an abacus"}, "another processor: 1"),
        ({"budget": {"max_steps": 3}}, "other code or budget: 1"),
    ],
)
def test_why_a_cell_that_seems_to_be_there_is_measured_again(changes, why, done, matrix):
    root = done
    (part,) = [p for p in (root / "cells").glob("*.parquet") if p.stem != "empty"]
    row = read_table(root, "cells").iloc[0]
    machine = {name: row[name] for name in ("torch_version", "cpu_model")}
    machine |= {"gpu_name": None, "driver_version": None}
    runs = [(part.stem, planned) for planned in matrix.runs("cpu")]
    assert plan_resume(Store(root), runs, machine=machine, retry=(), fresh=False).todo == ()
    for table in TABLES:
        restamp(root / table / part.name, changes)
    plan = plan_resume(Store(root), runs, machine=machine, retry=(), fresh=False)
    assert list(plan.todo) == runs
    told = f"1 cell was measured before, otherwise ({why}); those rows stay"
    assert plan.notes == (told,)


def restamp(part, changes):
    """Have a part be one of another key, in which something else was changed."""
    rows = pq.ParquetFile(part).read().to_pylist()
    for row in rows:
        row["run_key"] = "e" * 16
        row |= {name: value for name, value in changes.items() if name in row}
        if "training" in changes and "cell_id" in row:
            row["cell_id"] = "0" * 16
    part.unlink()
    content = pa.Table.from_pylist(rows, schema=arrow_schema(part.parent.name))
    pq.write_table(content, part.with_stem("e" * 16))


def test_a_signal_is_left_to_whoever_heard_it_before(run, done):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        run()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1]
