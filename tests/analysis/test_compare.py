"""Two runs side by side."""

import json
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from kdbench.analysis.compare.frame import summary
from kdbench.analysis.compare.join import compare
from kdbench.analysis.compare.sides import load_sides
from kdbench.analysis.compare.tables import markdown, render
from kdbench.analysis.metrics import find_metrics
from kdbench.common.stats import median, median_interval, ratio_interval
from kdbench.store import Store
from tests.conftest import TINY
from tests.support.analysis_fixtures import (
    CPU,
    GPU,
    PAPER_BARS,
    STARTED,
    cell_row,
    commit,
    commit_trainings,
    no_numbers,
    paper_rows,
    trained_rows,
)

pytestmark = pytest.mark.usefixtures("forked_workers")

NEW = {"torch_version": "2.13.0+cpu"}
EMBED = "embed-kd/base/32px/vit-large-patch32"
TEACHER = "teacher-kd/base/32px/vit-large-patch32"
# A prediction has figures of memory alone, and no machine that matters.
PREDICTED = {
    "source": "predicted",
    "profile": "cpu",
    "threads": None,
    "step_seconds_median": None,
    "steps_measured": None,
    "epoch_seconds": None,
    "epoch_seconds_kind": None,
    "host_peak_bytes": None,
    "host_source": None,
    "allocated_source": "trace",
}


def repeats(method="teacher-kd", *args, seconds, **changes):
    """Rows of one cell in as many processes as there are times."""
    return [
        cell_row(method, *args, repeat=n, step_seconds_median=value, **changes)
        for n, value in enumerate(seconds)
    ]


@pytest.fixture
def sides(tmp_path):
    """Commit rows as two results roots, and compare them."""

    def make(before, after, *, metrics=None, names=("fig4", "fig4"), **options):
        for root, name, rows in zip(("a", "b"), names, (before, after), strict=True):
            commit(tmp_path / root / name, rows)
        found = load_sides("a", "b", **options)
        return compare(*found, metrics=find_metrics(metrics) if metrics else None)

    return make


def printed(comparison, *, width=120):
    console = Console(width=width, record=True, file=StringIO())
    for part in render(comparison):
        console.print(part)
    return console.export_text()


def figures(comparison, label, metric):
    rows = summary(comparison)
    ((_, row),) = rows[(rows["label"] == label) & (rows["metric"] == metric)].iterrows()
    return row


def test_every_metric_has_before_after_and_ratio(sides):
    found = sides(paper_rows(), paper_rows(step_seconds_median=26.0, **NEW), metrics=["step_time"])
    for method, student, size, _, _, seconds in PAPER_BARS:
        label = f"{method}/{student}/{size}px/vit-large-patch32"
        row = figures(found, label, "step_time")
        assert (row["before"], row["after"], row["has"]) == (seconds, 26.0, "both")
        assert row["ratio"] == pytest.approx(26.0 / seconds)
        assert row["difference"] == pytest.approx(26.0 - seconds)
    assert found.count == 4


def test_the_usual_metrics_are_those_that_are_there(sides):
    found = sides([cell_row()], [cell_row(**NEW)])
    assert summary(found)["metric"].tolist() == [
        "parameters",
        "allocated",
        "host",
        "step_time",
        "epoch_time",
    ]
    text = printed(found)
    assert "peak allocated in a step" in text
    assert "reserved" not in text


def test_bytes_differ_to_the_byte_and_need_no_repeats(sides):
    rows = [cell_row(repeat=n, allocated_peak_bytes=2_000_000_000) for n in range(6)]
    found = sides(rows, [{**row, "allocated_peak_bytes": 2_000_000_512, **NEW} for row in rows])
    row = figures(found, TEACHER, "allocated")
    assert (row["difference"], row["exact"]) == (512, True)
    assert pd.isna(row["ratio_low"])
    assert pd.isna(row["no_interval"]), "none is meant"
    text = printed(found)
    assert "+512 B" in text
    assert "the same" in text, "the parameters"


def test_bytes_that_vary_from_run_to_run_are_not_called_exact(sides):
    rows = [
        cell_row(repeat=n, reserved_peak_bytes=2**30, allocated_peak_bytes=2**30 + 512 * (n % 2))
        for n in range(6)
    ]
    found = sides(rows, [{**row, **NEW} for row in rows], metrics=["allocated", "reserved"])
    row = figures(found, TEACHER, "allocated")
    assert not row["exact"]
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx((1, 1), abs=1e-6)
    assert row["ratio_low"] < 1 < row["ratio_high"]
    # what an allocator holds depends on what came before: no difference of it is a change as such
    assert not figures(found, TEACHER, "reserved")["exact"]


def test_the_interval_is_over_the_processes_of_both_sides(sides):
    before = [1.00, 1.03, 0.98, 1.01, 1.02, 0.99]
    after = [1.10, 1.16, 1.12, 1.08, 1.11, 1.13, 1.09]
    found = sides(repeats(seconds=before), repeats(seconds=after, **NEW))
    row = figures(found, TEACHER, "step_time")
    expected = ratio_interval(
        median(after), median_interval(after), median(before), median_interval(before)
    )
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx(expected)
    assert (row["before_count"], row["after_count"]) == (6, 7)
    assert row["ratio"] == pytest.approx(1.11 / 1.005)
    low, high = expected
    assert f"{low:.3f} to {high:.3f}" in printed(found)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((1, 1), "1 process each: no interval"),
        ((5, 5), "5 processes each: no interval"),
        ((6, 2), "6 and 2 processes: no interval"),
    ],
)
def test_too_few_processes_are_told(sides, counts, told):
    before, after = ([1 + 0.01 * n for n in range(count)] for count in counts)
    found = sides(repeats(seconds=before), repeats(seconds=after, **NEW), metrics=["step_time"])
    assert figures(found, TEACHER, "step_time")["no_interval"] == told
    text = printed(found)
    assert told in text
    assert "repeats = 6 in the matrix file" in text


def test_accuracies_are_means_over_seeds(sides):
    before, after = trained_rows(seeds=6), trained_rows(seeds=6, **NEW)
    for row in after:
        row["accuracy"] -= 0.1
    found = sides(before, after, names=("quickstart", "quickstart"))
    label = "teacher-kd/tiny/16px/small"
    row = figures(found, label, "accuracy")
    mean = 0.945 + 0.004 * 2.5
    assert row["ratio"] == pytest.approx((mean - 0.1) / mean)
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"] < 1


def test_few_seeds_are_called_seeds(sides):
    found = sides(
        trained_rows(seeds=2), trained_rows(seeds=2, **NEW), names=("quickstart", "quickstart")
    )
    row = figures(found, "teacher-kd/tiny/16px/small", "accuracy")
    assert row["no_interval"] == "2 seeds each: no interval"


def test_what_is_not_positive_has_no_interval(sides):
    rows = [
        cell_row(
            mode="train", seed=seed, accuracy=0.01 * (seed == 0), epoch_seconds_kind="measured"
        )
        for seed in range(6)
    ]
    found = sides(rows, [{**row, **NEW} for row in rows], metrics=["accuracy"])
    assert figures(found, TEACHER, "accuracy")["no_interval"] == "not positive: no interval"
    accuracy = find_metrics(["accuracy"])
    zero = compare(*load_sides("a", "b", only=["seed=3"]), metrics=accuracy)
    assert pd.isna(figures(zero, TEACHER, "accuracy")["ratio"]), "nothing over nothing"


def test_another_environment_is_told_loudly(sides):
    found = sides(paper_rows(), paper_rows(**{**NEW, "threads": 4}))
    text = printed(found)
    assert "DIFFERENT ENVIRONMENTS" in text.splitlines()[0]
    assert "environment differs: torch 2.11.0+cpu → 2.13.0+cpu" in text
    assert "environment differs: threads 2 → 4" in text
    told = "threads 2 → 4; torch 2.11.0+cpu → 2.13.0+cpu"
    assert set(summary(found)["environment_differs"]) == {told}
    assert "DIFFERENT ENVIRONMENTS" in markdown(found)


def test_another_card_is_named(sides):
    text = printed(sides(paper_rows(**CPU), paper_rows(**GPU)), width=200)
    assert "environment differs: device cpu → cuda:0" in text
    assert "environment differs: card none → NVIDIA H200" in text


def test_the_same_environment_is_not_spoken_of(sides):
    later = {"allocated_peak_bytes": 7}
    found = sides(paper_rows(), paper_rows(**later))
    text = printed(found)
    assert "DIFFERENT" not in text
    assert "differs" not in text
    assert "both measured on cpu" in text
    assert summary(found)["environment_differs"].isna().all()


def test_environments_that_both_sides_have_get_a_table_each(sides):
    more = {"allocated_peak_bytes": 7}
    found = sides(
        [*paper_rows(), *paper_rows(**NEW)],
        [*paper_rows(**more), *paper_rows(**NEW, **more), *paper_rows(**GPU)],
    )
    assert len(found.sheets) == 2
    assert not any(sheet.changed for sheet in found.sheets)
    assert len(found.only[1]) == 4, "the GPU's, which have no counterpart"
    assert "only after, fig4, cuda:0: NVIDIA H200" in printed(found, width=300)
    assert (summary(found)["has"] == "after").sum() > 0


def test_several_environments_without_a_common_one_need_a_choice(sides, kdbench):
    rows = [*paper_rows(), *paper_rows(**{**NEW, "threads": 4})]
    with pytest.raises(Exception, match="the side before has several environments") as error:
        sides(rows, paper_rows(**GPU))
    assert error.value.exit_code == 2
    assert "torch 2.13.0+cpu" in str(error.value)
    said = kdbench("compare", "a", "b", "--environment", "2.13")
    assert said.code == 0, said
    assert "environment differs: torch 2.13.0+cpu → 2.11.0+cu128" in said.out
    assert kdbench("compare", "a", "b", "--before", "threads=2").code == 0
    said = kdbench("compare", "a", "b", "--environment", "2.14")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "no results of it: '2.14'" in said.err


def test_an_environment_that_no_side_has_is_an_error(sides, kdbench):
    sides(paper_rows(), paper_rows(**NEW))
    assert kdbench("compare", "a", "b", "--environment", "2.13").code == 0
    assert kdbench("compare", "a", "b", "--environment", "9.9").code == 2


def test_picking_an_environment_leaves_predictions(sides):
    rows = [cell_row(), cell_row(**PREDICTED), cell_row(**NEW)]
    later = [{**row, "allocated_peak_bytes": 7} for row in rows]
    found = sides(rows, later, environment="2.11")
    assert [sheet.places[0].source for sheet in found.sheets] == ["measured", "predicted"]
    assert not found.only[0]


def test_changed_settings_are_named(sides):
    found = sides(paper_rows(), paper_rows(batch_size=32, precision="bf16"))
    row = figures(found, TEACHER, "allocated")
    assert row["changed_settings"] == "batch_size 64 → 32; precision fp32 → bf16"
    assert row["before_cell_id"] != row["after_cell_id"]
    assert "batch_size 64 → 32" in printed(found)
    assert r"(batch\_size 64 → 32; precision fp32 → bf16)" in markdown(found)


def test_a_change_that_no_column_tells_is_told(sides):
    found = sides([cell_row()], [cell_row(cell_id="feedbeef00000000")])
    changed = figures(found, TEACHER, "allocated")["changed_settings"]
    assert "a setting without a column" in changed
    assert changed.endswith("→ feedbe")


def test_the_same_cell_among_changed_ones_is_its_own_partner(sides):
    """A folder in which settings were changed holds both: the unchanged cell is compared."""
    found = sides(
        [cell_row()],
        [cell_row(batch_size=32, step_seconds_median=9.0), cell_row(step_seconds_median=2.0)],
        metrics=["step_time"],
    )
    rows = summary(found)
    assert rows["has"].tolist() == ["both", "after"]
    assert rows["after"].tolist() == [2.0, 9.0]
    assert rows["changed_settings"].isna().all()
    assert f"only after: {TEACHER} (batch_size=32)" in printed(found, width=300)


def test_several_cells_of_a_label_are_not_guessed_at(sides, kdbench):
    found = sides(
        [cell_row(batch_size=8), cell_row(batch_size=16)], [cell_row(), cell_row("embed-kd")]
    )
    assert found.count == 0
    text = printed(found, width=300)
    assert f"not compared: {TEACHER} is several cells" in text
    assert "(batch_size=8)" in text
    said = kdbench("compare", "a", "b")
    assert said.code == 3
    assert "each label in common is that of several cells" in said.err
    said = kdbench("compare", "a", "b", "--before", "batch_size=16")
    assert said.code == 0
    assert "batch_size 16 → 64" in said.out
    assert set(summary(found)["has"]) == {"before", "after"}, "they are listed all the same"


def test_another_way_to_run_is_another_cell_unless_nothing_else_is_there(sides):
    forked = {"launch": "fork", "step_seconds_median": 5.0}
    found = sides(
        [cell_row(), cell_row("embed-kd")],
        [cell_row(**forked), cell_row(step_seconds_median=2.0), cell_row("embed-kd", **forked)],
        metrics=["step_time", "host"],
    )
    assert figures(found, EMBED, "step_time")["changed_settings"] == "launch spawn → fork"
    rows = summary(found)
    rows = rows[(rows["label"] == TEACHER) & (rows["metric"] == "step_time")]
    assert rows["after"].tolist() == [2.0, 5.0]
    assert rows["has"].tolist() == ["both", "after"]
    assert "a forked process has another host peak" in printed(found)


def test_intervals_over_forked_processes_are_not_trusted(sides):
    seconds, warning = [1.0 + 0.01 * n for n in range(6)], "their interval is too narrow"
    forked = repeats(seconds=seconds, launch="fork")
    assert warning in printed(sides(forked, [{**row, **NEW} for row in forked]))
    plain = compare(*load_sides("a", "b", only=["repeat=1"]))
    assert warning not in printed(plain), "there is none"


def test_cells_that_share_a_label_keep_to_themselves(sides):
    def rows(**changes):
        ways = [(size, launch) for size in (8, 16) for launch in ("spawn", "fork")]
        return [
            cell_row(batch_size=size, launch=launch, allocated_peak_bytes=n + 1, **changes)
            for n, (size, launch) in enumerate(ways)
        ]

    found = sides(rows(), rows(**NEW), metrics=["allocated"])
    (sheet,) = found.sheets
    assert [one.ratio for pair in sheet.pairs for one in pair.compared] == [1.0] * 4
    assert len({pair.name for pair in sheet.pairs}) == 4
    assert all(pair.name.startswith(f"{TEACHER} (batch_size=") for pair in sheet.pairs)


def test_labels_of_one_side_are_listed(sides):
    broken = cell_row("vanilla-kd", **NEW, **no_numbers("oom", "no memory"))
    found = sides(
        [cell_row(), cell_row("embed-kd")], [cell_row(**NEW), cell_row("cached-kd", **NEW), broken]
    )
    text = printed(found, width=300)
    assert f"only before: {EMBED}" in text
    assert "only after: vanilla-kd/base/32px/vit-large-patch32, cached-kd" in text
    rows = summary(found).set_index("label")
    assert set(rows.loc[EMBED, "has"]) == {"before"}
    failed = rows.loc["vanilla-kd/base/32px/vit-large-patch32"]
    assert (failed["after_status"], failed["has"]) == ("oom", "after")
    assert pd.isna(failed["metric"])


def test_the_only_matrices_may_have_two_names(sides):
    found = sides(paper_rows(), paper_rows(matrix="fig4-new"), names=("fig4", "fig4-new"))
    assert found.count == 4 * 5 + 3 * 2, "three of them precompute"
    assert printed(found).startswith("fig4 → fig4-new: ")
    assert set(summary(found)["after_matrix"]) == {"fig4-new"}


def test_of_several_matrices_those_of_one_name_are_joined(tmp_path, kdbench):
    commit(tmp_path / "a/fig4", paper_rows())
    commit(tmp_path / "a/other", [cell_row(matrix="other")])
    commit(tmp_path / "b/fig4", paper_rows(**NEW))
    commit(tmp_path / "b/more", [cell_row(matrix="more")])
    found = compare(*load_sides("a", "b"))
    assert [sheet.matrices for sheet in found.sheets] == [("fig4", "fig4")]
    assert [group.matrix for group in found.only[0]] == ["other"]
    assert [group.matrix for group in found.only[1]] == ["more"]
    said = kdbench("compare", "a/other", "b/more")
    assert (said.code, "other → more" in said.out) == (0, True)


def test_a_prediction_is_set_against_a_measurement(sides):
    before = [cell_row(allocated_peak_bytes=2_000_000_000, **PREDICTED)]
    after = [cell_row(repeat=n, allocated_peak_bytes=2_000_000_040) for n in range(2)]
    found = sides(before, after)
    row = figures(found, TEACHER, "allocated")
    assert (row["before_source"], row["before_profile"]) == ("predicted", "cpu")
    assert (row["after_source"], row["difference"]) == ("measured", 40)
    assert pd.isna(row["environment_differs"]), "a prediction has no machine"
    text = printed(found)
    assert "PREDICTED AGAINST MEASURED" in text.splitlines()[0]
    assert "before: predicted for cpu, torch 2.11.0+cpu" in text
    assert "peak allocated in a step: by trace before, by ledger after" in text
    assert "not there before: peak host memory; time per step; time per epoch" in text


def test_a_prediction_with_another_torch_differs_from_what_is_measured(sides):
    found = sides([cell_row(**PREDICTED, **NEW)], [cell_row()])
    told = figures(found, TEACHER, "allocated")["environment_differs"]
    assert told == "torch 2.13.0+cpu → 2.11.0+cpu"


def test_predictions_and_measurements_are_never_one_number(sides):
    mixed = [cell_row(allocated_peak_bytes=100), cell_row(allocated_peak_bytes=900, **PREDICTED)]
    other = {**PREDICTED, "profile": "h100"}
    found = sides(
        [*mixed, cell_row(allocated_peak_bytes=4, **other)],
        [{**row, "allocated_peak_bytes": 7} for row in mixed],
        metrics=["allocated"],
    )
    assert {sheet.places[0].source for sheet in found.sheets} == {"measured", "predicted"}
    rows = summary(found)
    assert sorted(rows["before"]) == [4, 100, 900]
    (lone,) = rows[rows["has"] == "before"].to_dict("records")
    assert (lone["before_profile"], lone["before"]) == ("h100", 4)
    assert "only before, fig4, predicted for h100" in printed(found, width=300)


def test_a_side_with_several_profiles_needs_a_choice(sides, kdbench):
    rows = [cell_row(**{**PREDICTED, "profile": name}) for name in ("t4", "h100")]
    with pytest.raises(Exception, match="several predictions of 'fig4'"):
        sides(rows, [cell_row()])
    assert kdbench("compare", "a", "b").code == 2
    assert kdbench("compare", "a", "b", "--before", "profile=t4").code == 0


@pytest.mark.parametrize("later", [CPU["cpu_model"], "AMD EPYC"])
def test_what_two_machines_predict_counts_once(sides, later):
    rows = [
        cell_row(
            **PREDICTED,
            cpu_model=machine,
            started_at=STARTED.replace(year=2027 if machine == later else 2026),
            allocated_peak_bytes=5 if machine == later else 6,
        )
        for machine in (CPU["cpu_model"], "AMD EPYC")
    ]
    found = sides(rows, [cell_row(**PREDICTED)], metrics=["allocated"])
    assert summary(found)["before"].tolist() == [5]
    assert summary(found)["environment_differs"].isna().all()


def test_what_is_doubtful_is_marked(sides):
    by = "others kept 1.3 of 2 processors busy"
    after = [cell_row(repeat=n, contended=True, contention=by, unstable=n == 0) for n in range(3)]
    found = sides([cell_row()], [{**row, **NEW} for row in after])
    text = printed(found, width=300)
    assert "3 contended" in text
    assert "1 unstable" in text
    assert "after, all 3 runs were contended: others were at work" in text
    assert f"memory is not affected ({by})" in text
    row = figures(found, TEACHER, "step_time")
    assert (row["before_contended"], row["after_contended"], row["after_unstable"]) == (0, 3, 1)


def test_runs_that_failed_are_told(sides):
    after = [cell_row(**NEW), cell_row(repeat=1, **NEW, **no_numbers("oom", "no memory"))]
    found = sides([cell_row()], after)
    text = printed(found, width=300)
    assert f"after, oom: {TEACHER}: no memory" in text
    assert figures(found, TEACHER, "step_time")["after_status"] == "1 ok, 1 oom"


def test_a_cell_without_figures_on_a_side_is_not_compared(sides, kdbench):
    found = sides([cell_row()], [cell_row(**NEW, **no_numbers("oom", "no memory"))])
    assert found.count == 0
    assert set(summary(found)["has"]) == {"before"}
    said = kdbench("compare", "a", "b")
    assert said.code == 3
    assert "no cell in common has any of 'parameters'" in said.err
    assert "oom" in said.out


def test_two_selections_of_one_folder(tmp_path, kdbench):
    rows = [*paper_rows(step_seconds_median=1.0), *paper_rows(step_seconds_median=2.0, **NEW)]
    commit(tmp_path / "results/fig4", rows)
    old, new = "torch_version=2.11.0+cpu", "torch_version=2.13.0+cpu"
    for options in (("--before", old), ("--after", new), ("--before", old, "--after", new)):
        said = kdbench("compare", "results", *options, "--metric", "step_time", "--format", "csv")
        assert said.code == 0, said
        frame = pd.read_csv(StringIO(said.out))
        assert frame["ratio"].tolist() == [2.0] * 4, "what one side takes is not in the other"
    said = kdbench("compare", "results", "results", "--before", old)
    assert said.code == 0
    assert f"results ({old}) → results" in said.out


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ((), 2, "results: a folder and no second one"),
        (("results",), 2, "results: a folder and no second one"),
        (("--before", "torch_version=2.13.0+cpu"), 2, "--before: no cells left"),
        (("--after", "torch=2"), 2, "--after: unknown column 'torch'"),
        (("--after", "seed"), 2, "--after: expected COLUMN=V1,V2, found 'seed'"),
        (("--before", "seed=0"), 3, "--before: it leaves no runs for the other side"),
        (("--before", "seed=0", "--after", "seed=0"), 2, "both sides are the same 4 runs"),
        (("--before", "method=embed-kd"), 3, "nothing comparable: the two sides have no label"),
        (("missing",), 2, "missing: expected a results folder"),
        (("copy", "--metric", "step"), 2, "--metric: unknown metric 'step'"),
        (("copy", "--format", "xml"), 2, "--format: expected one of"),
        (("copy", "--only", "method=x"), 2, "--only: no cells left"),
        (("copy",), 2, "both sides are the same 4 runs"),
        (("empty",), 2, "no results yet"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_line(tmp_path, kdbench, options, code, told):
    for name in ("results", "copy"):
        commit(tmp_path / name / "fig4", paper_rows())
    commit(tmp_path / "empty/fig4", [])
    said = kdbench("compare", "results", *options)
    assert said.code == code, said
    assert said.err.startswith("kdbench: ")
    assert told in said.err
    assert said.err.count("\n") == 1


def test_a_folder_that_was_gone_on_with_shares_runs(sides):
    """Copied, then more was run: the cells that are the same runs say so."""
    new = cell_row("embed-kd", started_at=STARTED.replace(year=2027))
    found = sides([cell_row(), cell_row("embed-kd")], [cell_row(), new])
    assert [(pair.name, pair.shared) for sheet in found.sheets for pair in sheet.pairs] == [
        (TEACHER, True),
        (EMBED, False),
    ]
    assert f"the same runs are on both sides, wholly or in part: {TEACHER}" in printed(found)


def test_a_run_made_again_is_another_run(tmp_path, kdbench):
    """Its run_key is the same: it says what is run, and not when."""
    for name, hour in (("a", 3), ("b", 4)):
        store = Store(tmp_path / name / "fig4")
        store.prepare()
        row = cell_row(started_at=STARTED.replace(hour=hour))
        store.commit("5eed", {"cells": [row]})
    said = kdbench("compare", "a", "b")
    assert said.code == 0
    assert "the same runs" not in said.out


def test_software_beside_torch_is_told(sides):
    packages = {"transformers": "5.0", "torch": "2.11", "triton": None, "pandas": "3.0"}
    known = {"python_version": "3.11.2", "packages": packages}
    later = {**known, "packages": {"transformers": "5.1", "torch": "2.13", "triton": "3.4"}}
    found = sides(
        paper_rows(environment=json.dumps(known)),
        paper_rows(environment=json.dumps(later), git_revision="bb99"),
    )
    told = "transformers 5.0 → 5.1, triton none → 3.4, kdbench aa1203a0f00d → bb99"
    assert f"software differs: {told}\n" in printed(found, width=200), "pandas is not known"
    assert "DIFFERENT" not in printed(found), "times are not known to depend on it"


@pytest.mark.parametrize("broken", ["", "no json", "[]", '{"packages": 3}'])
def test_an_environment_that_is_no_json_is_passed_over(sides, broken):
    found = sides(paper_rows(environment=broken), paper_rows(**NEW))
    assert "software differs" not in printed(found)


def test_extrapolated_against_measured_is_told(sides):
    found = sides([cell_row()], [cell_row(epoch_seconds_kind="measured", **NEW)])
    text = printed(found)
    assert "time per epoch: extrapolated before alone" in text
    row = figures(found, TEACHER, "epoch_time")
    assert (row["before_extrapolated"], row["after_extrapolated"]) == (True, False)


def test_json_and_csv_are_one_row_per_matrix_label_and_metric(sides, kdbench):
    found = sides(paper_rows(runs=6), paper_rows(runs=6, **NEW))
    frame = summary(found)
    assert not frame.duplicated(["matrix", "label", "metric"]).any()
    said = kdbench("compare", "a", "b", "--format", "json")
    rows = json.loads(said.out)
    assert len(rows) == len(frame) == 4 * 5 + 3 * 2
    first = next(row for row in rows if row["metric"] == "step_time")
    assert first["ratio_low"] <= first["ratio"] <= first["ratio_high"]
    assert first["unit"] == "seconds"
    assert first["no_interval"] is None
    read = pd.read_csv(StringIO(kdbench("compare", "a", "b", "--format", "csv").out))
    assert read["ratio"].tolist() == pytest.approx(frame["ratio"].tolist())
    whole = kdbench("compare", "a", "b", "--format", "json", "--metric", "all")
    assert {row["metric"] for row in json.loads(whole.out)} == set(frame["metric"])


def test_markdown_is_a_table_and_cannot_be_broken(sides):
    odd = cell_row(label="a|b*[x](y)\x1b", step_seconds_median=2.0)
    text = markdown(sides([odd], [{**odd, **NEW}]))
    lines = text.splitlines()
    (row,) = [line for line in lines if "time per step" in line]
    assert row.startswith(r"| a\|b\*\[x\](y)\\x1b")
    assert "environment differs: torch 2.11.0+cpu → 2.13.0+cpu" in lines
    table = [line for line in lines if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in table} == {7}


def test_labels_cannot_control_the_terminal(sides):
    odd = cell_row(label="[red]x[/red]\x1b[31m")
    text = printed(sides([odd], [{**odd, **NEW}]))
    assert "\x1b" not in text
    assert r"[red]x[/red]\x1b[31m" in text


def test_the_table_fits_a_terminal(sides):
    rows = paper_rows(runs=2, **{**GPU, "reserved_peak_bytes": 10**10, "energy_step_joules": 3.0})
    text = printed(sides(rows, [{**row, "batch_size": 8} for row in rows]), width=100)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "…" not in text
    assert "2 processes each: no interval" in text


def test_trainings_are_compared_too(tmp_path, kdbench):
    for name, changes in (("a", {}), ("b", NEW)):
        commit_trainings(tmp_path / name / "quickstart", trained_rows(**changes))
    said = kdbench("compare", "a", "b")
    assert said.code == 0
    assert "test accuracy" in said.out
    assert "3 seeds each: no interval" in said.out


def test_a_real_run_against_itself_again(finished, kdbench, tmp_path):
    """What two real folders hold is compared; the allocated bytes are the same to the last."""
    (tmp_path / "tiny.toml").write_text(TINY)
    arguments = ("--matrix", "tiny.toml", "--device", "cpu", "--only", "method=embed-kd")
    assert kdbench("run", *arguments, "--out", "again").code == 0
    said = kdbench("compare", finished, "again", "--format", "json")
    assert said.code == 0, said
    rows = {(row["label"], row["metric"]): row for row in json.loads(said.out)}
    (allocated,) = [
        row for (_, metric), row in rows.items() if (metric, row["has"]) == ("allocated", "both")
    ]
    assert (allocated["difference"], allocated["exact"]) == (0, True)
    assert allocated["before"] > 0
    assert {row["has"] for row in rows.values()} == {"both", "before"}


def test_two_methods_of_one_folder_are_joined_on_the_other_axes(tmp_path, kdbench):
    rows = [
        cell_row(method, "base", size, label_extra, step_seconds_median=seconds)
        for method, seconds in (("teacher-kd", 2.0), ("embed-kd", 1.0), ("student-only", 0.5))
        for size, label_extra in ((32, "vit-large-patch32"), (64, "vit-large-patch32"))
    ]
    commit(tmp_path / "results/fig4", rows)
    metric = ("--metric", "step_time", "--format", "csv")
    for after, ratio in (("embed-kd", 0.5), ("student-only", 0.25)):
        picked = ("--before", "method=teacher-kd", "--after", f"method={after}")
        said = kdbench("compare", "results", *picked, *metric)
        assert said.code == 0, said
        frame = pd.read_csv(StringIO(said.out))
        assert frame["ratio"].tolist() == [ratio] * 2
        for one, other in zip(frame["before_label"], frame["after_label"], strict=True):
            assert one.split("/")[:3] == ["teacher-kd", *other.split("/")[1:3]]
        assert f"method teacher-kd → {after}" in frame["changed_settings"][0]
        said = kdbench("compare", "results", *picked)
        assert "method=" not in said.out.partition("cell")[2]
    said = kdbench("compare", "results", "--before", "image_size=32", "--after", "image_size=64")
    assert said.code == 0
    assert "image_size 32 → 64" in said.out


def test_another_axis_of_the_label_is_joined_too(sides):
    def row(batch, **changes):
        label = f"{TEACHER}/batch_size={batch}"
        return cell_row(batch_size=batch, label=label, **changes)

    found = sides([row(8), row(16)], [row(8), row(16)], only_before=["batch_size=8"])
    assert [pair.name for sheet in found.sheets for pair in sheet.pairs] == [
        f"{TEACHER}/batch_size=8"
    ], "a label in common comes first"
    found = sides(
        [row(8), row(16)],
        [row(8), row(16)],
        only_before=["batch_size=8"],
        only_after=["batch_size=16"],
    )
    (pair,) = (pair for sheet in found.sheets for pair in sheet.pairs)
    assert pair.name == TEACHER
    assert (pair.before.settings["batch_size"], pair.after.settings["batch_size"]) == (8, 16)


def test_what_would_answer_is_said(tmp_path, kdbench):
    commit(tmp_path / "a/fig4", [cell_row("teacher-kd"), cell_row("teacher-kd", "large")])
    commit(tmp_path / "b/fig4", [cell_row("embed-kd", "large", 64)])
    said = kdbench("compare", "a", "b")
    assert said.code == 3
    options = "--before method=teacher-kd image_size=32 --after method=embed-kd image_size=64"
    words = options.replace(" image_size=32", " --before image_size=32")
    words = words.replace(" image_size=64", " --after image_size=64")
    assert f"{words} would set the nearest cells side by side" in said.err
    said = kdbench("compare", "a", "b", *words.split())
    assert said.code == 0
    assert "image_size 32 → 64" in said.out


def test_an_axis_that_one_side_lacks_is_picked_on_the_other_alone(tmp_path, kdbench):
    swept = cell_row("teacher-kd", label=f"{TEACHER}/alpha2=0.1", alpha2=0.1)
    commit(tmp_path / "a/fig4", [swept])
    commit(tmp_path / "b/fig4", [cell_row("teacher-kd", alpha2=0.3)])
    said = kdbench("compare", "a", "b")
    assert said.code == 3
    assert "--before alpha2=0.1 would set the nearest cells side by side" in said.err
    assert kdbench("compare", "a", "b", "--before", "alpha2=0.1").code == 0


def test_contended_or_disagreeing_runs_have_no_ratio(sides):
    busy = {"contended": True, "contention": "others kept 1.3 of 2 processors busy"}
    before = [*repeats(seconds=(1.0, 1.02)), *repeats("embed-kd", seconds=(1.0, 1.0))]
    after = [*repeats(seconds=(0.5, 5.0)), *repeats("embed-kd", seconds=(2.0, 2.0), **busy)]
    found = sides(before, after, metrics=["step_time", "allocated"])
    for label, why in ((TEACHER, "disagree"), (EMBED, "contended")):
        row = figures(found, label, "step_time")
        assert pd.isna(row["ratio"])
        assert row["no_interval"] == f"{why}: no ratio"
        assert figures(found, label, "allocated")["ratio"] == 1
    assert "2.00 s?" in printed(found)


def test_how_far_many_runs_disagree_is_in_the_interval(sides):
    wide = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    again = repeats(seconds=wide, git_revision="another")
    found = sides(repeats(seconds=wide), again, metrics=["step_time"])
    row = figures(found, TEACHER, "step_time")
    assert row["ratio_low"] < row["ratio"] == 1 < row["ratio_high"]


def test_a_ratio_never_crosses_modes(sides):
    trained = [cell_row(mode="train"), cell_row("embed-kd", mode="train")]
    found = sides([cell_row(), cell_row("embed-kd")], trained, metrics=["step_time"])
    row = figures(found, TEACHER, "step_time")
    assert pd.isna(row["ratio"])
    assert row["no_interval"] == "profiled against trained: no ratio"


def test_profiled_and_trained_cells_of_a_label_are_told_apart(sides):
    both = [cell_row(), cell_row(mode="train")]
    found = sides(both, [row | {"step_seconds_median": 2.0} for row in both], metrics=["step_time"])
    assert [pair.name for sheet in found.sheets for pair in sheet.pairs] == [
        f"{TEACHER} (profiled)",
        f"{TEACHER} (trained)",
    ]


def test_utilisations_are_shares_of_the_same_rate(sides):
    def row(rate):
        own = {"flops_step": 2e9, "matmul_flops_per_second": rate, "rates_steady": True}
        return [cell_row(**own, rates_contended=False)]

    found = sides(row(4e9), row(8e9), metrics=["utilisation"])
    told = figures(found, TEACHER, "utilisation")
    assert (told["before"], told["after"], told["ratio"]) == (0.25, 0.25, 1)


@pytest.mark.parametrize(
    ("width", "least"),
    [(44, "ratio"), (60, "before"), (80, "or difference"), (200, "or difference")],
)
def test_a_narrow_terminal_has_fewer_columns_and_no_broken_ones(sides, width, least):
    after = [{**row, "batch_size": 128, **NEW} for row in paper_rows(step_data_seconds=0.1)]
    found = sides(paper_rows(step_data_seconds=0.1), after, metrics=["allocated", "data_time"])
    text = printed(found, width=width)
    assert all(len(line) <= width for line in text.splitlines())
    table = text[text.index("cell  ") :]
    assert least in table
    # what was measured stands whole, in a line of its own
    assert len([line for line in table.splitlines() if " 1.000" in line]) == 8
    assert ("too narrow for all: 95 % interval" in " ".join(text.split())) is (width < 80)
