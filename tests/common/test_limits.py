"""Limits of memory, the room below them, and the killer's counters, read from trees of files."""

import resource
import subprocess
import sys

import psutil
import pytest

from kdbench.common import memory_limits
from kdbench.common.memory_limits import (
    find_limits,
    memory_limit_bytes,
    process_limits,
    tightest_limit,
)
from kdbench.runner.process.oom_killer import OomKillCounter, OomKills

MIB, GIB = 2**20, 2**30
V1 = "9:name=systemd:/x\n4:memory:/job/mine\n0::/\n"
V2 = "0::/job/mine\n"
UNLIMITED = str(2**63 - 4096)
OWN = "sys/fs/cgroup/job/mine/"


@pytest.fixture
def tree(tmp_path):
    """Write files below a folder that stands for the root; returns it."""

    def call(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return call


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": V2}, None),
        ({"proc/self/cgroup": V2, OWN + "memory.max": "max"}, None),
        ({"proc/self/cgroup": V2, OWN + "memory.max": MIB}, MIB),
        # the tightest of all levels
        (
            {
                "proc/self/cgroup": V2,
                OWN + "memory.max": "max",
                "sys/fs/cgroup/job/memory.max": MIB,
                "sys/fs/cgroup/memory.max": GIB,
            },
            MIB,
        ),
        # a container that sees its own group at the top
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/memory.max": MIB}, MIB),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": MIB}, MIB),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": GIB,
                "sys/fs/cgroup/memory/job/mine/memory.limit_in_bytes": UNLIMITED,
            },
            GIB,
        ),
        ({"proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/memory.max": MIB}, MIB),
        ({"proc/self/cgroup": "nonsense\n"}, None),
    ],
)
def test_the_limit_of_control_groups(tree, files, limit):
    assert memory_limit_bytes(tree(files)) == limit


@pytest.mark.parametrize("version", [1, 2])
def test_room_in_a_group(tree, monkeypatch, version):
    """File pages that nobody used lately are given up first: they are free."""
    machine = type("Memory", (), {"available": 20 * GIB, "total": 24 * GIB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    files = {
        2: {
            "proc/self/cgroup": V2,
            OWN + "memory.max": GIB,
            OWN + "memory.current": 700 * MIB,
            OWN + "memory.stat": f"anon 5\ninactive_file {200 * MIB}",
        },
        1: {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/memory/job/mine/memory.limit_in_bytes": GIB,
            "sys/fs/cgroup/memory/job/mine/memory.usage_in_bytes": 700 * MIB,
            "sys/fs/cgroup/memory/job/mine/memory.stat": f"total_inactive_file {200 * MIB}",
        },
    }
    found = tightest_limit(tree(files[version]))
    assert (found.free_bytes, found.limit_bytes) == (524 * MIB, GIB)
    assert found.name == "control group /job/mine"


def test_a_group_over_its_limit_has_no_room_rather_than_less(tree):
    files = {"proc/self/cgroup": V2, OWN + "memory.max": 10, OWN + "memory.current": 20}
    assert tightest_limit(tree(files)).free_bytes == 0


def test_a_system_that_promises_no_more_than_it_has(tree):
    told = f"MemTotal: 9 kB\nCommitLimit:    {4 * MIB} kB\nCommitted_AS:   {3 * MIB} kB"
    root = tree({"proc/meminfo": told, "proc/sys/vm/overcommit_memory": "2"})
    assert any(r.free_bytes == GIB and "overcommit" in r.name for r in find_limits(root))
    (root / "proc/sys/vm/overcommit_memory").write_text("0\n")
    assert not any("overcommit" in r.name for r in find_limits(root))


def test_the_limits_of_the_process_itself(tree, monkeypatch):
    monkeypatch.setattr(memory_limits.sys, "platform", "linux")
    allowed = {resource.RLIMIT_AS: 8 * GIB, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda number: (allowed[number], 0))
    told = f"VmPeak:\t{7 * MIB} kB\nVmSize:\t{2 * MIB} kB\nVmData:\t{MIB} kB"
    (found,) = process_limits(tree({"proc/self/status": told}))
    assert (found.free_bytes, found.least_free_bytes) == (6 * GIB, GIB)
    allowed[resource.RLIMIT_DATA] = 3 * GIB
    assert [room.free_bytes for room in process_limits(tree({}))] == [6 * GIB, 2 * GIB]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what counts against it")
def test_a_real_limit_of_address_space():
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from kdbench.common.memory_limits import tightest_limit\n"
        "before = tightest_limit()\nheld = bytearray(1 << 30)\n"
        "after = tightest_limit()\ndel held\nprint(before.free_bytes - after.free_bytes)\n"
        "print(after.name)\nprint(tightest_limit().least_free_bytes - after.free_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, name, since = done.stdout.splitlines()
    assert abs(int(taken) - GIB) < 16 * MIB
    assert "RLIMIT_AS" in name
    assert abs(int(since)) < 16 * MIB, "the least is remembered when it is free again"


def events(count):
    return f"low 0\nhigh 0\nmax 7\noom 9\noom_kill {count}\noom_group_kill 0"


def control(count):
    return f"oom_kill_disable 0\nunder_oom 0\noom_kill {count}"


@pytest.mark.parametrize(
    ("cgroup", "before", "after", "expected"),
    [
        (V2, {OWN + "memory.events": events(2)}, events(3), (1, "control group /job/mine")),
        (V2, {OWN + "memory.events": events(2)}, events(2), (0, "control group /job/mine")),
        # the memory controller goes no lower, or a container shows no more
        (V2, {"sys/fs/cgroup/job/memory.events": events(0)}, events(2), (2, "control group /job")),
        (V2, {"sys/fs/cgroup/memory.events": events(0)}, events(1), (1, "control group /")),
        (
            V1,
            {
                "sys/fs/cgroup/memory/job/mine/memory.limit_in_bytes": UNLIMITED,
                "sys/fs/cgroup/memory/job/mine/memory.oom_control": control(0),
            },
            control(1),
            (1, "control group /job/mine"),
        ),
        (V2, {"proc/vmstat": "pgfault 5\noom_kill 4"}, "oom_kill 6", (2, "the whole machine")),
        # a kernel before 4.13 counts nothing
        (V2, {OWN + "memory.events": "low 0\noom 3"}, "low 0\noom 4", None),
        ("", {}, None, None),
    ],
)
def test_what_the_kernels_killer_has_ended(tree, cgroup, before, after, expected):
    root = tree({"proc/self/cgroup": cgroup} | before)
    killer = OomKillCounter(root)
    if after is not None:
        tree({list(before)[-1]: after})
    assert killer.kills() == (OomKills(*expected) if expected else None)


def test_the_nearest_counter_is_the_one_that_counts(tree):
    """Others are ended in groups beside this one: those above count them too."""
    above = "sys/fs/cgroup/job/memory.events"
    root = tree({"proc/self/cgroup": V2, OWN + "memory.events": events(0), above: events(0)})
    killer = OomKillCounter(root)
    tree({above: events(5)})
    assert killer.kills().count == 0
    (root / OWN / "memory.events").unlink()
    assert killer.kills() is None, "a counter that is gone tells nothing"
