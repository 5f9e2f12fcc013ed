"""A worker whose memory is known: what is exact is exact, and what is sampled never exceeds it."""

import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from kdbench.runner.process.launcher import ProcessResult
from kdbench.runner.rows import summarise
from kdbench.runner.spool import read_lines
from kdbench.runner.telemetry.host import can_reset_peak
from kdbench.runner.telemetry.sampler_process import SamplerProcess
from tests.support import REPOSITORY, SUPPORT
from tests.support.known_allocations import MIB, PROFILE, SPIKE
from tests.support.models import tiny_run

pytestmark = pytest.mark.skipif(not can_reset_peak(), reason="the kernel keeps no resettable mark")

# Pages that come and go beside the tensors; and the kernel keeps its mark from counters that lag by
# some pages for each processor, where a sample's are summed: 0.2 MiB were seen on two processors.
SLACK = 8 * MIB
ENVIRONMENT = dict.fromkeys(
    ("cpu_model", "gpu_name", "driver_version", "torch_version", "git_revision")
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The events of the worker and the samples of it."""
    folder = tmp_path_factory.mktemp("known")
    sampler = SamplerProcess(folder / "samples.jsonl", gpu_uuid=None)
    script = SUPPORT / "known_allocations.py"
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, str(script), *(str(folder / f"{n}.jsonl") for n in ("events", "samples"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as worker:  # fmt: skip
        assert worker.stdout.readline() == "up\n"
        sampler.watch(worker.pid)
        worker.stdin.write("go\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "done\n"
        worker.stdin.write("bye\n")
    sampler.stop()
    assert sampler.problem is None
    return read_lines(folder / "events.jsonl"), read_lines(folder / "samples.jsonl")


def summarised(seen, tmp_path, *, exact):
    """The rows as a run's are made; without the exact marks, as where the kernel has none."""
    events, samples = seen
    unmarked = {} if exact else {"host_peak_bytes": None, "host_source": None}
    return summarise(
        tiny_run(tmp_path),
        ProcessResult(0, 1.0, tuple(event | unmarked for event in events)),
        samples=samples,
        environment=ENVIRONMENT,
        started_at=datetime(2026, 1, 2, tzinfo=UTC),
        log=tmp_path / "log",
        rates={},
    )


def test_the_exact_planes_know_every_byte(seen):
    phases = {event["phase"]: event for event in seen[0] if event["event"] == "phase"}
    assert list(phases) == [name for name, _ in PROFILE]
    for name, size in PROFILE:
        phase = phases[name]
        assert phase["counted"] == size * MIB, "the ledger, to the byte"
        assert phase["host_source"] == "vmhwm"
        grown = phase["host_peak_bytes"] - phase["resident"]
        assert abs(grown - size * MIB) < SLACK, name


def test_samples_are_a_lower_bound_and_are_called_one(seen, tmp_path):
    exact = {row["phase"]: row for row in summarised(seen, tmp_path, exact=True)["phases"]}
    polled = {row["phase"]: row for row in summarised(seen, tmp_path, exact=False)["phases"]}
    for name, _ in PROFILE:
        assert exact[name]["host_source"] == "vmhwm"
        if polled[name]["host_peak_bytes"] is None:  # too short for any sample
            assert (name, polled[name]["host_source"]) == (SPIKE, None)
            continue
        assert polled[name]["host_source"] == "polled"
        gap = exact[name]["host_peak_bytes"] - polled[name]["host_peak_bytes"]
        assert gap > -SLACK, "never more than there was, but for how the kernel counts"
        if name != SPIKE:  # long enough to meet a sample
            assert gap < SLACK, name
