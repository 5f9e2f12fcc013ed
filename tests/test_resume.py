"""A training that is stopped goes on from its last checkpoint, and ends as if it had not been."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from safetensors.torch import load_file

from kdbench.cli import main
from tests.consistency import check_results
from tests.test_train import digits_text

EPOCHS, STEPS = 10, 20
EVERY_STEP = "budget.checkpoint_seconds=1e-9"
LONG = 120


def arguments(matrix, out, *assignments, method):
    """A training of one cell on the digits, with dropout; its teacher needs no fitting."""
    settings = (f"training.epochs={EPOCHS}", 'teachers.dwarf.weights="random"', *assignments)
    return [
        *("run", "--matrix", str(matrix), "--preset", "control", "--device", "cpu"),
        *("--only", f"method={method}", "--only", "seed=0", "--out", str(out)),
        *(part for setting in settings for part in ("--set", setting)),
    ]


def trained(out):
    """All that a training has come to: weights, losses, epochs."""
    root = out / "tiny"
    (folder,) = (root / "checkpoints").iterdir()
    weights = {
        which: {
            name: tensor.numpy().tobytes()
            for name, tensor in load_file(folder / f"{which}.safetensors").items()
            if name.startswith(("student.", "optimizer.", "random."))
        }
        for which in ("last", "best")
    }
    epochs = pd.read_parquet(root / "epochs")
    told = ["epoch", "steps", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]
    steps = pd.read_parquet(root / "steps")
    # the accounting step, in no epoch, has the same loss too
    losses = steps[["phase", "epoch", "step", "loss"]].fillna({"epoch": -1}).to_dict("list")
    return weights, epochs[[*told, "learning_rate"]].to_dict("list"), losses


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trainings that nobody stops, by method."""
    done = {}

    def train(method):
        if method not in done:
            folder = tmp_path_factory.mktemp("whole")
            (folder / "tiny.toml").write_text(digits_text())
            assert main(arguments(folder / "tiny.toml", folder / "results", method=method)) == 0
            assert check_results(folder / "results" / "tiny") == 1
            done[method] = folder / "results"
        return done[method]

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
            os.kill(worker if who == "worker" else runner.pid, number)
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
    (cell,) = pd.read_parquet(root / "cells").to_dict("records")
    return cell, pd.read_parquet(root / "steps").query("phase == 'train'")


def test_a_worker_that_is_killed_in_mid_epoch(whole, matrix, tmp_path, kdbench):
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
    assert trained(out) == trained(whole("embed-kd"))
    check_results(root)
    cell, steps = rows_of(root)
    assert (cell["status"], cell["steps_measured"]) == ("ok", EPOCHS * STEPS)
    assert after - 1 <= cell["steps_resumed"] < EPOCHS * STEPS, "all but a step in the making"
    assert f"goes on after {cell['steps_resumed']} steps, in epoch" in again.out
    assert steps.groupby("attempt").size().to_dict() == {
        0: cell["steps_resumed"],
        1: EPOCHS * STEPS - cell["steps_resumed"],
    }


def test_a_runner_that_is_stopped_twice(whole, matrix, tmp_path, kdbench):
    out, root = tmp_path / "results", tmp_path / "results" / "tiny"
    command = arguments(matrix, out, method="student-only")
    stopped, draw = Stopped(root, command), random.Random(1)
    code, told = stopped.stop("runner", signal.SIGINT, after=draw.randint(STEPS, 50))
    assert code == 130, told
    assert rows_of(root)[0]["status"] == "interrupted"
    check_results(root)
    code, told = stopped.stop("runner", signal.SIGKILL, after=draw.randint(STEPS, 50))
    assert code == -signal.SIGKILL
    assert "goes on after" in told
    assert rows_of(root)[0]["status"] == "interrupted", "nothing was committed"
    last = kdbench(*command)
    assert last.code == 0, last
    assert trained(out) == trained(whole("student-only"))
    check_results(root)
    cell, steps = rows_of(root)
    assert cell["status"] == "ok"
    assert cell["steps_resumed"] % STEPS == 0, "there are checkpoints after whole epochs alone"
    assert set(steps["attempt"]) == {0, 1, 2}, "each attempt has left some"
