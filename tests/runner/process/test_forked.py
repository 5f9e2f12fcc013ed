"""Cells forked from a warm process: the same figures, and they end as fresh processes do.

The processes are real, torch included. The cells train on digits, and where a worker would import
scikit-learn for them, long after the fork, it does what the test says instead.
"""

import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from textwrap import dedent

import pandas as pd
import psutil
import pytest

from kdbench import load_matrix
from kdbench.analysis.aggregate import group_cells
from kdbench.analysis.results import load_results
from kdbench.common.errors import InputError, WorkerError
from kdbench.runner.process import launcher
from kdbench.runner.process.forked import WarmProcesses
from kdbench.runner.process.launcher import environment_of, launch
from kdbench.runner.process.stop_request import StopRequest
from tests.support import REPOSITORY
from tests.support.analysis_fixtures import cell_row, commit
from tests.support.consistency import check_results
from tests.support.models import tiny_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are of Linux alone")

# No machine is so slow; a test that waits this long has failed.
LONG = 200
DIGITS = ('launch="fork"', 'data.source="digits"', "data.classes=10", "data.train_images=64")

STAND_IN = """
import os, sys

WARM = os.getpid()

class Instead:
    @staticmethod
    def find_spec(name, path=None, target=None):
        # torch looks for scikit-learn when it is imported; that is before the fork
        if name == INSTEAD_OF and (name == "torch" or os.getpid() != WARM):
            import json, pathlib, signal, subprocess, time
            behaviour = open(__file__.replace("sitecustomize.py", "behaviour")).read()
            exec(behaviour, {**globals(), **locals()})

if "kdbench.worker.forker" in sys.orig_argv:
    sys.meta_path.insert(0, Instead)
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder for PYTHONPATH with the hook in it."""
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "sitecustomize.py").write_text('INSTEAD_OF = "sklearn"\n' + STAND_IN)
    return folder


@pytest.fixture(scope="module")
def processes():
    """The warm processes, which one test may leave to the next."""
    kept = WarmProcesses()
    yield kept
    kept.close()


@pytest.fixture
def behave(stand_in, monkeypatch, tmp_path):
    """Have every forked cell run these lines."""
    # what differs from test to test would need a warm process for each
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("PYTHONPATH", str(stand_in))

    def call(lines):
        events = tmp_path / "spool" / "events.jsonl"
        (stand_in / "behaviour").write_text(f"""
def emit(event, **values):
    with open({str(events)!r}, "a") as file:
        file.write(json.dumps({{"event": event, **values}}) + chr(10))
{dedent(lines)}""")

    return call


@pytest.fixture
def started(processes, tmp_path):
    """Fork a cell; `seen` is called with each event, and may want it to stop."""
    spool = tmp_path / "spool"
    spool.mkdir()

    def call(*, seen=lambda event, stop: None, run=None, on_start=lambda pid: None):
        stop = StopRequest()

        def tick(events):
            for event in events:
                seen(event, stop)

        (spool / "events.jsonl").unlink(missing_ok=True)
        run = run or tiny_run(tmp_path, "student-only", *DIGITS)
        return launch(
            "cell",
            run,
            spool=spool,
            log=tmp_path / "worker.log",
            cache=tmp_path / "cache",
            machine={},
            on_start=on_start,
            on_tick=tick,
            stop=stop,
            start=processes.starter(run, tmp_path / "worker.log", stop),
        )

    return call


def stop_at(name):
    """Want it to stop as soon as the worker tells of an event."""

    def seen(event, stop):
        if event["event"] == name:
            stop.order("stopped by a test")

    return seen


def told(outcome, name):
    (event,) = [event for event in outcome.events if event["event"] == name]
    return event


def alive(pid):
    with suppress(psutil.NoSuchProcess):
        # an orphan that nobody reaps has ended all the same
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def ends(pid):
    deadline = time.monotonic() + LONG
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


# --- what is measured


def losses(root):
    """The losses of each method's steps in the order in which they were taken."""
    methods = pd.read_parquet(root / "cells").set_index("run_key")["method"]
    steps = pd.read_parquet(root / "steps")
    taken = steps[steps["phase"] != "account"].sort_values(["run_key", "started_ns"])
    return {methods[key]: own["loss"].tolist() for key, own in taken.groupby("run_key")}


def test_a_forked_cell_computes_what_a_fresh_one_does(kdbench, tiny, tmp_path, finished):
    said = kdbench(
        *("run", "--matrix", tiny, "--device", "cpu", "--preset", "control"),
        *("--set", 'launch="fork"'),
    )
    assert said.code == 0, said
    root = tmp_path / "results/tiny"
    assert check_results(root) == 3
    cells = pd.read_parquet(root / "cells").set_index("method")
    fresh = pd.read_parquet(finished / "tiny/cells").set_index("method")
    assert set(cells["launch"]) == {"fork"}
    assert not set(cells["run_key"]) & set(fresh["run_key"])
    for column in ("cell_id", "threads", "parameter_bytes", "allocated_peak_bytes"):
        assert cells[column].to_dict() == fresh[column].to_dict(), column
    assert cells["host_source"].to_dict() == fresh["host_source"].to_dict()
    forked, spawned = losses(root), losses(finished / "tiny")
    for method, own in forked.items():
        common = min(len(own), len(spawned[method]))
        assert common > 2
        assert own[:common] == spawned[method][:common], f"{method}: to the bit"
    samples = pd.read_parquet(root / "samples")
    for key in cells["run_key"]:
        own = samples[samples["run_key"] == key].sort_values("monotonic_ns")["host_bytes"]
        assert pd.isna(own.iloc[0]), "before the cell"
        assert own.notna().any()


def test_threads_work_in_a_fork(kdbench, tiny, tmp_path):
    # OpenMP's threads do not survive a fork: had the warm process started any, this would hang.
    said = kdbench(
        *("run", "--matrix", tiny, "--device", "cpu", "--preset", "control"),
        *("--only", "method=student-only", "--set", "repeats=2", "--set", "threads=2"),
        *("--set", "training.batch_size=64", "--set", "students.small.width=128"),
        *("--set", 'launch="fork"', "--set", "budget.timeout_seconds=200"),
    )
    assert said.code == 0, said
    cells = pd.read_parquet(tmp_path / "results/tiny/cells")
    assert cells["threads"].tolist() == [2, 2]


def test_forked_and_fresh_runs_are_never_one_number(tmp_path):
    rows = [cell_row(), cell_row(launch="fork")]
    groups = group_cells(load_results(commit(tmp_path, rows)))
    assert [group.runs for group in groups] == [1, 1]
    assert [("launch=fork" in g.name, "launch=spawn" in g.name) for g in groups] == [
        (True, False),
        (False, True),
    ]


# --- what a forked cell sees


@pytest.mark.parametrize("method", ["student-only", "embed-kd"])
def test_what_a_forked_cell_sees_and_holds(method, behave, started, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    behave("""
        emit("told", pid=os.getpid(), session=os.getsid(0), environ=dict(os.environ),
             stdin=sys.stdin.read(), modules=sorted(sys.modules), pipes=[
                 os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                 if os.path.exists(f"/proc/self/fd/{fd}")])
        print("to stdout")
        print("to stderr", file=sys.stderr)
        sys.stdout.flush()
        os._exit(7)
        """)
    run, pids = tiny_run(tmp_path, method, *DIGITS), []
    outcome = started(run=run, on_start=pids.append)
    assert (outcome.returncode, outcome.timed_out, outcome.problem) == (7, None, None)
    child = told(outcome, "told")
    assert told(outcome, "started")["pid"] == child["pid"] == child["session"] == pids[0]
    assert child["environ"] == environment_of(run)
    assert "secret" not in str(child["environ"])
    assert child["stdin"] == ""
    # what a fresh worker has not imported is not there: it would count as the cell's memory
    assert ("transformers" in child["modules"]) == (method == "embed-kd")
    assert not {"datasets", "pandas", "matplotlib"} & set(child["modules"])
    assert not any(name.startswith("pipe:") for name in child["pipes"]), "none of the runner's"
    assert (tmp_path / "worker.log").read_text().split() == ["to", "stdout", "to", "stderr"]


# --- how it ends

GRANDCHILD = """
child = subprocess.Popen(
    [sys.executable, "-c",
     "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
     "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); "
     "time.sleep(1000)"],
    stdout=subprocess.PIPE,
)
child.stdout.readline()
emit("ready", grandchild=child.pid, pid=os.getpid(), parent=os.getppid())
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("raise SystemExit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
)
def test_its_end_is_told_and_what_it_started_goes_with_it(end, code, behave, started):
    behave(GRANDCHILD + end)
    outcome = started()
    assert (outcome.returncode, outcome.problem) == (code, None)
    assert ends(told(outcome, "ready")["grandchild"])


@pytest.mark.parametrize(
    ("ignored", "last", "grace"),
    [([], signal.SIGINT, LONG), (["SIGINT", "SIGTERM"], signal.SIGKILL, 0.2)],
    ids=["interrupt", "kill"],
)
def test_the_ladder_ends_it(ignored, last, grace, behave, started, monkeypatch):
    monkeypatch.setattr(launcher, "_HASTY_SECONDS", grace)
    ignore = "".join(f"signal.signal(signal.{name}, signal.SIG_IGN)\n" for name in ignored)
    behave(ignore + GRANDCHILD + "time.sleep(1000)")
    outcome = started(seen=stop_at("ready"))
    assert (outcome.stopped, outcome.timed_out) == ("stopped by a test", None)
    assert outcome.returncode == -last
    ready = told(outcome, "ready")
    assert not alive(ready["pid"])
    assert ends(ready["grandchild"])
    assert alive(ready["parent"]), "the next cell is forked from the same process"


def test_one_that_takes_too_long(behave, started, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "_GRACE_SECONDS", 0.2)
    behave("time.sleep(1000)")
    run, pids = tiny_run(tmp_path, "student-only", *DIGITS, "budget.timeout_seconds=0.5"), []
    outcome = started(run=run, on_start=pids.append)
    assert "(budget.timeout_seconds)" in outcome.timed_out
    assert outcome.stopped is None
    assert not alive(pids[0])


def test_when_the_warm_process_dies_the_cell_says_so_and_the_next_has_another(behave, started):
    behave("emit('ready', pid=os.getpid(), parent=os.getppid())\n"
           "os.kill(os.getppid(), signal.SIGKILL)\n"
           "time.sleep(1000)")  # fmt: skip
    outcome = started()
    assert outcome.problem == "the warm process that it was forked from was killed by signal 9"
    ready = told(outcome, "ready")
    assert ends(ready["pid"])
    behave("emit('ready', parent=os.getppid()); os._exit(0)")
    again = started()
    assert (again.returncode, again.problem) == (0, None)
    assert told(again, "ready")["parent"] != ready["parent"]


RUNNER = """
import sys
from pathlib import Path
from kdbench.spec.cell import CellRun
from kdbench.runner.process.forked import WarmProcesses
from kdbench.runner.process.launcher import launch
from kdbench.runner.process.stop_request import StopRequest

folder = Path(sys.argv[1])
run = CellRun.model_validate_json((folder / "run.json").read_text())

def tick(events):
    for event in events:
        if event["event"] == "ready":
            print(event["pid"], event["parent"], flush=True)

launch(
    "cell", run, spool=folder, log=folder / "log", cache=folder, machine={},
    on_start=lambda pid: None, on_tick=tick, stop=StopRequest(),
    start=WarmProcesses().starter(run, folder / "log", StopRequest()),
)
"""


def test_both_die_with_the_runner(behave, tmp_path):
    behave("""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        emit("ready", pid=os.getpid(), parent=os.getppid())
        time.sleep(1000)
        """)
    spool = tmp_path / "spool"
    spool.mkdir()
    run = tiny_run(tmp_path, "student-only", *DIGITS)
    (spool / "run.json").write_text(run.model_dump_json())
    path = os.pathsep.join([str(REPOSITORY), os.environ["PYTHONPATH"]])
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(spool)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as runner:
        try:
            cell, warm = (int(pid) for pid in runner.stdout.readline().split())
            assert alive(cell)
            assert alive(warm)
        finally:
            runner.kill()
    assert ends(cell)
    assert ends(warm)


# --- a warm process that does not come to be


def warming(tmp_path, monkeypatch, lines):
    """Have warm processes do this instead of importing torch."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text('INSTEAD_OF = "torch"\n' + STAND_IN)
    (folder / "behaviour").write_text(lines)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_each_cell_fails_when_it_cannot_start(kdbench, tiny, tmp_path, monkeypatch):
    warming(tmp_path, monkeypatch, "raise ImportError('no torch today')")
    said = kdbench("run", "--matrix", tiny, "--device", "cpu", "--set", 'launch="fork"')
    assert said.code == 1, said
    cells = pd.read_parquet(tmp_path / "results/tiny/cells")
    assert cells["status"].tolist() == ["failed", "failed"]
    assert set(cells["error"]) == {
        "the warm process to fork from did not start: ImportError: no torch today"
    }


def test_a_thread_in_it_is_refused(tmp_path, monkeypatch):
    start = "import threading; threading.Thread(target=time.sleep, args=(1000,), daemon=True)"
    warming(tmp_path, monkeypatch, f"{start}.start()")
    kept, run = WarmProcesses(), tiny_run(tmp_path, "student-only", *DIGITS)
    with pytest.raises(WorkerError, match="started threads, which do not survive a fork"):
        kept.starter(run, tmp_path / "log", StopRequest())


def test_a_stop_while_it_warms_up_leaves_nothing(tmp_path, monkeypatch):
    pid, stop = tmp_path / "pid", StopRequest()
    warming(
        tmp_path,
        monkeypatch,
        f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(1000)",
    )

    def interrupt(*_):
        if not pid.exists() or not pid.read_text():
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        stop.order("stopped by a test")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        run = tiny_run(tmp_path, "student-only", *DIGITS)
        with pytest.raises(WorkerError, match="stopped by a test"):
            WarmProcesses().starter(run, tmp_path / "log", stop)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not alive(int(pid.read_text()))


# --- the matrix file


def test_where_no_process_can_fork_it_is_told_at_once(tiny, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(InputError, match="launch: a fork needs Linux, found Darwin"):
        load_matrix(tiny, assignments=['launch="fork"'])
    assert {run.launch for run in load_matrix(tiny).runs()} == {"spawn"}


def test_another_way_to_launch_is_an_error(kdbench, tiny):
    said = kdbench("cells", "--matrix", tiny, "--set", 'launch="forc"')
    assert said.code == 2
    assert "launch: expected one of 'spawn', 'fork', found 'forc'" in said.err
    assert "did you mean 'fork'?" in said.err


def test_cells_can_be_told_by_it(kdbench, tiny):
    said = kdbench("cells", "--matrix", tiny, "--set", 'launch="fork"', "--only", "launch=fork")
    assert said.code == 0, said
