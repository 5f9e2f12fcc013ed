"""A training that is stopped goes on from its last checkpoint, and ends as if it had not been."""

import json
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest

from tests.runner.test_run import fault
from tests.support.consistency import check_results
from tests.support.trainings import attempt, cell_of, result_of, training_run
from tests.worker.training.test_train import digits_text

pytestmark = pytest.mark.usefixtures("forked_workers")

EPOCHS, STEPS = 10, 20
EVERY_STEP = "budget.checkpoint_seconds=1e-9"
LONG = 120


def settings(*more):
    """Of the tiny matrix on the digits: with dropout, and a teacher that needs no fitting."""
    return (f"training.epochs={EPOCHS}", 'teachers.dwarf.weights="random"', *more)


def arguments(matrix, out, *assignments, method):
    """The command line that trains one cell."""
    return [
        *("run", "--matrix", str(matrix), "--preset", "control", "--device", "cpu"),
        *("--only", f"method={method}", "--only", "seed=0", "--out", str(out)),
        *(part for setting in settings(*assignments) for part in ("--set", setting)),
    ]


@pytest.fixture
def unstopped(matrix, tmp_path):
    """Train in this process, without a stop: what comes out of it."""

    def train(method, *assignments):
        run = training_run(matrix, method, *settings(*assignments))
        attempt(run, tmp_path / "unstopped")
        check_results(tmp_path / "unstopped")
        return result_of(tmp_path / "unstopped")

    return train


@pytest.fixture
def matrix(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(digits_text())
    return path


class Stopped:
    """Runs the command line in a process of its own, and stops it after some more steps."""

    def __init__(self, root, command):
        self._root, self._command = root, command
        self._workers = set()

    def start(self):
        return subprocess.Popen(
            [sys.executable, "-m", "kdbench", *self._command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self, who, number, *, after):
        """Send a signal when this attempt has told of so many steps; how the runner ended."""
        with self.start() as runner:
            worker = self._follow(after)
            job = [psutil.Process(runner.pid), *psutil.Process(runner.pid).children(recursive=True)]
            told = {"worker": [psutil.Process(worker)], "runner": job[:1], "job": job}
            for process in told[who]:
                process.send_signal(number)
            told, _ = runner.communicate(timeout=LONG)
        return runner.returncode, told

    def _follow(self, after):
        deadline = time.monotonic() + LONG
        while time.monotonic() < deadline:
            for path in self._root.glob(".spool/*/events.jsonl"):
                told = [json.loads(line) for line in _whole_lines(path)]
                started = next((e["pid"] for e in told if e["event"] == "started"), None)
                if started in {None, *self._workers}:
                    continue  # the spool of a runner that was killed
                attempt = max(event["attempt"] for event in told)
                own = [e for e in told if e["event"] == "step" and e["attempt"] == attempt]
                if len(own) >= after:
                    self._workers.add(started)
                    return started
            time.sleep(0.005)
        raise AssertionError("the worker did not come so far")


def _whole_lines(path):
    try:
        return [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
    except FileNotFoundError:
        return []


def rows_of(root):
    return cell_of(root), pd.read_parquet(root / "steps").query("phase == 'train'")


def test_a_worker_that_is_killed_in_mid_epoch(unstopped, matrix, tmp_path, kdbench):
    out, root = tmp_path / "results", tmp_path / "results" / "tiny"
    command = arguments(matrix, out, EVERY_STEP, method="embed-kd")
    after = random.Random(0).randint(STEPS, 60)
    code, told = Stopped(root, command).stop("worker", signal.SIGKILL, after=after)
    assert code == 1, told
    check_results(root)
    cell, steps = rows_of(root)
    assert (cell["status"], cell["steps_resumed"]) == ("killed", 0)
    assert after <= len(steps) == cell["steps_measured"] < EPOCHS * STEPS
    again = kdbench(*command)
    assert again.code == 1, "such a run is not repeated unless that is asked for"
    again = kdbench(*command, "--retry", "killed")
    assert again.code == 0, again
    assert result_of(root) == unstopped("embed-kd")
    check_results(root)
    cell, steps = rows_of(root)
    assert (cell["status"], cell["steps_measured"]) == ("ok", EPOCHS * STEPS)
    assert after - 1 <= cell["steps_resumed"] < EPOCHS * STEPS, "all but a step in the making"
    assert f"goes on after {cell['steps_resumed']} steps, in epoch" in again.out
    assert steps.groupby("attempt").size().to_dict() == {
        0: cell["steps_resumed"],
        1: EPOCHS * STEPS - cell["steps_resumed"],
    }


def test_a_runner_that_is_stopped_twice(unstopped, matrix, tmp_path, kdbench):
    out, root = tmp_path / "results", tmp_path / "results" / "tiny"
    epochs = "training.epochs=30"
    command = arguments(matrix, out, epochs, method="student-only")
    stopped, draw = Stopped(root, command), random.Random(1)
    # late enough for an attempt to have left an epoch, and long before the end, as steps are quick
    stop = (STEPS + 5, 3 * STEPS)
    code, told = stopped.stop("runner", signal.SIGTERM, after=draw.randint(*stop))
    assert code == 130, told
    assert rows_of(root)[0]["status"] == "interrupted"
    check_results(root)
    code, told = stopped.stop("runner", signal.SIGKILL, after=draw.randint(*stop))
    assert code == -signal.SIGKILL, told
    assert rows_of(root)[0]["status"] == "interrupted", "nothing was committed"
    last = kdbench(*command)
    assert last.code == 0, last
    assert result_of(root) == unstopped("student-only", epochs)
    check_results(root)
    cell, steps = rows_of(root)
    assert cell["status"] == "ok"
    assert cell["steps_resumed"] % STEPS == 0, "there are checkpoints after whole epochs alone"
    assert set(steps["attempt"]) == {0, 1, 2}, "each attempt has left some"


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGXCPU"])
def test_a_job_that_its_scheduler_warns(name, unstopped, matrix, tmp_path, kdbench):
    """Slurm's `--signal=USR1@60` reaches every process of a step, SGE's limits all of a job."""
    out, root = tmp_path / "results", tmp_path / "results" / "tiny"
    command = arguments(matrix, out, EVERY_STEP, method="embed-kd")
    code, told = Stopped(root, command).stop("job", signal.Signals[name], after=STEPS + 3)
    assert code == 130, told
    assert "goes on from here" in told
    cell, _ = rows_of(root)
    assert (cell["status"], cell["error"]) == ("interrupted", f"stopped by {name}")
    check_results(root)
    again = kdbench(*command)
    assert again.code == 0, again
    assert result_of(root) == unstopped("embed-kd")
    assert rows_of(root)[0]["steps_resumed"] >= STEPS


# --- when checkpoints are kept, dropped, and set aside; the workers here only pretend to train

STAND_IN = """
import json, os, pathlib
spool = pathlib.Path(sys.orig_argv[-1]).parent
job = json.loads((spool / "job.json").read_text())
folder, test = job["checkpoints"], pathlib.Path({test!r})
rows = (spool.parents[1] / "cells").glob(spool.name + "*")
with (test / "seen").open("a") as file:
    file.write(json.dumps([folder, folder and os.listdir(folder) if folder and
        os.path.isdir(folder) else [], len(list(rows))]) + chr(10))
if folder:
    os.makedirs(folder, exist_ok=True)
    (pathlib.Path(folder) / "last.safetensors").write_text("weights")
end = (test / "end").read_text()
(spool / "events.jsonl").write_text(json.dumps(
    dict(event="end", status=end, error=None if end == "ok" else "no")) + chr(10))
os._exit(0)
"""


@pytest.fixture
def pretend(tmp_path, monkeypatch, matrix, kdbench):
    """Run the matrix with workers that end as told; what each found: checkpoints, and rows."""
    fault(tmp_path, monkeypatch, STAND_IN.format(test=str(tmp_path)))

    def call(end, *more):
        (tmp_path / "end").write_text(end)
        (tmp_path / "seen").write_text("")
        command = arguments(matrix, tmp_path / "results", *more[:1], method="student-only")
        said = kdbench(*command, *more[1:])
        assert said.code == (end != "ok"), said
        seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
        return seen[0] if seen else None

    return call


def folders(tmp_path, *inside):
    return list((tmp_path / "results" / "tiny").joinpath(*inside, "checkpoints").glob("*"))


KEEP, RESUME, NONE = (f'budget.checkpoints="{how}"' for how in ("keep", "resume", "none"))


def test_checkpoints_are_kept_in_a_folder_of_the_runs_own(pretend, tmp_path):
    folder, found, _ = pretend("ok", KEEP)
    assert found == []
    assert folders(tmp_path) == [type(tmp_path)(folder)]
    assert folders(tmp_path)[0].name == cell_of(tmp_path / "results" / "tiny")["run_key"]
    assert pretend("ok", KEEP) is None, "it is not run again"
    assert (folders(tmp_path)[0] / "last.safetensors").read_text() == "weights"


def test_checkpoints_for_a_resume_go_when_it_is_done(pretend, tmp_path):
    assert pretend("failed", RESUME)[1] == []
    assert len(folders(tmp_path)) == 1
    assert pretend("ok", RESUME, "--retry", "failed")[1] == ["last.safetensors"]
    assert folders(tmp_path) == []


def test_a_run_without_checkpoints_knows_no_folder(pretend, tmp_path):
    assert pretend("ok", NONE)[0] is None
    assert folders(tmp_path) == []


def test_a_profile_has_no_checkpoints(pretend, tmp_path, matrix):
    matrix.write_text(matrix.read_text().replace('mode = "train"', 'mode = "profile"'))
    assert pretend("ok", KEEP)[0] is None


@pytest.mark.parametrize("status", ["failed", "killed", "timeout", "oom"])
def test_what_is_run_again_goes_on(status, pretend, tmp_path):
    pretend(status, KEEP)
    _, found, rows = pretend("ok", KEEP, "--retry", status)
    assert found == ["last.safetensors"]
    assert rows == 1, "the old row stays until there is a new one"


@pytest.mark.parametrize(
    ("status", "how"),
    [
        ("ok", ["--fresh"]),
        ("ok", ["--retry", "ok"]),
        ("diverged", ["--retry", "diverged"]),
        ("killed", ["--fresh"]),
    ],
)
def test_what_starts_anew_sets_all_that_was_aside(status, how, pretend, tmp_path):
    pretend(status, KEEP)
    _, found, rows = pretend("ok", KEEP, *how)
    assert (found, rows) == ([], 0), "neither weights nor rows are left to be taken for the new"
    (aside,) = folders(tmp_path, ".superseded")
    assert (aside / "last.safetensors").read_text() == "weights"
    assert len(folders(tmp_path)) == 1
    root = tmp_path / "results" / "tiny"
    assert cell_of(root)["status"] == "ok"
    assert len(list((root / ".superseded" / "cells").iterdir())) == 1


def test_the_log_of_a_resumed_training_is_of_all_its_attempts(pretend, tmp_path):
    pretend("failed", KEEP)
    (log,) = (tmp_path / "results" / "tiny" / "logs").iterdir()
    log.write_text("why it failed\n")
    pretend("failed", KEEP, "--retry", "failed")
    assert log.read_text() == "why it failed\n"
    pretend("failed", KEEP, "--fresh")
    assert log.read_text() == ""
