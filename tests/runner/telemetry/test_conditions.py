"""The machine around the worker, read from a /proc and a /sys of the test's own, and from real."""

import os
import subprocess
import sys
import time

import pytest

from kdbench.runner.telemetry.cpu_load import Processors, usable_cores
from kdbench.runner.telemetry.sensors import Conditions, PackageEnergy, Sensors, governor

KDBENCH, WORKER, CHILD = 10, 20, 21


@pytest.fixture
def put(tmp_path):
    """Call with files by path for the root of a file system that has them."""

    def write(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path

    return write


def stat(*cpus):
    """/proc/stat of processors given as {field: ticks}."""
    fields = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    lines = [
        f"cpu{n} " + " ".join(str(cpu.get(field, 0)) for field in fields) + " 0 0"
        for n, cpu in enumerate(cpus)
    ]
    return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 12345", "ctxt 1"])


def process(user, system=0, children=0, name="a (strange) name"):
    return f"1 ({name}) S " + "0 " * 10 + f"{user} {system} {children} 0 20 0 1 0"


class Machine:
    """Two processors of which each reading tells; 100 ticks are a second."""

    def __init__(self, put, usable=(0, 1)):
        self._put = put
        self.root = put({})
        self.processors = Processors((KDBENCH,), usable, self.root / "proc")

    def read(self, cpus, own, worker=(WORKER,)):
        """Others' share, after writing the counters; `own` is ticks by process."""
        files = {"proc/stat": stat(*cpus)} if cpus else {}
        self._put(files | {f"proc/{pid}/stat": text for pid, text in own.items()})
        return self.processors.elsewhere(worker)


START = {KDBENCH: process(5), WORKER: process(50)}


@pytest.fixture
def machine(put):
    return Machine(put)


@pytest.mark.parametrize(
    ("cpus", "own", "elsewhere"),
    [
        # the worker kept one busy all the time, nobody the other
        (({"user": 100}, {"idle": 100}), {WORKER: process(150)}, 0.0),
        (({"user": 100}, {"idle": 60, "iowait": 40}), {WORKER: process(130, 20)}, 0.0),
        (({"user": 100}, {"system": 50, "idle": 50}), {WORKER: process(150)}, 0.5),
        (({"nice": 100}, {"irq": 10, "softirq": 15, "steal": 25, "idle": 50}), {}, 1.5),
        # kdbench itself is no other
        (({"user": 30, "idle": 70}, {"idle": 100}), {KDBENCH: process(35)}, 0.0),
        # a worker that just started had used nothing before
        (({"user": 40, "idle": 60}, {"idle": 100}), {CHILD: process(40)}, 0.0),
        # a child's time goes to its parent when it has ended; that of kdbench's children does not
        (({"user": 40, "idle": 60}, {"idle": 100}), {WORKER: process(50, 0, 40)}, 0.0),
        (({"user": 40, "idle": 60}, {"idle": 100}), {KDBENCH: process(5, 0, 40)}, 0.4),
        # ticks do not add up to the last one
        (({"user": 40, "idle": 60}, {"idle": 100}), {WORKER: process(92)}, 0.0),
        # more than there is: something was counted twice
        (({"user": 100}, {"user": 100}), {WORKER: process(900)}, None),
        # and less than nothing: a child's time was lost
        (({"user": 100}, {"user": 100}), {WORKER: process(20)}, None),
        # too soon to tell
        (({"user": 30}, {"user": 30}), {}, None),
    ],
)
def test_others_are_what_is_busy_and_not_ours(machine, cpus, own, elsewhere):
    assert machine.read(({}, {}), START) is None, "nothing to compare with"
    found = machine.read(cpus, own, (WORKER, CHILD))
    assert found == (None if elsewhere is None else pytest.approx(elsewhere))


def test_what_came_too_soon_is_in_the_next_reading(machine):
    machine.read(({}, {}), START)
    assert machine.read(({"user": 40}, {"idle": 40}), {}) is None
    assert machine.read(({"user": 40, "idle": 60}, {"idle": 100}), {}) == pytest.approx(0.4)


def test_a_worker_that_ended_leaves_one_reading_unknown(machine, put):
    machine.read(({}, {}), START)
    (machine.root / f"proc/{WORKER}/stat").unlink()
    assert machine.read(({"user": 100}, {"idle": 100}), {}) is None
    assert machine.read(({"user": 200}, {"idle": 200}), {}) == pytest.approx(1.0)


def test_processors_that_the_worker_may_not_use_do_not_count(put):
    machine = Machine(put, usable=(1,))
    machine.read(({}, {}), START)
    assert machine.read(({"user": 100}, {"idle": 100}), {}) == pytest.approx(0.0)


@pytest.mark.parametrize("cpus", [(), ({},)])
def test_a_kernel_that_does_not_tell_of_all_processors_tells_nothing(machine, cpus):
    assert machine.read(cpus, START) is None
    assert machine.read(cpus, START) is None


def test_counters_that_stand_still_are_no_idle_machine(machine):
    """As in some sandboxes, where /proc/stat is all zeros."""
    for _ in range(2):
        assert machine.read(({}, {}), START) is None


CPU = "sys/devices/system/cpu/cpu{}/"


def test_cores_are_told_from_their_threads(put):
    pairs = {
        CPU.format(n) + "topology/thread_siblings_list": f"{n % 2},{n % 2 + 2}" for n in range(4)
    }
    root = put(pairs)
    assert usable_cores((0, 1, 2, 3), root) == 2
    assert usable_cores((0, 2), root) == 1
    assert usable_cores((0, 7), root) is None


def test_clocks_are_averaged_over_the_usable_processors(put):
    name = CPU + "cpufreq/scaling_cur_freq"
    root = put({name.format(0): 3_000_000, name.format(1): 2_000_000, name.format(2): 800_000})
    assert Sensors((0, 1), root).mhz() == 2500
    assert Sensors((0, 9), root).mhz() == 3000, "of those that tell"
    assert Sensors((), root).mhz() is None


@pytest.mark.parametrize(
    ("files", "celsius"),
    [
        ({}, None),
        ({"thermal/thermal_zone0/type": "acpitz", "thermal/thermal_zone0/temp": 27800}, None),
        ({"thermal/thermal_zone1/type": "x86_pkg_temp", "thermal/thermal_zone1/temp": 71500}, 71.5),
        ({"thermal/thermal_zone1/type": "x86_pkg_temp", "thermal/thermal_zone1/temp": "?"}, None),
        (
            {
                "hwmon/hwmon3/name": "coretemp",
                "hwmon/hwmon3/temp1_label": "Package id 0",
                "hwmon/hwmon3/temp1_input": 66000,
                "hwmon/hwmon3/temp2_label": "Core 0",
                "hwmon/hwmon3/temp2_input": 90000,
            },
            66.0,
        ),
        (
            {
                "hwmon/hwmon0/name": "nvme",
                "hwmon/hwmon0/temp1_input": 99000,
                "hwmon/hwmon1/name": "k10temp",
                "hwmon/hwmon1/temp1_input": 55250,
            },
            55.25,
        ),
    ],
)
def test_temperature_is_that_of_the_processors_packages(put, files, celsius):
    root = put({f"sys/class/{name}": value for name, value in files.items()})
    assert Sensors((0,), root).celsius() == celsius


GROUP = "sys/fs/cgroup/"
V2 = {
    "proc/self/cgroup": "0::/user/job",
    GROUP + "cpu.stat": "usage_usec 5",
    GROUP + "user/cpu.stat": "usage_usec 5\nnr_throttled 1\nthrottled_usec 250000",
    GROUP + "user/job/cpu.stat": "throttled_usec 1000000",
}
V1 = {
    "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/job\n0::/",
    GROUP + "cpu,cpuacct/job/cpu.stat": "nr_periods 0\nthrottled_time 1500000000",
}
HEAT = {
    CPU.format(0) + "thermal_throttle/core_throttle_total_time_ms": 100,
    CPU.format(0) + "thermal_throttle/package_throttle_total_time_ms": 700,
    CPU.format(1) + "thermal_throttle/package_throttle_total_time_ms": 700,
}


@pytest.mark.parametrize(
    ("files", "seconds"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/", GROUP + "cpu.stat": "usage_usec 5"}, None),
        (V2, 1.25),
        # a container that shows only its own group, as the root
        ({"proc/self/cgroup": "0::/far/away", GROUP + "cpu.stat": "throttled_usec 3000000"}, 3.0),
        (V1, 1.5),
        (HEAT, 0.7),
        (V2 | HEAT, 1.95),
        ({"proc/self/cgroup": "nonsense"}, None),
    ],
)
def test_throttling_by_quota_and_by_heat(put, files, seconds):
    found = Sensors((0, 1), put(files)).throttled_seconds()
    assert found == (None if seconds is None else pytest.approx(seconds))


RAPL = "sys/class/powercap/intel-rapl:"


def package(number, energy, most=1_000_000):
    return {
        f"{RAPL}{number}/name": f"package-{number}",
        f"{RAPL}{number}/energy_uj": energy,
        f"{RAPL}{number}/max_energy_range_uj": most,
    }


def test_packages_are_summed_and_their_parts_and_the_platform_left_out(put):
    others = {
        f"{RAPL}0:0/name": "core",
        f"{RAPL}0:0/energy_uj": 400_000,
        f"{RAPL}2/name": "psys",
        f"{RAPL}2/energy_uj": 900_000,
    }
    energy = PackageEnergy(put(package(0, 500_000) | package(1, 250_000) | others))
    assert energy.joules() == pytest.approx(0.75)


def test_a_counter_that_wraps_around_goes_on(put):
    told = []
    energy = PackageEnergy(put(package(0, 900_000)))
    for value in (900_000, 100_000, 300_000, 200_000):
        put(package(0, value))
        told.append(energy.joules())
    assert told == pytest.approx([0.9, 1.1, 1.3, 2.2])


def test_a_counter_that_wraps_around_nobody_knows_where_tells_nothing_more(put):
    energy = PackageEnergy(put(package(0, 900_000, most="?")))
    assert energy.joules() == pytest.approx(0.9)
    for value in (100_000, 950_000):
        put(package(0, value))
        assert energy.joules() is None


def test_a_package_that_is_silent_leaves_no_sum(put):
    root = put(package(0, 1) | {f"{RAPL}1/name": "package-1"})
    assert PackageEnergy(root).joules() is None
    assert PackageEnergy(root).found
    assert not PackageEnergy(root / "elsewhere").found
    assert PackageEnergy(root / "elsewhere").joules() is None


def test_the_governor(put):
    name = CPU + "cpufreq/scaling_governor"
    root = put({name.format(0): "performance", name.format(1): "powersave"})
    assert governor((0,), root) == "performance"
    assert governor((0, 1, 2), root) == "performance, powersave"
    assert governor((2,), root) is None


def test_a_system_that_tells_nothing_is_all_null(tmp_path):
    conditions = Conditions((1,), (0, 1), tmp_path)
    assert set(conditions.read(()).values()) == {None}
    assert conditions.joules() is None
    known = {name for name, value in conditions.start().items() if value is not None}
    assert known <= {"load_average", "usable_processors"}


BURN = """
import sys, time
print("up", flush=True)
sys.stdin.readline()
end = time.process_time() + 1.5
while time.process_time() < end:
    pass
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_on_the_real_machine_a_program_is_another_unless_it_is_the_worker():
    """It takes 1.5 s of a processor, in however long; whatever else runs, both readings see."""
    with subprocess.Popen(
        [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        child.stdout.readline()
        ours, others = (Processors((os.getpid(),), os.sched_getaffinity(0)) for _ in range(2))
        assert ours.elsewhere((child.pid,)) is None
        assert others.elsewhere() is None
        started = time.monotonic()
        child.stdin.write("go\n")
        child.stdin.flush()
        child.stdout.readline()
        as_worker, as_other = ours.elsewhere((child.pid,)), others.elsewhere()
        took = time.monotonic() - started
        child.stdin.close()
    if as_worker is None or as_other is None:
        pytest.skip("this kernel's /proc/stat does not tell")
    assert as_other - as_worker == pytest.approx(1.5 / took, rel=0.3)
