"""What a command prints cannot be written: a full disk, a reader that has gone."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from kdbench import api, load_matrix
from kdbench.runner.progress import ConsoleProgress
from kdbench.store import read_table
from tests.conftest import ALONE

# Whatever is written to it finds no room.
FULL = Path("/dev/full")
NO_ROOM = "no space left on device"

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="macOS has no /dev/full")


def kdbench(*arguments, full=("stdout",)):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with FULL.open("w") as file:
        return subprocess.run(
            [sys.executable, "-m", "kdbench", *map(str, arguments)],
            **{**streams, **dict.fromkeys(full, file)},
            text=True,
            check=False,
            timeout=280,
        )


@pytest.mark.parametrize("full", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_run_goes_on_when_its_lines_cannot_be_written(full, tiny, tmp_path):
    """Not even the results are blamed, although most lines are printed while they are written."""
    done = kdbench("run", "--matrix", tiny, "--device", "cpu", *ALONE, full=full)
    assert done.returncode == 0, done.stderr
    if full == ("stdout",):
        assert done.stderr == f"kdbench: the output could not always be written: {NO_ROOM}\n"
    if full == ("stderr",):
        assert "done; see: kdbench show" in done.stdout
    assert read_table(tmp_path / "results/tiny", "cells")["status"].tolist() == ["ok"]


@pytest.mark.usefixtures("forked_workers")
def test_a_run_of_a_script_goes_on_as_well(tiny, tmp_path):
    """Its console is its own."""
    loaded = load_matrix(tiny, assignments=ALONE[1:])
    with suppress(OSError), FULL.open("w") as file:  # closing it fails once more
        done = api.run(loaded, device="cpu", progress=ConsoleProgress(Console(file=file)))
    assert (done.summary.exit_code, done.summary.done) == (0, 1)
    assert read_table(tmp_path / "results/tiny", "cells")["status"].tolist() == ["ok"]


def test_a_run_that_fails_keeps_its_exit_code(tiny):
    sets = [*ALONE, "--set", "budget.timeout_seconds=0.5"]
    done = kdbench("run", "--matrix", tiny, "--device", "cpu", *sets)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].endswith(f"could not always be written: {NO_ROOM}")


PRINTED = {
    "a table": ["show", "{finished}"],
    "more than a buffer holds": ["show", "{finished}", "--format", "json"],
    "lines": ["cells", "--matrix", "{tiny}"],
    "the help": ["run", "--help"],
}


@pytest.mark.parametrize("case", PRINTED)
def test_one_line_says_that_the_output_cannot_be_written(case, tiny, finished):
    arguments = [a.format(tiny=tiny, finished=finished) for a in PRINTED[case]]
    done = kdbench(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == f"kdbench: cannot write the output: {NO_ROOM}"
    assert "Traceback" not in done.stderr
    assert done.stderr.count(NO_ROOM) == 1


def test_what_is_held_back_until_the_end_is_told_as_well(predicted):
    done = kdbench("check", "--baseline", predicted.path, "results", "--format", "github")
    assert (done.returncode, "cannot write the output" in done.stderr) == (2, True), done.stderr


def test_errors_that_nobody_can_be_told_keep_their_exit_code():
    assert kdbench("show", "nowhere", full=("stdout", "stderr")).returncode == 2
    assert kdbench("shwo", full=("stderr",)).returncode == 2
