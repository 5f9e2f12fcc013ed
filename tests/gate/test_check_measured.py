"""The gate on measured results: bytes to the byte, times by a test, and unlike machines never."""

import json

import pyarrow.parquet as pq
import pytest

from kdbench.spec.cell import digest
from kdbench.store import Store
from kdbench.store.schema import SCHEMA_VERSION
from tests.conftest import TINY
from tests.support.analysis_fixtures import GPU, STARTED, no_numbers
from tests.support.gated import MB, SPREAD, measured_row, stored


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    """These stores need not outlive a power cut, and there are many."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def measured(kdbench, tmp_path):
    """Write a baseline of measured results; call with other results to check them against it."""
    path = tmp_path / "measured.txt"
    before = stored(tmp_path / "before")
    assert kdbench("check", before, "--baseline", path, "--update").code == 0

    def call(*arguments, **changes):
        results = stored(tmp_path / f"after-{digest(sorted(map(str, changes.items())))}", **changes)
        return kdbench("check", results, "--baseline", path, *arguments)

    call.path = path
    return call


def test_the_same_results_hold(measured):
    done = measured(seconds=SPREAD[::-1])
    assert done.code == 0
    assert done.out.splitlines()[-1] == "held: 12 held; 2 cells"


def test_bytes_of_measured_runs_are_exact(measured):
    done = measured(allocated_peak_bytes=2_000_000_001, memory=50 * MB + 1)
    assert done.code == 1
    assert "+1 B" in done.out
    assert "activations +1 B: student.blocks.*" in done.out


def test_a_slower_step_fails_and_a_faster_one_is_told(measured):
    done = measured(seconds=[1.2 * value for value in SPREAD])
    assert done.code == 1
    assert "regressed  step_seconds  " in done.out
    assert "+20.0%" in done.out
    done = measured(seconds=[value / 1.2 for value in SPREAD])
    assert done.code == 0
    assert "improved  step_seconds" in done.out


def test_too_few_processes_cannot_tell(measured):
    done = measured(seconds=SPREAD[:2])
    assert done.code == 3
    assert "cannot tell  step_seconds" in done.out
    assert "10 processes before and 2 after are too few: 3 more, at least" in done.out


def test_a_gate_on_memory_alone_needs_no_repeats(measured, tiny):
    tiny.write_text(TINY.replace('name = "tiny"', 'name = "fig4"') + OFF)
    done = measured("--matrix", tiny, seconds=[1.0])
    assert done.code == 0
    assert "not compared, by [tolerances]: step_seconds" in done.out


OFF = '\n[tolerances]\nstep_seconds = "off"\n'


def test_the_matrix_files_tolerance_of_time_is_used(measured, tiny):
    tiny.write_text(TINY.replace('name = "tiny"', 'name = "fig4"'))
    slower = [1.2 * value for value in SPREAD]
    assert measured("--matrix", tiny, seconds=slower).code == 1
    assert (
        measured("--matrix", tiny, "--set", "tolerances.step_seconds=0.5", seconds=slower).code == 0
    )


def test_a_gate_of_many_cells_alarms_no_more_often_than_one(kdbench, tmp_path):
    """The chance of an alarm is shared: a verdict that one cell would get, eight may not."""
    slower = [value * 1.07 for value in SPREAD[:5]]
    codes = {}
    for count in (1, 8):
        methods = [f"method-{n}" for n in range(count)]
        path = tmp_path / f"{count}.txt"
        before = stored(tmp_path / f"before{count}", seconds=SPREAD[:5], methods=methods)
        after = stored(tmp_path / f"after{count}", seconds=slower, methods=methods)
        assert kdbench("check", before, "--baseline", path, "--update").code == 0
        codes[count] = kdbench("check", after, "--baseline", path).code
    assert codes == {1: 1, 8: 3}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cpu_model": "another"}, "cpu_model was Intel(R)"),
        ({"threads": 8}, "threads was 2 and is 8"),
    ],
)
def test_times_of_unlike_machines_are_refused_and_bytes_are_not(measured, changes, expected):
    done = measured(seconds=[9.0] * 10, **changes)
    assert done.code == 3
    assert "all cells\n  not comparable: times of unlike machines: " in done.out
    assert expected in done.out
    assert done.out.splitlines()[-1] == "cannot tell: 1 not comparable, 10 held; 2 cells"
    assert measured(allocated_peak_bytes=2_000_000_001, **changes).code == 1


def test_another_torch_bars_bytes_of_measured_runs_even_in_its_build(measured):
    done = measured(torch_version="2.11.0")
    assert done.code == 3
    assert "exact figures: torch_version was 2.11.0+cpu and is 2.11.0" in done.out
    assert "times of unlike machines" in done.out
    assert "held" not in done.out.splitlines()[-1]


def test_another_card_bars_bytes(kdbench, tmp_path):
    path = tmp_path / "gpu.txt"
    assert kdbench("check", stored(tmp_path / "a", **GPU), "--baseline", path, "--update").code == 0
    other = {**GPU, "gpu_name": "NVIDIA A100"}
    done = kdbench("check", stored(tmp_path / "b", **other), "--baseline", path)
    assert done.code == 3
    assert "exact figures: gpu_name was NVIDIA H200 and is NVIDIA A100" in done.out


def test_polled_and_reserved_figures_are_told_and_decide_nothing(kdbench, tmp_path):
    path = tmp_path / "gpu.txt"
    figures = {"reserved_peak_bytes": 3 * 10**9, "process_peak_bytes": 4 * 10**9}
    before = stored(tmp_path / "a", **GPU, **figures)
    assert kdbench("check", before, "--baseline", path, "--update").code == 0
    more = {name: 2 * size for name, size in figures.items()}
    done = kdbench("check", stored(tmp_path / "b", **GPU, **more), "--baseline", path)
    assert done.code == 0
    assert "differs  reserved_peak_bytes" in done.out
    assert "differs  process_peak_bytes" in done.out
    little = {name: size + 1 for name, size in figures.items()}
    done = kdbench("check", stored(tmp_path / "c", **GPU, **little), "--baseline", path)
    assert (done.code, "differs" in done.out) == (0, False)


def test_contended_processes_are_left_out_of_times(measured):
    done = measured(seconds=[5.0] * 10, contended=True)
    assert done.code == 3
    note = "the times of 10 of 10 processes are left out, as others used the machine"
    assert done.out.count(note) == 1, "both cells are in one note"
    assert "in the baseline, and without a value now" in done.out


def test_a_change_that_others_load_may_explain_is_none(kdbench, tmp_path):
    path = tmp_path / "quiet.txt"
    quiet, busy = [0.1] * 10, [0.1 + n / 10 for n in range(1, 11)]
    slower = [1.2 * value for value in SPREAD]
    before = stored(tmp_path / "quiet", loads=quiet)
    assert kdbench("check", before, "--baseline", path, "--update").code == 0
    assert " cpu_elsewhere 0.1 0.1 " in path.read_text()
    expected = {"busy": (busy, 3), "quiet": (quiet, 1), "unknown": (None, 1)}
    for name, (loads, code) in expected.items():
        after = stored(tmp_path / f"after-{name}", seconds=slower, loads=loads)
        done = kdbench("check", after, "--baseline", path)
        assert done.code == code, name
        assert ("but others kept the machine busier after" in done.out) == (name == "busy")


def test_times_that_neither_side_can_use_are_no_pass(kdbench, tmp_path):
    path = tmp_path / "busy.txt"
    busy = stored(tmp_path / "busy", contended=True)
    done = kdbench("check", busy, "--baseline", path, "--update")
    assert done.code == 0
    assert "as others used the machine; no time is left" in done.err
    assert "step_seconds" not in path.read_text()
    done = kdbench("check", busy, "--baseline", path)
    assert done.code == 3
    assert "neither side has processes that had the machine alone" in done.out


def test_forks_cannot_be_tested(kdbench, tmp_path):
    path = tmp_path / "forked.txt"
    before = stored(tmp_path / "a", launch="fork")
    assert kdbench("check", before, "--baseline", path, "--update").code == 0
    done = kdbench("check", before, "--baseline", path)
    assert done.code == 3
    assert 'launch = "spawn" can be tested' in done.out


def test_another_launch_is_not_compared_in_time(measured):
    done = measured(launch="fork")
    assert done.code == 3
    assert "launch was spawn and is fork" in done.out
    assert "changed: launch spawn → fork" in done.out


def test_runs_that_disagree_count_by_the_highest(kdbench, tmp_path, measured):
    results = stored(tmp_path / "more")
    row = measured_row(repeat=99, allocated_peak_bytes=2_000_000_064)
    Store(results / "fig4").commit("odd", {"cells": [row]})
    done = kdbench("check", results, "--baseline", measured.path)
    assert done.code == 1
    assert "allocated_peak_bytes differs between its runs, from 2000000000 to 2000000064" in (
        done.out
    )


def test_a_run_that_failed_fails_the_gate(measured, kdbench, tmp_path):
    results = stored(tmp_path / "failing")
    row = measured_row(repeat=99, **no_numbers("oom", "out of memory"))
    Store(results / "fig4").commit("failing", {"cells": [row]})
    done = kdbench("check", results, "--baseline", measured.path)
    assert done.code == 1
    assert "failed: 1 of 11 runs failed: oom: out of memory" in done.out


def test_the_latest_settings_under_a_label_count(measured, kdbench, tmp_path):
    results = stored(tmp_path / "both")
    stored(results, methods=["teacher-kd"], batch_size=128, started_at=STARTED.replace(year=2027))
    done = kdbench("check", results, "--baseline", measured.path, "--format", "json")
    label = "teacher-kd/base/32px/vit-large-patch32"
    assert json.loads(done.out)["changed_settings"][label]["batch_size"]["after"] == "128"


def test_predictions_and_measurements_are_not_compared(
    measured, predicted, kdbench, tiny, tmp_path
):
    done = kdbench("check", "--matrix", tiny, "--baseline", measured.path)
    assert done.code == 3
    assert "the baseline is measured, this predicted" in done.out
    done = kdbench("check", stored(tmp_path / "x"), "--baseline", predicted.path)
    assert done.code == 3
    assert "the baseline is predicted, this measured" in done.out


def test_predicted_rows_in_a_folder_are_not_what_was_measured(measured, kdbench, tmp_path):
    done = measured(source="predicted", profile="cpu")
    assert done.code == 2
    assert "no measured runs here" in done.err


def test_several_environments_need_a_choice_unless_the_baseline_makes_it(
    measured, kdbench, tmp_path
):
    results = stored(tmp_path / "two")
    stored(results, threads=8)
    assert kdbench("check", results, "--baseline", measured.path).code == 0
    done = kdbench("check", results, "--baseline", tmp_path / "new.txt", "--update")
    assert done.code == 2
    assert "results of several environments: " in done.err
    picked = ("--environment", "8 threads")
    done = kdbench("check", results, "--baseline", tmp_path / "new.txt", "--update", *picked)
    assert done.code == 0
    assert "about threads 8\n" in (tmp_path / "new.txt").read_text()


def test_several_matrices_need_a_choice_unless_the_baseline_makes_it(measured, kdbench, tmp_path):
    results = stored(tmp_path / "two")
    other = Store(results / "other")
    other.prepare()
    other.commit("other", {"cells": [measured_row(matrix="other")]})
    assert kdbench("check", results, "--baseline", measured.path).code == 0
    done = kdbench("check", results, "--baseline", tmp_path / "new.txt", "--update")
    assert done.code == 2
    assert "results of several matrices: 'fig4', 'other'; name one's folder" in done.err


def test_a_damaged_part_is_named_and_its_cell_is_not_taken_for_measured(
    measured, kdbench, tmp_path
):
    results = stored(tmp_path / "damaged", seconds=[1.0])
    assert kdbench("check", results, "--baseline", measured.path, "--format", "json").code == 3
    for part in (results / "fig4" / "cells").glob("*.parquet"):
        labels = pq.ParquetFile(part).read(columns=["label"])["label"].to_pylist()
        if any("teacher-kd" in label for label in labels):
            part.write_bytes(part.read_bytes()[:100])
    done = kdbench("check", results, "--baseline", measured.path)
    assert done.code == 3
    assert "left out" in done.err
    assert "damaged: " in done.err
    assert "not comparable: in the baseline, and not there now" in done.out


@pytest.mark.parametrize("table", ["cells", "memory"])
@pytest.mark.parametrize("damage", ["cut off", "newer"])
def test_an_update_drops_nothing_that_could_not_be_read(
    measured, kdbench, tmp_path, monkeypatch, table, damage
):
    before = measured.path.read_text()
    results = stored(tmp_path / "damaged", seconds=[1.0])
    part = min((results / "fig4" / table).glob("*.parquet"))
    if damage == "newer":
        with monkeypatch.context() as patch:
            patch.setattr("kdbench.store.layout.SCHEMA_VERSION", SCHEMA_VERSION + 1)
            newer = stored(tmp_path / "newer", seconds=[1.0])
        part.write_bytes((newer / "fig4" / table / part.name).read_bytes())
    else:
        part.write_bytes(part.read_bytes()[:900])
    told = (
        f"kdbench: {results}: nothing is written to the baseline: expected results that can all "
        "be read, found 1 left out"
    )
    for path in (measured.path, tmp_path / "first.txt"):
        done = kdbench("check", results, "--baseline", path, "--update")
        assert (done.code, done.out) == (2, "")
        warned, refused = done.err.splitlines()
        assert warned.startswith(f"kdbench: left out {part}: ")
        assert refused == told
    assert measured.path.read_text() == before
    assert not (tmp_path / "first.txt").exists()


@pytest.mark.parametrize(
    ("damage", "code", "expected"),
    [
        ("missing", 2, "expected a results folder, found nothing there"),
        ("empty", 2, "no results yet: no run is committed here"),
        ("foreign", 2, "not a results folder"),
        ("newer", 2, f"a newer kdbench wrote it: schema version {SCHEMA_VERSION + 1}, this one"),
    ],
)
def test_broken_results_each_have_their_message(
    measured, kdbench, tmp_path, monkeypatch, damage, code, expected
):
    results = tmp_path / damage
    if damage == "empty":
        Store(results / "fig4").prepare()
    elif damage == "foreign":
        (results / "pictures").mkdir(parents=True)
    elif damage == "newer":
        with monkeypatch.context() as patch:
            patch.setattr("kdbench.store.layout.SCHEMA_VERSION", SCHEMA_VERSION + 1)
            stored(results, seconds=[1.0])
    done = kdbench("check", results, "--baseline", measured.path)
    assert (done.code, done.out) == (code, "")
    assert expected in done.err
