"""The clock of a step, on the host and, with events that are not there, on a card."""

import pytest
import torch

from kdbench.worker.probes.clock import StepClock, step_clock


class Machine:
    """A host whose time goes by when it is told, and a card that lags behind it."""

    def __init__(self):
        self.host = 1_000
        self.device = 5_000
        self.told = []

    def now(self):
        return self.host

    def synchronize(self):
        self.told.append("synchronize")

    def event(self):
        machine = self

        class Event:
            def record(self):
                machine.told.append("record")
                self.at = machine.device

            def elapsed_time(self, end):
                return (end.at - self.at) / 1e6

        self.told.append("event")
        return Event()


def run_step(clock, machine, *parts, host=10, device=100):
    clock.start()
    for part in parts:
        machine.host += host
        machine.device += device
        clock.mark(part)
    machine.host += host
    machine.device += device
    return clock.stop()


def test_the_parts_on_the_host_are_the_whole():
    machine = Machine()
    clock = StepClock(machine.synchronize, now=machine.now)
    row = run_step(clock, machine, "teacher", "forward", "backward", "optimizer", host=10**9)
    assert row == {
        "started_ns": 1_000,
        "seconds": 5.0,
        "device_seconds": None,
        "suspended": False,
        **{f"{part}_seconds": 1.0 for part in ("data", "teacher", "forward")},
        **{f"{part}_seconds": 1.0 for part in ("backward", "optimizer")},
    }
    assert machine.told == ["synchronize"] * 2, "at both ends, and never within"


def test_a_part_that_comes_again_adds_up_and_one_without_a_column_is_in_the_whole():
    machine = Machine()
    clock = StepClock(machine.synchronize, now=machine.now)
    row = run_step(clock, machine, "teacher", "projector", "teacher", host=10**9)
    assert row["teacher_seconds"] == 2
    assert row["seconds"] == 4
    assert "projector_seconds" not in row
    assert "forward_seconds" not in row, "what was never marked is not known"


def test_a_part_without_a_teacher_has_no_time_of_one():
    machine = Machine()
    row = run_step(StepClock(machine.synchronize, now=machine.now), machine, "forward")
    assert "teacher_seconds" not in row


def test_the_parts_on_a_card_are_between_its_events():
    machine = Machine()
    clock = StepClock(machine.synchronize, machine.event, machine.now)
    row = run_step(clock, machine, "forward", "backward", host=10, device=2 * 10**6)
    assert row["data_seconds"] == row["forward_seconds"] == row["backward_seconds"] == 0.002
    assert row["device_seconds"] == pytest.approx(0.006)
    assert row["seconds"] == pytest.approx(30e-9), "the host's own clock"
    first = machine.told
    assert first[0] == first[-1] == "synchronize"
    assert first.count("synchronize") == 2
    machine.told = []
    again = run_step(clock, machine, "forward", "backward", device=2 * 10**6)
    assert again["device_seconds"] == row["device_seconds"]
    assert "event" not in machine.told, "events are made once, and not in every step"


def test_the_clock_of_a_cpu():
    row = run_step(step_clock(torch.device("cpu")), Machine(), "forward")
    assert row["device_seconds"] is None
    assert row["seconds"] == pytest.approx(row["data_seconds"] + row["forward_seconds"])
