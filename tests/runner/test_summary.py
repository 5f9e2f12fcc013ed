"""From events and samples to rows: how every kind of end is told, and what each figure is of."""

import json
import signal
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbench.runner.outcome import Outcome
from kdbench.runner.process.launcher import ProcessResult
from kdbench.runner.rows import failed_rows, summarise
from kdbench.store import Store, read_table
from kdbench.store.schema import PLAN_COLUMNS, SCHEMA_VERSION, TABLES
from tests.support.models import tiny_run
from tests.support.stores import statuses

STARTED = datetime(2026, 1, 2, tzinfo=UTC)
ENVIRONMENT = {
    "cpu_model": "a processor",
    "gpu_name": None,
    "driver_version": None,
    "torch_version": "2.11.0",
    "git_revision": None,
    "packages": {"torch": "2.11.0"},
}
SECOND = 10**9
DONE = {"event": "end", "status": "ok"}
HIGH_WATER = {"host_peak_bytes": 500, "host_source": "vmhwm"}
POLLED = {"host_peak_bytes": None, "host_source": None}


@pytest.fixture
def run(tmp_path):
    return tiny_run(tmp_path)


@pytest.fixture
def summed(run, tmp_path):
    """Summarise events given as dicts; the rest of the outcome is as a good end leaves it."""

    def call(
        *events,
        samples=(),
        log="",
        returncode=0,
        timed_out=None,
        stopped=None,
        problem=None,
        of_run=run,
        rates=None,
    ):
        path = tmp_path / "worker.log"
        if log is not None:
            path.write_bytes(log.encode() if isinstance(log, str) else log)
        return summarise(
            of_run,
            ProcessResult(
                returncode=returncode,
                timed_out=timed_out,
                stopped=stopped,
                problem=problem,
                wall_seconds=12.5,
                events=events,
            ),
            samples=samples,
            environment=ENVIRONMENT,
            started_at=STARTED,
            log=path,
            rates=rates or {},
        )

    return call


def step(number, *, at=None, seconds=1.0, phase="measure", epoch=None, **peaks):
    at = float(number) if at is None else at
    return {
        "event": "step",
        "phase": phase,
        "step": number,
        "epoch": epoch,
        "started_ns": int(at * SECOND),
        "seconds": seconds,
        "loss": 1.0,
        "allocated_peak_bytes": None,
        "reserved_peak_bytes": None,
        **peaks,
    }


def phase(name, start, seconds, **figures):
    return {
        "event": "phase",
        "phase": name,
        "started_ns": int(start * SECOND),
        "seconds": seconds,
        "allocated_peak_bytes": None,
        "reserved_peak_bytes": None,
        **POLLED,
        **figures,
    }


def phase_start(name, start):
    return {"event": "phase_start", "phase": name, "started_ns": int(start * SECOND)}


def epoch(number, seconds=30.0, accuracy=0.5):
    return {
        "event": "epoch",
        "epoch": number,
        "steps": 8,
        "train_seconds": seconds,
        "test_accuracy": accuracy,
    }


def sample(at, **values):
    return {"monotonic_ns": int(at * SECOND), **values}


def cell_of(rows):
    (cell,) = rows["cells"]
    return cell


# how it ended, what the worker had told, the log -> status and what the error says
LATE = "not done after 12 s, in the phase train (budget.timeout_seconds)"
ENDS = {
    "ok": ({}, [DONE], "", "ok", None),
    "failed and told": (
        {"returncode": 1},
        [{"event": "end", "status": "failed", "error": "ValueError: no"}],
        "Traceback\nValueError: not this\n",
        "failed",
        "ValueError: no",
    ),
    "failed without a word": (
        {"returncode": 3},
        [],
        "",
        "failed",
        "the worker ended with exit code 3: it said nothing",
    ),
    "no log at all": ({"returncode": 3}, [], None, "failed", "exit code 3: it said nothing"),
    "failed at import": (
        {"returncode": 1},
        [],
        b"Traceback:\n  a line\nImportError: \xff torch\n\n  \n",
        "failed",
        "exit code 1: ImportError: \N{REPLACEMENT CHARACTER} torch",
    ),
    "gone without an end": ({}, [], "bye\n", "failed", "exit code 0: bye"),
    "oom": (
        {"returncode": 1},
        [{"event": "end", "status": "oom", "error": "OutOfMemoryError: 2 GiB"}],
        "",
        "oom",
        "OutOfMemoryError: 2 GiB",
    ),
    "diverged": (
        {"returncode": 1},
        [{"event": "end", "status": "diverged", "error": "the mean loss of epoch 0 is nan"}],
        "",
        "diverged",
        "mean loss",
    ),
    "timeout": (
        {"returncode": -signal.SIGINT, "timed_out": LATE},
        [],
        "KeyboardInterrupt\n",
        "timeout",
        LATE + "; what it measured until then is kept",
    ),
    "timeout that had to be killed": (
        {"returncode": -signal.SIGKILL, "timed_out": LATE},
        [],
        "",
        "timeout",
        "budget.timeout_seconds",
    ),
    "timeout of what cannot be killed": (
        {"returncode": None, "timed_out": LATE, "problem": "the kernel keeps it"},
        [],
        "",
        "timeout",
        "is kept; the kernel keeps it",
    ),
    "cannot be killed": (
        {"returncode": None, "problem": "the kernel keeps it"},
        [],
        "",
        "failed",
        "the kernel keeps it",
    ),
    "hung after its work": (
        {"returncode": -signal.SIGKILL, "timed_out": LATE},
        [DONE],
        "",
        "ok",
        None,
    ),
    "out of the system's memory": (
        {"returncode": -signal.SIGKILL},
        [],
        "",
        "killed",
        "killed by SIGKILL: often the system's answer to memory running out",
    ),
    "crashed": ({"returncode": -signal.SIGSEGV}, [], "", "killed", "the worker was killed by SIGS"),
    "a signal without a name": ({"returncode": -40}, [], "", "killed", "killed by signal 40"),
    "interrupted": (
        {"returncode": -signal.SIGINT, "stopped": "stopped by the user"},
        [],
        "KeyboardInterrupt\n",
        "interrupted",
        "stopped by the user",
    ),
    "interrupted when it was done": ({"stopped": "stopped by SIGTERM"}, [DONE], "", "ok", None),
    "an error that is no text": (
        {"returncode": 1},
        [{"event": "end", "status": "failed", "error": "no file \udce9.png"}],
        "",
        "failed",
        "no file \\udce9.png",
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_how_a_run_ended(case, summed, tmp_path):
    outcome, told, log, status, error = ENDS[case]
    measured = [step(0, seconds=2.0), step(1, seconds=4.0)]
    rows = summed(*measured, *told, log=log, **outcome)
    cell = cell_of(rows)
    assert cell["status"] == status
    if error is None:
        assert cell["error"] is None
    else:
        assert error in cell["error"]
        assert len(cell["error"].splitlines()) == 1
    if status == "killed" and "SIGKILL" not in error:
        assert "memory" not in cell["error"], "a crash is not blamed on memory"
    # Whatever the end: what was measured until then is kept, and the store takes it.
    assert (cell["step_seconds_median"], cell["steps_measured"]) == (3.0, 2)
    assert len(rows["steps"]) == 2
    assert cell["wall_seconds"] == 12.5
    store = Store(tmp_path / "store")
    store.prepare()
    store.commit("key", rows)
    assert statuses(store.root) == {"key": status}


def test_a_long_last_line_is_cut(summed):
    error = cell_of(summed(log="x" * 100_000, returncode=1))["error"]
    assert len(error) < 600


def test_rows_have_the_columns_of_their_tables(summed, run):
    rows = summed(
        {"event": "started", "pid": 7, "threads": 3, "torch_version": "2.11.0"},
        phase("measure", 0, 2.0),
        step(0),
        epoch(0),
        {"event": "memory", "category": "other", "module": None, "bytes": 1, "blocks": 1},
        {
            "event": "timeline",
            "moment": [0],
            "part": ["start"],
            "category": ["other"],
            "live_bytes": [1],
        },
        {"event": "unheard of", "value": 1},
        {"event": "result", "unheard_of": 1},
        DONE,
        samples=[sample(0, host_bytes=1, unheard_of=2)],
    )
    assert list(rows) == list(TABLES)
    for table, found in rows.items():
        assert len(found) == 1, table
        assert list(found[0]) == [column.name for column in TABLES[table]], table
    cell = cell_of(rows)
    assert {name: cell[name] for name in run.plan_row()} == run.plan_row()
    assert (cell["threads"], cell["started_at"], cell["schema_version"]) == (
        3,
        STARTED,
        SCHEMA_VERSION,
    )
    assert (cell["cpu_model"], cell["gpu_name"]) == ("a processor", None)
    assert json.loads(cell["environment"]) == ENVIRONMENT


def test_a_run_without_a_word_has_nulls_and_no_zeros(summed):
    rows = summed(returncode=-signal.SIGKILL)
    cell = cell_of(rows)
    known = {
        *("run_key", "status", "error", "wall_seconds", "started_at", "schema_version"),
        *("cpu_model", "torch_version", "environment"),
    }
    known |= {column.name for column in PLAN_COLUMNS}
    told = {name for name, value in cell.items() if value is not None} - known
    assert told == {"steps_measured"}
    assert cell["steps_measured"] == 0, "a count, not a measurement"
    assert all(rows[table] == [] for table in TABLES if table != "cells")


def test_a_run_that_never_started(run, tmp_path):
    rows = failed_rows(
        run, Outcome("failed", "no teacher"), environment=ENVIRONMENT, started_at=STARTED
    )
    cell = cell_of(rows)
    assert list(cell) == [column.name for column in TABLES["cells"]]
    assert (cell["status"], cell["error"], cell["label"]) == (
        "failed",
        "no teacher",
        run.cell.label,
    )
    assert cell["step_seconds_median"] is None
    store = Store(tmp_path / "store")
    store.prepare()
    store.commit("key", rows)
    assert read_table(store.root, "cells")["error"].tolist() == ["no teacher"]


@pytest.mark.parametrize("name", ["measure", "train"])
def test_only_timed_steps_enter_the_figures(name, summed):
    # An accounting step is slowed by the ledger, a warm-up step is not settled: neither is timed,
    # and neither its memory nor its samples count.
    peaks = {"allocated_peak_bytes": 10, "reserved_peak_bytes": 20}
    high = {"allocated_peak_bytes": 9000, "reserved_peak_bytes": 9000}
    rows = summed(
        *[step(n, phase="warmup", at=n, seconds=100.0, **high) for n in range(3)],
        *[step(n, phase=name, at=10 + n, seconds=1.0 + n, **peaks) for n in range(5)],
        step(0, phase="account", at=50, seconds=None, **high),
        DONE,
        samples=[
            sample(0, device_bytes=0),
            sample(1, host_bytes=9000, device_bytes=9000, process_bytes=9000),
            sample(12, host_bytes=7, device_bytes=8, process_bytes=6),
            sample(50, host_bytes=9000, device_bytes=9000, process_bytes=9000),
        ],
    )
    cell = cell_of(rows)
    assert (cell["step_seconds_median"], cell["steps_measured"]) == (3.0, 5)
    assert (cell["allocated_peak_bytes"], cell["reserved_peak_bytes"]) == (10, 20)
    assert (cell["host_peak_bytes"], cell["device_peak_bytes"], cell["process_peak_bytes"]) == (
        *(7, 8),
        6,
    )
    assert len(rows["steps"]) == 9, "the table keeps them all"


@pytest.mark.parametrize("count", [1, 5, 6, 9])
def test_an_interval_needs_six_steps(count, summed):
    cell = cell_of(summed(*[step(n, seconds=1.0 + n) for n in range(count)]))
    assert cell["step_seconds_median"] == 1 + (count - 1) / 2
    ends = (cell["step_seconds_ci_low"], cell["step_seconds_ci_high"])
    assert ends == {6: (1.0, 6.0), 9: (2.0, 8.0)}.get(count, (None, None))


def test_time_per_epoch_is_extrapolated_until_an_epoch_is_whole(summed, run):
    timed = [step(n, phase="train", epoch=0, seconds=2.0) for n in range(3)]
    cell = cell_of(summed(*timed))
    assert cell["epoch_seconds"] == 2.0 * run.cell.steps_per_epoch == 16.0
    assert cell["epoch_seconds_kind"] == "extrapolated"
    cell = cell_of(summed(*timed, epoch(0, 30.0), epoch(1, 10.0), epoch(2, 12.0)))
    assert (cell["epoch_seconds"], cell["epoch_seconds_kind"]) == (12.0, "measured")


def test_accuracy_is_the_last_and_the_best(run, summed):
    whole = [epoch(n, accuracy=0.25) for n in range(run.cell.training.epochs)]
    whole[3:] = [epoch(3, accuracy=0.75), *whole[4:-1], epoch(len(whole) - 1, accuracy=0.5)]
    cell = cell_of(summed(*whole))
    assert (cell["accuracy"], cell["accuracy_best"]) == (0.5, 0.75)
    assert cell_of(summed(step(0)))["accuracy"] is None
    zero = [epoch(n, accuracy=0.0) for n in range(run.cell.training.epochs)]
    cell = cell_of(summed(*zero))
    assert (cell["accuracy"], cell["accuracy_best"]) == (0.0, 0.0), "0 is a result"


def test_a_training_that_did_not_finish_has_no_accuracy_but_a_best(summed):
    cell = cell_of(summed(epoch(0, accuracy=0.25), epoch(1, accuracy=0.75), epoch(2, accuracy=0.5)))
    assert (cell["accuracy"], cell["accuracy_best"]) == (None, 0.75)


def test_results_come_in_parts(summed):
    cell = cell_of(
        summed(
            {"event": "result", "precompute_seconds": 3.0, "precompute_seconds_kind": "measured"},
            {"event": "result", "parameter_bytes": 40, "student_parameters": 10},
            {
                "event": "result",
                "ledger_peak_bytes": 1000,
                "second_peak_bytes": None,
                "flops_step": 12,
            },
            step(0),
        )
    )
    assert (cell["precompute_seconds"], cell["precompute_seconds_kind"]) == (3.0, "measured")
    assert (cell["parameter_bytes"], cell["student_parameters"]) == (40, 10)
    assert (cell["allocated_peak_bytes"], cell["allocated_source"]) == (1000, "ledger")
    assert cell["unattributed_bytes"] is None, "a torch without its profiler"
    assert cell["flops_step"] == 12
    assert cell["precompute_kept_bytes"] is None


def test_on_a_cpu_scratch_is_told_apart_from_the_rest_of_the_unattributed(summed):
    told = {"ledger_peak_bytes": 208_724, "second_peak_bytes": 309_828, "scratch_bytes": 101_072}
    cell = cell_of(summed({"event": "result", **told}, step(0)))
    assert (cell["allocated_peak_bytes"], cell["allocated_source"]) == (208_724, "ledger")
    assert (cell["unattributed_bytes"], cell["unattributed_scratch_bytes"]) == (101_104, 101_072)


def test_a_timeline_comes_in_columns_and_becomes_rows(summed):
    columns = {"moment": [0, 1], "part": ["start", "data"], "category": ["inputs", "inputs"]}
    rows = summed({"event": "timeline", **columns, "live_bytes": [8, 6]})["timeline"]
    assert [(r["moment"], r["part"], r["live_bytes"]) for r in rows] == [
        (0, "start", 8),
        (1, "data", 6),
    ]


def test_of_a_compiled_student_torchs_profiler_is_the_source(summed):
    cell = cell_of(summed(step(0), {"event": "result", "profiler_peak_bytes": 90}))
    assert (cell["allocated_peak_bytes"], cell["allocated_source"]) == (90, "profiler")
    assert (cell["unattributed_bytes"], cell["flops_step"]) == (None, None)


def test_on_a_card_the_allocator_is_the_source(summed):
    cell = cell_of(
        summed(
            step(0, allocated_peak_bytes=50, reserved_peak_bytes=90),
            step(1, allocated_peak_bytes=70, reserved_peak_bytes=80),
            {"event": "result", "ledger_peak_bytes": 60, "second_peak_bytes": 75},
        )
    )
    assert (cell["allocated_peak_bytes"], cell["allocated_source"]) == (70, "cuda-allocator")
    assert cell["reserved_peak_bytes"] == 90
    # the accounting step's own peak against its ledger: never a timed step's
    assert (cell["unattributed_bytes"], cell["unattributed_scratch_bytes"]) == (15, None)


def test_the_high_water_mark_is_preferred_to_polling(summed):
    samples = [sample(0.5, host_bytes=400), sample(1.5, host_bytes=450)]
    timed = [step(0), step(1)]
    cell = cell_of(summed(*timed, phase("measure", 0, 2.0, **HIGH_WATER), samples=samples))
    assert (cell["host_peak_bytes"], cell["host_source"]) == (500, "vmhwm")
    # a system without one
    rows = summed(*timed, phase("measure", 0, 2.0), samples=samples)
    assert (cell_of(rows)["host_peak_bytes"], cell_of(rows)["host_source"]) == (450, "polled")
    assert [(p["host_peak_bytes"], p["host_source"]) for p in rows["phases"]] == [(450, "polled")]
    # nor any sample in it
    rows = summed(*timed, phase("measure", 0, 2.0), samples=[sample(9, host_bytes=1)])
    assert (cell_of(rows)["host_peak_bytes"], cell_of(rows)["host_source"]) == (None, None)
    assert [(p["host_peak_bytes"], p["host_source"]) for p in rows["phases"]] == [(None, None)]


def test_the_peak_of_the_host_is_of_the_timed_phases_alone(summed):
    cell = cell_of(
        summed(
            phase("setup", 0, 1.0, host_peak_bytes=9000, host_source="vmhwm"),
            phase("precompute", 1, 1.0, host_peak_bytes=8000, host_source="vmhwm"),
            phase("train", 2, 1.0, host_peak_bytes=500, host_source="vmhwm"),
            phase("evaluate", 3, 1.0, host_peak_bytes=7000, host_source="vmhwm"),
            phase("train", 4, 1.0, host_peak_bytes=600, host_source="vmhwm"),
            phase("account", 5, 1.0, host_peak_bytes=9500, host_source="vmhwm"),
            step(0, phase="train", epoch=0, at=2),
        )
    )
    assert (cell["host_peak_bytes"], cell["host_source"]) == (600, "vmhwm")


def test_the_gap_between_epochs_belongs_to_no_window(summed):
    # 0-2 s and 5-7 s are trained; in 2-5 s the test images were classified with a peak of its own.
    timed = [
        step(n, phase="train", epoch=e, at=5 * e + n, allocated_peak_bytes=None)
        for e in (0, 1)
        for n in (0, 1)
    ]
    # 10 W while training, 1000 W between
    energy = [(-1, 0), (0, 0), (2, 20), (5, 3020), (7, 3040), (8, 3040)]
    cell = cell_of(
        summed(
            *timed,
            samples=[
                sample(-1, device_bytes=100, energy_joules=0.0),
                *[sample(at, energy_joules=float(joules)) for at, joules in energy[1:]],
                sample(1, device_bytes=300, process_bytes=150, host_bytes=40),
                sample(3.5, device_bytes=9000, process_bytes=9000, host_bytes=9000),
                sample(6, device_bytes=350, process_bytes=140, host_bytes=30),
            ],
        )
    )
    assert cell["energy_step_joules"] == pytest.approx(10.0)
    assert cell["energy_source"] == "nvml-counter"
    assert (cell["device_peak_bytes"], cell["process_peak_bytes"]) == (250, 150)
    assert (cell["device_source"], cell["process_source"]) == ("nvml-polled", "nvml-polled")
    assert (cell["host_peak_bytes"], cell["host_source"]) == (40, "polled")


def test_energy_that_does_not_enclose_the_steps_is_not_claimed(summed):
    cell = cell_of(
        summed(
            *[step(n) for n in range(4)],
            samples=[sample(0, power_watts=9.0), sample(3, power_watts=9.0)],
        )
    )
    assert (cell["energy_step_joules"], cell["energy_source"]) == (None, None)
    cell = cell_of(summed(samples=[sample(0, power_watts=9.0), sample(3, power_watts=9.0)]))
    assert (cell["energy_step_joules"], cell["energy_source"]) == (None, None)


@pytest.mark.parametrize(
    ("idle", "seen", "expected"),
    [
        (100, 350, 250),
        (100, 100, 0),
        # other processes gave back more than ours took: nothing is known, least of all -50
        (100, 50, None),
        (None, 350, None),
        (100, None, None),
    ],
)
def test_the_devices_peak_is_above_its_idle_baseline(idle, seen, expected, summed):
    cell = cell_of(
        summed(
            step(0, at=1), samples=[sample(0, device_bytes=idle), sample(1.5, device_bytes=seen)]
        )
    )
    assert cell["device_peak_bytes"] == expected
    assert cell["device_source"] == (None if expected is None else "nvml-polled")


def test_a_cell_that_died_in_mid_measure(summed):
    # What the spool holds when the worker is killed: no end of the phase, no result, no end.
    rows = summed(
        {"event": "started", "pid": 7, "threads": 2, "torch_version": "2.11.0"},
        phase_start("setup", 0),
        phase("setup", 0, 1.0, **HIGH_WATER),
        phase_start("measure", 1),
        {"event": "plan", "seconds": 20.0, "steps": 200, "min_steps": 2},
        *[step(n, at=1 + n) for n in range(7)],
        samples=[sample(0), sample(3, host_bytes=70), sample(20, host_bytes=90)],
        returncode=-signal.SIGKILL,
    )
    cell = cell_of(rows)
    assert (cell["status"], cell["steps_measured"], cell["step_seconds_ci_low"]) == (
        "killed",
        7,
        1.0,
    )
    assert len(rows["steps"]) == 7
    assert len(rows["samples"]) == 3
    assert (cell["host_peak_bytes"], cell["host_source"]) == (70, "polled")
    assert cell["parameter_bytes"] is None
    # The phase that it died in is told by a row without figures.
    setup, measure = rows["phases"]
    assert (setup["phase"], setup["seconds"], setup["host_source"]) == ("setup", 1.0, "vmhwm")
    assert measure == {**dict.fromkeys(measure), "phase": "measure", "started_ns": SECOND}


def test_each_phase_has_one_row(summed):
    # `setup` comes twice: before the precompute and after it
    names = [("setup", 0), ("precompute", 1), ("setup", 2), ("warmup", 3)]
    told = [e for name, at in names for e in (phase_start(name, at), phase(name, at, 1.0))]
    assert [p["phase"] for p in summed(*told, DONE)["phases"]] == [name for name, _ in names]


# --- a training that went through several processes

BOOT = 10**6  # the clock of an earlier attempt, in seconds: another boot's


def of(attempt, *events):
    return [{**event, "attempt": attempt} for event in events]


@pytest.fixture
def training(run, summed):
    """Summarise the events of the same run as a training."""

    def call(*events, **outcome):
        return summed(*events, of_run=run.model_copy(update={"mode": "train"}), **outcome)

    return call


def two_attempts(**peaks):
    """Ten seconds' steps before the stop; then its own set-up, and one-second steps."""
    before = [
        phase_start("train", BOOT),
        *[step(n, phase="train", epoch=0, at=BOOT + 10 * n, seconds=10.0) for n in range(3)],
        phase("train", BOOT, 30.0, units=3, **peaks),
    ]
    setup = [phase_start("setup", 0), phase("setup", 0, 1.0, **HIGH_WATER)]
    after = [
        phase_start("train", 2),
        *[step(3 + n, phase="train", epoch=0, at=2 + n, seconds=1.0) for n in range(2)],
        phase("train", 2, 2.0, units=2),
    ]
    return [*of(1, *setup), *of(0, *before), *of(1, *after)]


def test_energy_is_of_the_steps_that_were_sampled(training):
    samples = [sample(at, energy_joules=7.0 * at) for at in (0, 1, 2, 3, 4, 5)]
    rows = training(*two_attempts(), DONE, samples=samples)
    cell = cell_of(rows)
    assert cell["energy_step_joules"] == pytest.approx(7.0), "per step of the last attempt"
    assert (cell["steps_measured"], cell["steps_resumed"]) == (5, 3)
    assert cell["step_seconds_median"] == 10.0, "a step's own time counts whenever it ran"
    assert [row["attempt"] for row in rows["steps"]] == [0, 0, 0, 1, 1]
    assert [(row["attempt"], row["phase"]) for row in rows["phases"]] == [
        (0, "train"),
        (1, "setup"),
        (1, "train"),
    ]


def test_samples_never_meet_another_boots_clock(training):
    # By chance the old clock's times lie within this attempt's samples: they are still not its own.
    events = [
        *of(1, phase_start("setup", 0), phase("setup", 0, 1.0)),
        *of(0, phase_start("train", 5), step(0, phase="train", epoch=0, at=5)),
        *of(0, phase("train", 5, 1.0)),
        *of(1, phase_start("train", 2), step(1, phase="train", epoch=0, at=2)),
        *of(1, phase("train", 2, 1.0)),
    ]
    samples = [
        sample(0, host_bytes=10, device_bytes=0, process_bytes=0),
        sample(2.5, host_bytes=30, device_bytes=30, process_bytes=30),
        sample(5.5, host_bytes=9000, device_bytes=9000, process_bytes=9000),
    ]
    rows = training(*events, DONE, samples=samples)
    cell = cell_of(rows)
    assert (cell["host_peak_bytes"], cell["host_source"]) == (30, "polled")
    assert (cell["process_peak_bytes"], cell["device_peak_bytes"]) == (30, 30)
    assert [(row["phase"], row["attempt"], row["host_peak_bytes"]) for row in rows["phases"]] == [
        ("train", 0, None),
        ("setup", 1, 10),
        ("train", 1, 30),
    ]


def test_exact_peaks_count_whichever_process_they_are_of(training):
    cell = cell_of(training(*two_attempts(host_peak_bytes=700, host_source="vmhwm"), DONE))
    assert (cell["host_peak_bytes"], cell["host_source"]) == (700, "vmhwm")


def test_phases_of_two_boots_that_began_at_the_same_time_are_two(training):
    events = [
        *of(1, phase_start("setup", 3), phase("setup", 3, 1.0)),
        *of(0, phase_start("train", 3), phase("train", 3, 2.0)),
    ]
    assert [row["phase"] for row in training(*events, DONE)["phases"]] == ["train", "setup"]


def test_a_training_that_was_done_when_it_was_resumed_has_no_energy(training):
    events = [*of(1, phase_start("setup", 0), phase("setup", 0, 1.0)), *two_attempts()[2:7]]
    cell = cell_of(
        training(*events, DONE, samples=[sample(at, energy_joules=1.0) for at in (0, 9)])
    )
    assert (cell["energy_step_joules"], cell["energy_source"]) == (None, None)
    assert cell["steps_measured"] == cell["steps_resumed"] == 3


def test_the_writing_of_a_checkpoint_belongs_to_no_window(training):
    # 0-2 s and 5-7 s of the same epoch; between them a checkpoint was written.
    events = [
        e
        for at in (0, 5)
        for e in (
            phase_start("train", at),
            *[step(at + n, phase="train", epoch=0, at=at + n) for n in (0, 1)],
            phase("train", at, 2.0),
        )
    ]
    energy = [(-1, 0), (0, 0), (2, 20), (5, 3020), (7, 3040), (8, 3040)]
    samples = [sample(at, energy_joules=float(joules)) for at, joules in energy]
    samples.insert(3, sample(3.5, host_bytes=9000, process_bytes=9000))
    samples.insert(3, sample(1.5, host_bytes=40, process_bytes=50))
    cell = cell_of(
        training(*of(0, *events), samples=sorted(samples, key=lambda s: s["monotonic_ns"]))
    )
    assert cell["energy_step_joules"] == pytest.approx(10.0)
    assert cell["process_peak_bytes"] == 50


def test_a_profile_takes_over_nothing(summed, training):
    assert cell_of(summed(*of(0, step(0))))["steps_resumed"] is None
    assert cell_of(training(*of(0, step(0, phase="train"))))["steps_resumed"] == 0


def test_utilisation_is_the_share_of_the_devices_own_rate(summed):
    rates = {"matmul_flops_per_second": 100.0, "copy_bytes_per_second": 7.0}
    told = [phase("measure", 0, 2.0), *[step(n, seconds=0.5) for n in range(3)]]
    cell = cell_of(summed(*told, {"event": "result", "flops_step": 20}, DONE, rates=rates))
    assert cell["utilisation"] == 20 / 0.5 / 100
    assert (cell["flops_step"], cell["copy_bytes_per_second"]) == (20, 7.0)
    for lacking in (
        cell_of(summed(*told, DONE, rates=rates)),
        cell_of(summed({"event": "result", "flops_step": 20}, DONE, rates=rates)),
        cell_of(summed(*told, {"event": "result", "flops_step": 20}, DONE)),
    ):
        assert lacking["utilisation"] is None


def test_a_shifted_series_is_unstable_and_a_short_one_goes_by_its_warm_up(summed):
    def unstable(seconds, settled=None):
        told = [step(n, at=n, seconds=value) for n, value in enumerate(seconds)]
        result = {"event": "result", "warmup_settled": settled}
        cell = cell_of(summed(phase("measure", 0, 99.0), *told, result, DONE))
        assert cell["warmup_steps"] == 0
        return cell["unstable"]

    assert unstable([1.0] * 20 + [1.2] * 20, settled=True) is True
    assert unstable([1.0] * 40, settled=False) is False
    assert unstable([1.0] * 4, settled=False) is True
    assert unstable([1.0] * 4, settled=True) is False
    assert unstable([1.0] * 4) is None


def test_the_parts_of_a_step_are_medians_of_their_own(summed):
    parts = [{"data_seconds": 0.1, "forward_seconds": 0.2 * n, "device_seconds": n} for n in (1, 2)]
    told = [step(n, at=n, seconds=1.0) | part for n, part in enumerate(parts)]
    cell = cell_of(summed(phase("measure", 0, 9.0), *told, DONE))
    assert cell["step_data_seconds"] == 0.1
    assert cell["step_forward_seconds"] == pytest.approx(0.3)
    assert cell["step_device_seconds_median"] == 1.5
    assert cell["step_teacher_seconds"] is None


# --- energy per epoch and training, and of the precompute


def trained_epochs(run, *, first=0, attempt=0, at=0.0):
    """Whole epochs of one-second steps, a second of evaluation behind each; and when they end."""
    told, steps = [], run.cell.steps_per_epoch
    for number in range(first, run.cell.training.epochs):
        told += of(attempt, phase_start("train", at))
        told += of(
            attempt,
            *[step(n, phase="train", epoch=number, at=at + n, seconds=1.0) for n in range(steps)],
            phase("train", at, float(steps)),
            phase_start("evaluate", at + steps),
            epoch(number, seconds=float(steps)),
        )
        at += steps + 1
    return told, at


def power_of_epochs(run, watts, *, at=0.0):
    """Samples of power that changes from epoch to epoch, in the middle of the evaluations."""
    period, samples = run.cell.steps_per_epoch + 1, [sample(at - 1, power_watts=0.0)]
    for number, value in enumerate(watts):
        begun = at + period * number
        samples += [sample(begun, power_watts=value), sample(begun + period - 1, power_watts=value)]
    return [*samples, sample(at + period * len(watts), power_watts=0.0)]


@pytest.fixture
def four_epochs(tmp_path):
    return tiny_run(tmp_path, "embed-kd", "training.epochs=4").model_copy(update={"mode": "train"})


def test_a_whole_trainings_energy_is_measured(summed, four_epochs):
    told, _ = trained_epochs(four_epochs)
    samples = power_of_epochs(four_epochs, [10.0, 40.0, 20.0, 30.0])
    cell = cell_of(summed(*told, DONE, samples=samples, of_run=four_epochs))
    steps = four_epochs.cell.steps_per_epoch
    assert cell["energy_epoch_joules"] == pytest.approx(25 * steps), "the median epoch's"
    assert cell["energy_training_joules"] == pytest.approx(100 * steps)
    assert cell["energy_training_kind"] == "measured"
    assert cell["epoch_seconds_kind"] == "measured"
    assert cell["energy_source"] == "nvml-power"


def test_of_a_resumed_training_only_what_was_sampled_is_claimed(summed, four_epochs):
    before, _ = trained_epochs(four_epochs, attempt=0)
    earlier = [event for event in before if event.get("epoch") in (0, 1)]
    now, _ = trained_epochs(four_epochs, first=2, attempt=1)
    samples = power_of_epochs(four_epochs, [20.0, 40.0])
    cell = cell_of(summed(*earlier, *now, DONE, samples=samples, of_run=four_epochs))
    steps = four_epochs.cell.steps_per_epoch
    assert cell["steps_resumed"] == 2 * steps
    assert cell["energy_step_joules"] == pytest.approx(30)
    assert cell["energy_epoch_joules"] == pytest.approx(30 * steps)
    assert cell["energy_training_joules"] == pytest.approx(4 * 30 * steps)
    assert cell["energy_training_kind"] == "extrapolated"


def test_an_epoch_that_two_processes_trained_has_no_energy_of_its_own(summed, four_epochs):
    told, _ = trained_epochs(four_epochs, first=3)
    started = [e for e in told if e.get("step") == 0]
    rest = [{**e, "attempt": 1} for e in told if e.get("step") != 0]
    samples = power_of_epochs(four_epochs, [20.0])
    cell = cell_of(summed(*started, *rest, DONE, samples=samples, of_run=four_epochs))
    assert cell["energy_step_joules"] == pytest.approx(20)
    assert cell["energy_epoch_joules"] is None, "it would be called measured"
    assert cell["energy_training_kind"] == "extrapolated"


def test_a_profiles_energy_is_extrapolated_as_its_time_is(summed, run):
    samples = [sample(at, power_watts=9.0) for at in (-1, 9)]
    cell = cell_of(summed(*[step(n) for n in range(4)], samples=samples))
    steps = run.cell.steps_per_epoch
    assert cell["energy_step_joules"] == pytest.approx(9)
    assert cell["energy_epoch_joules"] == pytest.approx(9 * steps)
    assert cell["energy_training_joules"] == pytest.approx(9 * steps * run.cell.training.epochs)
    assert cell["energy_training_kind"] == cell["epoch_seconds_kind"] == "extrapolated"


def test_the_processors_energy_is_per_step_too(summed):
    samples = [sample(at, host_energy_joules=50.0 + 3 * at) for at in (-1, 1, 9)]
    cell = cell_of(summed(*[step(n) for n in range(4)], samples=samples))
    assert cell["host_energy_step_joules"] == pytest.approx(3)
    assert cell["host_energy_source"] == "rapl"
    assert cell["energy_step_joules"] is None


@pytest.mark.parametrize(
    ("told", "joules"),
    [
        # two seconds of a computation that takes eight, at 5 W
        ({"precompute_timed_ns": [[SECOND, 3 * SECOND]], "precompute_suspended_ns": []}, 40.0),
        # read from the cache: an earlier run's energy is not ours to tell
        ({"precompute_timed_ns": None, "precompute_suspended_ns": None}, None),
        # the card was lost in the middle of it
        ({"precompute_timed_ns": [[3 * SECOND, 5 * SECOND]]}, None),
    ],
)
def test_the_energy_of_the_precompute_is_of_the_whole(summed, told, joules):
    result = {"event": "result", "precompute_seconds": 8.0, **told}
    samples = [sample(at, power_watts=5.0) for at in (0, 2, 4)]
    found = cell_of(summed(result, samples=samples))["precompute_joules"]
    assert found == (None if joules is None else pytest.approx(joules))


# --- how the machine was


def surroundings(**values):
    """A sample a second, from before the steps to after them; 9000s where no step ran."""
    first = {"usable_processors": 4, "usable_cores": 4, "load_average": 0.5, "cpu_governor": "a"}
    within = [sample(at, **values) for at in (2, 3, 4)]
    return [sample(0, **first), sample(1, **dict.fromkeys(values, 9000)), *within]


def timed_from(at):
    return [step(n, at=at + n) for n in range(3)]


def test_conditions_are_those_of_the_timed_steps(summed):
    values = {"cpu_mhz": 2500.0, "cpu_celsius": 61.0, "gpu_sm_mhz": 1800.0, "gpu_celsius": 70.0}
    samples = [*surroundings(**values, gpu_throttle=0x21), sample(9, cpu_mhz=1.0, gpu_throttle=4)]
    cell = cell_of(summed(*timed_from(1.5), samples=samples))
    assert {name: cell[name] for name in cell if name.startswith(("cpu_m", "cpu_c", "gpu_"))} == {
        "cpu_mhz_median": 2500.0,
        "cpu_celsius_max": 61.0,
        "cpu_model": "a processor",
        "gpu_sm_mhz_median": 1800.0,
        "gpu_celsius_max": 70.0,
        "gpu_throttled": "heat",
        "gpu_neighbours": None,
        "gpu_name": None,
    }
    assert (cell["load_average"], cell["cpu_governor"]) == (0.5, "a")
    assert (cell["sample_seconds_median"], cell["sample_seconds_max"]) == (1.0, 5.0)


def test_throttling_is_what_the_counter_gained(summed):
    samples = [sample(at, cpu_throttled_seconds=7 + 0.1 * at) for at in range(10)]
    cell = cell_of(summed(*timed_from(2), samples=samples))
    assert cell["cpu_throttled_seconds"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("device", "threads", "storage", "elsewhere", "contended"),
    [
        ("cpu", 4, "device", 0.5, True),
        ("cpu", 2, "device", 1.5, False),
        # beside a card one thread hands out the work, however many there are
        ("cuda:0", 4, "device", 2.5, False),
        ("cuda:0", 4, "device", 3.5, True),
        # those that decode images need theirs
        ("cpu", 2, "stream", 1.5, True),
        ("cpu", None, "device", 3.9, None),
    ],
)
def test_what_others_may_take_is_what_the_worker_leaves(
    summed, tmp_path, device, threads, storage, elsewhere, contended
):
    run = tiny_run(tmp_path, "embed-kd", "data.workers=1").model_copy(update={"device": device})
    cell = cell_of(
        summed(
            {"event": "started", "pid": 7, "threads": threads, "torch_version": "2"},
            {"event": "result", "data_storage": storage},
            *timed_from(1.5),
            samples=surroundings(cpu_elsewhere=elsewhere),
            of_run=run,
        )
    )
    assert cell["cpu_elsewhere"] == pytest.approx(elsewhere)
    assert cell["contended"] is contended
    assert (cell["contention"] is not None) == bool(contended)


# --- suspensions


def suspended(number, **values):
    """A step of an hour, which was not the step's doing."""
    values = {"seconds": 3600.0, "data_seconds": 3599.0, "device_seconds": 3598.0} | values
    return step(number, **values) | {"suspended": True}


TIMES = ("step_seconds", "steps_measured", "step_", "unstable", "energy", "host_energy")


def times_of(cell):
    return {name: value for name, value in cell.items() if name.startswith(TIMES)}


@pytest.mark.parametrize("name", ["measure", "train"])
def test_a_suspended_step_is_a_row_and_in_no_figure(name, summed):
    peaks = {"allocated_peak_bytes": 10, "reserved_peak_bytes": 20}
    timed = [
        step(n, phase=name, at=n, seconds=1 + n / 100, data_seconds=0.1, device_seconds=0.5)
        for n in range(20)
    ]
    without = summed(*timed, DONE)
    rows = summed(*timed[:9], suspended(9, phase=name, at=9, **peaks), *timed[9:], DONE)
    assert times_of(cell_of(rows)) == times_of(cell_of(without))
    assert (cell_of(rows)["suspended_steps"], cell_of(without)["suspended_steps"]) == (1, 0)
    assert [row["suspended"] for row in rows["steps"]] == [n == 9 for n in range(21)]
    assert cell_of(rows)["allocated_peak_bytes"] == 10, "bytes are what they are"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    seconds=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=30),
    lost=st.sets(st.integers(0, 29)),
)
def test_whichever_steps_are_suspended_the_figures_are_those_of_the_others(summed, seconds, lost):
    def told(places):
        return [step(n, at=200 * n, seconds=seconds[n]) for n in places]

    kept = [n for n in range(len(seconds)) if n not in lost]
    marked = [s | {"suspended": s["step"] in lost} for s in told(range(len(seconds)))]
    cell = cell_of(summed(*marked, DONE))
    assert times_of(cell) == times_of(cell_of(summed(*told(kept), DONE)))
    assert cell["steps_measured"] + cell["suspended_steps"] == len(seconds)


def test_where_all_steps_were_suspended_there_is_no_time_and_a_peak(summed):
    cell = cell_of(
        summed(
            suspended(0, allocated_peak_bytes=50, reserved_peak_bytes=90),
            samples=[sample(0, device_bytes=1), sample(5, device_bytes=8, process_bytes=6)],
        )
    )
    assert (cell["steps_measured"], cell["suspended_steps"]) == (0, 1)
    assert cell["step_seconds_median"] is cell["epoch_seconds"] is None
    assert cell["epoch_seconds_kind"] is cell["unstable"] is cell["contended"] is None
    assert (cell["allocated_peak_bytes"], cell["process_peak_bytes"]) == (50, 6)


def test_an_epoch_with_a_suspended_step_has_no_time(summed, run):
    def trained(*lost):
        told = []
        for number in range(3):
            make = [suspended if (number, n) in lost else step for n in range(2)]
            at = 9000 * number
            told += [make[n](n, phase="train", epoch=number, at=at + n) for n in range(2)]
            told.append(epoch(number, seconds=[10.0, 3610.0, 20.0][number]))
        cell = cell_of(summed(*told, DONE))
        assert cell["accuracy_best"] == 0.5
        return cell["epoch_seconds"], cell["epoch_seconds_kind"]

    assert trained() == (20.0, "measured")
    assert trained((1, 0)) == (15.0, "measured")
    assert trained((0, 0), (1, 0)) == (20.0, "measured")
    steps = run.cell.steps_per_epoch
    assert trained((0, 0), (1, 1), (2, 1)) == (1.0 * steps, "extrapolated")


def test_no_energy_is_taken_over_a_suspension_or_close_to_it(summed):
    # 10 W in steps of a tenth of a second; the counter starts anew in the step at 5 s
    quick = {"seconds": 0.1}
    timed = [step(n, at=0.1 * n, **quick) for n in range(50)]
    behind = [step(n, at=5.1 + 0.1 * n, **quick) for n in range(50)]
    told = [*timed, suspended(50, at=5.0, **quick), *behind]
    energy = [*[(0.3 * n - 1, 1000 + 3.0 * n) for n in range(20)]]
    energy += [*[(5.3 + 0.3 * n, 3.0 * n) for n in range(20)]]
    samples = [sample(at, energy_joules=joules) for at, joules in energy]
    cell = cell_of(summed(*told, DONE, samples=samples))
    assert cell["energy_step_joules"] == pytest.approx(1.0)
    assert cell["energy_training_kind"] == "extrapolated"
    assert cell["steps_measured"] == 100
    # where no step is far from it, nothing is known
    near = cell_of(summed(*told[45:56], DONE, samples=samples))
    assert near["energy_step_joules"] is None
    assert near["steps_measured"] == 10


def test_a_suspension_between_two_steps_parts_them_too(summed):
    # the second of two steps is told as suspended; what came between them is in no window either
    told = [*[step(n) for n in range(4)], suspended(4, at=60, seconds=1.0), step(5, at=63)]
    others = [sample(at, cpu_elsewhere=8.0 if 5 < at < 60 else 0.0) for at in range(70)]
    samples = [others[0] | {"usable_processors": 8, "usable_cores": 8}, *others[1:]]
    begun = {"event": "started", "pid": 7, "threads": 1, "torch_version": "2"}
    cell = cell_of(summed(begun, *told, samples=samples))
    assert cell["contended"] is False


def test_a_resumed_training_counts_its_suspended_steps_as_taken(training):
    events = two_attempts()
    marked = [
        event | {"suspended": event.get("step") in (1, 4)} if event["event"] == "step" else event
        for event in events
    ]
    cell = cell_of(training(*marked, DONE))
    assert (cell["steps_resumed"], cell["steps_measured"], cell["suspended_steps"]) == (3, 3, 2)
    assert cell["step_seconds_median"] == 10.0


def test_what_an_earlier_version_told_has_no_suspension(summed):
    rows = summed(phase_start("measure", 0), step(0), phase("measure", 0, 1.0), DONE)
    assert [row["suspended"] for row in (*rows["steps"], *rows["phases"])] == [False, False]
    rows = summed(phase_start("measure", 0), step(0) | {"suspended": True})
    assert [row["suspended"] for row in (*rows["steps"], *rows["phases"])] == [True, None]


def test_the_energy_of_the_precompute_is_without_suspended_batches(summed):
    told = {
        "precompute_timed_ns": [[SECOND, 4 * SECOND], [6 * SECOND, 9 * SECOND]],
        "precompute_suspended_ns": [[4 * SECOND, 6 * SECOND]],
    }
    watts = [sample(at, power_watts=5.0 if at < 3.5 or at > 6.5 else 500.0) for at in range(11)]
    result = {"event": "result", "precompute_seconds": 8.0, **told}
    assert cell_of(summed(result, samples=watts))["precompute_joules"] == pytest.approx(40.0)
