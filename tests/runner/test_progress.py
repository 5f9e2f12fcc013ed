"""What the user sees while cells run: the estimate, the plain lines and the live view."""

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from kdbench.common.units import format_value
from kdbench.runner import estimate, progress
from kdbench.runner.estimate import Estimate
from kdbench.runner.progress import ConsoleProgress, Progress
from tests.support.models import tiny_run

pytestmark = pytest.mark.usefixtures("forked_workers")

ENVIRONMENT = {"cpu_model": "a processor", "gpu_name": "a card", "torch_version": "2.11.0"}
PROFILE_PLAN = {"event": "plan", "seconds": 20.0, "steps": 200, "min_steps": 2}


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, for whatever reads the time here."""

    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(estimate, "monotonic", made)
    monkeypatch.setattr(progress, "monotonic", made)
    return made


def start(phase):
    return {"event": "phase_start", "phase": phase, "started_ns": 0}


def step(phase, number, seconds, epoch=None):
    return {"event": "step", "phase": phase, "step": number, "epoch": epoch, "seconds": seconds}


def follow(followed, *events):
    for event in events:
        followed.follow(event)
    return followed.seconds_left()


# --- the estimate


def test_nothing_is_claimed_before_the_first_timed_step(clock):
    followed = Estimate()
    assert (followed.phase, followed.seconds_left()) == ("starting", None)
    assert follow(followed, {"event": "started", "pid": 1}, start("setup")) is None
    assert followed.phase == "setup"
    # warm-up steps are known before the plan is
    assert follow(followed, start("warmup"), step("warmup", 0, 2.0)) is None
    assert (followed.phase, followed.step) == ("warmup", 1)
    assert follow(followed, start("measure")) is None
    assert followed.step is None
    assert follow(followed, PROFILE_PLAN) is not None


def test_a_profile_takes_its_time_and_the_accounting_step(clock):
    followed = Estimate()
    follow(followed, start("warmup"), step("warmup", 0, 0.5), start("measure"), PROFILE_PLAN)
    assert followed.seconds_left() == pytest.approx(20.5)
    for number in range(10):
        clock.now += 0.5
        left = follow(followed, step("measure", number, 0.5))
        assert left == pytest.approx(20 - 0.5 * (number + 1) + 0.5)
    clock.now += 100
    assert followed.seconds_left() == pytest.approx(0.5), "late: the accounting step is left"
    assert follow(followed, start("account")) == pytest.approx(0.5)
    # slowed by the ledger, so it says nothing of a step
    assert follow(followed, step("account", 0, None)) == pytest.approx(0.5)


def test_a_profile_of_quick_steps_ends_with_the_most_steps(clock):
    plan = {**PROFILE_PLAN, "steps": 10}
    followed = Estimate()
    follow(followed, start("measure"), plan, step("measure", 0, 0.1))
    assert followed.seconds_left() == pytest.approx(9 * 0.1 + 0.1)


def test_a_profile_of_slow_steps_takes_the_fewest_whatever_the_time(clock):
    followed = Estimate()
    follow(followed, start("measure"), {**PROFILE_PLAN, "min_steps": 3})
    clock.now += 60
    assert follow(followed, step("measure", 0, 60.0)) == pytest.approx(2 * 60 + 60)


def test_a_suspended_step_foretells_nothing(clock):
    followed, plan = Estimate(), {**PROFILE_PLAN, "seconds": 1e6}
    steps = [step("measure", n, 1.0) for n in range(4)]
    left = follow(followed, start("measure"), plan, *steps)
    lost = [{**step("measure", n, 3600.0), "suspended": True} for n in range(4, 24)]
    assert follow(followed, *lost) < left
    # it warms up again, for nobody knows how long
    assert follow(followed, start("warmup"), step("warmup", 1, 1.0)) is None
    assert follow(followed, start("measure"), plan) > 0


def test_a_slow_first_step_is_soon_forgotten(clock):
    followed = Estimate()
    follow(followed, start("measure"), {**PROFILE_PLAN, "seconds": 1e6})
    follow(followed, step("measure", 0, 100.0), *[step("measure", n, 1.0) for n in range(1, 10)])
    assert followed.seconds_left() == pytest.approx(190 + 1)


def test_a_training_counts_down_through_its_evaluations(clock):
    # At the start of each phase the step is forgotten; what has been trained is not.
    followed, epochs, steps = Estimate(), 3, 4
    follow(followed, start("setup"), {"event": "plan", "epochs": epochs, "steps": steps})
    lefts = []
    for epoch in range(epochs):
        follow(followed, start("train"))
        assert (followed.steps, followed.step) == (steps, None)
        for number in range(steps):
            if lefts:
                lefts.append(followed.seconds_left())
            lefts.append(follow(followed, step("train", number, 2.0, epoch)))
            assert (followed.epoch, followed.step) == (epoch, number + 1)
        lefts.append(follow(followed, start("evaluate")))
    assert lefts[0] == pytest.approx((epochs * steps - 1) * 2.0)
    assert lefts == sorted(lefts, reverse=True), "it never goes back up"
    assert lefts[-1] == 0
    assert follow(followed, start("account")) == pytest.approx(2.0)


def of(attempt, *events):
    return [{**event, "attempt": attempt} for event in events]


def resumed(attempt, epoch, number, steps):
    return {"event": "resumed", "epoch": epoch, "step": number, "steps": steps, "attempt": attempt}


PLAN = {"event": "plan", "epochs": 3, "steps": 4}
# What attempts 0 and 1 told up to the checkpoint, slower than the one that goes on now.
TOLD_AGAIN = [
    *of(0, start("setup"), start("precompute"), start("train")),
    *of(0, *[step("train", number, 9.0, 0) for number in range(4)], start("evaluate")),
    *of(1, start("train"), step("train", 0, 9.0, 1)),
]


def test_a_resumed_training_counts_on_from_where_it_is(clock):
    followed = Estimate()
    follow(followed, *of(2, start("setup"), PLAN), resumed(2, 1, 1, 5), *TOLD_AGAIN)
    assert (followed.phase, followed.epoch_of) == ("setup", "2/3"), "what was, is not going on"
    assert followed.seconds_left() is None, "another process's steps are no estimate"
    follow(followed, *of(2, start("train"), step("train", 1, 2.0, 1)))
    assert (followed.epoch, followed.step, followed.steps) == (1, 2, 4)
    assert followed.seconds_left() == pytest.approx((3 * 4 - 6) * 2.0)


def test_a_training_that_was_done_when_it_is_resumed_is_in_its_last_epoch(clock):
    followed = Estimate()
    follow(followed, *of(1, start("setup"), PLAN), resumed(1, 3, 0, 12))
    assert followed.epoch_of == "3/3"


def test_fitting_tells_its_progress(clock):
    followed = Estimate()
    assert follow(followed, start("fit"), {"event": "progress", "done": 3, "total": 15}) is None
    assert (followed.step, followed.steps) == (3, 15)


# --- what is printed


@pytest.fixture
def shown(clock):
    """A display of its own console; `.text()` is all that it wrote."""

    def make(*, terminal, total=1, device="cpu", **environment):
        console = Console(
            file=StringIO(),
            force_terminal=terminal,
            width=300,
            color_system="standard" if terminal else None,
            legacy_windows=False,
            _environ={},
        )
        made = ConsoleProgress(console)
        made.text = console.file.getvalue
        made.begin(
            total=total,
            folder=Path("results/tiny"),
            environment={**ENVIRONMENT, **environment},
            device=device,
        )
        return made

    return make


@pytest.fixture
def run(tmp_path):
    return tiny_run(tmp_path)


def named(run, label, **changes):
    cell = run.cell.model_copy(update={"label": label})
    return run.model_copy(update={"cell": cell, **changes})


FINISHED = {
    "status": "ok",
    "step_seconds_median": 0.0125,
    "steps_measured": 42,
    "allocated_peak_bytes": 1_250_000_000,
    "accuracy": None,
    "error": None,
    "wall_seconds": 7.0,
}


def test_plain_lines_without_a_terminal(shown, run):
    told = shown(terminal=False, total=2)
    told.cell_started(run)
    told.tick([start("setup"), start("warmup"), step("warmup", 0, 0.5)], None)
    told.tick([start("measure"), PROFILE_PLAN, step("measure", 0, 0.5)], {"host_bytes": 5})
    told.cell_finished(FINISHED)
    told.cell_started(named(run, "other", seed=3, repeat=1))
    told.tick([start("measure")], None)
    failed = {**FINISHED, "status": "oom", "error": "no room", "step_seconds_median": None}
    told.cell_finished({**failed, "allocated_peak_bytes": None})
    told.finish()
    label = "embed-kd/small/8px/dwarf"
    assert told.text().splitlines() == [
        "cpu (a processor), torch 2.11.0; results in results/tiny",
        f"[1/2] {label}",
        "  warmup ...",
        "  measure ...",
        f"[1/2] {label}: ok, 12.5 ms per step (42 timed), peak allocated 1.25 GB [7 s]",
        "[2/2] other seed 3 repeat 1",
        "  measure ...",
        "[2/2] other seed 3 repeat 1: oom, no room [7 s]",
    ]


def test_a_cell_that_failed_names_its_log(shown, run):
    told, log = shown(terminal=False), Path("results/tiny/logs/key.log")
    for status, named_log in (("failed", ", log: results/tiny/logs/key.log"), ("ok", "")):
        told.cell_started(run)
        told.cell_finished({**FINISHED, "status": status, "error": "no room"}, log)
        assert told.text().splitlines()[-1].endswith(f"no room{named_log} [7 s]")


def test_missing_is_not_shown_as_zero(shown, run):
    told = shown(terminal=False)
    told.cell_started(run)
    nothing = dict.fromkeys(("step_seconds_median", "allocated_peak_bytes", "accuracy"))
    told.cell_finished({**FINISHED, **nothing, "steps_measured": 0, "status": "killed"})
    assert told.text().splitlines()[-1].endswith(": killed [7 s]")
    # and 0 is not missing
    told.cell_started(run)
    told.cell_finished({**FINISHED, "accuracy": 0.0})
    assert "accuracy 0.000" in told.text()


def test_what_is_doubtful_of_a_cell_is_told(shown, run):
    told = shown(terminal=False)
    words = {"contended": True, "contention": "also on the card: python (12)", "unstable": True}
    told.cell_started(run)
    told.cell_finished({**FINISHED, **words})
    assert "contended: also on the card: python (12), unstable [" in told.text()
    told.cell_started(run)
    told.cell_finished({**FINISHED, "suspended_steps": 2})
    assert "suspended in mid-step (2 not counted) [" in told.text()


def test_a_card_is_named_and_a_machine_without_a_name_is_not_called_none(shown):
    assert shown(terminal=False, device="cuda:0").text().startswith("cuda:0 (a card), torch")
    assert "None" not in shown(terminal=False, cpu_model=None).text()


def test_the_fitting_of_a_teacher_is_told(shown):
    told = shown(terminal=False)
    told.fit_started("dwarf")
    told.fit_finished("dwarf", {"cached": False, "seconds": 12.3, "accuracy": 0.98765}, None)
    told.fit_finished("dwarf", {"cached": True}, None)
    told.fit_finished("dwarf", None, "fitting the teacher 'dwarf': no images")
    assert told.text().splitlines()[1:] == [
        "fitting the teacher dwarf",
        "teacher dwarf: fitted in 12 s, test accuracy 0.988",
        "teacher dwarf: from the cache",
        "fitting the teacher 'dwarf': no images",
    ]


def test_the_whole_run_is_estimated_from_the_finished_cells(shown, run, clock):
    told = shown(terminal=False, total=4)
    told.cell_started(run)
    told.cell_finished({**FINISHED, "wall_seconds": 100.0})
    told.cell_started(run)
    clock.now += 30
    told.tick([start("measure")], None)
    left = format_value(70.0 + 2 * 100, "seconds")
    assert told.text().splitlines()[-1] == f"  measure ...; run about {left} left"


NASTY = "a[red]b[/red]\x1b]0;owned\x07\x1b[2J\r\u202ec\nd[/]"
# The markup is no markup, and each control character is spelt out.
HARMLESS = r"a[red]b[/red]\x1b]0;owned\x07\x1b[2J\r\u202ec\nd[/]"


def test_names_cannot_steer_the_terminal(shown, run):
    told = shown(terminal=False)
    told.cell_started(named(run, NASTY))
    told.cell_finished({**FINISHED, "status": "failed", "error": NASTY})
    told.fit_started(NASTY)
    told.fit_finished(NASTY, None, NASTY)
    told.note(NASTY)
    lines = told.text().splitlines()
    assert len(lines) == 6
    assert all(HARMLESS in line for line in lines[1:])
    assert lines[2].count(HARMLESS) == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", told.text())


def plain(text):
    """What a terminal would show: without the colours and cursor movements of rich itself."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def live_line(told):
    """The last state of the live view: it is drawn once more when it ends."""
    told.finish()
    return plain(told.text()).replace("\r", "\n").rstrip().splitlines()[-1]


def test_the_live_view_names_cell_phase_step_time_left_and_memory(shown, run, clock):
    told = shown(terminal=True, total=3)
    told.cell_started(run)
    told.cell_finished({**FINISHED, "wall_seconds": 40.0})
    told.cell_started(run)
    clock.now += 5
    told.tick(
        [start("measure"), PROFILE_PLAN, step("measure", 0, 1.0), step("measure", 1, 1.0)],
        {"host_bytes": 123_000_000, "process_bytes": 5_000_000_000, "device_bytes": None},
    )
    told.tick([], None)  # nothing new: the newest sample stays
    line = live_line(told)
    cell, whole = format_value(21.0, "seconds"), format_value(21.0 + 40, "seconds")
    assert (
        "[2/3] embed-kd/small/8px/dwarf: measure, step 2, host 123 MB, process 5.00 GB; "
        f"cell {cell} left, run about {whole} left [5 s]"
    ) in line
    assert "device" not in line, "what is missing is not shown as 0"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_resumed_training_is_told(terminal, shown, run):
    told = shown(terminal=terminal)
    told.cell_started(run)
    events = [*of(2, start("precompute"), PLAN), resumed(2, 1, 1, 5), *TOLD_AGAIN]
    told.tick([*events, *of(2, start("train"))], None)
    text = plain(told.text())
    assert text.count("  goes on after 5 steps, in epoch 2/3\n") == 1
    assert text.count("precompute ...") == (0 if terminal else 1), "what is told again is not shown"
    if terminal:
        assert "train, epoch 2/3" in live_line(told)


def test_a_long_training_is_heard_of_now_and_then(shown, run, clock):
    """A log that says nothing for hours looks as if it hung."""
    told = shown(terminal=False)
    told.cell_started(run)
    told.tick([start("setup"), {"event": "plan", "epochs": 3, "steps": 2}, start("train")], None)
    clock.now += 1000
    told.tick([], None)  # no step is done yet, so that nobody knows the epoch
    for epoch in range(3):
        for number in range(2):
            clock.now += 140
            told.tick([step("train", number, 140.0, epoch)], None)
            told.tick([], None)
        told.tick([start("evaluate"), start("train")], None)
    told.tick([start("account")], None)
    clock.now += 1000
    told.tick([], None)
    told.cell_started(run)
    told.tick([start("train")], None)
    lefts = [f"; cell {format_value(seconds, 'seconds')} left" for seconds in (700.0, 280.0, 140.0)]
    assert told.text().splitlines()[2:] == [
        "  train ...",
        f"  train: epoch 1 of 3{lefts[0]}",
        f"  train: epoch 2 of 3{lefts[1]}",
        f"  account ...{lefts[2]}",
        "[2/1] embed-kd/small/8px/dwarf",
        "  train ...",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_workers_note_reaches_the_user(terminal, shown, run):
    told = shown(terminal=terminal)
    told.cell_started(run)
    told.tick([{"event": "note", "text": "cannot go on from \x1b[31mhere", "attempt": 0}], None)
    assert "  cannot go on from" in told.text()
    assert "\x1b[31mhere" not in told.text()


def test_the_live_view_of_a_training(shown, run):
    told = shown(terminal=True)
    told.cell_started(run)
    told.tick([{"event": "plan", "epochs": 3, "steps": 8}, start("train")], None)
    told.tick([step("train", 4, 2.0, epoch=1)], {"device_bytes": 7_000_000})
    assert "train, epoch 2/3, step 5/8, device 7.00 MB; cell " in live_line(told)


def test_the_live_view_shows_names_as_they_are(shown, run):
    told = shown(terminal=True, total=2)
    told.cell_started(named(run, NASTY))
    told.cell_finished({**FINISHED, "status": "failed", "error": NASTY})
    told.cell_started(named(run, NASTY))
    told.tick([start("measure")], None)
    told.finish()
    text = told.text()
    assert text.count(HARMLESS) >= 3, "twice in the finished line, and in the live one"
    for sequence in ("\x1b]", "\x07", "\x1b[2J", "\u202e"):
        assert sequence not in text


def test_the_live_view_gives_the_terminal_back(shown, run):
    told = shown(terminal=True)
    told.cell_started(run)
    told.finish()
    text = told.text()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is visible again"
    told.note("after it")
    assert told.text().endswith("after it\n")
    told.finish()  # a second time is no error


def test_silence_is_silent(capfd, run):
    silent = Progress()
    silent.begin(total=1, folder=Path(), environment=ENVIRONMENT, device="cpu")
    silent.fit_started("dwarf")
    silent.fit_finished("dwarf", None, "problem")
    silent.cell_started(run)
    silent.tick([start("measure")], {})
    silent.cell_finished(FINISHED)
    silent.note("note")
    silent.finish()
    assert capfd.readouterr() == ("", "")
