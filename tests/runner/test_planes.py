"""What a run stores of a card, whatever the card and its driver are like: a table of both.

Each case is a real run: the runner, a worker that computes on the CPU, and the sampler as a
process of its own, which reads a fake driver through the real pynvml. The card is the run's as if
the worker computed on it.
"""

import os
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest

from kdbench import load_matrix
from kdbench.runner import cell_runner
from kdbench.runner.device import ResolvedDevice
from kdbench.runner.matrix_runner import run_matrix
from kdbench.runner.progress import Progress
from kdbench.runner.telemetry.nvml import Gpu
from kdbench.spec import method as registry
from tests.conftest import TINY
from tests.support import SUPPORT
from tests.support.fake_nvml import driver
from tests.support.fake_nvml.fixtures import GIB, MIG_UUID, UUID, card, fake_nvml_environment  # noqa: F401
from tests.support.slow_method import STEP_SECONDS

# ruff: noqa: F811 - fixtures are imported, since conftest.py is shared

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")

# No process has this number, nor one that is so much higher than another's: the kernel's own end
# of numbers is 2^22.
NOBODY = 5_000_000
STEPS = 30
HALF_WAY = STEPS // 2
WATTS = 70.5
ENERGY = (
    "energy_step_joules",
    "energy_epoch_joules",
    "energy_training_joules",
    "precompute_joules",
)
NO_ENERGY = dict.fromkeys((*ENERGY, "energy_source", "energy_training_kind"))
NO_PROCESS = {"process_peak_bytes": None, "process_source": None}
STATE = {"gpu_sm_mhz_median": 1980, "gpu_celsius_max": 61, "gpu_throttled": ""}
NOTHING = {
    **NO_PROCESS,
    **NO_ENERGY,
    **dict.fromkeys(("device_peak_bytes", "device_source", "device_idle_bytes")),
    **dict.fromkeys(("gpu_neighbours", *STATE)),
}
WORKER = {"worker": 2 * GIB}
# idle, then in use: the first is read before the worker starts
USED = [GIB, 4 * GIB]
MEMORY = {
    "process_peak_bytes": 2 * GIB,
    "process_source": "nvml-polled",
    "device_peak_bytes": 3 * GIB,
    "device_source": "nvml-polled",
    "device_idle_bytes": GIB,
}
ORDINARY = {**MEMORY, **STATE, "gpu_neighbours": 0, "energy_source": "nvml-counter"}


def named(pid):
    """A process as it is named; where the system hides others', by its number."""
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()} ({pid})"
    except OSError:
        return f"process {pid}"


def gpu(used=USED, processes=WORKER, **changes):
    return {"gpus": [card(used=used, processes=processes, **changes)]}


# what the driver is like -> what the cell's row says; "on card": what its words say of the card
CASES = {
    "an ordinary card": (gpu(), ORDINARY | {"on card": ""}),
    "a container that reports 0": (gpu(processes={"worker": 0}), ORDINARY | NO_PROCESS),
    "a driver that tells no process's memory": (
        gpu(processes={"worker": None}),
        ORDINARY | NO_PROCESS,
    ),
    "a driver that lists no process": (
        gpu(processes=None),
        ORDINARY | NO_PROCESS | {"gpu_neighbours": None, "on card": ""},
    ),
    "a MIG instance": (
        {
            "gpus": [
                card(
                    used=[70 * GIB, 79 * GIB],
                    mig=1,
                    processes={"worker": 2 * GIB, "9": 60 * GIB},
                    instances=[card(uuid=MIG_UUID, total=10 * GIB, used=USED, processes=WORKER)],
                )
            ]
        },
        {**MEMORY, **STATE, **NO_ENERGY, "gpu_neighbours": 0, "on card": ""},
    ),
    "a card that shares the host's memory": (
        gpu(used=None, total=None),
        ORDINARY
        | dict.fromkeys(("device_peak_bytes", "device_source", "device_idle_bytes"))
        | {"on card": ""},
    ),
    "no energy counter": (gpu(energy_mj=None), ORDINARY | {"energy_source": "nvml-power"}),
    "neither energy nor power": (gpu(energy_mj=None, power_mw=None), ORDINARY | NO_ENERGY),
    "a card that slows down for heat": (
        gpu(throttle=0x61, celsius=93),
        ORDINARY | {"gpu_throttled": "heat, heat (hardware)", "gpu_celsius_max": 93},
    ),
    "a card whose clocks were set, and that idles": (gpu(throttle=0x3), ORDINARY),
    "a neighbour from the start": (
        gpu(processes={str(NOBODY): GIB, **WORKER}),
        ORDINARY | {"gpu_neighbours": 1, "on card": f"also on the card: process {NOBODY}"},
    ),
    "a neighbour with a name": (
        gpu(processes={"1": GIB, **WORKER}),
        ORDINARY | {"gpu_neighbours": 1, "on card": named(1)},
    ),
    "a neighbour that does not compute": (
        gpu(processes={str(NOBODY): GIB, **WORKER}, computing={"worker": 90, str(NOBODY): 0}),
        ORDINARY | {"gpu_neighbours": 1, "on card": ""},
    ),
    "a neighbour that computes": (
        gpu(processes={str(NOBODY): GIB, **WORKER}, computing={"worker": 50, str(NOBODY): 45}),
        ORDINARY | {"gpu_neighbours": 1, "on card": f"process {NOBODY}"},
    ),
    "a neighbour, numbered by another namespace": (
        gpu(processes={str(NOBODY): GIB, f"worker+{NOBODY}": 2 * GIB}),
        ORDINARY | NO_PROCESS | {"gpu_neighbours": 1, "on card": f"process {NOBODY}"},
    ),
    "nobody else, numbered by another namespace": (
        gpu(processes={f"worker+{NOBODY}": 2 * GIB}),
        ORDINARY | NO_PROCESS | {"gpu_neighbours": 0, "on card": ""},
    ),
    "a neighbour that comes half-way": (
        gpu(then={"processes": {str(NOBODY): GIB, **WORKER}}),
        ORDINARY | {"gpu_neighbours": 1, "on card": f"process {NOBODY}"},
    ),
    "a card that is lost half-way": (
        gpu(then={"lost_after": 0}),
        # what was seen until then was seen; what needs all of the steps is not known
        ORDINARY | NO_ENERGY | {"note": "the card stopped answering"},
    ),
    "no driver": ({"load_fails": True}, NOTHING | {"note": "no NVIDIA driver"}),
    "a library that does not fit the kernel's module": (
        {"init": driver.VERSION_MISMATCH},
        NOTHING | {"note": "different versions"},
    ),
    "another card": (
        {"gpus": [card(uuid=UUID.replace("1", "2"))]},
        NOTHING | {"note": "Not Found"},
    ),
    "a driver too old for the second memory struct": (
        # its used memory has the reserve in it, when idle too
        {
            **gpu(reserved=GIB // 2),
            "lacks": [
                "nvmlDeviceGetMemoryInfo_v2",
                "nvmlDeviceGetComputeRunningProcesses_v3",
                "nvmlDeviceGetCurrentClocksEventReasons",
            ],
        },
        ORDINARY | {"device_idle_bytes": GIB + GIB // 2},
    ),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return _site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def stored(tmp_path, site, monkeypatch, fake_nvml_environment, forked_workers):
    """Run one cell beside a fake driver; returns its row, the other tables and what was noted."""

    joules_from = time.monotonic_ns() - 10**12

    def run(script, method="slow-alone"):
        half = tmp_path / "half-way"
        for one in script.get("gpus", ()):
            if "then" in one:
                one["then"]["file"] = str(half)
            if one["energy_mj"] is not None:
                one["joules_from"] = joules_from
        child = fake_nvml_environment(
            *script.get("gpus", ()), **script | {"gpus": script.get("gpus", [])}
        )
        monkeypatch.syspath_prepend(site)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), child["PYTHONPATH"]]))
        monkeypatch.setenv(driver.SCRIPT, child[driver.SCRIPT])
        forked_workers()
        progress = _Noted(half)
        summary = run_matrix(
            _matrix(tmp_path, method),
            out=tmp_path / "results",
            device=ResolvedDevice("cpu", _listed(script)),
            progress=progress,
        )
        assert summary.failed == []
        tables = {
            name: pd.read_parquet(tmp_path / "results/tiny" / name)
            for name in ("cells", "samples", "steps")
        }
        (cell,) = tables["cells"].to_dict("records")
        return cell, tables, progress.notes

    run.joules_from = joules_from
    registry._plugged.cache_clear()
    yield run
    registry._plugged.cache_clear()


class _Noted(Progress):
    """Keeps the notes, and leaves a file when half of the steps are timed."""

    def __init__(self, half):
        self.notes, self._half = [], half

    def note(self, text):
        self.notes.append(text)

    def tick(self, events, sample):
        for event in events:
            if event.get("phase") == "measure" and event.get("step", 0) >= HALF_WAY:
                self._half.touch()


def test_a_run_whose_card_goes_away_is_given_up_and_gone_on_with(
    tmp_path, site, monkeypatch, fake_nvml_environment
):
    """A worker that the card's end kills: the rest is not run against nothing."""
    # The runner asks for the card once, when a cell has not ended well: it is lost by then.
    child = fake_nvml_environment(card(lost_after=0))
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), child["PYTHONPATH"]]))
    monkeypatch.setenv(driver.SCRIPT, child[driver.SCRIPT])
    monkeypatch.setattr(cell_runner, "why_lost", lambda uuid: f"the card is gone: {uuid}")
    registry._plugged.cache_clear()
    sets = ['axes.method=["slow-alone", "student-only"]', "budget.timeout_seconds=0.5"]
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    device = ResolvedDevice("cpu", _listed({}))

    def run(*more):
        matrix = load_matrix(path, assignments=[*sets, *more])
        return run_matrix(
            matrix, out=tmp_path / "results", device=device, progress=_Noted(tmp_path / "half")
        )

    summary = run()
    assert (summary.done, summary.failed, summary.exit_code) == (1, [], 1)
    assert summary.given_up == f"the card is gone: {UUID}"
    (cell,) = pd.read_parquet(tmp_path / "results/tiny/cells").to_dict("records")
    assert cell["status"] == "interrupted"
    assert cell["error"].startswith(f"the card is gone: {UUID}; it ended as timeout: not done af")
    monkeypatch.undo()
    registry._plugged.cache_clear()


def _site(folder):
    """A folder with an installed package that declares the slow methods."""
    info = folder / "slow_method-1.dist-info"
    info.mkdir()
    shutil.copy(SUPPORT / "slow_method.py", folder)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-method\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[kdbench.methods]\nslow-alone = slow_method:ALONE\nslow-embed = slow_method:EMBED\n"
    )
    return folder


def _matrix(folder, method):
    path = folder / "tiny.toml"
    path.write_text(TINY)
    sets = [f'axes.method=["{method}"]', "budget.measure_seconds=1000", "training.epochs=7"]
    sets += [f"budget.{name}={STEPS}" for name in ("min_steps", "max_steps")]
    return load_matrix(path, assignments=sets)


def _listed(script):
    """The card as the runner would have found it, were the driver as it usually is."""
    instances = [i for one in script.get("gpus", ()) for i in one.get("instances", ())]
    return Gpu(
        index=0,
        uuid=MIG_UUID if instances else UUID,
        name="Fake GPU 80GB",
        memory_total_bytes=80 * GIB,
        driver_version="575.57.08",
        cuda_driver_version="12.9",
        process_memory="available",
        energy_counter=True,
        mig=bool(instances),
        power=True,
    )


@pytest.mark.parametrize("case", CASES)
def test_what_is_stored_of_a_card(case, stored):
    script, expected = CASES[case]
    expected = dict(expected)
    note, on_card = expected.pop("note", None), expected.pop("on card", None)
    cell, tables, notes = stored(script)
    assert {name: _plain(cell[name]) for name in expected} == expected
    assert not note or any(note in told for told in notes), notes
    if on_card is not None:
        words = _plain(cell["contention"]) or ""
        assert on_card in words
        assert ("also on the card" in words) == bool(on_card)
        assert cell["contended"] or not on_card
    _check_samples(tables["samples"], tables["steps"])
    _check_energy(cell, tables["steps"], _lateness(tables["samples"], stored.joules_from))


def _plain(value):
    return None if pd.isna(value) else value


def _check_samples(samples, steps):
    """Taken from before the worker to after it, on a grid, and never a 0 for what is unknown."""
    times = samples["monotonic_ns"]
    assert times.is_monotonic_increasing
    assert times.iloc[0] < steps["started_ns"].min()
    assert samples["host_bytes"].isna().tolist()[:1] == [True], "before the worker"
    assert samples["host_bytes"].isna().tolist()[-1:] == [True], "after it"
    for column in ("host_bytes", "process_bytes", "device_bytes", "power_watts", "energy_joules"):
        assert not (samples[column] == 0).any(), column


def _lateness(samples, joules_from):
    """How many seconds after the time that a sample is filed under its counter was read, at most.

    The counter tells: it is a clock that goes by watts. A sampler that has to wait for a processor
    between the two reads it late.
    """
    read = samples[["monotonic_ns", "energy_joules"]].dropna()
    late = read["energy_joules"] / WATTS - (read["monotonic_ns"] - joules_from) / 1e9
    return float(late.max()) if len(late) else 0.0


def _check_energy(cell, steps, lateness):
    """70.5 W all the time: joules are watts times seconds, by counter or by power."""
    if _plain(cell["energy_step_joules"]) is None:
        return
    timed = steps[steps["phase"] == "measure"]
    begun, last = timed["started_ns"].min(), timed.iloc[-1]
    seconds = (last["started_ns"] - begun) / 1e9 + last["seconds"]
    assert seconds >= STEPS * STEP_SECONDS
    # the counter's own step is a thousandth of a joule
    off = {"nvml-power": 1e-6 * seconds, "nvml-counter": lateness + 1e-3}[cell["energy_source"]]
    found = cell["energy_step_joules"] * STEPS / WATTS
    assert found == pytest.approx(seconds, abs=off), "seconds"
    # 64 images in batches of 8
    assert cell["energy_epoch_joules"] == pytest.approx(8 * cell["energy_step_joules"])
    assert cell["energy_training_joules"] == pytest.approx(56 * cell["energy_step_joules"])
    assert cell["energy_training_kind"] == "extrapolated"


def test_the_energy_of_a_precompute_is_of_all_its_batches(stored):
    cell, _, _ = stored(gpu(energy_mj=None), "slow-embed")
    assert cell["precompute_seconds"] > 0
    assert cell["precompute_joules"] == pytest.approx(WATTS * cell["precompute_seconds"], rel=1e-3)


def test_the_conditions_of_a_run_are_stored(stored):
    cell, tables, _ = stored(gpu())
    assert 0 < cell["sample_seconds_median"] <= cell["sample_seconds_max"]
    assert cell["load_average"] >= 0
    # What of this there is, is the machine's to say; where it is told, it is told once a second.
    told = tables["samples"][["cpu_elsewhere", "cpu_throttled_seconds"]].notna().sum()
    times = tables["samples"]["monotonic_ns"]
    # and with the first sample and the last
    assert (told <= (times.iloc[-1] - times.iloc[0]) / 1e9 + 2).all()
    elsewhere = _plain(cell["cpu_elsewhere"])
    assert elsewhere is None or 0 <= elsewhere <= (os.cpu_count() or 1) + 0.5
    assert (elsewhere is None) == tables["samples"]["cpu_elsewhere"].isna().all()
