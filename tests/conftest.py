"""Fixtures that many tests share: the command line, a tiny matrix, and one finished run of it."""

import fcntl
import os
import shutil
import signal

# Read once, when the hub's library is imported: no test is to wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
# A shell that runs the tests in the background has Ctrl-C ignored, which children inherit: the
# tests of it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

from dataclasses import dataclass

import pytest

from kdbench.cli import main
from kdbench.gate import check as gate
from kdbench.runner.process import launcher
from kdbench.runner.process.forked import WarmProcesses
from kdbench.runner.process.stop_request import StopRequest
from tests.support.gated import Predictor

# A matrix whose cells take a second each, nearly all of it importing torch.
TINY = """
name = "tiny"
mode = "profile"
threads = 1

[axes]
method = ["teacher-kd", "embed-kd"]
student = ["small"]
image_size = [8]
teacher = ["dwarf"]

[students.small]
patch_size = 4
width = 16
depth = 2
heads = 2

[teachers.dwarf]
patch_size = 8
width = 24
depth = 1
heads = 2
image_size = 16

[data]
source = "synthetic"
name = "noise"
classes = 5
image_size = 8
train_images = 64
test_images = 16

[training]
batch_size = 8
images_per_class = 8

[budget]
warmup_steps = 1
min_steps = 2
max_steps = 8
measure_seconds = 1
precompute_seconds = 1
timeout_seconds = 280

[presets.control]
axes.method = ["teacher-kd", "embed-kd", "student-only"]
"""

# Its cell without a teacher: its process starts in half the time.
ALONE = ("--set", 'axes.method=["student-only"]')


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, tmp_path_factory, monkeypatch):
    """Run in a folder of the test's own, and keep away from the user's cache and settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("KDBENCH_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    # one for all tests: it is part of what a worker sees, and so of what it can be forked from
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hf"))


@pytest.fixture
def kdbench(capfd):
    """Run a command line in this process."""

    def call(*arguments):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        told = capfd.readouterr()
        return Said(code, told.out, told.err)

    return call


@pytest.fixture(scope="session")
def _warm_workers(tmp_path_factory):
    warm = WarmProcesses()
    yield warm, tmp_path_factory.mktemp("warm") / "log"
    warm.close()


@pytest.fixture
def forked_workers(_warm_workers, monkeypatch):
    """Fork the workers of runs in this process from one that has imported torch already.

    For tests that ask what becomes of a worker's rows, not how it came to be: a fresh one imports
    for five seconds. A test that has its workers find other modules gets fresh ones, unless it
    calls what this returns: then they are the same for many tests.
    """
    warm, log = _warm_workers
    paths = {os.environ.get("PYTHONPATH")}
    fresh = launcher.spawn

    def spawn(run):
        if os.environ.get("PYTHONPATH") not in paths:
            return fresh(run)
        return warm.starter(run, log, StopRequest())

    monkeypatch.setattr(launcher, "spawn", spawn)
    return lambda: paths.add(os.environ["PYTHONPATH"])


@pytest.fixture
def tiny(tmp_path):
    """Write the tiny matrix and return its path."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """One finished run of the tiny matrix with its control, for tests that only read it.

    Where tests run beside each other, the first that asks for it makes it for all.
    """
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent
    folder = shared / "finished"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _finish(folder)
            (folder / "done").touch()
    return folder / "results"


def _finish(folder):
    matrix = folder / "tiny.toml"
    matrix.write_text(TINY)
    before = dict(os.environ)
    os.environ["KDBENCH_CACHE"] = str(folder / "cache")
    arguments = ["--preset", "control", "--device", "cpu", "--out", str(folder / "results")]
    try:
        code = main(["run", "--matrix", str(matrix), *arguments])
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert code == 0


@pytest.fixture
def predictor(monkeypatch):
    stand_in = Predictor()
    monkeypatch.setattr(gate, "predict_cells", stand_in)
    return stand_in


@pytest.fixture
def predicted(kdbench, predictor, tiny, tmp_path):
    """Write a baseline of predictions; call to check against it."""
    path = tmp_path / "baseline.txt"
    assert kdbench("check", "--matrix", tiny, "--baseline", path, "--update").code == 0

    def call(*arguments):
        return kdbench("check", "--matrix", tiny, "--baseline", path, *arguments)

    call.path = path
    return call
