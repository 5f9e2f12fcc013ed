"""What is known of time that nobody worked in: suspensions by the clocks, stops by SIGCONT."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.worker.probes import suspension as suspension_module
from kdbench.worker.probes.clock import BatchTimes, StepClock
from kdbench.worker.probes.suspension import SuspensionDetector, watch_stops
from tests.support import REPOSITORY

SECOND = 10**9


class Machine:
    """Its clocks go on when they are told, and a little each time that one is read."""

    def __init__(self, reading=100):
        self.reading = reading
        self.awake, self.asleep, self.continued = 5 * SECOND, 3 * SECOND, 0
        self.delays = []  # the processor is lost before so many of the next readings

    def monotonic(self):
        self.awake += self.reading + (self.delays.pop(0) if self.delays else 0)
        return self.awake

    def boottime(self):
        return self.monotonic() + self.asleep

    def watched(self, *, boottime=True):
        clock = self.boottime if boottime else None
        return SuspensionDetector(self.monotonic, clock, lambda: self.continued)


@pytest.fixture
def machine():
    return Machine()


def test_a_suspension_is_told_once(machine):
    watch = machine.watched()
    assert not watch.occurred()
    machine.asleep += 3600 * SECOND
    assert watch.occurred()
    assert not watch.occurred()
    machine.awake += 3600 * SECOND
    assert not watch.occurred(), "a long step is none"


def test_a_stop_is_told_once(machine):
    watch = machine.watched(boottime=False)
    machine.asleep += 3600 * SECOND
    assert not watch.occurred(), "without the clock a suspension cannot be told"
    machine.continued += 2
    assert watch.occurred()
    assert not watch.occurred()


def test_a_processor_lost_between_two_clocks_is_no_suspension(machine):
    # before each of the three readings in turn, when it is made and when it is asked
    for place in range(6):
        machine.delays = [60 * SECOND if n == place else 0 for n in range(6)]
        watch = machine.watched()
        assert not watch.occurred(), place
        assert not watch.occurred(), place


def test_what_was_lost_between_two_clocks_hides_nothing_that_comes_later(machine):
    watch = machine.watched()
    machine.delays = [0, 60 * SECOND, 0]
    assert not watch.occurred()
    machine.asleep += 2 * SECOND
    assert watch.occurred()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 0, 10**7, SECOND, 10**6 * SECOND]),
            st.integers(0, 3),
            st.lists(st.sampled_from([0, 0, 10**5]), min_size=3, max_size=3),
        ),
        max_size=20,
    )
)
def test_any_history_of_suspensions_and_stops(moments):
    machine = Machine()
    watch = machine.watched()
    for slept, stops, delays in moments:
        machine.asleep += slept
        machine.continued += stops
        machine.delays = list(delays)
        assert watch.occurred() == bool(slept or stops)


def test_the_clock_of_the_system_goes_with_its_suspensions():
    watch = SuspensionDetector()
    assert not any(watch.occurred() for _ in range(1000))


def test_a_step_is_suspended_by_what_came_before_it_too(machine):
    clock = StepClock(lambda: None, now=machine.monotonic, suspension=machine.watched())

    def step(*, between=0, within=0):
        machine.asleep += between
        clock.start()
        machine.asleep += within
        return clock.stop()["suspended"]

    assert [step(), step(within=SECOND), step(), step(between=SECOND), step()] == [
        *(False, True, False),
        *(True, False),
    ]


def test_batches_that_were_suspended_are_kept_apart(machine):
    machine.reading = 0
    times = BatchTimes(lambda: None, machine.monotonic, machine.watched())
    for asleep in (0, 0, 1, 0, 1, 1, 0, 0):
        machine.awake += SECOND
        machine.asleep += asleep * SECOND
        times.end_batch()
    begun = [(start // SECOND - 5, end // SECOND - 5) for start, end in times.timed]
    assert begun == [(0, 2), (3, 4), (6, 8)]
    assert [start // SECOND - 5 for start, _ in times.suspended] == [2, 4, 5]
    assert (times.count, times.seconds) == (5, 5.0)
    machine.awake += 9 * SECOND
    machine.asleep += SECOND
    times.begin()
    machine.awake += SECOND
    times.end_batch()
    assert (times.count, times.seconds) == (6, 6.0), "what is between is of no batch"


def test_a_process_that_was_stopped_hears_of_it(tmp_path):
    # the process stops itself, and goes on when the one that it started has seen it stopped
    code = """
    import os, signal
    from kdbench.worker.probes.suspension import SuspensionDetector, watch_stops
    watch_stops()
    watch = SuspensionDetector()
    assert not watch.occurred()
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    assert watch.occurred()
    assert not watch.occurred()
    pid = os.fork()
    if pid == 0:
        watch_stops()
        watch = SuspensionDetector()
        print(os.getpid(), flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0 if watch.occurred() else 7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "a fork as well"
    assert not watch.occurred(), "and it alone"
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        for line in child.stdout:
            pid = int(line)
            while _state(pid) != "T":
                time.sleep(0.01)
            os.kill(pid, signal.SIGCONT)
        assert child.wait() == 0


def _state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_watching_is_for_whoever_is_asked():
    before = signal.getsignal(signal.SIGCONT)
    try:
        SuspensionDetector()
        assert signal.getsignal(signal.SIGCONT) is before
        watch_stops()
        watch = SuspensionDetector()
        os.kill(os.getpid(), signal.SIGCONT)
        assert watch.occurred(), "one cannot tell whether it had been stopped"
    finally:
        signal.signal(signal.SIGCONT, before)


@pytest.mark.parametrize("clock", [None, 10**6])
def test_where_the_system_has_no_such_clock(clock, monkeypatch):
    if clock is None:
        monkeypatch.delattr("time.CLOCK_BOOTTIME")
    else:
        monkeypatch.setattr("time.CLOCK_BOOTTIME", clock)
    assert suspension_module._boot_clock() is None
