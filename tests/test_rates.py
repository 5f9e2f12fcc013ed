"""The device's own rates, and how far a cell is from them."""

import json

import pandas as pd
import pytest
import torch

from kdbench.worker import rates
from kdbench.worker.events import Events
from tests.models import CPU

pytestmark = pytest.mark.usefixtures("forked_workers")


@pytest.fixture
def stopwatch(monkeypatch):
    """A clock by which every piece of work takes as long as is said."""

    class Clock:
        seconds = 1.0
        started = 0

        def start(self):
            self.started += 1

        def stop(self):
            return {
                "seconds": self.seconds * (2 if self.started == 1 else 1),
                "device_seconds": None,
            }

    clock = Clock()
    monkeypatch.setattr(rates, "step_clock", lambda _device: clock)
    return clock


def test_a_matrix_product_is_two_n_cubed_operations_of_the_best_try(stopwatch):
    stopwatch.seconds = 0.5
    found = rates.matmul_rate("fp32", CPU)
    assert found == 2 * 256**3 / 0.5, "the first, slower try does not count"


def test_a_copy_reads_and_writes(stopwatch):
    assert rates.copy_rate(CPU) == 2 * 128 * 2**20


def test_products_are_of_the_precisions_own_numbers(monkeypatch):
    made = []
    real = rates._fitting

    def fitting(device, shape, dtype):
        made.append(dtype)
        return real(device, (8, 8), dtype)

    monkeypatch.setattr(rates, "_fitting", fitting)
    for precision, dtype in {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
    }.items():
        made.clear()
        assert rates.matmul_rate(precision, CPU) > 0
        assert set(made) == {dtype}


def test_without_memory_for_it_a_note_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "_fitting", lambda *_: None)
    rates.measure_rates("fp32", CPU, Events(tmp_path / "events"))
    (event,) = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert event["event"] == "note"
    assert event["text"].startswith("the device's rates could not be measured: no memory")


def test_every_cell_of_a_run_has_the_rates_that_the_first_measured(kdbench, tiny, tmp_path):
    said = kdbench("run", "--matrix", tiny, "--preset", "control")
    assert said.code == 0, said
    cells = pd.read_parquet(tmp_path / "results/tiny/cells").sort_values("started_at")
    assert len(cells) == 3
    assert cells["matmul_flops_per_second"].nunique() == 1
    assert cells["copy_bytes_per_second"].nunique() == 1
    # operations and bytes, not billions of them: however little of a processor is left for it
    assert (cells["matmul_flops_per_second"] > 1e7).all()
    assert (cells["copy_bytes_per_second"] > 1e7).all()
    phases = pd.read_parquet(tmp_path / "results/tiny/phases")
    measured = phases[phases["phase"] == "rates"]["run_key"].tolist()
    assert measured == [cells["run_key"].iloc[0]], "once in a run"
    expected = cells["flops_step"] / cells["step_seconds_median"] / cells["matmul_flops_per_second"]
    assert cells["utilisation"].tolist() == pytest.approx(expected.tolist(), nan_ok=True)


def test_another_precision_has_its_own(kdbench, tiny, tmp_path):
    arguments = ("--set", 'axes.precision=["fp32", "bf16"]', "--set", 'axes.method="student-only"')
    said = kdbench("run", "--matrix", tiny, "--preset", "control", *arguments)
    assert said.code == 0, said
    cells = pd.read_parquet(tmp_path / "results/tiny/cells")
    assert cells["matmul_flops_per_second"].nunique() == 2
