"""The study of coverage itself, and that intervals cover on the processes that were recorded."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from benchmarks import coverage
from kdbench.common.stats import median_interval

pytestmark = pytest.mark.usefixtures("forked_workers")


def test_what_an_interval_of_order_statistics_says_of_itself():
    # 1 - 2 * (1/2)^6, and the 2nd and 9th of 10: 1 - 2 * 11 / 1024
    assert coverage.nominal(6, "profile") == pytest.approx(1 - 2 / 64)
    assert coverage.nominal(10, "profile") == pytest.approx(1 - 22 / 1024)
    assert coverage.nominal(10, "train") == 0.95


def test_neighbours_share_no_process():
    values = [1, 2, 3, 10, 11, 12, 99]
    seen = []

    def interval(sample):
        seen.append(sample)
        return min(sample), max(sample)

    found = coverage.in_a_row(values, 3, interval=interval, truth=np.median)
    assert seen == [[1, 2, 3], [10, 11, 12]]
    assert (found.covered, found.of) == (1, 2), "the truth is 10"


def test_a_slow_spell_shows_in_a_row_and_not_when_drawn():
    values = [*np.linspace(1, 1.1, 60), *np.linspace(2, 2.1, 60)]
    options = {"interval": median_interval, "truth": np.median}
    assert coverage.drawn(values, 10, draws=2000, **options).share > 0.9
    assert coverage.in_a_row(values, 10, **options).share < 0.2


def test_packing_keeps_the_raw_steps_of_every_process(kdbench, tiny, tmp_path):
    arguments = ("--only", "method=student-only", "--set", "repeats=2")
    said = kdbench("run", "--matrix", tiny, "--preset", "control", *arguments)
    assert said.code == 0, said
    (path,) = coverage.pack(tmp_path / "results/tiny", tmp_path / "data")
    kept = pd.read_parquet(path)
    assert kept["repeat"].tolist() == [0, 1]
    for row in kept.to_dict("records"):
        assert np.median(row["step_seconds"]) == pytest.approx(row["step_seconds_median"])
    assert kept.attrs["environment"]["cpu_model"]
    (lines, *_) = coverage.report_of(path)
    assert "of 2 processes" in lines


@pytest.mark.parametrize("mode", ["profile", "train"])
@pytest.mark.parametrize("n", coverage.SIZES)
def test_the_printed_intervals_cover_on_recorded_processes(mode, n):
    """Drawn: as often as the interval says, within what 20,000 draws can tell."""
    column, interval, truth = coverage.KINDS[mode]
    values = pd.read_parquet(coverage.DATA / f"aa-{mode}.parquet")[column].tolist()
    assert len(values) >= {"profile": 60, "train": 30}[mode]
    found = coverage.drawn(values, n, interval=interval, truth=truth)
    wanted = coverage.nominal(n, mode)
    if mode == "profile":  # at least: values that are equal only help
        assert found.bounds[1] >= wanted
    else:  # Student's t is exact for normal values alone
        assert found.share >= wanted - 0.02
    rows = coverage.in_a_row(values, n, interval=interval, truth=truth)
    assert binomtest(rows.covered, rows.of, wanted, alternative="less").pvalue > 0.001


@pytest.mark.parametrize("mode", ["profile", "train"])
@pytest.mark.parametrize("n", [6, 10, 20])
def test_ratios_of_recorded_processes_cover_1(mode, n):
    """Both samples are of the same processes, so nothing changed."""
    column, interval, truth = coverage.KINDS[mode]
    values = pd.read_parquet(coverage.DATA / f"aa-{mode}.parquet")[column].tolist()
    found = coverage.drawn_ratios(values, n, interval=interval, truth=truth, draws=4000)
    assert found.bounds[1] >= 0.95
