"""Resident memory of real processes, and whether its peak can be had."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kdbench.runner.telemetry import host
from kdbench.runner.telemetry.host import ResidentMemory, can_reset_peak

MIB = 2**20
SECOND = 10**9
ON_LINUX = sys.platform == "linux"
HOLD = "import sys; held = bytearray(64 << 20); print('held', flush=True); sys.stdin.read()"
# Starts the one above when told to, and waits with it.
START = f"""
import subprocess, sys
print("up", flush=True)
sys.stdin.readline()
child = subprocess.Popen([sys.executable, "-c", {HOLD!r}], stdin=sys.stdin)
child.wait()
"""


@pytest.fixture
def start():
    started = []

    def run(code):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        process.stdout.readline()
        return process

    yield run
    for process in started:
        with process:
            process.kill()


class Clock:
    def __init__(self):
        self.now = 5 * SECOND

    def __call__(self):
        return self.now


def test_the_memory_of_a_process_is_read_in_bytes(start):
    process = start(HOLD)
    # The interpreter itself takes some ten MiB.
    assert 64 * MIB < ResidentMemory(process.pid).read() < 128 * MIB


@pytest.mark.parametrize("kernel_lists", [True, False])
def test_a_new_child_counts_once_a_second_has_passed(start, monkeypatch, kernel_lists):
    if not kernel_lists:
        monkeypatch.setattr(host, "_descendants", lambda _: None)
    process, clock = start(START), Clock()
    memory = ResidentMemory(process.pid, clock=clock)
    alone = memory.read()
    assert alone < 64 * MIB
    assert memory.children == []
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "held\n"
    clock.now += SECOND - 1
    assert memory.read() < 64 * MIB
    clock.now += 1
    assert memory.read() > alone + 64 * MIB
    (child,) = memory.children
    assert psutil.Process(child).ppid() == process.pid


@pytest.mark.parametrize("waited_for", [True, False])
def test_a_process_that_ended_has_no_memory_rather_than_0(start, waited_for):
    process = start(HOLD)
    memory = ResidentMemory(process.pid)
    assert memory.read() is not None
    process.stdin.close()
    if waited_for:
        process.wait()
    else:
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            pass
    assert memory.read() is None
    assert memory.read() is None
    assert memory.children == []


def test_a_process_that_never_was_has_none(start):
    process = start("print()")
    process.wait()
    assert ResidentMemory(process.pid).read() is None


def test_a_number_that_went_to_another_process_is_not_read(start, monkeypatch):
    process, clock = start(HOLD), Clock()
    memory = ResidentMemory(process.pid, clock=clock)
    assert memory.read() is not None
    monkeypatch.setattr(psutil.Process, "is_running", lambda _: False)
    clock.now += SECOND
    assert memory.read() is None


def test_the_kernels_peak_is_called_resettable_exactly_where_it_is():
    def mark():
        if not ON_LINUX:
            return 0
        lines = Path("/proc/self/status").read_text().splitlines()
        return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM:")), 0)

    bytearray(256 * MIB)
    high = mark()
    can = can_reset_peak()
    assert can == (mark() < high - 128 * MIB)
