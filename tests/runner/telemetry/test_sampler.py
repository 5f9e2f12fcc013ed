"""The sampler as the runner uses it: a child process, on the fake driver; and its parts."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kdbench.common.lifetime import STOP_SIGNALS
from kdbench.runner.telemetry import sampler as module
from kdbench.runner.telemetry.nvml import open_nvml
from kdbench.runner.telemetry.sampler import Commands, Lines, Sampler, Timer, next_deadline
from kdbench.runner.telemetry.sensors import Conditions
from kdbench.store.schema import TABLES
from tests.support.fake_nvml.fixtures import GIB, UUID, card, fake_nvml, fake_nvml_environment  # noqa: F401

# ruff: noqa: F811 - fixtures are imported, since conftest.py is shared

MS = 10**6
COLUMNS = [column.name for column in TABLES["samples"] if column.name != "run_key"]
HOST_COLUMNS = (
    *("monotonic_ns", "host_bytes", "cpu_elsewhere", "cpu_mhz", "cpu_celsius"),
    *("cpu_throttled_seconds", "host_energy_joules"),
)
GPU_COLUMNS = [name for name in COLUMNS if name not in HOST_COLUMNS]


def filled(sample):
    """A sample with null for what is not in it, and without what is no column."""
    return {name: sample.get(name) for name in COLUMNS}


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


class Child:
    """A running sampler; after `end`, its samples."""

    def __init__(self, out, environment=None, *options, parent=None):
        self.out = out
        command = [sys.executable, "-P", "-m", "kdbench.runner.telemetry.sampler", str(out)]
        command += ["--parent", str(parent or os.getpid()), *options]
        self.process = subprocess.Popen(
            command, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ready(self):
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()
        return self

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait_for(self, condition):
        """Wait until the samples on disk meet a condition: they are flushed once per second."""
        while not condition(self.samples(unfinished=True)):
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.01)

    def samples(self, *, unfinished=False):
        text = self.out.read_text()
        if unfinished:  # a write shows up page by page: the last line may not be whole yet
            text = text[: text.rindex("\n") + 1]
        return [filled(json.loads(line)) for line in text.splitlines()]

    def first(self):
        """All of the first sample, what is told once included."""
        return json.loads(self.out.read_text().splitlines()[0])

    def end(self):
        _, self.errors = self.process.communicate()
        return self.samples()


@pytest.fixture
def sampler(tmp_path):
    """Call with an environment and options for a sampler that has said it is ready."""
    children = []

    def start(environment=None, *options, **more):
        children.append(Child(tmp_path / "samples.jsonl", environment, *options, **more))
        return children[-1]

    yield start
    for child in children:
        with child.process:
            child.process.kill()


@pytest.fixture
def worker():
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("now", "deadline"), [(100, 120), (101, 120), (119, 120), (120, 140), (187, 200), (200, 220)]
)
def test_deadlines_are_absolute_and_missed_ones_are_skipped(now, deadline):
    assert next_deadline(100, 20, now) == deadline


def test_a_period_is_due_once_whatever_was_missed():
    period = Timer(100, 1000)
    asked = (1000, 1001, 1099, 1105, 1110, 1199, 1450, 1451, 1500)
    assert [now for now in asked if period.due(now)] == [1000, 1105, 1450, 1500]


def test_memory_is_read_always_power_and_the_process_list_seldom(fake_nvml):
    pid = os.getpid()
    script = card(energy_mj=[1000 * k for k in range(1, 99)])
    fake_nvml(script)
    clock = Clock(7000 * MS)
    with open_nvml() as nvml:
        sampler = Sampler(nvml.reader(UUID), start=clock.now, clock=clock)
        sampler.watch(pid)
        samples = []
        for _ in range(101):
            samples.append(filled(sampler.sample()))
            script["processes"] = {str(pid): GIB}  # nothing of ours is there before the worker
            clock.now += 20 * MS
    told = {
        name: [index for index, sample in enumerate(samples) if sample[name] is not None]
        for name in COLUMNS
    }
    for name in ("monotonic_ns", "host_bytes", "device_bytes"):
        assert told[name] == list(range(101))
    for name in ("power_watts", "energy_joules", "gpu_percent"):
        assert told[name] == list(range(0, 101, 5))
    for name in ("process_bytes", "gpu_neighbours", "gpu_sm_mhz", "gpu_celsius", "gpu_throttle"):
        assert told[name] == [0, 50, 100][name == "process_bytes" :], name
    # Asked for once per value: the counter is the card's, in joules.
    assert [samples[index]["energy_joules"] for index in (0, 5, 100)] == [1.0, 2.0, 21.0]
    assert [sample["monotonic_ns"] for sample in samples[:2]] == [7000 * MS, 7020 * MS]


def test_a_whole_sample_reads_what_is_not_due(fake_nvml):
    script = card()
    fake_nvml(script)
    clock = Clock(0)
    with open_nvml() as nvml:
        sampler = Sampler(nvml.reader(UUID), start=0, clock=clock)
        sampler.sample()
        sampler.watch(os.getpid())
        script["processes"] = {str(os.getpid()): GIB}
        clock.now += MS
        assert sampler.sample().keys() == {"monotonic_ns", "host_bytes", "device_bytes"}
        assert sampler.sample(whole=True).keys() >= set(GPU_COLUMNS)


def test_lines_reach_the_file_whole_and_together(tmp_path):
    with (tmp_path / "out").open("wb", buffering=module._BUFFER_BYTES) as file:
        lines = Lines(file)
        many = 2000
        for number in range(many):
            lines.add({"monotonic_ns": number, "host_bytes": None})
        assert (tmp_path / "out").read_bytes() == b""
        lines.flush()
        written = (tmp_path / "out").read_text()
    assert [json.loads(x)["monotonic_ns"] for x in written.splitlines()] == list(range(many))
    assert written.startswith('{"monotonic_ns": 0, "host_bytes": null}\n')


def test_commands_come_as_whole_lines_until_the_end():
    read, write = os.pipe()
    commands = Commands(read)
    assert commands.wait(0) == []
    os.write(write, b"watch 1\nwat")
    assert commands.wait(60) == ["watch 1"]
    os.write(write, b"ch 2\n")
    assert commands.wait(60) == ["watch 2"]
    os.close(write)
    assert commands.wait(60) is None
    os.close(read)


def test_an_ordinary_run_is_sampled_from_before_the_worker_to_its_end(
    sampler, worker, fake_nvml_environment, tmp_path
):
    then = {"file": str(tmp_path / "then"), "processes": {str(worker.pid): 2 * GIB, "9": GIB}}
    script = card(used=[GIB, 4 * GIB], then=then)
    child = sampler(fake_nvml_environment(script), "--gpu-uuid", UUID).ready()
    # on a busy machine a second may go by before this process reads on
    first, *_ = child.samples(unfinished=True)
    assert first["host_bytes"] is None
    assert first["process_bytes"] is None
    assert first["device_bytes"] == GIB
    assert first["gpu_neighbours"] == 0
    (tmp_path / "then").touch()
    child.say(f"watch {worker.pid}")
    child.wait_for(lambda samples: any(sample["host_bytes"] for sample in samples))
    samples = child.end()
    assert (child.process.returncode, child.errors) == (0, "")
    last = samples[-1]
    assert last.pop("host_bytes") > MS
    assert samples[0]["monotonic_ns"] < last.pop("monotonic_ns")
    assert {name: last[name] for name in GPU_COLUMNS} == {
        "process_bytes": 2 * GIB,
        "device_bytes": 4 * GIB,
        "power_watts": 70.5,
        "energy_joules": 1000.0,
        "gpu_percent": 37,
        "gpu_neighbours": 1,
        "gpu_sm_mhz": 1980.0,
        "gpu_celsius": 61.0,
        "gpu_throttle": 0,
    }
    times = [sample["monotonic_ns"] for sample in samples[:-1]]
    assert times == sorted(set(times))
    # On the grid, none twice: a sample is never before its deadline.
    assert len({(time - times[0]) // (20 * MS) for time in times}) == len(times)
    kinds = {column.name: column.dtype for column in TABLES["samples"]}
    python = {"int64": int, "float64": float}
    for sample in samples:
        assert all(type(v) is python[kinds[k]] for k, v in sample.items() if v is not None)


def test_on_the_cpu_all_of_the_card_is_null(sampler, worker):
    child = sampler().ready()
    child.say(f"watch {worker.pid}")
    samples = child.end()
    assert samples[-1]["host_bytes"] > 0
    assert {sample[name] for sample in samples for name in GPU_COLUMNS} == {None}


def test_a_worker_that_ended_is_null_and_no_error(sampler, worker):
    child = sampler().ready()
    child.say(f"watch {worker.pid}")
    child.wait_for(lambda samples: samples[-1]["host_bytes"] is not None)
    worker.kill()
    worker.wait()
    samples = child.end()
    assert samples[-1]["host_bytes"] is None
    assert (child.process.returncode, child.errors) == (0, "")


def test_a_card_lost_half_way_is_null_from_then_on(sampler, fake_nvml_environment):
    environment = fake_nvml_environment(card(lost_after=20))
    child = sampler(environment, "--gpu-uuid", UUID).ready()
    child.wait_for(lambda samples: samples[-1]["device_bytes"] is None)
    samples = child.end()
    assert child.process.returncode == 0
    assert child.errors == (
        "the card stopped answering: GPU is lost; nothing was sampled of it from then on\n"
    )
    told = [sample["device_bytes"] for sample in samples]
    lost = told.index(None)
    assert set(told[:lost]) == {3 * GIB}
    assert {sample[name] for sample in samples[lost:] for name in GPU_COLUMNS} == {None}


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ({"load_fails": True}, "no NVIDIA driver"),
        ({"init": 18}, "different versions"),
        ({"gpus": []}, "Not Found"),
    ],
)
def test_without_a_card_to_read_it_samples_the_host_and_says_why(
    sampler, worker, fake_nvml_environment, script, why
):
    child = sampler(fake_nvml_environment(**script), "--gpu-uuid", UUID).ready()
    child.say(f"watch {worker.pid}")
    samples = child.end()
    assert child.process.returncode == 0
    assert samples[-1]["host_bytes"] > 0
    assert why in child.errors
    assert {sample[name] for sample in samples for name in GPU_COLUMNS} == {None}


def test_a_container_that_reports_0_leaves_the_process_null(
    sampler, worker, fake_nvml_environment, tmp_path
):
    then = {"file": str(tmp_path / "then"), "processes": {str(worker.pid): 0}}
    child = sampler(fake_nvml_environment(card(then=then)), "--gpu-uuid", UUID).ready()
    (tmp_path / "then").touch()
    child.say(f"watch {worker.pid}")
    last = child.end()[-1]
    assert last["process_bytes"] is None
    assert last["gpu_neighbours"] == 0, "the worker itself is listed"
    assert last["device_bytes"] == 3 * GIB


def test_what_is_told_once_is_told_first(sampler):
    child = sampler().ready()
    first = child.first()
    for name, value in Conditions(()).start().items():
        if name == "load_average":
            assert first[name] >= 0
        else:
            assert first.get(name) == value, name
    assert all(value is not None for value in first.values()), "what is not known is left out"
    child.end()


def test_what_ends_a_run_is_for_the_runner(sampler):
    child = sampler().ready()
    for name in STOP_SIGNALS:
        child.process.send_signal(signal.Signals[name])
    samples = child.end()
    assert (child.process.returncode, child.errors) == (0, "")
    assert len(samples) >= 2


def test_killed_it_leaves_what_it_saw(sampler):
    child = sampler().ready()
    child.wait_for(lambda samples: len(samples) > 1)
    child.process.kill()
    child.process.wait()
    assert len(child.samples(unfinished=True)) > 1


def test_a_command_it_does_not_know_ends_it_and_keeps_the_samples(sampler):
    child = sampler().ready()
    child.say("wacth 12")
    samples = child.end()
    assert child.process.returncode == 1
    assert child.errors == "expected 'watch PID', found 'wacth 12'\n"
    assert len(samples) >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_it_does_not_outlive_its_parent(sampler):
    child = sampler(parent=1)
    _, errors = child.process.communicate()
    assert child.process.returncode == 1
    assert "is gone" in errors
    assert not child.out.exists()


def test_it_starts_with_nothing_heavy():
    code = "import sys, kdbench.runner.telemetry.sampler; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "psutil" in loaded
    heavy = {"torch", "pandas", "pyarrow", "rich", "numpy", "pydantic", "pynvml", "typer"}
    assert not loaded & heavy
    assert "kdbench.worker" not in done.stdout.split()
