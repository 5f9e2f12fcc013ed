"""Cells that run out of memory for real: under a limit of address space, and by the kernel."""

import contextlib
import os
import resource
import subprocess
import sys
from functools import partial

import pandas as pd
import psutil
import pytest

from kdbench.runner.process import oom_killer
from tests.runner.test_run import fault, table
from tests.support import REPOSITORY
from tests.support.limited_group import CannotLimitError, limited_group

GIB = 2**30
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")

# The second cell's images are 2^20 x 3 x 32 x 32 bytes, asked for at once.
IMAGES_BYTES = 2**20 * 3 * 32 * 32
LARGE = ["axes.batch_size=[8, 1048576]", 'axes.method=["student-only"]', "data.image_size=32"]
LARGE += ["data.train_images=1048576", "budget.max_steps=3"]


def run(tiny, tmp_path, *arguments, before=None, group=None, settings=()):
    """Run the matrix of two cells in a process of its own, under a limit."""
    command = [sys.executable, "-m", "kdbench", "run", "--matrix", tiny, "--device", "cpu"]
    command += ["--out", tmp_path / "results", *arguments]
    for setting in (*LARGE, *settings):
        command += ["--set", setting]
    command = list(map(str, command))
    return subprocess.run(
        group.command(*command) if group else command,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def by_batch(tmp_path):
    cells = table(tmp_path / "results/tiny", "cells").set_index("batch_size")
    return cells.loc[8].to_dict(), cells.loc[2**20].to_dict()


def left_over(tmp_path):
    """Processes of the run that are still there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and str(tmp_path) in " ".join(process.cmdline()):
                found.append(process)
    return found


def goes_on(tmp_path, said):
    """The other cell is whole, the exit code says that one is not, and nobody is left."""
    assert said.returncode == 1, said
    other, cell = by_batch(tmp_path)
    assert (other["status"], cell["status"]) == ("ok", "oom"), (other["error"], cell["error"])
    assert other["steps_measured"] == 3
    assert pd.isna([other["oom_source"], other["oom_asked_bytes"], other["oom_free_bytes"]]).all()
    assert "oom: student-only/small/8px/batch_size=1048576" in said.stderr
    assert len(cell["error"].splitlines()) == 1
    for remedy in ("batch_size", "checkpointing = true", "kdbench predict --fits"):
        assert remedy in cell["error"]
    assert not left_over(tmp_path)
    return cell


def is_run_again(tmp_path, again, first):
    """`--retry oom` runs that cell and no other; what was there is set aside."""
    said = again("--retry", "oom")
    assert "[1/1] student-only/small/8px/batch_size=1048576" in said.stdout + said.stderr
    second = goes_on(tmp_path, said)
    assert second["started_at"] > first["started_at"]
    assert len(list((tmp_path / "results/tiny/.superseded/cells").glob("*.parquet"))) == 1


@pytest.mark.parametrize("launch", ["spawn", "fork"])
def test_an_allocation_that_a_limit_of_address_space_refuses(tiny, tmp_path, launch):
    limit = 3 * GIB  # the images alone are as large
    again = partial(
        run,
        tiny,
        tmp_path,
        before=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        settings=[f'launch="{launch}"'],
    )
    cell = goes_on(tmp_path, again())
    assert cell["oom_source"] == "host"
    assert cell["oom_asked_bytes"] == IMAGES_BYTES
    # a process that has imported torch takes some of it, and cannot have taken most
    assert limit / 2 < cell["oom_free_bytes"] < limit
    assert "3.22 GB asked for" in cell["error"]
    assert "of 3.22 GB (the process's address space, RLIMIT_AS)" in cell["error"]
    if launch == "spawn":
        is_run_again(tmp_path, again, cell)


def test_a_teacher_that_is_not_fitted_for_want_of_memory(tiny, tmp_path):
    """Its cells end as it did, so that `--retry oom` tries them again."""
    limit = 3 * GIB
    said = run(
        tiny,
        tmp_path,
        before=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        settings=[
            'data.source="digits"',
            "data.classes=10",
            "data.image_size=8",
            "data.train_images=64",
            'teachers.dwarf.weights="fitted"',
            "teachers.dwarf.width=32768",
            'axes.method=["embed-kd"]',
            "axes.batch_size=[8]",
        ],
    )
    assert said.returncode == 1, said
    (cell,) = table(tmp_path / "results/tiny", "cells").to_dict("records")
    assert (cell["status"], cell["oom_source"]) == ("oom", "host"), cell["error"]
    assert cell["oom_asked_bytes"] == 4 * 32768**2, "its first square matrix"
    assert cell["error"].startswith("fitting the teacher 'dwarf': out of memory on the host: ")


def test_a_limit_that_leaves_no_room_for_torch(tiny, tmp_path):
    """The worker cannot even say how it ended: its last words must do."""
    limit = 600_000_000
    said = run(
        tiny, tmp_path, before=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    )
    assert said.returncode == 1, said
    for cell in by_batch(tmp_path):
        assert (cell["status"], cell["oom_source"]) == ("oom", "host"), cell["error"]
        assert pd.isna(cell["oom_free_bytes"])
        assert "600 MB (the process's address space, RLIMIT_AS)" in cell["error"]
        assert "kdbench predict --fits" in cell["error"]
    assert not left_over(tmp_path)


@pytest.mark.parametrize("launch", ["spawn", "fork"])
def test_the_kernels_killer_in_a_real_control_group(tiny, tmp_path, launch):
    # torch takes a quarter of it and the images a fifth, which is looked at before; what a step
    # makes of them is not
    limit, settings = GIB, [f'launch="{launch}"', "data.image_size=8"]
    try:
        with limited_group(limit) as group:
            again = partial(run, tiny, tmp_path, group=group, settings=settings)
            cell = goes_on(tmp_path, again())
            assert not group.processes(), "the run left somebody behind"
            if launch == "spawn":
                is_run_again(tmp_path, again, cell)
    except CannotLimitError as tried:
        pytest.skip(f"no control group with a limit of memory can be made here: {tried}")
    assert cell["oom_source"] == "kernel"
    # promised at first, and used up page by page: nobody says how much was asked for
    assert pd.isna(cell["oom_asked_bytes"])
    assert "the kernel's killer ended the worker" in cell["error"]
    assert "the least limit is 1.07 GB (control group /" in cell["error"]


# The worker plays the kernel's part: it counts itself, and is killed.
COUNTED = """
import os, pathlib
pathlib.Path({counter!r}).write_text({text!r})
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("count", "status"), [(4, "oom"), (3, "killed")])
def test_a_killed_worker_by_the_killers_count(kdbench, tiny, tmp_path, monkeypatch, count, status):
    """What the test above covers where it can, with counters in files."""
    folder = tmp_path / "root/sys/fs/cgroup/job"
    folder.mkdir(parents=True)
    (tmp_path / "root/proc/self").mkdir(parents=True)
    (tmp_path / "root/proc/self/cgroup").write_text("0::/job\n")
    (folder / "memory.max").write_text("1073741824\n")
    (folder / "memory.events").write_text("low 0\noom 3\noom_kill 3\n")
    monkeypatch.setattr(oom_killer, "ROOT", tmp_path / "root")
    text = f"low 0\noom {count}\noom_kill {count}\n"
    fault(tmp_path, monkeypatch, COUNTED.format(counter=str(folder / "memory.events"), text=text))
    said = kdbench("run", "--matrix", tiny, "--device", "cpu", "--only", "method=embed-kd")
    assert said.code == 1
    (cell,) = table(tmp_path / "results/tiny", "cells").to_dict("records")
    assert cell["status"] == status, cell["error"]
    if status == "oom":
        assert cell["oom_source"] == "kernel"
        assert "oom_kill of control group /job rose by 1" in cell["error"]
    else:
        assert pd.isna(cell["oom_source"])
        assert "oom_kill of control group /job did not rise" in cell["error"]
    assert pd.isna(cell["oom_asked_bytes"])
    assert pd.isna(cell["oom_free_bytes"])


def test_the_worker_goes_before_the_runner_does():
    """The kernel's killer is told whom to choose; whoever is first already stays so."""
    code = (
        "from pathlib import Path\nfrom kdbench.common.lifetime import prefer_oom_kill\n"
        "score = Path('/proc/self/oom_score_adj')\nprint(score.read_text())\n"
        "prefer_oom_kill()\nprint(score.read_text())\n"
        "prefer_oom_kill()\nprefer_oom_kill()\nprint(score.read_text())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, most = map(int, done.stdout.split())
    assert after == min(1000, before + 500)
    assert most == 1000
