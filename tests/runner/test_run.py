"""`kdbench run`, end to end on the tiny matrix: what is on disk, and how runs end."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import duckdb
import pandas as pd
import pytest

from kdbench import api
from kdbench.runner.matrix_runner import RunSummary
from kdbench.store import Store
from kdbench.store.schema import MEMORY_CATEGORIES, TABLES
from tests.conftest import ALONE, TINY
from tests.support.consistency import check_results

pytestmark = pytest.mark.usefixtures("forked_workers")


def table(root, name):
    return pd.read_parquet(root / name)


def test_every_table_is_there_and_reads_as_it_is(finished):
    root = finished / "tiny"
    for name, columns in TABLES.items():
        names = [column.name for column in columns]
        assert list(table(root, name).columns) == names
        relation = duckdb.sql(f"select * from read_parquet('{root}/{name}/*.parquet')")
        assert relation.columns == names
        assert len(relation.df()) == len(table(root, name))


def test_one_row_per_run(finished):
    cells = table(finished / "tiny", "cells")
    assert sorted(cells["method"]) == ["embed-kd", "student-only", "teacher-kd"]
    assert set(cells["status"]) == {"ok"}
    assert cells["run_key"].is_unique
    assert set(cells["teacher_weights"].dropna()) == {"random"}
    assert cells.set_index("method")["teacher"].isna().to_dict() == {
        "embed-kd": False,
        "student-only": True,
        "teacher-kd": False,
    }
    assert (cells["threads"] == 1).all()
    assert cells["error"].isna().all()


def test_all_tables_are_about_the_same_runs(finished):
    root = finished / "tiny"
    keys = set(table(root, "cells")["run_key"])
    for name in ("phases", "steps", "samples", "memory"):
        assert set(table(root, name)["run_key"]) == keys


def test_the_cells_agree_with_their_steps(finished):
    root = finished / "tiny"
    steps = table(root, "steps")
    timed = steps[steps["phase"] == "measure"].groupby("run_key")["seconds"]
    cells = table(root, "cells").set_index("run_key")
    assert (timed.count() == cells["steps_measured"]).all()
    assert timed.median().sub(cells["step_seconds_median"]).abs().max() < 1e-12
    assert (cells["steps_measured"] >= 2).all()
    # 64 images in batches of 8
    assert (cells["epoch_seconds"] - 8 * cells["step_seconds_median"]).abs().max() < 1e-12
    assert set(cells["epoch_seconds_kind"]) == {"extrapolated"}
    warm = steps[steps["phase"] == "warmup"].groupby("run_key").size()
    assert (warm == cells["warmup_steps"]).all()
    assert (warm >= 10).all(), "fewer cannot tell whether steps of milliseconds are steady"


def test_a_profile_agrees_with_itself(finished):
    assert check_results(finished / "tiny") == 3


def test_memory_on_the_cpu(finished):
    root = finished / "tiny"
    cells = table(root, "cells").set_index("run_key")
    split = table(root, "memory")
    assert set(split["category"]) <= set(MEMORY_CATEGORIES)
    assert (split.groupby("run_key")["bytes"].sum() == cells["allocated_peak_bytes"]).all()
    assert set(cells["allocated_source"]) == {"ledger"}
    assert (cells["allocated_peak_bytes"] > cells["parameter_bytes"]).all()
    assert (cells["host_peak_bytes"] > 50e6).all(), "an interpreter with torch is larger"
    for gpu_only in (
        "reserved_peak_bytes",
        "process_peak_bytes",
        "device_peak_bytes",
        "energy_step_joules",
        "gpu_name",
        "process_source",
        "device_source",
    ):
        assert cells[gpu_only].isna().all(), gpu_only


def test_what_holds_the_teacher(finished):
    cells = table(finished / "tiny", "cells").set_index("method")
    held = cells["parameter_bytes"]
    assert held["teacher-kd"] > held["embed-kd"] > held["student-only"]
    assert (cells["student_parameters"] * 4).drop("teacher-kd").equals(held.drop("teacher-kd"))


def test_the_precompute_is_a_phase_of_its_own(finished):
    root = finished / "tiny"
    cells = table(root, "cells").set_index("method")
    phases = table(root, "phases")
    (precompute,) = phases[phases["phase"] == "precompute"].to_dict("records")
    assert precompute["run_key"] == cells.loc["embed-kd", "run_key"]
    assert precompute["units_total"] == 1  # 5 classes x 8 images, in a batch of up to 64
    measured = precompute["units"] == 1
    assert cells.loc["embed-kd", "precompute_seconds_kind"] == (
        "measured" if measured else "extrapolated"
    )
    # the class embeddings: 5 x 24 floats
    assert cells.loc["embed-kd", "precompute_kept_bytes"] == 5 * 24 * 4
    assert cells.loc["embed-kd", "precompute_peak_bytes"] > 0
    assert cells["precompute_seconds"].isna().to_dict() == {
        "embed-kd": False,
        "teacher-kd": True,
        "student-only": True,
    }


def test_an_extrapolated_precompute_is_marked(kdbench, tiny):
    said = kdbench(
        "run",
        "--matrix",
        tiny,
        "--device",
        "cpu",
        "--only",
        "method=embed-kd",
        "--set",
        "training.images_per_class=400000",
        "--set",
        "budget.precompute_seconds=0.05",
        "--set",
        "budget.precompute_min_batches=3",
    )
    assert said.code == 0, said
    (cell,) = table(tiny.parent / "results/tiny", "cells").to_dict("records")
    phases = table(tiny.parent / "results/tiny", "phases").set_index("phase")
    assert cell["precompute_seconds_kind"] == "extrapolated"
    done, total = phases.loc["precompute", ["units", "units_total"]]
    assert 3 <= done < total == 31_250  # 5 classes x 400 000 images, in batches of 64
    # the time of those batches, scaled; the phase's own time has a warm-up batch in it too
    assert cell["precompute_seconds"] < phases.loc["precompute", "seconds"] * total / done


def test_samples_begin_before_the_worker_and_end_after_it(finished):
    root = finished / "tiny"
    for _, samples in table(root, "samples").groupby("run_key"):
        ordered = samples.sort_values("monotonic_ns")["host_bytes"]
        assert pd.isna(ordered.iloc[0])
        assert ordered.notna().sum() > 5
    steps, samples = table(root, "steps"), table(root, "samples")
    for key, own in steps.groupby("run_key"):
        times = samples[samples["run_key"] == key]["monotonic_ns"]
        assert times.min() < own["started_ns"].min() <= own["started_ns"].max() < times.max()


def test_the_environment_is_kept(finished):
    cells = table(finished / "tiny", "cells")
    environment = json.loads(cells["environment"][0])
    assert environment["packages"]["torch"] == cells["torch_version"][0]
    assert environment["memory_bytes"] > 0
    assert cells["started_at"].dt.tz is not None


def test_the_same_command_again_runs_nothing(kdbench, tiny, tmp_path):
    first = kdbench("run", "--matrix", tiny, "--device", "cpu", "--only", "method=embed-kd")
    assert first.code == 0
    part = next((tmp_path / "results/tiny/cells").glob("?" * 16 + ".parquet"))
    stamp = part.stat().st_mtime_ns
    second = kdbench("run", "--matrix", tiny, "--device", "cpu", "--only", "method=embed-kd")
    assert second.code == 0
    assert "1 cell is there already and is not run again (1 ok); --fresh" in second.out
    assert part.stat().st_mtime_ns == stamp
    assert len(table(tmp_path / "results/tiny", "cells")) == 1
    third = kdbench(
        "run", "--matrix", tiny, "--device", "cpu", "--only", "method=embed-kd", "--fresh"
    )
    assert third.code == 0
    assert len(table(tmp_path / "results/tiny", "cells")) == 1
    assert part.stat().st_mtime_ns != stamp
    assert list((tmp_path / "results/tiny/.superseded/cells").glob("*.parquet"))


def fault(tmp_path, monkeypatch, code):
    """Have every worker run `code` when it starts; it travels in on PYTHONPATH."""
    folder = tmp_path / "fault"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import sys\nif 'kdbench.worker' in sys.orig_argv:\n" + textwrap.indent(code, "    ")
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


# Runs in the first worker only; the others are left alone.
ONCE = """
import os, pathlib
flag = pathlib.Path({flag!r})
if not flag.exists():
    flag.touch()
    {action}
"""


TWO_ALONE = [*ALONE, "--set", "axes.batch_size=[4, 8]"]


def once(tmp_path, action):
    return ONCE.format(flag=str(tmp_path / "faulted"), action=action)


@pytest.mark.parametrize(
    ("action", "status", "told"),
    [
        ("os.kill(os.getpid(), 9)", "killed", "SIGKILL"),
        ("os._exit(3)", "failed", "exit code 3"),
        (
            "sys.stderr.write('disk on fire\\n'); sys.stderr.flush(); os._exit(4)",
            "failed",
            "disk on fire",
        ),
    ],
)
def test_a_cell_that_dies_is_a_row_and_the_run_goes_on(
    kdbench, tiny, tmp_path, monkeypatch, action, status, told
):
    fault(tmp_path, monkeypatch, once(tmp_path, action))
    arguments = ["run", "--matrix", tiny, "--device", "cpu", *TWO_ALONE]
    said = kdbench(*arguments)
    assert said.code == 1, said
    cells = table(tmp_path / "results/tiny", "cells").set_index("batch_size")
    assert cells["status"].to_dict() == {4: status, 8: "ok"}
    assert told in cells.loc[4, "error"]
    assert pd.isna(cells.loc[4, "step_seconds_median"])
    assert f"{status}: student-only/small/8px/batch_size=4" in said.err
    # told again when it is skipped, and run again when asked to
    again = kdbench(*arguments)
    assert again.code == 1
    told = f"2 cells are there already and are not run again (1 {status}, 1 ok); --retry {status}"
    assert told in again.out
    retried = kdbench(*arguments, "--retry", status)
    assert retried.code == 0, retried
    assert set(table(tmp_path / "results/tiny", "cells")["status"]) == {"ok"}


def test_running_out_of_memory_is_its_own_status(kdbench, tiny, tmp_path, monkeypatch):
    """A real refusal of the allocator, under a limit of address space."""
    fault(
        tmp_path,
        monkeypatch,
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))\n",
    )
    said = kdbench(
        "run",
        "--matrix",
        tiny,
        "--device",
        "cpu",
        *ALONE,
        "--set",
        "axes.image_size=[1024]",
        "--set",
        "data.train_images=8",
    )
    assert said.code == 1, said
    (cell,) = table(tmp_path / "results/tiny", "cells").to_dict("records")
    assert cell["status"] == "oom", cell["error"]


def test_a_cell_that_takes_too_long(kdbench, tiny, tmp_path, monkeypatch):
    fault(tmp_path, monkeypatch, once(tmp_path, "import time; time.sleep(600)"))
    said = kdbench(
        "run", "--matrix", tiny, "--device", "cpu", *ALONE, "--set", "budget.timeout_seconds=1.5"
    )
    assert said.code == 1
    (cell,) = table(tmp_path / "results/tiny", "cells").to_dict("records")
    assert cell["status"] == "timeout"
    where = r"(in|after) the phase \w+ \(budget.timeout_seconds\); what it measured"
    assert re.match(rf"not done after \d+ s, {where}", cell["error"]), cell["error"]


def worker_events(root, enough):
    """Follow a run from outside until its worker has told enough; returns what it told."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        spooled = next((root / ".spool").glob("*/events.jsonl"), None)
        told = (
            [
                json.loads(line)
                for line in spooled.read_text().splitlines(keepends=True)
                if line.endswith("\n")
            ]
            if spooled
            else []
        )
        if enough(told):
            return told
        time.sleep(0.02)
    raise AssertionError("the worker did not come so far")


def test_what_a_cell_measured_before_it_died_is_kept(kdbench, tiny, tmp_path):
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kdbench",
            "run",
            "--matrix",
            str(tiny),
            "--device",
            "cpu",
            "--only",
            "method=embed-kd",
            "--set",
            "budget.measure_seconds=600",
            "--set",
            "budget.max_steps=1000000",
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    root = tmp_path / "results/tiny"

    def measured(told):
        return sum(event.get("phase") == "measure" for event in told) > 12

    os.kill(worker_events(root, measured)[0]["pid"], signal.SIGKILL)
    assert child.wait(240) == 1
    (cell,) = table(root, "cells").to_dict("records")
    steps = table(root, "steps")
    assert cell["status"] == "killed"
    assert cell["steps_measured"] == (steps["phase"] == "measure").sum() > 10
    assert pd.isna(cell["allocated_peak_bytes"]), "the accounting step was never reached"
    shown = kdbench("show", tmp_path / "results")
    assert "killed" in shown.out


def test_a_teacher_that_is_not_there_is_refused_before_anything_runs(kdbench, tiny, tmp_path):
    tiny.write_text(
        TINY.replace(
            "[teachers.dwarf]",
            f'[teachers.dwarf]\nweights = "pretrained"\ncheckpoint = "{tmp_path}"',
            1,
        )
    )
    said = kdbench("run", "--matrix", tiny, "--device", "cpu", "--only", "method=embed-kd")
    assert said.code == 2
    assert "teachers.dwarf.checkpoint: expected a folder with config.json" in said.err
    assert "save_pretrained" in said.err
    assert not (tmp_path / "results").exists()


def test_tables_are_readable_while_a_run_goes_on(tiny, tmp_path):
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kdbench",
            "run",
            "--matrix",
            str(tiny),
            "--device",
            "cpu",
            "--preset",
            "control",
        ],
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    root, seen = tmp_path / "results/tiny", set()
    try:
        while child.poll() is None:
            if (root / ".superseded").is_dir():  # the last that prepare() makes
                for name in TABLES:
                    frame = table(root, name)
                    count = duckdb.execute(
                        f"select count(*) from read_parquet('{root}/{name}/*.parquet')"
                    ).fetchone()
                    assert count[0] >= len(frame)
                seen.add(len(table(root, "cells")))
            time.sleep(0.2)
    finally:
        child.kill()
    assert child.returncode == 0
    assert {0, 1, 2} <= seen, "read before the first commit, and between commits"
    assert len(table(root, "cells")) == 3


def test_plain_lines_without_a_terminal(kdbench, tiny):
    said = kdbench("run", "--matrix", tiny, "--device", "cpu", "--only", "method=embed-kd")
    assert "\x1b" not in said.out
    lines = said.out.splitlines()
    assert any(line.startswith("[1/1] embed-kd/small/8px/dwarf: ok") for line in lines), lines
    assert any("precompute" in line for line in lines)


STOPS = {
    "SIGINT": [signal.SIGINT],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
}


ASKED = "this cell is finished first; Ctrl-C again stops it now"


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop(stop, tiny, tmp_path):
    """The cell is a row, no worker stays, and the same command finishes the rest."""
    arguments = [sys.executable, "-m", "kdbench", "run", "--matrix", str(tiny), "--device", "cpu"]
    arguments += [
        *TWO_ALONE,
        "--set",
        "budget.measure_seconds=2",
        "--set",
        "budget.max_steps=1000000",
    ]
    if sys.platform == "linux":
        arguments += ["--set", 'launch="fork"']
    child = subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT
    )
    worker = worker_events(tmp_path / "results/tiny", bool)[0]["pid"]
    out = ""
    for place, number in enumerate(STOPS[stop]):
        # two of one kind that come together are one
        while place and ASKED not in out:
            out += child.stdout.readline()
            assert child.poll() is None, out
        child.send_signal(number)
    out += child.communicate(timeout=240)[0]
    assert child.returncode == 130, out
    assert "goes on from here" in out
    (cell,) = table(tmp_path / "results/tiny", "cells").to_dict("records")
    if stop == "SIGINT":
        assert ASKED in out
        assert cell["status"] == "ok", "the next one was not started"
    else:
        who = "the user" if stop == "SIGINT twice" else stop
        assert (cell["status"], cell["error"]) == ("interrupted", f"stopped by {who}")
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert table(tmp_path / "results/tiny", "cells")["status"].tolist() == ["ok", "ok"]


STOPPED = {"interrupted": {"interrupted": True}, "card gone": {"given_up": "the card is gone"}}


@pytest.mark.parametrize("how", STOPPED)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_stopped_run_says_what_goes_on_with_it(how, fresh, kdbench, tiny, tmp_path, monkeypatch):
    """The same command with --fresh would start over."""
    summary = RunSummary(folder=tmp_path, **STOPPED[how])
    monkeypatch.setattr(api, "run", lambda *_given, **_named: api.Run(summary))
    said = kdbench("run", "--matrix", tiny, *(["--fresh"] if fresh else []))
    assert said.code == summary.exit_code != 0
    command = "the same command without --fresh" if fresh else "the same command"
    assert f" {command} goes on from here\n" in said.err


def test_a_run_without_a_terminal_that_hangs_up_goes_on(tiny, tmp_path):
    arguments = [sys.executable, "-m", "kdbench", "run", "--matrix", str(tiny), "--device", "cpu"]
    arguments += ALONE
    child = subprocess.Popen(
        ["nohup", *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    worker_events(tmp_path / "results/tiny", bool)
    child.send_signal(signal.SIGHUP)
    assert child.wait(60) == 0


def test_a_run_whose_reader_has_gone_goes_on(tiny, tmp_path):
    command = shlex.join(
        [sys.executable, "-m", "kdbench", "run", "--matrix", str(tiny), "--device", "cpu", *ALONE]
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert table(tmp_path / "results/tiny", "cells")["status"].tolist() == ["ok"]


def test_two_runs_in_one_folder_do_not_meet(kdbench, tiny, tmp_path):
    """The second is told and changes nothing; the lock goes with the first one's process."""
    root = tmp_path / "results" / "tiny"
    store = Store(root)
    store.prepare()
    arguments = ["run", "--matrix", tiny, "--device", "cpu", "--only", "method=embed-kd"]
    with store.writing():
        said = kdbench(*arguments)
        assert said.code == 2
        assert f"another run is writing here (process {os.getpid()})" in said.err
        assert len(table(root, "cells")) == 0
    assert kdbench(*arguments).code == 0
    assert table(root, "cells")["status"].tolist() == ["ok"]


def test_a_busy_machine_is_told(kdbench, tiny, monkeypatch):
    arguments = ["run", "--matrix", tiny, "--device", "cpu", "--only", "method=embed-kd"]
    monkeypatch.setattr(os, "getloadavg", lambda: (100.0, 0.0, 0.0))
    said = kdbench(*arguments)
    assert "this machine was busy just now (load 100.0" in said.out
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert "busy" not in kdbench(*arguments).out


def test_a_checkpoint_written_as_a_path_that_is_not_there_is_told_at_once(kdbench, tiny, tmp_path):
    said = kdbench(
        "run",
        "--matrix",
        tiny,
        "--device",
        "cpu",
        "--set",
        'teachers.dwarf.weights="pretrained"',
        "--set",
        'teachers.dwarf.checkpoint="./nosuch"',
    )
    assert said.code == 2
    assert "teachers.dwarf.checkpoint: expected a hub name or a local folder" in said.err
    assert not (tmp_path / "results").exists()
