"""The device's own rates, and how far a cell is from them."""

import json

import pandas as pd
import pytest
import torch

from kdbench.runner.rates import BestRates, reported_rates
from kdbench.worker.events import Events
from kdbench.worker.probes import rates
from tests.support.models import CPU

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
    assert found.best == 2 * 256**3 / 0.5, "the first, slower try does not count"
    assert found.steady


def test_a_copy_reads_and_writes(stopwatch):
    assert rates.copy_rate(CPU) == rates.Rate(2 * 128 * 2**20, steady=True)


@pytest.mark.parametrize(("best", "steady"), [((1.0, 1.01, 1.02), True), ((1.0, 1.01, 1.1), False)])
def test_a_rate_is_the_best_try_and_steady_if_the_best_three_agree(monkeypatch, best, steady):
    # others who use the machine make tries longer, most of them and by much
    rounds = iter([(9.0, 5.0, 7.0), (best[2], 8.0, 6.0), (best[0], 9.0, best[1])])
    monkeypatch.setattr(rates, "_tries", lambda *_: next(rounds, (9.0, 9.0, 9.0)))
    times = iter(range(1000))
    monkeypatch.setattr(rates, "monotonic", lambda: 0.3 * next(times))
    found = rates._steady_rate(lambda: None, CPU, 10.0)
    assert found == rates.Rate(10.0, steady)
    assert next(times) <= 1 + rates._AT_MOST_SECONDS / 0.3 + 1, "it ends in any case"


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
        assert rates.matmul_rate(precision, CPU).best > 0
        assert set(made) == {dtype}


def test_without_memory_for_it_a_note_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "_fitting", lambda *_: None)
    rates.measure_rates("fp32", CPU, Events(tmp_path / "events"))
    (event,) = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert event["event"] == "note"
    assert event["text"].startswith("the device's rates could not be measured: no memory")


RATES = {"matmul_flops_per_second": 3e9, "copy_bytes_per_second": 2e9}
SURE = {"rates_steady": True, "rates_contended": False}


def test_the_best_rates_are_kept_and_measured_again_until_they_are_sure():
    known = BestRates()
    assert known.wanted("fp32")
    known.add("fp32", {**RATES, "rates_steady": True, "rates_contended": True})
    assert known.wanted("fp32")
    assert known.wanted("bf16")
    low = {name: rate / 10 for name, rate in RATES.items()}
    known.add("fp32", {**low, "rates_steady": False, "rates_contended": False})
    assert {name: known.of("fp32")[name] for name in RATES} == RATES, "the best, not the last"
    assert known.wanted("fp32")
    known.add("fp32", {**low, **SURE})
    assert known.of("fp32") == {**RATES, **SURE}
    assert not known.wanted("fp32")
    assert known.of("bf16") == {}


def test_a_machine_that_never_rests_does_not_measure_them_for_ever():
    known = BestRates()
    for _ in range(3):
        assert known.wanted("fp32")
        known.add("fp32", {**RATES, "rates_steady": False, "rates_contended": True})
    assert not known.wanted("fp32")


@pytest.mark.parametrize(("elsewhere", "contended"), [(0.0, False), (1.5, True), (None, None)])
def test_others_at_work_while_they_are_measured_mark_them(elsewhere, contended):
    events = {
        "started": [{"threads": 2}],
        "rates": [{**RATES, "rates_steady": True}],
        "phase": [{"phase": "rates", "started_ns": 5 * 10**9, "seconds": 2.0}],
    }
    samples = [
        {
            "monotonic_ns": second * 10**9,
            "usable_processors": 2,
            "usable_cores": 2,
            # before and after, others use both processors
            "cpu_elsewhere": elsewhere if second in (6, 7) else elsewhere and 2.0,
        }
        for second in range(10)
    ]
    told = reported_rates(events, samples, "cpu")
    assert told == {**RATES, "rates_steady": True, "rates_contended": contended}
    assert reported_rates({"started": [{"threads": 2}]}, samples, "cpu") == {}


def test_every_cell_of_a_run_has_the_best_rates_that_were_known(kdbench, tiny, tmp_path):
    said = kdbench("run", "--matrix", tiny, "--preset", "control")
    assert said.code == 0, said
    cells = pd.read_parquet(tmp_path / "results/tiny/cells").sort_values("started_at")
    assert len(cells) == 3
    # of a machine that is not idle, a later cell may have measured a better one
    assert cells["matmul_flops_per_second"].is_monotonic_increasing
    assert cells["copy_bytes_per_second"].is_monotonic_increasing
    assert cells["rates_steady"].notna().all()
    # however busy it is, a processor does more than a million in a second
    assert (cells["matmul_flops_per_second"] > 1e6).all()
    assert (cells["copy_bytes_per_second"] > 1e6).all()
    phases = pd.read_parquet(tmp_path / "results/tiny/phases")
    measured = phases[phases["phase"] == "rates"]["run_key"].tolist()
    sure = cells["rates_steady"].astype(bool) & ~cells["rates_contended"].fillna(
        value=False
    ).astype(bool)
    tries = 1 + sure.tolist().index(True) if sure.any() else len(cells)
    assert sorted(measured) == sorted(cells["run_key"].iloc[:tries]), "until they are sure"
    expected = cells["flops_step"] / cells["step_seconds_median"] / cells["matmul_flops_per_second"]
    assert cells["utilisation"].tolist() == pytest.approx(expected.tolist(), nan_ok=True)


def test_another_precision_has_its_own(kdbench, tiny, tmp_path):
    arguments = ("--set", 'axes.precision=["fp32", "bf16"]', "--set", 'axes.method="student-only"')
    said = kdbench("run", "--matrix", tiny, "--preset", "control", *arguments)
    assert said.code == 0, said
    cells = pd.read_parquet(tmp_path / "results/tiny/cells")
    assert cells["matmul_flops_per_second"].nunique() == 2
