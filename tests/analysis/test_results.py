"""Reading results: filters, environments, aggregation, units."""

import math
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.analysis.aggregate import group_cells
from kdbench.analysis.metrics import METRICS, find_metrics
from kdbench.analysis.paper_figures import reported_for
from kdbench.analysis.results import load_results
from kdbench.common.errors import InputError, printable
from kdbench.common.text import fold_label
from kdbench.common.units import MISSING, axis_unit, format_ratio, format_value
from kdbench.store import Store
from tests.support.analysis_fixtures import (
    GPU,
    cell_row,
    commit,
    no_numbers,
    paper_rows,
    trained_rows,
)

FACTORS = {
    "bytes": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    "seconds": {"µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600},
    "joules": {"mJ": 1e-3, "J": 1, "kJ": 1e3, "MJ": 1e6},
}


def only_group(root):
    (group,) = group_cells(load_results(root))
    return group


def test_a_results_root_and_a_matrix_folder_are_both_read(tmp_path):
    commit(tmp_path / "fig4", paper_rows())
    commit(tmp_path / "quickstart", trained_rows())
    assert load_results(tmp_path).matrices == ("fig4", "quickstart")
    assert len(load_results(tmp_path / "fig4").cells) == 4
    assert [m for m, _, _ in load_results(tmp_path).sheets()] == ["fig4", "quickstart"]


def test_other_tables_hold_committed_rows_of_the_kept_cells_alone(tmp_path):
    step = {"phase": "measure", "step": 0, "started_ns": 1, "seconds": 2.0}
    commit(tmp_path, paper_rows(), steps=[step])
    (tmp_path / "steps" / "uncommitted.parquet").write_bytes(
        next(p for p in (tmp_path / "steps").glob("*.parquet") if p.stem != "empty").read_bytes()
    )
    results = load_results(tmp_path, only=["method=teacher-kd"])
    merged = results.steps
    assert merged["label"].unique().tolist() == ["teacher-kd/base/32px/vit-large-patch32"]
    assert merged["matrix"].unique().tolist() == ["fig4"]
    for name in ("phases", "epochs", "samples", "memory"):
        assert getattr(results, name).empty


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("methd=embed-kd", "unknown column 'methd'; did you mean 'method'?"),
        ("environment_id=x", "unknown column"),
        ("method", "expected COLUMN=V1,V2"),
        ("method=embed-kq", "no cells left: none has method 'embed-kq'; did you mean 'embed-kd'?"),
        ("image_size=9", "there are '32', '64'"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_an_error(tmp_path, condition, told):
    commit(tmp_path, paper_rows())
    with pytest.raises(InputError, match="--only") as error:
        load_results(tmp_path, only=[condition])
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("only", "left"),
    [
        (["image_size=64"], 2),
        (["student_inferred=true", "image_size=32"], 1),
        (["accuracy=null"], 4),
        (["alpha2=0.5"], 4),
        (["student=base,large"], 4),
        (["compile=false"], 4),
    ],
)
def test_filters_compare_values_as_text(tmp_path, only, left):
    commit(tmp_path, paper_rows())
    assert len(load_results(tmp_path, only=only).cells) == left


def test_a_folder_without_a_committed_run_says_so(tmp_path):
    Store(tmp_path).prepare()
    with pytest.raises(InputError, match="no run is committed"):
        load_results(tmp_path)


def test_one_matrix_in_two_folders_is_not_read_as_one(tmp_path):
    commit(tmp_path / "fig4", paper_rows())
    commit(tmp_path / "copy", paper_rows())
    with pytest.raises(InputError, match="two folders hold results of the matrix 'fig4'"):
        load_results(tmp_path)


def test_environments_are_told_apart_and_picked(tmp_path):
    commit(tmp_path, [*paper_rows(), *paper_rows(**GPU), *paper_rows(threads=4)])
    results = load_results(tmp_path)
    names = [e.name for e in results.environments()]
    assert names[0] == "cpu: Intel Xeon Platinum 8481C, 2 threads, torch 2.11.0+cpu"
    assert names[2].startswith("cuda:0: NVIDIA H200, driver 570.124.06")
    assert [len(rows.cells) for _, rows in results.by_environment()] == [4, 4, 4]
    for wanted in ("h200", results.environments()[2].id, names[2]):
        picked = load_results(tmp_path, environment=wanted)
        assert picked.cells["device"].unique().tolist() == ["cuda:0"]
    for wanted, told in (("xeon", "several match"), ("b200", "no results of it"), ("", "no resu")):
        with pytest.raises(InputError, match=told) as error:
            load_results(tmp_path, environment=wanted)
        assert results.environments()[0].id in str(error.value)


def test_on_the_cpu_a_card_that_lies_idle_makes_no_other_environment(tmp_path):
    commit(tmp_path, [cell_row(), cell_row(repeat=1, gpu_name="Some Card", driver_version="1")])
    assert len(load_results(tmp_path).environments()) == 1


def test_a_run_whose_worker_never_started_stays_with_its_environment(tmp_path):
    failed = cell_row("embed-kd", threads=None, **no_numbers("failed", "no such teacher"))
    commit(tmp_path, [cell_row(), failed])
    assert len(load_results(tmp_path).environments()) == 1
    commit(tmp_path / "both", [cell_row(), cell_row(threads=4), failed])
    assert len(load_results(tmp_path / "both").environments()) == 3


def test_the_value_is_the_median_over_runs_that_are_ok(tmp_path):
    rows = [cell_row(repeat=i, step_seconds_median=s) for i, s in enumerate((1.0, 2.0, 9.0))]
    rows.append(cell_row(repeat=3, **no_numbers("oom", "killed")))
    group = only_group(commit(tmp_path, rows))
    assert (group.runs, group.finished) == (4, 3)
    assert group.value("step_time") == 2.0
    assert group.estimates["step_time"].interval is None
    assert group.problems == (("oom", "killed", 1),)


def test_accuracy_is_the_mean_over_seeds_each_counted_once(tmp_path):
    rows = [
        cell_row(mode="train", seed=seed, repeat=repeat, accuracy=accuracy)
        for seed, repeat, accuracy in ((0, 0, 0.5), (0, 1, 0.7), (1, 0, 0.9))
    ]
    estimate = only_group(commit(tmp_path, rows)).estimates["accuracy"]
    assert estimate.value == pytest.approx(0.75)
    assert estimate.count == 2


@pytest.mark.parametrize(
    ("rows", "count", "value"),
    [
        # measured by each run itself, as profiles do
        ([(7.0, "a", False)] * 3, 3, 7.0),
        # measured once and read twice
        ([(7.0, "a", False), (7.0, "a", True), (7.0, "a", True), (3.0, "b", False)], 2, 5.0),
        # by a cell of another matrix, and read by all of these
        ([(7.0, "a", True), (7.0, "a", True), (3.0, "b", True)], 2, 5.0),
    ],
)
def test_a_precompute_that_many_runs_share_counts_once(tmp_path, rows, count, value):
    names = ("precompute_seconds", "precompute_key", "precompute_reused")
    made = [
        cell_row("embed-kd", repeat=n, **dict(zip(names, row, strict=True)))
        for n, row in enumerate(rows)
    ]
    estimate = only_group(commit(tmp_path, made)).estimates["precompute_time"]
    assert (estimate.count, estimate.value) == (count, value)


@pytest.mark.parametrize(("runs", "time", "accuracy"), [(4, 0, 0), (5, 0, 1), (6, 1, 1)])
def test_intervals_need_enough_processes(tmp_path, runs, time, accuracy):
    commit(tmp_path, trained_rows(seeds=runs))
    for group in group_cells(load_results(tmp_path)):
        for metric, there in (("step_time", time), ("accuracy", accuracy)):
            interval = group.estimates[metric].interval
            assert (interval is not None) == bool(there)
            if interval:
                assert interval[0] <= group.value(metric) <= interval[1]


def test_the_latest_run_of_a_seed_and_repeat_counts(tmp_path):
    commit(tmp_path, [cell_row(step_seconds_median=5.0), cell_row(step_seconds_median=3.0)])
    group = only_group(tmp_path)
    assert group.value("step_time") == 3.0
    assert (group.runs, group.older) == (1, 1)


def test_cells_that_share_a_label_are_not_mixed(tmp_path):
    commit(tmp_path, [cell_row(), cell_row(batch_size=32), cell_row(mode="train", accuracy=0.5)])
    groups = group_cells(load_results(tmp_path))
    assert len(groups) == len({g.name for g in groups}) == 3
    assert any("batch_size=32" in g.name for g in groups)
    assert [g.runs for g in groups] == [1, 1, 1]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_missing_has_no_value(tmp_path, value):
    group = only_group(commit(tmp_path, [cell_row(epoch_seconds=value)]))
    assert group.value("epoch_time") is None
    assert group.ratio_to(group, "epoch_time") is None


def test_metrics_are_found_by_name():
    assert [m.column for m in find_metrics(["host", "parameters", "host"])] == [
        "host_peak_bytes",
        "parameter_bytes",
    ]
    with pytest.raises(InputError, match="did you mean 'allocated'") as error:
        find_metrics(["alocated"])
    assert error.value.exit_code == 2


def test_the_papers_numbers_stand_beside_the_papers_cells_alone():
    cell = cell_row("embed-kd", "large", 32)
    assert reported_for(cell, "parameters") == pytest.approx(0.131e9)
    assert reported_for(cell, "epoch_time") == pytest.approx(54.0)
    renamed = {**cell, "teacher": "big"}  # what counts is the checkpoint, not its nickname
    assert reported_for(renamed, "parameters") == pytest.approx(0.131e9)
    assert reported_for(cell, "accuracy") is None  # random pixels
    assert reported_for({**cell, "dataset": "cifar100"}, "accuracy") == 0.523
    assert reported_for({**cell, "dataset": "cifar100", "epochs": 10}, "accuracy") is None
    assert reported_for({**cell, "batch_size": 128}, "epoch_time") is None
    assert reported_for({**cell, "dataset": "digits"}, "epoch_time") is None
    for change in (
        {"teacher_checkpoint": "google/vit-large-patch16-224-in21k"},
        {"image_size": 128},
        {"student": "tiny"},
    ):
        assert reported_for({**cell, **change}, "parameters") is None
    assert reported_for(cell_row("student-only", "large", 32), "parameters") is None
    assert reported_for(cell, "host") is None


@given(
    st.sampled_from(["bytes", "seconds", "joules"]),
    st.floats(min_value=1e-3, max_value=1e14, allow_nan=False),
)
def test_a_formatted_value_reads_back_to_three_digits(unit, value):
    number, name = format_value(value, unit).split(" ")
    factor = FACTORS[unit][name]
    smallest = 0.5 if name == "B" else 0
    assert float(number) * factor == pytest.approx(value, rel=0.0051, abs=smallest)
    # In the unit that suits it: neither 0.5 GB nor 1000 MB.
    steps = sorted(FACTORS[unit].values())
    if factor != steps[0]:
        assert float(number) >= 1
    if factor != steps[-1]:
        assert float(number) * factor < steps[steps.index(factor) + 1]
    assert format_value(-value, unit) in (f"-{number} {name}", "-0 B")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "bytes", MISSING),
        (math.nan, "seconds", MISSING),
        (0, "bytes", "0 B"),
        (0, "seconds", "0 s"),
        (1.247e9, "bytes", "1.25 GB"),
        (999_700, "bytes", "1.00 MB"),
        (59.96, "seconds", "1.00 min"),
        (13.0, "seconds", "13.0 s"),
        (10153, "seconds", "2.82 h"),
        (0.514, "fraction", "51.4 %"),
    ],
)
def test_values_as_text(value, unit, text):
    assert format_value(value, unit) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.0, "×1.00"),
        (0.999, "×1.00"),
        (0.1031, "÷9.7"),
        (1.29, "×1.29"),
        (61.1, "×61"),
        (1 / 61.1, "÷61"),
        (None, ""),
        (0.0, ""),
        (math.nan, ""),
    ],
)
def test_ratios_as_text(ratio, text):
    assert format_ratio(ratio) == text


def test_an_axis_has_the_unit_of_its_largest_value():
    assert axis_unit([2e7, 1.2e9], "bytes") == (1e9, "GB")
    assert axis_unit([], "seconds") == (1, "s")


@given(st.text(alphabet="ab-/ 1", max_size=60), st.integers(min_value=4, max_value=30))
def test_a_folded_label_fits_and_loses_nothing(label, width):
    lines = fold_label(label, width)
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == label.replace(" ", "")


@given(st.text(max_size=40))
def test_printable_text_is_printable(text):
    assert printable(text).isprintable()


def test_every_metric_is_a_column_that_can_be_missing():
    assert all(metric.missing_when for metric in METRICS.values())


@pytest.mark.parametrize(
    ("module", "barred"),
    [
        ("results", ("torch", "matplotlib", "seaborn")),
        ("cell_tables", ("torch", "matplotlib", "seaborn")),
        ("plot", ("torch", "kdbench.worker", "kdbench.runner")),
    ],
)
def test_the_read_side_loads_nothing_that_it_need_not(module, barred):
    code = (
        f"import sys, kdbench.analysis.{module}; print([m for m in {barred} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_frames_have_nullable_types(tmp_path):
    cells = load_results(commit(tmp_path, paper_rows())).cells
    assert isinstance(cells["parameter_bytes"].dtype, pd.Int64Dtype)
    assert cells["reserved_peak_bytes"].isna().all()
