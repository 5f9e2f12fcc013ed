"""How long a job may take, and who may stop it."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from kdbench.common.errors import InputError
from kdbench.common.lifetime import STOP_SIGNALS
from kdbench.matrix.file import load_matrix
from kdbench.runner.process.stop_request import StopRequest
from kdbench.runner.process.timeouts import TimeLimits
from kdbench.spec.budget import Budget, PhaseTimeouts
from kdbench.store import read_table


def limits(**phases):
    return TimeLimits(Budget(timeout_seconds=1000, phase_timeouts=PhaseTimeouts(**phases)), 100.0)


def begins(phase):
    return {"event": "phase_start", "phase": phase}


def ends(phase):
    return {"event": "phase", "phase": phase}


STARTED, STEP = {"event": "started"}, {"event": "step"}


def test_each_phase_has_its_own_limit():
    found = limits(start=10, setup=20, measure=30, step=None)
    assert found.exceeded(109.9) is None
    assert found.exceeded(110) == "start not done after 10 s (budget.phase_timeouts.start)"
    found.follow([STARTED], 112)
    assert found.exceeded(140) is None, "between two phases nothing is judged"
    found.follow([begins("setup")], 140)
    assert found.exceeded(159.9) is None
    assert found.exceeded(160) == "setup not done after 20 s (budget.phase_timeouts.setup)"
    found.follow([ends("setup"), begins("measure")], 150)
    assert found.exceeded(179) is None
    found.follow([STEP], 179)
    assert found.exceeded(180) == "measure not done after 30 s (budget.phase_timeouts.measure)"
    found.follow([ends("measure"), begins("evaluate")], 200)
    assert found.exceeded(1099.9) is None, "a phase without a limit has the whole's"
    whole = "not done after 1000 s, in the phase evaluate (budget.timeout_seconds)"
    assert found.exceeded(1100) == whole


def test_the_whole_jobs_limit_names_the_phase_it_was_in():
    found = TimeLimits(Budget(timeout_seconds=5), 100.0)

    def told():
        return found.exceeded(105)

    late = "not done after 5 s, {} (budget.timeout_seconds)".format
    assert told() == late("in the phase start")
    found.follow([STARTED], 101)
    assert told() == late("after the phase start")
    found.follow([begins("train"), STEP], 102)
    assert told() == late("in the phase train")
    found.follow([ends("train")], 103)
    assert told() == late("after the phase train")


@pytest.mark.parametrize("phase", ["warmup", "measure", "train"])
def test_a_step_that_does_not_end_is_told_in_whichever_phase(phase):
    found = limits(step=5)
    found.follow([STARTED, begins(phase)], 110)
    assert found.exceeded(114.9) is None
    for now in (114, 118, 122):
        found.follow([STEP], now)
    assert found.exceeded(126.9) is None
    told = f"no step done for 5 s in the phase {phase} (budget.phase_timeouts.step)"
    assert found.exceeded(127) == told
    found.follow([ends(phase), begins("evaluate")], 130)
    assert found.exceeded(200) is None, "it has no steps"


def test_a_phase_of_a_strangers_has_no_limit():
    found = limits(step=None)
    found.follow([begins("model_dump"), begins("step"), {"event": None}, {}], 110)
    assert found.exceeded(500) is None


def test_limits_change_no_key_and_a_wrong_one_is_named(tiny):
    def key(*sets):
        (run, *_) = load_matrix(tiny, assignments=sets).runs()
        return run.run_key(worker_digest="w", environment={})

    assert key() == key("budget.phase_timeouts.setup=9")
    for sets, told in (
        ("budget.phase_timeouts.set_up=9", "budget.phase_timeouts.set_up"),
        ("budget.phase_timeouts.setup=0", "budget.phase_timeouts.setup"),
    ):
        with pytest.raises(InputError, match=told):
            load_matrix(tiny, assignments=[sets])


# --- who wants it to stop


def test_ctrl_c_is_a_wish_first_and_an_order_then():
    with StopRequest() as stop:
        assert (stop.after_cell(), stop.now) == (False, None)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.after_cell(), stop.now) == (True, None)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.after_cell(), stop.now) == (True, "stopped by the user")


@pytest.mark.parametrize("name", STOP_SIGNALS[1:])
def test_a_scheduler_gives_orders(name):
    number = getattr(signal, name)
    with handled(number, signal.SIG_DFL), StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert (stop.after_cell(), stop.now) == (True, f"stopped by {name}")
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.now == f"stopped by {name}", "the first that did"


def test_what_was_ignored_stays_so():
    with handled(signal.SIGHUP, signal.SIG_IGN):
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.after_cell()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGXCPU"])
def test_a_meaning_that_the_callers_program_gives_a_signal_stays(name):
    number, heard = signal.Signals[name], []
    with handled(number, lambda *_: heard.append(name)):
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
        assert (stop.now, heard) == (None, [name])


@contextmanager
def handled(number, handler):
    """Whatever whoever started the tests had done to it: `nohup` has SIGHUP ignored."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_outside_of_the_main_thread_it_hears_nothing_and_takes_nothing_over():
    before, seen = signal.getsignal(signal.SIGINT), []

    def other():
        with StopRequest() as stop:
            seen.append(signal.getsignal(signal.SIGINT))
            stop.ask()
            seen.append(stop.after_cell())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [before, True]


# Longer than any step takes, of a student this small on a machine however busy.
HANGS = {"budget.phase_timeouts.step=10": "no step done for "}


@pytest.mark.skipif(sys.platform != "linux", reason="finds its processes in /proc")
@pytest.mark.parametrize("limit", HANGS)
def test_a_step_that_hangs_ends_its_cell_alone(limit, tiny, tmp_path, monkeypatch):
    """A worker that sleeps for ever in a step, deaf to whatever can be ignored."""
    site = tmp_path / "site"
    info = site / "hanging-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hanging\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[kdbench.methods]\nhanging = hanging:HANGING\n")
    (site / "hanging.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", str(site))
    sets = [limit, 'axes.method=["hanging", "student-only"]', "budget.warmup_seconds=0.001"]
    # never narrow enough, so that both are timed for as long as this says
    sets += ["budget.max_steps=100000", "budget.measure_seconds=3", "budget.interval_width=1e-9"]
    arguments = [*("run", "--matrix", str(tiny), "--device", "cpu")]
    arguments += [part for value in sets for part in ("--set", value)]
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    cells = read_table(tmp_path / "results/tiny", "cells").set_index("method")
    assert cells["status"].to_dict() == {"hanging": "timeout", "student-only": "ok"}
    assert cells.loc["hanging", "error"].startswith(HANGS[limit])
    assert cells.loc["hanging", "steps_measured"] > 0, "what it measured until then is kept"


HANGING = """
import signal, time

from kdbench.spec.method import Method

HANGING = Method(step="hanging:step", teacher="none")
began = []


def step(parts):
    from kdbench.worker.training.methods import student_only

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    forward = student_only(parts)

    def hangs(batch, mark):
        # the warm-up has no time for more than a step or two
        began.append(batch)
        while len(began) > 20:
            time.sleep(1)
        return forward(batch, mark)

    return hangs
"""
